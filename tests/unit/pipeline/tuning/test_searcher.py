"""The searchers: their proposals, and which trials they stop."""

from dataclasses import replace

from pipeline.tuning.halving import Halving
from pipeline.tuning.records import TrialRecords
from pipeline.tuning.report import Trial
from pipeline.tuning.searcher import HalvingSearcher, ListSearcher, make_searcher
from tests.tiny_recipes import tiny_recipe


def trial(key, *scores, status="started"):
    curve = {str(epoch): score for epoch, score in enumerate(scores, start=1)}
    return Trial(key, key, {}, status=status, score=max(scores), epoch=len(scores), curve=curve)


def test_a_list_is_proposed_in_its_order_and_stops_no_trial():
    searcher = ListSearcher([{"seed": 2}, {"seed": 1}])
    assert searcher.left == 2
    assert [searcher.propose() for _ in range(3)] == [{"seed": 2}, {"seed": 1}, None]
    assert searcher.left == 0
    assert not searcher.tell(trial("a", 0.0))


def test_halving_stops_trials_that_are_behind_and_tells_the_wrapped_searcher(tmp_path):
    class Recorder(ListSearcher):
        def __init__(self, configurations):
            super().__init__(configurations)
            self.known = []

        def tell(self, trial):
            self.known.append((trial.key, trial.status))
            return False

    records, recorder = TrialRecords(str(tmp_path)), Recorder([{"seed": 1}])
    searcher = HalvingSearcher(recorder, Halving(1, 2, 8), lambda: records.trials)
    assert searcher.left == 1
    assert searcher.propose() == {"seed": 1}
    records.trials = {"a": trial("a", 0.5), "b": trial("b", 0.1)}
    assert searcher.tell(records.trials["b"])
    assert not searcher.tell(trial("b", 0.6))
    assert not searcher.tell(replace(trial("b", 0.1), status="finished")), "it has ended already"
    assert recorder.known == [("b", "started"), ("b", "started"), ("b", "finished")]


def test_repeats_of_the_best_configuration_stop_no_trial_of_a_search_that_goes_on(tmp_path):
    """The sweep ended with `--seeds 3`, and is resumed with a larger `sweep.num_trials`."""
    (tmp_path / "shards").mkdir()
    changes = {
        "sweep__search": "random",
        "sweep__scheduler": "asha",
        "sweep__reduction_factor": 2,
        "sweep__num_trials": 3,
        "sweep__space": {"loss.temperature": {"low": 0.05, "high": 1.0}},
        "train__epochs": 8,
    }
    recipe = tiny_recipe(tmp_path, **changes)
    ended = [trial("a", 0.9, status="finished"), trial("b", 0.1, status="finished")]
    repeats = [replace(trial(f"a{seed}", 0.9, status="finished"), values={"seed": seed}) for seed in (1, 2)]
    records = TrialRecords(str(tmp_path), {one.key: one for one in (*ended, *repeats)})
    searcher = make_searcher(recipe, records)
    assert not searcher.tell(trial("c", 0.6)), "the median of the search is 0.5"


def test_tune_saves_no_searcher_and_does_not_warn(tmp_path, capfd):
    from pipeline.tuning.ray_tune import ProposingSearcher

    ProposingSearcher("sweep", ListSearcher([]), None).save_to_dir(str(tmp_path))
    assert not list(tmp_path.iterdir())
    assert "save not implemented" not in "".join(capfd.readouterr())
