"""The network as a compiled and as an exported program."""

import pytest
import torch

from d2ls.model import build_model, export_program


@pytest.mark.parametrize("classes", [4, 20])
def test_compile_of_the_head_has_no_graph_break(classes):
    torch.manual_seed(0)
    model = build_model(backbone="convnext_atto", num_classes=classes, stages=1).train()
    maps = [each.detach() for each in model.backbone(torch.randn(2, 3, 64, 64))]

    def head(maps):
        return model.head(model.aggregator(maps), maps[-1], True)

    def run(function):
        model.zero_grad()
        output = function(maps)
        (output.logits.square().mean() + output.static_logits.square().mean()).backward()
        return output, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    wanted, wanted_grads = run(head)
    torch._dynamo.reset()
    found, found_grads = run(torch.compile(head, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.static_logits, wanted.static_logits, rtol=1e-4, atol=1e-5)
    assert wanted_grads.keys() == found_grads.keys()
    for name, grad in wanted_grads.items():
        torch.testing.assert_close(found_grads[name], grad, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(0)
    model = build_model(backbone="convnext_atto", num_classes=4, stages=1).eval()
    return model, export_program(model)


def test_export_holds_at_random_sizes(exported):
    model, program = exported
    run = program.module()
    generator = torch.Generator().manual_seed(1)
    for batch, height, width in torch.randint(64, 130, (4, 3), generator=generator).tolist():
        images = torch.randn(batch % 4 + 1, 3, height, width)
        with torch.no_grad():
            found, wanted = run(images), model(images)
        torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.dictionaries[-1], wanted.dictionaries[-1], rtol=1e-4, atol=1e-5)


def test_export_to_onnx_keeps_sizes_free(exported, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    model, program = exported
    torch.onnx.export(program, (), tmp_path / "model.onnx", verbose=False)
    images = torch.randn(1, 3, 66, 75)
    found = ReferenceEvaluator(onnx.load(tmp_path / "model.onnx")).run(None, {"images": images.numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(images).logits, rtol=1e-4, atol=1e-5)
