"""The same training on 1, 2 and 4 ranks, with and without accumulation, in plain gloo processes."""

import contextlib

import pytest
import torch

from d2ls.training.process_group import ProcessGroup
from tests.tiny_trainer import (
    Recorder,
    StopAfter,
    assert_equal,
    make_trainer,
    tiny_shards,
    weights,
)

CASES = [("ratio", "test_convnext"), ("infonce", "test_resnet")]
GLOBAL_BATCH = 6  # uneven over 4 ranks


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("shards"))


def first_steps(shards, micro_batch_size):
    """Returns the first-step terms and gradient norm of every case, and the result of an epoch."""
    torch.set_num_threads(1)
    result = {}
    for contrastive, backbone in CASES:
        recorder = Recorder()
        make_trainer(
            shards, epochs=1, global_batch_size=GLOBAL_BATCH, backbone=backbone, contrastive=contrastive,
            micro_batch_size=micro_batch_size, callbacks=[recorder],
        ).run()  # fmt: skip
        first = recorder.steps[0]
        result[contrastive, backbone] = (
            {**first.terms, "gradient_norm": first.gradient_norm},
            recorder.evaluations[-1].confusion.tolist(),
        )
    return result


@pytest.fixture(scope="module")
def alone(shards):
    before = torch.get_num_threads()
    result = first_steps(shards, None)
    torch.set_num_threads(before)
    return result


def with_and_without(shards, micro_batch_size):
    return first_steps(shards, None), first_steps(shards, micro_batch_size)


@pytest.fixture(scope="module", params=[(1, 2), (2, 2), (4, 1)], ids=["1 rank", "2 ranks", "4 ranks"])
def several(request, shards, ranks):
    """Returns, for every rank, the cases without and with accumulation.

    4 ranks have shares 2 2 1 1: with a micro-batch of 1 two of them add a sample that does not count.
    """
    world_size, micro_batch_size = request.param
    return ranks.run(world_size, with_and_without, shards, micro_batch_size)


def test_ranks_do_not_change_a_step(alone, several):
    for case, (terms, _) in alone.items():
        for plain, _ in several:
            assert plain[case][0] == pytest.approx(terms, rel=1e-5, abs=1e-6), case
            assert plain[case] == several[0][0][case], "ranks disagree"


def test_accumulation_averages_micro_steps(alone, several):
    for case, (terms, _) in alone.items():
        result = several[0][1][case][0]
        assert all(accumulated[case] == several[0][1][case] for _, accumulated in several), "ranks disagree"
        if "resnet" not in case[1]:  # batch norm sees micro-steps; cross entropy is a mean over their pixels
            assert result["cross_entropy"] == pytest.approx(terms["cross_entropy"], rel=0.02)
        assert result["contrastive"] != pytest.approx(terms["contrastive"], rel=1e-5)


def cut_and_resumed(shards, folder, global_batch_size):
    """Returns whether a run that was stopped after three steps and resumed equals an uninterrupted one."""
    torch.set_num_threads(1)
    options = {"global_batch_size": global_batch_size, "checkpoint_every_steps": 1, "ema": 0.9}
    whole = make_trainer(shards, f"{folder}/whole", **options)
    whole.run()
    with contextlib.suppress(KeyboardInterrupt):
        make_trainer(shards, f"{folder}/cut", callbacks=[StopAfter(3)], **options).run()
    rest = make_trainer(shards, f"{folder}/cut", **options)
    rest.run()
    assert_equal(weights(whole), weights(rest))
    assert whole.state == rest.state
    return float(sum(value.double().sum() for value in weights(rest).values()))


def test_two_ranks_resume_to_the_last_bit(shards, tmp_path, ranks):
    first, second = ranks.run(2, cut_and_resumed, shards, str(tmp_path), 5)
    assert first == second


def ended(shards):
    """After how many steps a run that never improves ends, and why."""
    torch.set_num_threads(1)
    state = make_trainer(shards, epochs=9, patience=1, min_delta=1.0).run()
    return state.step, len(state.history), state.ended_early


def test_ranks_end_early_together(shards, ranks):
    first, second = ranks.run(2, ended, shards)
    assert first == second
    assert first[:2] == (6, 2)
    assert "has not risen by more than 1 in 1 evaluation(s)" in first[2]


def out_of_time(shards):
    """After how many steps a run ends where the clock of rank 0 alone says that its time is used up."""
    torch.set_num_threads(1)
    budget = 1e-9 if ProcessGroup.current().is_main else 1e9
    state = make_trainer(shards, epochs=9, time_budget=budget).run()
    return state.step, len(state.history)


def test_rank_0_decides_that_the_time_is_used_up(shards, ranks):
    assert ranks.run(2, out_of_time, shards) == [(1, 1), (1, 1)]


def keys_after(shards, folder, stop):
    """Returns the samples that a run sees from its current step on, in order."""
    torch.set_num_threads(1)
    seen = []
    callbacks = [StopAfter(stop)] if stop else []
    trainer = make_trainer(shards, folder, callbacks=callbacks, checkpoint_every_steps=1)
    made = trainer.batches

    def watched(epoch, start):
        for batch in made(epoch, start):
            seen.append(batch.keys)
            yield batch

    trainer.batches = watched
    with contextlib.suppress(KeyboardInterrupt):
        trainer.run()
    return seen


def test_another_number_of_ranks_goes_on_with_the_next_sample(shards, tmp_path, ranks):
    whole = keys_after(shards, tmp_path / "whole", None)
    # the third step is repeated, because its checkpoint was not written
    keys_after(shards, tmp_path / "cut", 3)
    parts = ranks.run(2, keys_after, shards, str(tmp_path / "cut"), None)
    together = [first + second for first, second in zip(*parts, strict=True)]
    assert together == whole[2:]
