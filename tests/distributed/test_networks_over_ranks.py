"""Every kind of network on two ranks with unequal shares has the gradients of one process with the whole batch."""

import pytest
import torch
from torch import nn

from d2ls.data import Batch
from d2ls.losses import D2LSLoss
from d2ls.models import build_model
from d2ls.models.baselines import BASELINES
from d2ls.training.accumulation import GradientAccumulator, MicrobatchPlan
from d2ls.training.device import Stopwatch, open_device
from d2ls.training.optimizer import build_optimizer
from d2ls.training.process_group import ProcessGroup
from d2ls.training.train_state import seed_everything
from d2ls.training.update import WeightUpdate

IMAGES, SIDE, LR, DECAY = 5, 64, 1e-3, 0.5
# For the initial weights see `tests.tiny_trainer.make_trainer`.
D2LS = {
    "backbone": "test_convnext",
    "stages": 1,
    "embed_dim": 32,
    "heads": 2,
    "upsampling_init": "published",
}
DEFAULT = {
    "d2ls static": {**D2LS, "dictionary": "static"},
    "d2ls none": {**D2LS, "dictionary": "none"},
    "d2ls test_vit": {**D2LS, "backbone": "test_vit"},
    "unetformer test_vit frozen": {
        "architecture": "unetformer",
        "backbone": "test_vit",
        "freeze_backbone": True,
    },
    "unet test_resnet": {"architecture": "unet", "backbone": "test_resnet"},
}
SLOW = {
    "d2ls dynamic": D2LS,
    "d2ls without its options": {**D2LS, "aggregator": False, "static_branch": False, "stages": 0},
    "d2ls eva02": {**D2LS, "backbone": "eva02_tiny_patch14_224"},
    "d2ls test_vit2 frozen": {**D2LS, "backbone": "test_vit2", "freeze_backbone": True},
    **{f"{name} test_resnet": {"architecture": name, "backbone": "test_resnet"} for name in BASELINES},
    **{f"{name} test_vit": {"architecture": name, "backbone": "test_vit"} for name in ("unetformer", "fpn")},
}


def step(options):
    """Returns gradients, weights before and after a step, and the learning rate of each trained parameter."""
    group, device = ProcessGroup.current(), open_device(torch.device("cpu"))
    seed_everything(0)
    network = build_model(num_classes=3, **options).double().train()  # in float32 rounding turns over ReLUs
    for layer in network.modules():
        if isinstance(layer, nn.Dropout | nn.Dropout2d):
            layer.p = 0.0  # what it drops depends on the rank
    contrastive = "ratio" if options.get("dictionary") == "dynamic" else "none"
    optimizer = build_optimizer(network, lr=LR, weight_decay=0.0, layer_decay=DECAY)
    plan = MicrobatchPlan.create(IMAGES, group.world_size, None)
    accumulate = GradientAccumulator(network, D2LSLoss(contrastive=contrastive), plan, group, device)
    update = WeightUpdate(network, optimizer, group, clip_norm=None, ema=None)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    update.before_forward()
    for _ in range(
        2
    ):  # only the second call of DistributedDataParallel notices a parameter without a gradient
        optimizer.zero_grad()
        terms = accumulate(share(plan, group), Stopwatch(device))
    grads = {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}
    update.apply(terms)
    names = {id(value): name for name, value in network.named_parameters()}
    rates = {names[id(value)]: entry["lr"] for entry in optimizer.param_groups for value in entry["params"]}
    after = {name: value.detach().clone() for name, value in network.named_parameters()}
    return grads, before, after, rates


def share(plan, group):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (IMAGES, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    labels[0, :40], labels[3, :, :9] = 255, 255
    start = sum(plan.share(rank) for rank in range(group.rank))
    mine = slice(start, start + plan.share(group.rank))
    keys = tuple(map(str, range(plan.share(group.rank))))
    return Batch(images[mine], labels[mine], keys, keys, torch.ones(len(keys), dtype=torch.bool))


def steps(networks):
    torch.set_num_threads(1)
    return {name: step(options) for name, options in networks.items()}


@pytest.fixture(
    scope="module", params=[DEFAULT, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["some", "all"]
)
def results(request, ranks):
    before = torch.get_num_threads()
    alone = steps(request.param)
    torch.set_num_threads(before)
    return alone, ranks.run(2, steps, request.param)


def norm(grads):
    return float(torch.stack([grad.norm() for grad in grads]).norm())


def test_two_ranks_have_the_gradients_of_one(results):
    alone, (first, second) = results
    for name, (expected, _, _, rates) in alone.items():
        for grads, before, after, own_rates in (first[name], second[name]):
            assert grads.keys() == expected.keys() == rates.keys(), name
            assert own_rates == rates, name
            whole = norm(expected.values())
            for parameter, grad in expected.items():
                difference = float((grads[parameter] - grad).norm())
                allowed = 1e-6 * (float(grad.norm()) + 1e-2 * whole)
                assert difference <= allowed, f"{name}: {parameter}"
            for parameter, value in before.items():
                moved = float((after[parameter] - value).abs().max())
                assert moved <= 1.01 * rates.get(parameter, 0.0), f"{name}: {parameter}"
                frozen = "frozen" in name and parameter.startswith("backbone.trunk.")
                assert (parameter in grads) != frozen, f"{name}: {parameter}"
        assert all(torch.equal(first[name][2][key], second[name][2][key]) for key in rates), name


def test_layers_of_a_plain_transformer_have_rates_of_their_own(results):
    for name in [name for name in results[0] if "vit" in name or "eva" in name]:
        rates = [rate for key, rate in results[0][name][3].items() if key.startswith("backbone.trunk.")]
        assert (len(set(rates)) > 3) != ("frozen" in name), name
