"""Two ranks with unequal batches give the value and the gradients of one process with all images."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2ls.losses import D2LSLoss
from d2ls.models import D2LSOutput
from d2ls.training.batch_norm import normalize_over_ranks

K, C, SHARES = 3, 16, (3, 1)
LOSSES = {
    "ratio": {"contrastive": "ratio"},
    "infonce": {"contrastive": "infonce", "temperature": 0.2},
    "published": {"contrastive": "none", "ignored_pixels": "include", "dice_weight": 0.5},
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
    wanted_values, wanted_grads = one[name]
    for found, _ in ranks:
        values, grads = found[name]
        assert values.keys() == wanted_values.keys()
        for term, value in wanted_values.items():
            torch.testing.assert_close(values[term], value, rtol=2e-5, atol=1e-6)
        for parameter, grad in wanted_grads.items():
            torch.testing.assert_close(grads[parameter], grad, rtol=2e-4, atol=2e-6)


def test_batch_norm_statistics_of_two_ranks_equal_one(results):
    (_, wanted), ranks = results
    for _, found in ranks:
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
