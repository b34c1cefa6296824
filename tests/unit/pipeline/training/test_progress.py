import logging

import pytest

from d2ls.training.callbacks import StepReport
from pipeline.training.progress import ProgressWriter
from pipeline.training.progress_view import ProgressView, ProgressWatcher, epoch_line, place_of, progress_line
from pipeline.training.run_folder import RunFolder


def report(step, **changes):
    values = {
        "step": step, "epoch": (step - 1) // 4 + 1, "steps_per_epoch": 4, "total_steps": 8,
        "terms": {"cross_entropy": 1.25, "dice": 0.5, "total": 1.75}, "learning_rate": 1e-4, "gradient_norm": 2.0,
        "images_per_second": 8.0, "seconds": {"data": 0.25, "step": 0.5}, "memory_bytes": 3 << 30,
    }  # fmt: skip
    return StepReport(**{**values, **changes})


def test_steps_epochs_and_remarks_are_written_and_shown(tmp_path):
    folder = RunFolder.of(str(tmp_path), "run")
    folder.add_epoch({"epoch": 1.0})
    shown = []
    with ProgressWatcher(folder, shown.append):
        writer = ProgressWriter(folder)
        for step in range(1, 9):
            writer.on_step(report(step))
            if step == 2:
                logging.getLogger("d2ls.training.trainer").info("samples are accumulated")
            if step % 4 == 0:
                writer.on_epoch({"epoch": step / 4 + 1, "train/loss": 1.0})
        writer.close()
    assert [row["epoch"] for row in folder.epochs()] == [1, 2, 3]
    assert folder.epochs()[-1]["speed/data_share"] == 0.5
    assert shown[-1]["notes"] == ["samples are accumulated"]
    assert shown[-1]["step"] == 8


def test_a_long_training_with_many_remarks_keeps_its_progress_small(tmp_path, capsys):
    folder = RunFolder.of(str(tmp_path), "run")
    writer = ProgressWriter(folder)
    log = logging.getLogger("pipeline.tracking.callback")
    with ProgressView(None) as view:
        for epoch in range(5000):
            log.warning("figures of epoch %d are left out: drawing is slower than training", epoch)
            if epoch % 100 == 99:
                writer._write_once()
                view.show(folder.latest())
    writer.close()
    assert (tmp_path / "run" / "progress.json").stat().st_size < 50_000
    shown = [line.split()[3] for line in capsys.readouterr().out.splitlines()]
    assert shown == [str(epoch) for epoch in range(5000)], "each one once"


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (None, (1.0, False, 0.75)),
        (100.0, (1.0, False, 0.75)),
        (40.25, (0.25, True, 40 / 40.25)),
        (39.0, (0.0, True, 1.0)),
    ],
)
def test_a_time_budget_may_end_the_training_before_its_steps(tmp_path, budget, expected):
    """Two steps of half a second are left."""
    folder = RunFolder.of(str(tmp_path), "run")
    writer = ProgressWriter(folder)
    writer.on_step(report(6, seconds_spent=40.0, time_budget=budget))
    writer.close()
    latest = folder.latest()
    assert (latest["seconds_left"], latest["budget_ends_it"], latest["share_done"]) == expected
    assert latest["seconds_spent"] == 40.0
    assert progress_line(latest).endswith(" left of the time budget" if expected[1] else " left")


def test_what_cannot_be_shown_ends_nothing(tmp_path):
    folder = RunFolder.of(str(tmp_path), "run")
    folder.add_epoch({"epoch": 1.0})
    asked = []
    ProgressWriter(folder).close()

    def breaks(progress):
        asked.append(progress)
        raise ValueError("no terminal")

    with pytest.raises(KeyError, match="the first error"), ProgressWatcher(folder, breaks):
        raise KeyError("the first error")
    assert asked


def test_the_line_says_where_the_run_stands():
    progress = {
        "step": 6, "epoch": 2, "steps_per_epoch": 4, "total_steps": 8, "terms": report(1).terms,
        "learning_rate": 1e-4, "images_per_second": 8.0, "data_share": 0.5, "memory_bytes": 3 << 30,
        "seconds_left": 5.0,
    }  # fmt: skip
    assert progress_line(progress) == (
        "epoch 2/2 step 2/4  loss 1.750 (ce 1.250 dice 0.500)  lr 1.00e-04  8.0 img/s  "
        "data 50%  3.0 GiB  about 5 s left"
    )


def test_the_epoch_line_has_the_scores():
    metrics = {
        "epoch": 2.0,
        "train/loss": 0.5,
        "val/miou": 0.25,
        "val/oa": 0.75,
        "val/iou/road": 0.25,
    }
    assert epoch_line(metrics, 3) == "epoch 2/3  loss 0.5000  val mIoU 0.2500  OA 0.7500  (road 0.250)"
    assert epoch_line({"epoch": 1.0, "train/loss": 0.5}, 3) == "epoch 1/3  loss 0.5000"
    assert epoch_line({"epoch": 1.0, "step": 4.0, "train/loss": 0.5}, None) == "epoch 1 step 4  loss 0.5000"


def test_the_steps_of_a_partial_last_epoch_are_those_it_has():
    assert place_of({"step": 9, "epoch": 3, "steps_per_epoch": 4, "total_steps": 10}) == "epoch 3/3 step 1/2"
    assert place_of({"step": 8, "epoch": 2, "steps_per_epoch": 4, "total_steps": 10}) == "epoch 2/3 step 4/4"


def test_plain_output_has_no_control_characters(capsys):
    with ProgressView(2) as view:
        view.say("training [a]")
        view.show({"notes": ["one"]})
        view.epoch({"epoch": 1.0, "train/loss": 0.5})
    assert capsys.readouterr().out == "training [a]\n  one\nepoch 1/2  loss 0.5000\n"
