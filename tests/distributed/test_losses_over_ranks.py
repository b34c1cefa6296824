"""Two ranks with unequal batches give the value and the gradients of one process with all images.

Terms that are sums over pixels or images give them for any number of micro-steps too.
"""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2ls.data import Batch
from d2ls.losses import D2LSLoss
from d2ls.models import D2LSOutput
from d2ls.training.accumulation import GradientAccumulator, MicrobatchPlan
from d2ls.training.batch_norm import normalize_over_ranks
from d2ls.training.device import Stopwatch, open_device
from d2ls.training.process_group import ProcessGroup

K, C, SHARES = 3, 16, (3, 1)
LOSSES = {
    "ratio": {"contrastive": "ratio"},
    "infonce": {"contrastive": "infonce", "temperature": 0.2},
    "published": {"contrastive": "none", "ignored_pixels": "include", "dice_weight": 0.5},
    "weighted": {"contrastive": "none", "class_weights": (0.2, 3.0, 1.0), "boundary_factor": 4.0, "boundary_px": 1},
    "all": {
        "contrastive": "none", "focal_weight": 0.5, "tversky_weight": 2.0, "lovasz_weight": 0.7,
        "class_weights": (0.2, 3.0, 1.0), "boundary_factor": 4.0, "boundary_px": 2,
    },
}  # fmt: skip
EXACT = {
    name: {**options, "dice_weight": 0.0}
    for name, options in LOSSES.items()
    if options["contrastive"] == "none"
}


class Toy(nn.Module):
    """All fields of the output from few parameters, with a batch norm in between."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.ReLU())
        self.mix = nn.Linear(C, K * C)
        self.static = nn.Parameter(torch.randn(K, C))

    def forward(self, images):
        features = self.conv(images)
        dynamic = self.mix(features.mean((2, 3))).view(-1, K, C)
        logits = torch.einsum("bchw,bkc->bkhw", features, dynamic + self.static)
        static = torch.einsum("bchw,kc->bkhw", features, self.static)
        return D2LSOutput(logits, static, self.static, dynamic)


def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 9, 8, generator=generator)
    labels = torch.randint(0, K, (4, 7, 6), generator=generator)
    labels[0, :5], labels[3, :, 2] = 255, 255
    return images, labels


def step(model, part):
    images, labels = (each[part] for each in batch())
    results = {}
    for name, options in LOSSES.items():
        model.zero_grad()
        loss = D2LSLoss(**options)(model(images), labels)
        loss.total.backward()
        values = {term: value.detach() for term, value in loss.terms.items()} | {"total": loss.total.detach()}
        grads = {n.removeprefix("module."): p.grad.clone() for n, p in model.named_parameters()}
        results[name] = values, grads
    return results, {n.removeprefix("module."): value.detach().clone() for n, value in model.named_buffers()}


def step_of_rank():
    torch.manual_seed(0)
    toy = Toy()
    assert normalize_over_ranks(toy) == 1
    model = DistributedDataParallel(toy)
    rank = dist.get_rank()
    start = sum(SHARES[:rank])
    return step(model, slice(start, start + SHARES[rank]))


@pytest.fixture(scope="module")
def results(ranks):
    torch.manual_seed(0)
    return step(Toy(), slice(None)), ranks.run(2, step_of_rank)


@pytest.mark.parametrize("name", LOSSES)
def test_contrastive_and_other_terms_of_two_ranks_equal_one(results, name):
    (one, _), ranks = results
    expected_values, expected_grads = one[name]
    for result, _ in ranks:
        values, grads = result[name]
        assert values.keys() == expected_values.keys()
        for term, value in expected_values.items():
            torch.testing.assert_close(values[term], value, rtol=2e-5, atol=1e-6)
        for parameter, grad in expected_grads.items():
            torch.testing.assert_close(grads[parameter], grad, rtol=2e-4, atol=2e-6)


def test_batch_norm_statistics_of_two_ranks_equal_one(results):
    (_, expected), ranks = results
    for _, result in ranks:
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value, rtol=1e-4, atol=1e-6)


def accumulated(micro_batch_size):
    """Terms and gradients of five images, dealt to all ranks and cut into micro-steps; one has no label at all."""
    group = ProcessGroup.current()
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(5, 3, 9, 8, generator=generator)
    labels = torch.randint(0, K, (5, 7, 6), generator=generator, dtype=torch.uint8)
    labels[0, :5], labels[3] = 255, 255
    plan = MicrobatchPlan.create(5, group.world_size, micro_batch_size)
    start = sum(plan.share(rank) for rank in range(group.rank))
    mine = slice(start, start + plan.share(group.rank))
    keys = tuple(map(str, range(plan.share(group.rank))))
    batch = Batch(images[mine], labels[mine], keys, keys, torch.ones(len(keys), dtype=torch.bool))
    device = open_device(torch.device("cpu"))
    result = {}
    for name, options in EXACT.items():
        torch.manual_seed(0)
        toy = Toy()
        toy.conv[1] = nn.Identity()  # batch norm sees micro-steps
        accumulate = GradientAccumulator(toy, D2LSLoss(**options), plan, group, device)
        result[name] = (
            accumulate(batch, Stopwatch(device)),
            {n: p.grad.clone() for n, p in toy.named_parameters()},
        )
    return result


@pytest.fixture(
    scope="module", params=[(1, 2), (2, 1), (2, 2)], ids=lambda case: "{} ranks of {}".format(*case)
)
def whole_and_accumulated(request, ranks):
    number, micro_batch_size = request.param
    return accumulated(None), ranks.run(number, accumulated, micro_batch_size)


@pytest.mark.parametrize("name", EXACT)
def test_ranks_and_micro_steps_do_not_change_sums_over_pixels_and_images(whole_and_accumulated, name):
    whole, ranks = whole_and_accumulated
    for result in ranks:
        assert result[name][0].keys() == whole[name][0].keys()
        for part in (0, 1):
            for key, value in whole[name][part].items():
                torch.testing.assert_close(result[name][part][key], value, rtol=2e-5, atol=1e-6)
