"""Five steps, an exact resume, every precision and layout, and tests that need a GPU."""

import logging
import math
from dataclasses import replace

import pytest
import torch

from d2ls.losses import D2LSLoss
from d2ls.models import D2LSOutput
from d2ls.training.device import open_device
from d2ls.training.probe_memory import probe_memory
from d2ls.training.process_group import ProcessGroup
from tests.tiny_trainer import SIZE, Recorder, StopAfter, assert_equal, make_trainer, weights

BACKBONES = ["test_convnext", "test_resnet", "swin_tiny_patch4_window7_224"]
SETTINGS = {
    "fp32": {},
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
    "channels_last": {"precision": "bf16", "channels_last": True},
    "compile": {"precision": "bf16", "compile": True},
}
TOLERANCE = {"fp32": 1e-4, "tf32": 5e-3, "bf16": 3e-2, "channels_last": 3e-2, "compile": 3e-2}
"""Of the loss of the first step, relative to float32 on the CPU."""


CASES = [
    ("cpu", "test_convnext", "fp32"),
    ("cpu", "test_resnet", "channels_last"),  # unit tests train the others
    *(
        pytest.param("cuda", backbone, settings, marks=pytest.mark.gpu)
        for backbone in BACKBONES
        for settings in SETTINGS
    ),
]


@pytest.mark.parametrize(("device", "backbone", "settings"), CASES, indirect=["device"])
def test_five_steps_and_a_resume_that_goes_on_exactly(
    device, shards, tmp_path, repeatable, backbone, settings
):
    options = {
        "backbone": backbone,
        "ema": 0.9,
        "lookahead": True,
        "checkpoint_every_steps": 1,
        **SETTINGS[settings],
    }
    reference, recorder = Recorder(), Recorder()
    plain = {"backbone": backbone, "epochs": 1}
    make_trainer(shards, callbacks=[reference], **plain).run()
    whole = make_trainer(
        shards, tmp_path / "whole", group=ProcessGroup.current(device), callbacks=[recorder], **options
    )
    whole.run()
    assert len(recorder.steps) >= 5
    assert all(math.isfinite(value) for report in recorder.steps for value in report.terms.values())
    loss, expected = recorder.steps[0].terms["total"], reference.steps[0].terms["total"]
    assert loss == pytest.approx(expected, rel=TOLERANCE[settings])
    for part in ("forward", "backward", "optimizer"):
        assert all(report.seconds[part] > 0 for report in recorder.steps)

    options["group"] = ProcessGroup.current(device)
    cut = make_trainer(shards, tmp_path / "cut", callbacks=[StopAfter(4)], **options)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    rest = make_trainer(shards, tmp_path / "cut", **options)
    rest.run()
    assert_equal(weights(whole), weights(rest))
    # CUDA adds up the value of the loss in any order (not its gradient), so logged losses differ in the last bit.
    for row, resumed in zip(whole.state.history, rest.state.history, strict=True):
        assert resumed == pytest.approx(row, rel=1e-6, nan_ok=True)
    assert replace(whole.state, history=[], best_scores={}) == replace(rest.state, history=[], best_scores={})


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", BACKBONES)
def test_no_call_waits_for_the_gpu_in_a_step(shards, backbone):
    """CUDA raises if a call waits. The values of the previous step are read after an event, which is allowed."""
    trainer = make_trainer(
        shards,
        group=ProcessGroup.current(torch.device("cuda", 0)),
        backbone=backbone,
        ema=0.9,
        lookahead=True,
        epochs=3,
    )
    step = trainer._train_step

    def watched(*arguments):
        if trainer.state.step:  # the first step loads kernels
            torch.cuda.set_sync_debug_mode("error")
        try:
            step(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer._train_step = watched
    trainer.run()


@pytest.mark.gpu
def test_every_term_of_labels_is_that_of_the_cpu_and_waits_for_nothing():
    options = {
        "focal_weight": 1.0, "tversky_weight": 1.0, "lovasz_weight": 1.0, "class_weights": (0.5, 3.0, 0.0, 1.0),
        "boundary_factor": 5.0, "contrastive": "none",
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 64, 64, generator=generator)
    labels = (
        torch.randint(0, 4, (2, 8, 8), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    )
    labels[0, :9] = 255
    results = []
    for place in ("cpu", "cuda"):
        x, y, loss = (
            logits.to(place, copy=True).requires_grad_(),
            labels.to(place),
            D2LSLoss(**options).to(place),
        )
        loss(D2LSOutput(x), y).total.backward()  # the first call loads kernels
        x.grad = None
        torch.cuda.set_sync_debug_mode("error")
        try:
            terms = loss(D2LSOutput(x), y)
            terms.total.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results.append((torch.stack(list(terms.terms.values())).detach().cpu(), x.grad.cpu()))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.gpu
def test_a_gpu_that_is_too_small_accumulates(shards, caplog):
    """Memory is really limited, to the need of about three of eight samples."""
    place, options = torch.device("cuda", 0), {"backbone": "test_resnet", "global_batch_size": 8, "epochs": 1}
    options["sample_shape"] = (3, 16 * SIZE, 16 * SIZE)
    trainer = make_trainer(shards, group=ProcessGroup.current(place), **options)
    device, shape = open_device(place), options["sample_shape"]
    attempt = probe_memory(trainer.network, trainer.loss, trainer.optimizer, shape, device, "fp32")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(place)
    attempt(3)
    needed = torch.cuda.max_memory_reserved(place)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(place).total_memory
    torch.cuda.set_per_process_memory_fraction(needed * 1.1 / total, place)
    try:
        with caplog.at_level(logging.INFO):
            trainer.run()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, place)
    assert "going on with train.micro_batch_size=2" in caplog.text
    assert len(trainer._gradients.plan.parts[0]) == 4


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_probe_leaves_no_trace_on_a_gpu(shards, backbone):
    trainer = make_trainer(
        shards, group=ProcessGroup.current(torch.device("cuda", 0)), backbone=backbone, ema=0.9
    )
    before, random = weights(trainer), torch.cuda.get_rng_state(0)
    device = open_device(trainer.group.device)
    probe_memory(trainer.network, trainer.loss, trainer.optimizer, (3, SIZE, SIZE), device, "bf16")(2)
    assert_equal(weights(trainer), before)
    assert torch.equal(torch.cuda.get_rng_state(0), random)
    assert all(parameter.grad is None for parameter in trainer.network.parameters())
