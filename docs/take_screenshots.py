"""Takes the pictures of docs/pictures: opens the MLflow UI on a store in a headless Chromium and photographs it.

python docs/take_screenshots.py --tracking-uri sqlite:///mlflow.db --output docs/pictures

Needs `chromium` and `chromedriver` (Debian: apt-get install chromium chromium-driver). Everything listens on 127.0.0.1.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.config.tracking import TrackingConfig
from pipeline.tracking import Store, mlflow_internals

WIDTH, HEIGHT = 1640, 1000
PATIENCE = 90.0
MOST_BYTES = 300_000
PREFERENCES = """
localStorage['mlflow.assistant.panelOpen_v1'] = 'false';
localStorage['mlflow.assistant.fab.autoOpenedOnFirstLoad_v1'] = 'true';
"""
HIDE_PATH = """
[...document.querySelectorAll('*')].filter(e => e.innerText && e.innerText.trim().startsWith('Path:')
    && e.children.length < 4).forEach(e => e.style.visibility = 'hidden');
"""  # hides the path of the store on this machine
EXPAND = """
document.querySelectorAll('button[aria-label="Hide banner"]').forEach(b => b.click());
document.querySelectorAll('button[aria-label="Toggle sidebar"]').forEach(b => b.click());
[...document.querySelectorAll('button')].filter(b => (b.getAttribute('data-component-id') || '')
    .includes('runnamecellrenderer')).forEach(b => b.click());
"""


class Browser:
    """A headless Chromium, controlled through the WebDriver protocol.

    Args:
        driver: address of chromedriver.
        profile: folder for the browser's files.
        settle: seconds that a page gets to draw itself.
    """

    def __init__(self, driver: str, profile: Path, settle: float) -> None:
        self.settle = settle
        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            f"--window-size={WIDTH},{HEIGHT}", f"--user-data-dir={profile}", "--force-device-scale-factor=1",
            "--disable-background-networking", "--no-first-run",
        ]  # fmt: skip
        capabilities = {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": options, "binary": shutil.which("chromium")},
        }
        session = _post(f"{driver}/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._url = f"{driver}/session/{session['sessionId']}"

    def open(self, address: str, words: list[str]) -> None:
        """Opens a page and waits until it shows all the words.

        Raises:
            TimeoutError: some words did not appear; the message holds the text of the page.
        """
        _post(f"{self._url}/url", {"url": address})
        deadline = time.monotonic() + PATIENCE
        text = ""
        while time.monotonic() < deadline:
            text = str(self.run("return document.body ? document.body.innerText : ''"))
            if all(word.lower() in text.lower() for word in words):
                return
            time.sleep(0.5)
        raise TimeoutError(
            f"{address}: no {[word for word in words if word.lower() not in text.lower()]} in: {text[:1500]}"
        )

    def run(self, script: str) -> Any:
        """Runs JavaScript in the page."""
        return _post(f"{self._url}/execute/sync", {"script": script, "args": []})

    def picture(self) -> Image.Image:
        """Photographs the window."""
        time.sleep(self.settle)  # charts and pictures fade in
        with urllib.request.urlopen(f"{self._url}/screenshot", timeout=60) as answer:  # noqa: S310
            content = json.loads(answer.read())["value"]
        return Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")

    def close(self) -> None:
        """Ends the browser."""
        request = urllib.request.Request(self._url, method="DELETE")  # noqa: S310
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=20):  # noqa: S310
            pass


def main() -> None:
    """Parses, takes the pictures, prints their paths."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    arguments.add_argument(
        "--tracking-uri", help="MLflow store (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)"
    )
    arguments.add_argument("--output", type=Path, default=Path(__file__).parent / "pictures")
    given = arguments.parse_args()
    store = Store.open(TrackingConfig(uri=given.tracking_uri), create=False)
    for picture in take(store, given.output):
        print(f"{picture} ({picture.stat().st_size / 1000:.0f} kB)")  # noqa: T201


def take(store: Store, output: Path, settle: float = 8.0) -> list[Path]:
    """Photographs run list, compare view, curves and figures of a run, and the registered model of a store."""
    output.mkdir(parents=True, exist_ok=True)
    made = []
    with user_interface(store) as root, browser(settle) as window:
        window.open(root, ["MLflow"])
        window.run(PREFERENCES)
        for name, (address, words, script) in pages(store).items():
            window.open("about:blank", [])
            window.open(f"{root}/#/{address}", words)
            for step in script:
                time.sleep(2.0)
                window.run(step)
            made.append(save(window.picture(), output / f"mlflow-{name}.png"))
    return made


def pages(store: Store) -> dict[str, tuple[str, list[str], list[str]]]:
    """Returns the pages to show: name to address, words that must appear, JavaScript to run before the picture."""
    client = store.client
    sweep = next(row for row in store.search("tags.kind = 'sweep'") if store.children(row.run_id))
    trials = store.children(sweep.run_id)
    ours = [
        row for row in trials if row.tags["architecture"] == "d2ls"
    ]  # a baseline has no dictionary to show
    best = max(ours, key=lambda row: row.metrics.get("val/miou", 0.0))
    experiment = client.get_run(sweep.run_id).info.experiment_id
    runs = urllib.parse.quote(json.dumps([row.run_id for row in trials[:4]]))
    learning = "workflowType=machine_learning"
    run = f"experiments/{experiment}/runs/{best.run_id}"
    (model, *_) = client.search_registered_models()
    version = next(iter(model.aliases.values()), "1")
    return {
        "runs": (mlflow_internals.run_list("", experiment).removeprefix("/#/"), [sweep.name], [EXPAND]),
        "compare": (
            f"compare-runs?runs={runs}&experiments=%5B%22{experiment}%22%5D&{learning}",
            ["Parallel"],
            [],
        ),
        "run": (f"{run}?{learning}", [best.name, "val/miou"], []),
        "curves": (f"{run}/model-metrics?{learning}", ["train", "val"], [_scroll_to(r"val \(\d+\)")]),
        "figures": (f"{run}/artifacts/figures/predictions.png?{learning}", ["predictions.png"], [HIDE_PATH]),
        "dictionary": (f"{run}/artifacts/figures/dictionary.png?{learning}", ["dictionary.png"], [HIDE_PATH]),
        "model": (f"models/{model.name}?{learning}", [model.name, "champion"], []),
        "version": (f"models/{model.name}/versions/{version}?{learning}", ["champion", "Limits"], []),
    }


def save(picture: Image.Image, file: Path) -> Path:
    """Writes a PNG of at most 300 kB, with as many colours as that allows."""
    for colors in (256, 128, 64, 32):
        picture.quantize(colors, dither=Image.Dither.NONE).save(file, optimize=True)
        if file.stat().st_size < MOST_BYTES:
            break
    return file


@contextlib.contextmanager
def user_interface(store: Store) -> Iterator[str]:
    """Runs `mlflow ui` on the store, on loopback, until the block ends; yields its address."""
    port = _free_port()
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store.uri, "--host", "127.0.0.1"]
    with _process([*command, "--port", str(port), "--workers", "1"], environment):
        _wait(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def browser(settle: float = 8.0) -> Iterator[Browser]:
    """Runs chromedriver and a Chromium until the block ends."""
    port = _free_port()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        _process(["chromedriver", f"--port={port}"], dict(os.environ)),
    ):
        _wait(f"http://127.0.0.1:{port}/status")
        window = Browser(f"http://127.0.0.1:{port}", Path(profile), settle)
        try:
            yield window
        finally:
            window.close()


@contextlib.contextmanager
def _process(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Runs a command in a new process group, and ends the group."""
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)


def _scroll_to(pattern: str) -> str:
    """Returns JavaScript that scrolls to the innermost element whose whole text matches."""
    return (
        f"const all = [...document.querySelectorAll('*')].filter(e => e.innerText && /^{pattern}$/.test(e.innerText"
        ".replace(/\\s+/g, ' ').trim())); if (all.length) all[all.length - 1].scrollIntoView({block: 'start'});"
    )


def _post(url: str, content: dict[str, Any]) -> Any:
    request = urllib.request.Request(  # noqa: S310
        url, json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
            return json.loads(answer.read())["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{url}: {error.read().decode()[:600]}") from error


def _wait(url: str) -> None:
    deadline = time.monotonic() + 2 * PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):  # noqa: S310
            return
        time.sleep(0.3)
    raise TimeoutError(f"{url} does not answer")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
