"""A trained network as a file: the same logits at any size, in torch.export's form and as ONNX."""

import numpy as np
import pytest
import torch

from d2ls import export
from d2ls.errors import ConfigError, StorageError, WeightsError
from d2ls.export import export_model
from pipeline.models import load_model
from tests.inference_stubs import tiny_bundle
from tests.shards import CLASSES


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return load_model(str(tiny_bundle(tmp_path_factory.mktemp("model"), CLASSES)), device="cpu")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_a_program_gives_the_networks_logits_at_any_size(tmp_path, segmenter, suffix) -> None:
    target = tmp_path / f"model.{suffix}"
    assert export_model(segmenter.network, target, bands=3) < 1e-4
    assert [file.name for file in tmp_path.iterdir()] == [target.name]
    if suffix == "pt2":
        image = np.random.default_rng(0).integers(0, 256, (77, 101, 3)).astype(np.uint8)
        raw = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            logits = torch.export.load(target).module()(raw)
        wanted = segmenter.tensor_labels(raw)
        assert (logits.argmax(1) == wanted).float().mean() > 0.999


def test_a_program_that_differs_is_not_kept(tmp_path, segmenter, monkeypatch) -> None:
    monkeypatch.setattr(export, "_write_pt2", lambda program, file: lambda images: torch.zeros(1))
    with pytest.raises(WeightsError, match="differs from the network"):
        export_model(segmenter.network, tmp_path / "model.pt2", bands=3, checks=1)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"\.pt2 or \.onnx"):
        export_model(segmenter.network, tmp_path / "model.h5", bands=3)
    (tmp_path / "mine.pt2").write_text("mine")
    with pytest.raises(StorageError, match=r"mine\.pt2: exists already"):
        export_model(segmenter.network, tmp_path / "mine.pt2", bands=3)
    assert (tmp_path / "mine.pt2").read_text() == "mine"
