"""`python -m pipeline.export`: a D2LS network as a file that gives the same labels."""

import numpy as np
import pytest
import torch

from d2ls.errors import ConfigError, StorageError, WeightsError
from pipeline.export import main
from pipeline.models import load_model
from tests.inference_stubs import tiny_bundle
from tests.shards import CLASSES


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return str(tiny_bundle(tmp_path_factory.mktemp("model"), CLASSES))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_a_model_is_exported_for_any_size(tmp_path, bundle, suffix, capsys) -> None:
    target = tmp_path / f"model.{suffix}"
    main([bundle, str(target)])
    assert "(B 3 H W: red, green, blue; raw uint8 values as float32)" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == [target.name]
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 77, 101)).astype(np.float32)
    if suffix == "pt2":
        with torch.no_grad():
            result = torch.export.load(target).module()(torch.from_numpy(image)).numpy()
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
        (result,) = session.run(None, {"images": image})
    expected = load_model(bundle, device="cpu").tensor_logits(torch.from_numpy(image)).argmax(1).numpy()
    assert (result.argmax(1) == expected).mean() > 0.999


def test_another_size_than_the_window_of_the_training_is_named(tmp_path, bundle, capsys, monkeypatch) -> None:
    monkeypatch.setattr("d2ls.models.export.export_model", lambda *_, **__: 0.0)
    window = load_model(bundle, device="cpu").info.window
    for options, told in ((["--size", str(window)], False), (["--size", str(2 * window)], True), ([], True)):
        main([bundle, str(tmp_path / "model.pt2"), *options])
        assert (f"trained with windows of {window} pixels" in capsys.readouterr().out) == told, options


def test_what_the_command_refuses_before_it_reads_the_model(tmp_path) -> None:
    existing = tmp_path / "model.onnx"
    existing.write_text("mine")
    cases = {
        str(existing): "--overwrite",
        "s3://bucket/model.onnx": "name a local file",
        "model.h5": r"\.onnx or \.pt2",
    }
    for output, words in cases.items():
        with pytest.raises((ConfigError, StorageError), match=words):
            main(["runs/none", output])
    assert existing.read_text() == "mine"
    with pytest.raises(WeightsError, match="no such folder"):
        main([str(tmp_path / "none"), str(existing), "--overwrite"])
    with pytest.raises(StorageError, match="is a folder"):
        main(["runs/none", str(tmp_path), "--overwrite"])
    assert existing.read_text() == "mine"
