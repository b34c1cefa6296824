"""Trial files: reports of trials, and an unavailable storage."""

import pytest

from d2ls import storage
from d2ls.errors import ConfigError, StorageError
from pipeline.tuning.records import TrialEvents, TrialRecords, progressed
from pipeline.tuning.report import METRIC, Trial


def test_records_come_back_and_a_restarted_trial_keeps_its_scores(tmp_path):
    records = TrialRecords.load(str(tmp_path / "trials"))
    started = records.start("one", {"seed": 1})
    records.save(progressed(started, {"epoch": 1.0, METRIC: 0.5}, 3.0))
    again = TrialRecords.load(str(tmp_path / "trials"))
    assert again.trials == records.trials
    trial = again.start("one", {"seed": 1})
    assert (trial.name, trial.curve, trial.score) == (f"one-{trial.key}", {"1": 0.5}, 0.5)


def test_the_best_score_is_the_first_of_the_highest():
    trial = Trial("a", "a", {})
    for epoch, score in enumerate([0.1, 0.4, 0.4, 0.2], start=1):
        trial = progressed(trial, {"epoch": float(epoch), METRIC: score}, 1.0)
    assert (trial.score, trial.best_epoch, trial.epoch) == (0.4, 2, 4)
    finished = progressed(trial, {"curve": {"5": 0.9}, "status": "finished"}, 2.0)
    assert (finished.score, finished.best_epoch, finished.epoch, finished.status) == (0.9, 5, 5, "finished")


def test_a_storage_that_is_away_for_a_while_loses_no_record(tmp_path, monkeypatch):
    records = TrialRecords.load(str(tmp_path))
    write = storage.write_bytes

    def away(*_):
        raise StorageError("503 Slow Down")

    monkeypatch.setattr(storage, "write_bytes", away)
    first = records.start("one", {"seed": 1})
    with pytest.raises(StorageError):
        records.flush()
    monkeypatch.setattr(storage, "write_bytes", write)
    records.start("one", {"seed": 2})
    assert TrialRecords.load(str(tmp_path)).trials.keys() == records.trials.keys()
    assert first.key in records.trials


def test_a_damaged_record_names_its_file(tmp_path):
    (tmp_path / "ab.json").write_text("{")
    with pytest.raises(ConfigError, match=r"ab\.json: not the record of a trial"):
        TrialRecords.load(str(tmp_path))


def test_what_listens_to_trials_cannot_end_them(tmp_path, caplog):
    def breaks(*_):
        raise ValueError("broken pipe")

    events = TrialEvents(TrialRecords.load(str(tmp_path)), on_start=breaks, on_event=breaks)
    trial = events.start("one", {"seed": 1})
    events.result(trial.key, {"epoch": 1, METRIC: 0.5})
    events.end(trial.key)
    assert events.records.trials[trial.key].status == "pruned"
    assert caplog.text.count("broken pipe") == 3
