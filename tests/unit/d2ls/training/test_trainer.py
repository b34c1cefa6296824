import math

import pytest
import torch

from d2ls.errors import NonFiniteLossError, TrainingError
from d2ls.losses import D2LSLoss
from d2ls.models.saving import load_bundle
from tests.tiny_trainer import Recorder, make_trainer, tiny_shards, weights


class Poisoned(D2LSLoss):
    """A loss that is not finite in some of its calls, counted from 0."""

    def __init__(self, *calls):
        super().__init__()
        self.calls, self.count = calls, 0

    def forward(self, output, labels, counts=None):
        result = super().forward(output, labels, counts)
        self.count += 1
        return result._replace(total=result.total * math.nan) if self.count - 1 in self.calls else result


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("shards"))


def test_callbacks_hear_everything(shards, tmp_path):
    recorder = Recorder()
    state = make_trainer(shards, tmp_path, callbacks=[recorder], epochs=3, evaluate_every=2).run()
    assert [report.step for report in recorder.steps] == list(range(1, 10))
    assert [report.epoch for report in recorder.steps] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [report.epoch for report in recorder.evaluations] == [2, 3], "the last epoch is always evaluated"
    assert recorder.evaluations[0].confusion.sum() == recorder.evaluations[1].confusion.sum() > 0
    assert [row["epoch"] for row in recorder.epochs] == [1, 2, 3]
    assert "val/miou" in recorder.epochs[1]
    assert "val/miou" not in recorder.epochs[0]
    assert recorder.checkpoints[-1] == ("step-00000009", True)
    assert recorder.closed == 1
    assert state.history == recorder.epochs
    for report in recorder.steps:
        assert {"data", "forward", "backward", "optimizer", "step"} <= set(report.seconds)
        assert sum(report.seconds[part] for part in ("data", "forward", "backward")) <= report.seconds["step"]
        assert report.memory_bytes > 1e7
        assert (report.model_tflops, report.mfu) == (0.0, None), "the size of the crops was not told"


def test_a_length_in_steps_ends_in_mid_epoch_with_evaluation_and_checkpoint(shards, tmp_path):
    recorder = Recorder()
    state = make_trainer(
        shards, tmp_path, total_steps=5, evaluate_every=9, checkpoint_every_steps=5, callbacks=[recorder]
    ).run()
    assert [report.step for report in recorder.steps] == [1, 2, 3, 4, 5]
    assert [(report.epoch, report.last) for report in recorder.evaluations] == [(2, True)]
    assert [(row["epoch"], row["step"]) for row in state.history] == [(1, 3), (2, 5)]
    assert recorder.checkpoints == [("step-00000003", False), ("step-00000005", True)]
    assert state.best_epoch == 2
    assert state.epoch_count == 0, "terms of the partial epoch are averaged"


def test_terms_add_up_to_the_total_that_is_minimised(shards):
    recorder = Recorder()
    trainer = make_trainer(shards, callbacks=[recorder], epochs=1, micro_batch_size=2)
    trainer.run()
    for report in recorder.steps:
        total = sum(
            trainer.loss.weights[name] * value for name, value in report.terms.items() if name != "total"
        )
        assert report.terms["total"] == pytest.approx(total, rel=1e-6)


def test_a_checkpoint_is_a_model(shards, tmp_path):
    trainer = make_trainer(shards, tmp_path, epochs=1, ema=0.9)
    trainer.run()
    network, info = load_bundle(tmp_path / "step-00000003")
    assert info.classes == shards.card.classes
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, trainer.ema.weights[name])


def test_the_best_and_the_last_checkpoint_stay(shards, tmp_path):
    state = make_trainer(shards, tmp_path, epochs=4, lr=5e-3).run()
    kept = sorted(path.name for path in tmp_path.glob("step-*"))
    assert kept == sorted({f"step-{state.best_step:08d}", "step-00000012"})


def test_a_loss_that_is_not_finite_stops_before_the_step(shards):
    trainer = make_trainer(shards, loss=Poisoned(2))
    before = {}
    trainer.callbacks = [
        type("Keep", (Recorder,), {"on_step": lambda self, report: before.update(weights(trainer))})()
    ]
    with pytest.raises(NonFiniteLossError, match=r"step 3: .*total nan.*train_0000"):
        trainer.run()
    after = weights(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_steps_may_be_skipped_up_to_a_limit(shards):
    recorder = Recorder()
    state = make_trainer(shards, loss=Poisoned(1, 4), callbacks=[recorder], skip_non_finite=2).run()
    assert state.skipped == 2
    assert [report.step for report in recorder.steps] == [1, 3, 4, 6]
    with pytest.raises(NonFiniteLossError, match="2 were skipped before"):
        make_trainer(shards, loss=Poisoned(1, 3, 4), skip_non_finite=2).run()


def test_a_batch_of_the_wrong_size_is_an_error(shards):
    trainer = make_trainer(shards, global_batch_size=4)
    other = make_trainer(shards, global_batch_size=3)
    trainer.batches = other.batches
    with pytest.raises(TrainingError, match="3 samples, its share of the global batch is 4"):
        trainer.run()


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"channels_last": True}, {"clip_norm": None}])
def test_settings_train_too(shards, settings):
    recorder = Recorder()
    make_trainer(shards, epochs=1, callbacks=[recorder], **settings).run()
    plain = Recorder()
    make_trainer(shards, epochs=1, callbacks=[plain]).run()
    first, expected = recorder.steps[0].terms["total"], plain.steps[0].terms["total"]
    assert first == pytest.approx(expected, rel=0.02 if "precision" in settings else 1e-5)


class Failing(Recorder):
    """A callback whose `close` raises."""

    def close(self):
        super().close()
        raise OSError("tracking is gone")


@pytest.mark.parametrize("broken", [False, True])
def test_a_callback_that_cannot_be_closed_hides_nothing(shards, tmp_path, broken, caplog):
    """All others are closed, and the first error of the run is the one that is raised."""
    callbacks = [Failing(), Recorder(), Failing(), Recorder()]
    trainer = make_trainer(
        shards, tmp_path, callbacks=callbacks, epochs=1, loss=Poisoned(0) if broken else None
    )
    first = NonFiniteLossError if broken else OSError
    with pytest.raises(first, match="step 1" if broken else "tracking is gone"):
        trainer.run()
    assert [callback.closed for callback in callbacks] == [1, 1, 1, 1]
    assert caplog.text.count("Failing.close failed too") == (2 if broken else 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        trainer.checkpointer.save(trainer.state, trainer.network, trainer.optimizer)


def test_a_run_that_is_stopped_early_still_says_what_could_not_be_closed(shards):
    callbacks = [Failing(), Recorder()]
    epochs = make_trainer(shards, callbacks=callbacks, epochs=2).epochs()
    next(epochs)
    with pytest.raises(OSError, match="tracking is gone"):
        epochs.close()
    assert [callback.closed for callback in callbacks] == [1, 1]
