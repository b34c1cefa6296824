"""How a sweep runs its trials: a real Ray, with trials that only pretend to train."""

import json

import pytest

from d2ls.errors import TrackingError, TrainingError
from pipeline import cluster
from pipeline.tracking import Store
from pipeline.training import tracked_run
from pipeline.training.run_folder import RunFolder
from tests.tiny_sweeps import (
    BREAKS,
    DIES,
    DIES_ALWAYS,
    happened,
    over,
    recipe_of,
    run_pretended,
    tracked,
    trials,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pretended")


@pytest.fixture(scope="module", autouse=True)
def ray(folder):
    with cluster.connect(recipe_of(folder).cluster) as connected:
        yield connected


def statuses(summary):
    return {trial.values["train.optimizer.lr"]: trial.status for trial in summary.trials}


@pytest.mark.parametrize("concurrent", [1, 2])
def test_a_pruned_trial_stops_at_once_and_every_record_says_so(folder, concurrent):
    name = f"pruned-{concurrent}"
    rates = [0.02, 0.001, 0.03, 0.0005, 0.0001, 0.04]
    asked = over(*rates, scheduler="asha", reduction_factor=2, max_concurrent_trials=concurrent)
    recipe = recipe_of(folder, train__epochs=40, sweep=asked)
    result, said = run_pretended(recipe, name=name)
    ended = statuses(result.summary)
    assert set(ended) == set(rates)
    assert set(ended.values()) == {"finished", "pruned"}
    assert ended[0.04] == "finished"
    store = Store.open(recipe.tracking)
    rows = {row.name: row for row in store.children(tracked(store, folder, name).run_id)}
    for trial in result.summary.trials:
        assert f"{trial.key} lr={trial.values['train.optimizer.lr']} | {trial.status}" in said
        assert trials(folder, name)[trial.key]["status"] == trial.status
        if trial.status == "pruned":
            assert trial.epoch < 40
            assert RunFolder.of(recipe.output_dir, trial.name).metadata()["state"] == "pruned"
            assert rows[trial.name].status == "KILLED"
            assert "pruned by asha after epoch" in rows[trial.name].tags["d2ls.end"]
        else:
            assert trial.epoch == 40
            assert rows[trial.name].status == "FINISHED"
    ours = [line for line in happened(folder, "begin") if line[0].startswith(name)]
    closed = {line[0] for line in happened(folder, "end") if line[0].startswith(name)}
    assert closed == set(rows), "a pruned trial was not closed"
    assert len({process for _, process, _ in ours}) <= concurrent, "a process did not serve the next trial"


@pytest.mark.parametrize("left", ["running", "killed"])
def test_a_sweep_that_died_between_two_records_of_a_pruned_trial_is_completed(folder, left):
    recipe = recipe_of(folder, sweep=over(0.02, 0.001, scheduler="asha", reduction_factor=2))
    result, _ = run_pretended(recipe, name=f"between-{left}")
    (pruned,) = (trial for trial in result.summary.trials if trial.status == "pruned")
    run = RunFolder.of(recipe.output_dir, pruned.name)
    run.update(state=left, reason="its process has ended", mlflow_status=None)
    tracked_run.settle(Store.open(recipe.tracking), run)

    run_pretended(recipe, resume=f"between-{left}")

    ended = run.metadata()
    assert ended["state"] == "pruned"
    assert "pruned by asha" in ended["reason"]
    assert "pruned by asha" in Store.open(recipe.tracking).run(ended["run_id"]).tags["d2ls.end"]


def test_a_failing_trial_ends_no_other_and_is_tried_again_by_resume(folder):
    recipe = recipe_of(folder, sweep=over(BREAKS, 0.01))
    result, said = run_pretended(recipe, name="failing")
    assert statuses(result.summary) == {BREAKS: "failed", 0.01: "finished"}
    assert "a shard is broken" in said
    assert "a shard is broken" in (folder / "runs" / "failing" / "report.md").read_text()
    again, _ = run_pretended(recipe, resume="failing")
    assert statuses(again.summary) == {BREAKS: "failed", 0.01: "finished"}
    begun = [line[0] for line in happened(folder, "begin") if line[0].startswith("failing")]
    assert len(begun) == 3


def test_a_sweep_without_any_score_gives_the_reason(folder):
    recipe = recipe_of(folder, train__evaluate_every=9, sweep=over(BREAKS))
    with pytest.raises(TrainingError, match="no trial reached an evaluation: a shard is broken"):
        run_pretended(recipe, name="nothing")


def test_a_trial_whose_process_dies_goes_on_in_another_one(folder):
    recipe = recipe_of(folder, sweep=over(DIES, DIES_ALWAYS, 0.01))
    result, _ = run_pretended(recipe, name="dying")
    assert statuses(result.summary) == {DIES: "finished", DIES_ALWAYS: "failed", 0.01: "finished"}
    by_rate = {trial.values["train.optimizer.lr"]: trial for trial in result.summary.trials}
    assert by_rate[DIES].curve == {"1": DIES, "2": 2 * DIES, "3": 3 * DIES, "4": 4 * DIES}
    assert "its process died 2 time(s)" in by_rate[DIES_ALWAYS].error
    starts = [line for line in happened(folder, "begin") if line[0] == by_rate[DIES].name]
    assert [done for _, _, done in starts] == ["0", "1"]
    assert starts[0][1] != starts[1][1]


def test_an_interrupted_sweep_continues_with_the_remaining_trials(folder):
    recipe = recipe_of(folder, sweep=over(0.01, 0.02, 0.03, 0.04))
    run_pretended(recipe, name="broken", seeds=2)
    before = trials(folder, "broken")
    first, second, *_ = sorted(key for key in before if "seed" not in before[key]["values"])
    files = folder / "runs" / "broken" / "trials"
    (files / f"{first}.json").unlink()
    (files / f"{second}.json").write_text(json.dumps({**before[second], "status": "started", "epoch": 2}))
    lines = len(happened(folder, "begin"))

    result, said = run_pretended(recipe, resume="broken")

    assert "trials (2 of 4 to run)" in said
    begun = {line[0] for line in happened(folder, "begin")[lines:]}
    assert begun == {f"broken-{first}", f"broken-{second}"}
    after = trials(folder, "broken")
    assert after.keys() == before.keys()
    assert {trial["status"] for trial in after.values()} == {"finished"}
    unchanged = after.keys() - {first, second}
    assert {key: after[key] for key in unchanged} == {key: before[key] for key in unchanged}
    assert len(result.summary.repeats) == 1, "--seeds was forgotten"
    store = Store.open(recipe.tracking)
    rows = store.children(tracked(store, folder, "broken").run_id)
    assert len({row.name for row in rows}) == len(rows) == 5, "a run is doubled"


def test_a_search_over_a_range_is_repeated_and_goes_on_with_more_trials(folder):
    space = {"train.optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    asked = over(space=space, search="tpe", num_trials=3, max_concurrent_trials=2)
    recipe = recipe_of(folder, sweep=asked)
    result, said = run_pretended(recipe, name="ranges", seeds=2)
    assert len(result.summary.trials) == 3
    assert len(result.summary.repeats) == 1
    assert "2 seeds" in said
    more, said = run_pretended(recipe, resume="ranges", overrides=["sweep.num_trials=5"])
    assert "trials (2 of 5 to run)" in said
    assert len(more.summary.trials) == 5
    scores = [trial.score for trial in more.summary.trials]
    assert more.summary.best.mean == max(scores)


def test_a_store_that_is_away_ends_no_sweep(folder, monkeypatch, caplog):
    open_run = tracked_run.open_run

    def away(*arguments):
        if "sweep" in arguments:
            return open_run(*arguments)
        raise TrackingError("connection refused")

    monkeypatch.setattr(tracked_run, "open_run", away)
    monkeypatch.setattr(tracked_run, "settle", away)
    asked = over(0.02, 0.001, scheduler="asha", reduction_factor=2)
    result, _ = run_pretended(recipe_of(folder, sweep=asked), name="alone")
    assert statuses(result.summary) == {0.02: "finished", 0.001: "pruned"}
    assert "connection refused" in caplog.text
    assert (folder / "runs" / "alone" / "report.md").exists()
