"""Makes docs/pictures/training_progress.png and training_profile.png from a real training with `--profile`.

python docs/training_pictures.py demo train.epochs=6        in a folder where the recipe's shards are

The first is the terminal in the middle of an epoch, the second the trace of one step, drawn from the file that
https://ui.perfetto.dev shows. Needs `chromium` (Debian: apt-get install chromium).
"""

import argparse
import gzip
import io
import json
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
from PIL import Image
from rich.console import Console
from rich.text import Text

PICTURES = Path(__file__).parent / "pictures"
COLUMNS, ROWS = 150, 30
SMALLEST = 0.004
"""Events shorter than this share of the step are left out."""


def main() -> None:
    """Trains in a new terminal, and draws both pictures."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("recipe")
    arguments.add_argument("overrides", nargs="*")
    arguments.add_argument("--output-dir", default="runs", help="where the recipe keeps its runs")
    given = arguments.parse_args()
    name = f"pictured-{int(time.time())}"
    words = ["pipeline.train", given.recipe, *given.overrides, f"output_dir={given.output_dir}", "--profile"]
    shown = screen(watch([sys.executable, "-m", *words, "--name", name]))
    picture_of_terminal(f"python -m {shlex.join(words[:-2])} --profile", shown)
    picture_of_step(Path(given.output_dir) / name / "profile.json.gz")


def watch(command: list[str]) -> bytes:
    """Runs a command in a terminal; returns its output up to the last progress line."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"COLUMNS": str(COLUMNS), "LINES": str(ROWS), "TERM": "xterm-256color"}
        os.execvp(command[0], command)  # noqa: S606 (our own command, no shell)
    written = b""
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not block:
            break
        written += block
    os.waitpid(pid, 0)
    end = written.rfind(b" left")
    if end < 0:
        raise SystemExit(f"no progress line in what the command wrote:\n{written.decode(errors='replace')}")
    return written[: end + len(b" left")]


def screen(written: bytes) -> list[str]:
    """Returns the lines that a terminal would show, without erased ones."""
    text = re.sub(r"\x1b\[\?25[lh]", "", written.decode(errors="replace")).replace("\r\n", "\n")
    lines = [re.split(r"\r?\x1b\[2K|\r", line)[-1] for line in text.split("\n")]
    return [re.sub(r"\x1b\[1A", "", line) for line in lines if line.strip()][-ROWS:]


def picture_of_terminal(command: str, lines: list[str]) -> None:
    """Draws lines as a terminal window."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text(f"$ {command}", style="bold"))
    for line in lines:
        console.print(Text.from_ansi(line))
    with tempfile.TemporaryDirectory() as scratch:
        drawing, target = Path(scratch, "terminal.svg"), Path(scratch, "terminal.png")
        drawing.write_text(console.export_svg(title="training"))
        width, height = (round(float(item)) for item in _view_box(drawing.read_text()))
        subprocess.run(
            [
                "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--window-size={width},{height}", f"--user-data-dir={scratch}/profile", f"--screenshot={target}",
                drawing.as_uri(),
            ],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        Image.open(target).convert("P", palette=Image.Palette.ADAPTIVE).save(
            PICTURES / "training_progress.png", optimize=True
        )


def _view_box(drawing: str) -> list[str]:
    match = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing)
    assert match
    return list(match.groups())


def picture_of_step(trace: Path) -> None:
    """Draws the calls of the threads of rank 0 during one recorded step, callers above callees."""
    events = [
        event
        for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
        if event.get("ph") == "X" and event.get("cat") in ("cpu_op", "user_annotation")
    ]
    ends = sorted(
        event["ts"] + event["dur"] for event in events if event["name"].startswith("Optimizer.step")
    )
    first, last = ends[0], ends[1]
    inside = [
        event for event in events if first <= event["ts"] < last and event["dur"] > SMALLEST * (last - first)
    ]
    threads = sorted(
        {event["tid"] for event in inside}, key=lambda tid: min(e["ts"] for e in inside if e["tid"] == tid)
    )
    figure, axes = plt.subplots(len(threads), 1, figsize=(15, 2.2 * len(threads)), sharex=True, squeeze=False)
    for axis, thread in zip(axes[:, 0], threads, strict=True):
        _draw_thread(axis, [event for event in inside if event["tid"] == thread], first, last)
    axes[-1, 0].set_xlabel("milliseconds of one step")
    figure.tight_layout()
    figure.savefig(PICTURES / "training_profile.png", dpi=100)


def _draw_thread(axis: Any, events: list[dict[str, Any]], first: float, last: float) -> None:
    """Draws nested boxes, one row per depth."""
    open_until: list[float] = []
    names = sorted({event["name"] for event in events})
    for event in sorted(events, key=lambda item: (item["ts"], -item["dur"])):
        while open_until and open_until[-1] <= event["ts"]:
            open_until.pop()
        depth, start, length = len(open_until), (event["ts"] - first) / 1e3, event["dur"] / 1e3
        open_until.append(event["ts"] + event["dur"])
        axis.barh(
            -depth,
            length,
            left=start,
            height=0.9,
            color=plt.get_cmap("tab20")(names.index(event["name"]) % 20),
        )
        if event["dur"] > 0.05 * (last - first):
            label = event["name"].removeprefix("aten::").split("#")[0]
            axis.text(start + length / 2, -depth, label[: int(180 * event["dur"] / (last - first))], ha="center",
                      va="center", fontsize=7)  # fmt: skip
    axis.set_yticks([])
    axis.set_xlim(0, (last - first) / 1e3)


if __name__ == "__main__":
    main()
