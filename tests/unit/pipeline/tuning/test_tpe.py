"""The TPE search: conditional keys, no configuration twice, finished trials included."""

from pipeline.config.sweep import Axis
from pipeline.tuning.report import Trial
from pipeline.tuning.space import trial_key
from pipeline.tuning.tpe import TreeParzenSearcher

SPACE = {
    "model.stages": Axis(values=(1, 2)),
    "loss.contrastive": Axis(values=("none", "infonce")),
    "loss.temperature": Axis(values=(0.1, 0.5)),
}
FLAT = {"model.architecture": "d2ls", "model.dictionary": "dynamic"}


def ended(values: dict, score: float | None) -> Trial:
    return Trial(trial_key(values), "", values, status="failed" if score is None else "finished", score=score)


def drain(search: TreeParzenSearcher) -> list[dict]:
    result = []
    while (values := search.propose()) is not None:
        result.append(values)
        search.tell(ended(values, float(values["model.stages"])))
    return result


def make(trials: int, finished=(), first=()) -> TreeParzenSearcher:
    return TreeParzenSearcher(SPACE, FLAT, seed=0, finished=finished, first=first, trials=trials)


def test_every_configuration_once_until_the_space_is_used_up():
    result = drain(make(50))
    assert len({trial_key(values) for values in result}) == len(result) == 6
    assert all(
        ("loss.temperature" in values) == (values["loss.contrastive"] == "infonce") for values in result
    )


def test_resume_counts_finished_trials_and_starts_with_the_interrupted_one():
    earlier = drain(make(4))
    search = make(5, finished=[(values, 1.0) for values in earlier[:3]], first=[earlier[3]])
    assert search.left == 2
    result = drain(search)
    assert result[0] == earlier[3]
    assert len(result) == 2
    assert not {trial_key(v) for v in result} & {trial_key(v) for v in earlier[:3]}


def test_a_failed_trial_is_not_asked_again():
    search = make(6)
    first = search.propose()
    search.tell(ended(first, None))
    assert first not in drain(search)
