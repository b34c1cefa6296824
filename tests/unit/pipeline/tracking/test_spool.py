"""The queue on disk and the thread that empties it, against a store that fails on purpose."""

import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from d2ls.errors import TrackingError
from pipeline.tracking.spool import Entry, Spool
from pipeline.tracking.writer import RunWriter, metric_name, send_all

PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


class FakeClient:
    """Records its calls; `down` makes it raise, `block` makes it hang."""

    def __init__(self) -> None:
        self.metrics: list[tuple[str, float, int]] = []
        self.pictures: list[tuple[str, int]] = []
        self.texts: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.down = False
        self.refused = ""
        self.answers_once = False
        self.block = threading.Event()
        self.block.set()
        self.calls = 0

    def log_batch(self, run_id: str, metrics: Any = (), tags: Any = ()) -> None:
        self._gate()
        if any(metric.key == self.refused for metric in metrics):
            raise MlflowException("no such name", error_code=1000)  # INVALID_PARAMETER_VALUE
        self.metrics += [(metric.key, metric.value, metric.step) for metric in metrics]
        if self.answers_once and metrics:
            self.answers_once = False
            raise MlflowException("API request failed with exception: connection lost, but all was taken")
        self.tags |= {tag.key: tag.value for tag in tags}

    def get_run(self, run_id: str) -> Any:
        self._gate()
        return SimpleNamespace(data=SimpleNamespace(metrics={key: value for key, value, _ in self.metrics}))

    def get_metric_history(self, run_id: str, key: str) -> Any:
        return [SimpleNamespace(step=step) for name, _, step in self.metrics if name == key]

    def list_artifacts(self, run_id: str, folder: str) -> Any:
        names = [f"{key}+step+{step}+timestamp+5+abc+compressed.webp" for key, step in self.pictures]
        return [SimpleNamespace(path=f"{folder}/{name}") for name in names]

    def log_image(
        self,
        run_id: str,
        image: Any,
        file: str | None = None,
        *,
        key: str = "",
        step: int = 0,
        timestamp: int = 0,
    ) -> None:
        self._gate()
        assert np.array_equal(np.asarray(image), PICTURE)
        if file is None:
            self.pictures.append((key, step))

    def log_text(self, run_id: str, text: str, file: str) -> None:
        self._gate()
        self.texts[file] = text

    def _gate(self) -> None:
        self.calls += 1
        self.block.wait(20)
        if self.down:
            raise MlflowException("API request failed with exception: connection refused")


def writer(client: FakeClient, folder: Path) -> RunWriter:
    return RunWriter("http://127.0.0.1:1", "run", folder, connect=lambda uri: client)  # type: ignore[arg-type, return-value]


def fill(target: RunWriter) -> None:
    for step in range(1, 4):
        target.metrics({"a": step / 2, "b": float("nan")}, step)
    target.picture("predictions", PICTURE, 3)
    target.text("words", "report.md")
    target.tags({"colour": "blue"})


def check(client: FakeClient) -> None:
    assert [m for m in client.metrics if m[0] == "a"] == [("a", 0.5, 1), ("a", 1.0, 2), ("a", 1.5, 3)]
    assert {m[0] for m in client.metrics} == {"a"}, "what is not a number is left out"
    assert client.pictures == [("predictions", 3)]
    assert client.texts == {"report.md": "words"}
    assert client.tags == {"colour": "blue"}


def test_everything_arrives_once_and_the_folder_is_gone(tmp_path: Path) -> None:
    client = FakeClient()
    with writer(client, tmp_path / "spool") as target:
        fill(target)
    check(client)
    assert not (tmp_path / "spool").exists()
    assert client.calls <= 10  # steps travel together, or a few at a time


def test_a_store_that_is_down_delays_nothing_and_loses_nothing(tmp_path: Path) -> None:
    client = FakeClient()
    client.down = True
    target = writer(client, tmp_path / "spool")
    started = time.monotonic()
    fill(target)
    assert time.monotonic() - started < 1.0
    left = target.close(timeout=0.5)
    assert left == 6
    with pytest.raises(TrackingError, match="6 log entries still wait"):
        send_all(client, tmp_path / "spool")  # type: ignore[arg-type]
    client.down = False
    assert send_all(client, tmp_path / "spool") == 6  # type: ignore[arg-type]
    check(client)
    assert send_all(client, tmp_path / "spool") == 0  # type: ignore[arg-type]


def test_a_store_that_comes_back_gets_it_all(tmp_path: Path) -> None:
    client = FakeClient()
    client.down = True
    target = writer(client, tmp_path / "spool")
    fill(target)
    time.sleep(0.3)
    client.down = False
    assert target.close(timeout=20) == 0
    check(client)


def test_a_store_that_hangs_does_not_hold_training(tmp_path: Path) -> None:
    client = FakeClient()
    client.block.clear()
    target = writer(client, tmp_path / "spool")
    started = time.monotonic()
    fill(target)
    assert time.monotonic() - started < 1.0
    target._thread.join(0.2)
    client.block.set()
    assert target.close(timeout=20) == 0
    check(client)


def test_what_a_killed_process_left_is_sent_by_the_next(tmp_path: Path) -> None:
    client = FakeClient()
    Spool(tmp_path / "spool").put(Entry("metrics", "run", {"rows": [["old", 1.0]], "step": 1, "time": 5}))
    (tmp_path / "spool" / ".half.tmp").write_text('{"kind": "met')
    with writer(client, tmp_path / "spool") as target:
        target.metrics({"new": 2.0}, 2)
    assert client.metrics == [("old", 1.0, 1), ("new", 2.0, 2)]


def test_what_was_sent_but_not_deleted_is_not_sent_twice(tmp_path: Path) -> None:
    client = FakeClient()
    client.down = True
    target = writer(client, tmp_path / "spool")
    fill(target)
    target.close(timeout=0.1)
    shutil.copytree(
        tmp_path / "spool", tmp_path / "again"
    )  # as if the sender was killed before it deleted them
    client.down = False
    for folder in ("spool", "again"):
        assert send_all(client, tmp_path / folder) == 6  # type: ignore[arg-type]
    check(client)


def test_a_request_that_was_taken_without_an_answer_is_not_sent_twice(tmp_path: Path) -> None:
    client = FakeClient()
    client.answers_once = True
    with writer(client, tmp_path / "spool") as target:
        fill(target)
    assert not client.answers_once
    check(client)


def test_a_resumed_training_adds_no_second_point_to_a_step(tmp_path: Path) -> None:
    client = FakeClient()
    for steps in ((1, 2, 3), (2, 3, 4)):  # killed after step 3, its last checkpoint is that of step 1
        with writer(client, tmp_path / "spool") as target:
            for step in steps:
                target.metrics({"train/loss": 1 / step}, step)
                target.picture("predictions", PICTURE, step)
    assert [step for _, _, step in client.metrics] == [1, 2, 3, 4]
    assert [step for _, step in client.pictures] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("val/iou/low vegetation", "val/iou/low vegetation"), ("iou/roof (old), flat", "iou/roof _old__ flat"),
     ("iou/Gew\u00e4sser", "iou/Gew\u00e4sser"), ("x" * 300, "x" * 250), ("iou/etc.", "iou/etc")],
)  # fmt: skip
def test_names_of_metrics_are_those_that_mlflow_takes(name: str, expected: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert metric_name(name) == expected
    _validate_metric_name(metric_name(name))


def test_an_entry_that_is_refused_for_good_does_not_block_the_rest(tmp_path: Path) -> None:
    client = FakeClient()
    client.refused = "bad"
    with writer(client, tmp_path / "spool") as target:
        target.metrics({"good": 1.0}, 1)
        target.metrics({"bad": 1.0}, 2)
        target.metrics({"good": 2.0}, 3)
    assert [m for m in client.metrics if m[0] == "good"] == [("good", 1.0, 1), ("good", 2.0, 3)]
    assert len(list((tmp_path / "spool" / "refused").iterdir())) == 1


def test_the_queue_is_bounded(tmp_path: Path) -> None:
    spool = Spool(tmp_path, most_entries=3, most_bytes=100)
    entry = Entry("metrics", "run", {})
    assert [spool.put(entry) for _ in range(5)] == [True, True, True, False, False]
    assert spool.dropped == 2
    spool.done(spool.oldest(2))
    assert not spool.put(Entry("picture", "run", {}), b"x" * 200)
    assert spool.put(entry)


def test_a_damaged_entry_is_set_aside(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put(Entry("metrics", "run", {}))
    (tmp_path / "00000000000000000000-1-000000.json").write_text("{")
    assert len(spool.oldest(10)) == 1
    assert [file.name for file in (tmp_path / "refused").iterdir()] == ["00000000000000000000-1-000000.json"]


def test_a_disk_that_refuses_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    spool = Spool(tmp_path / "file" / "spool")
    assert not spool.put(Entry("metrics", "run", {}))
    assert spool.dropped == 1
