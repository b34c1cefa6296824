"""Batch norm over ranks with unequal shares, also none at all, is that of one process with the whole batch."""

import pytest
import torch
from torch import nn

from d2ls.training.batch_norm import normalize_over_ranks

SHARES = (3, 1, 0)
SHAPES = {"maps": (4, 6, 5, 7), "one value a sample": (4, 6, 1, 1)}


def case(shape):
    generator = torch.Generator().manual_seed(0)
    values, grad, weight, bias = (
        torch.randn(size, generator=generator) for size in (SHAPES[shape], SHAPES[shape], (6,), (6,))
    )
    return 3 * values + 500, grad, weight, bias  # the mean is large: E[x^2] - E[x]^2 in float32 is far off


def layer(affine, weight, bias):
    made = nn.Sequential(nn.BatchNorm2d(len(weight), affine=affine))
    if affine:
        made[0].weight.data, made[0].bias.data = weight.clone(), bias.clone()
    return made


def results(network, values, grad):
    values = values.clone().requires_grad_()
    result = network(values)
    result.backward(grad)
    parameters = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {"result": result.detach(), "input": values.grad, **parameters, **dict(network.named_buffers())}


def of_rank(shape, affine):
    values, grad, weight, bias = case(shape)
    network, start = layer(affine, weight, bias), sum(SHARES[: torch.distributed.get_rank()])
    assert normalize_over_ranks(network) == 1
    mine = slice(start, start + SHARES[torch.distributed.get_rank()])
    return results(network, values[mine].contiguous(memory_format=torch.channels_last), grad[mine])


@pytest.mark.parametrize("affine", [True, False], ids=["weights", "no weights"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_whole_batch(ranks, shape, affine):
    values, grad, weight, bias = case(shape)
    whole = results(layer(affine, weight, bias).double(), values.double(), grad.double())
    shares = ranks.run(3, of_rank, shape, affine)
    for name, expected in whole.items():
        own = [share[name] for share in shares]
        if name in ("result", "input"):
            own = [torch.cat(own)]
        elif name.endswith(("weight", "bias")):
            own = [torch.stack(own).sum(0)]
        for value in own:
            torch.testing.assert_close(value.double(), expected.double(), rtol=1e-3, atol=1e-3, msg=name)
