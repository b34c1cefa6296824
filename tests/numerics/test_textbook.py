"""The network equals the textbook version in values and gradients, with every setting."""

import pytest
import torch
import torchvision

from d2ls.models import build_model, load_published, pixel_kernels, pixel_ops
from d2ls.models.published import published_name
from tests.named_weights import NORMALIZED, fill, named_tensor, relative_error
from tests.textbook_network import TextbookD2LS, TorchvisionConvNeXt


def small_textbook(classes, stages):
    """A published network with a small torchvision ConvNeXt, and ours with the same weights."""
    torch.manual_seed(0)
    theirs = TextbookD2LS(
        TorchvisionConvNeXt(torchvision.models.convnext_tiny().features), (96, 192, 384, 768), classes, stages
    )
    return fill(theirs)


def gradients(model, images, weights):
    output = model(images, auxiliary=True)
    ((output[0] * weights[0]).sum() + (output[1] * weights[1]).sum()).backward()
    return output, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("route", ["absorbed", "projected"])
@pytest.mark.parametrize(
    ("classes", "stages", "size"), [(7, 3, (64, 64)), (5, 0, (36, 44)), (18, 1, (40, 32))]
)
def test_published_weights_give_textbook_values_and_gradients(route, classes, stages, size):
    theirs = small_textbook(classes, stages)
    ours = build_model(
        backbone="convnext_tiny", num_classes=classes, stages=stages, route=route, normalization=NORMALIZED
    )
    dropped = load_published(ours, theirs.state_dict())
    assert len(dropped) == 2 * stages + 1
    assert all(name.endswith("k_proj.bias") for name in dropped)
    images = named_tensor("images", (2, 3, *size))
    weights = named_tensor("weights", (2, 2, classes, *size))
    expected, expected_grads = gradients(theirs.eval(), images, weights)
    result, actual_grads = gradients(ours.eval(), images, weights)
    assert relative_error(result.logits, expected[0]) < 4e-6
    assert relative_error(result.static_logits, expected[1]) < 4e-6
    assert relative_error(result.dynamic_dictionary, expected[2]) < 4e-6
    assert relative_error(result.dictionaries[-1], expected[3]) < 4e-6
    kept = {name: grad for name, grad in expected_grads.items() if name not in dropped}
    assert len(kept) == len(actual_grads)
    errors = {
        n: relative_error(actual_grads[published_name(n)].flatten(), g.flatten()) for n, g in kept.items()
    }
    assert {name: error for name, error in errors.items() if error > 1e-4} == {}


def leaves(*shapes):
    return [named_tensor(str(i), shape).double().requires_grad_() for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("T", [1, 2])
@pytest.mark.parametrize("block", [5, 1024])
@pytest.mark.parametrize("device", ["cpu", "other"])
def test_kernels_equal_plain_operations(monkeypatch, T, block, device):
    """The kernels are the plain operations, also where blocks do not divide the map; in float64."""
    B, S, H, K, N, C = 2, 2, 2, 3, 12, 16
    monkeypatch.setattr(pixel_kernels, "BLOCK", block)
    cut = pixel_kernels.blocks
    monkeypatch.setattr(pixel_kernels, "blocks", lambda g, share, n, step, _: cut(g, share, n, step, device))
    position = named_tensor("p", (N, C)).double()

    features, rows = leaves((B, T, N, C), (B, T, 5, C))
    compare(
        lambda e, r: pixel_kernels.AttendPixels.apply(e.flatten(0, 1), position, r.flatten(0, 1)),
        lambda e, r: pixel_ops.plain_attend_pixels(e, position, r),
        (features, rows),
    )
    arguments = leaves((B, T, N, C), (B, S, H, K, C), (B, S, H, K), (B, S, H, K, C), (C,), (C,))

    def refine(e, r, o, v, w, b):
        flat = r.reshape(B * S, H * K, C), o.reshape(B * S, H * K), v.reshape(B * S, H * K, C)
        return pixel_kernels.RefinePixels.apply(e.flatten(0, 1), position, *flat, w, b, 1e-5, H)

    compare(refine, lambda e, *rest: pixel_ops.plain_refine_pixels(e, position, *rest, 1e-5), arguments)
    arguments = leaves((B, N, 16), (B, K, 1), (4,), (4,))
    compare(
        lambda *a: pixel_kernels.Upsample.apply(*a, 1e-6, (4, 3)),
        lambda *a: pixel_ops.plain_upsample(*a, 1e-6, (4, 3)),
        arguments,
    )


def compare(result, expected, arguments):
    results = []
    for function in (result, expected):
        for item in arguments:
            item.grad = None
        out = function(*arguments)
        out = out if isinstance(out, tuple) else (out,)
        sum((item.flatten() * named_tensor("slope", (item.numel(),))).sum() for item in out).backward()
        results.append(
            [*(item.detach().flatten() for item in out), *(item.grad.clone() for item in arguments)]
        )
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
