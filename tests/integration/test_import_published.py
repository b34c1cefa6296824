"""`python -m pipeline.import_published`: a checkpoint of the authors' code becomes a model, in the registry too."""

import argparse
import json

import numpy as np
import pytest
import torch
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from d2ls.errors import StorageError, WeightsError
from d2ls.models import Normalization
from pipeline.import_published import main
from pipeline.models import load_model
from tests.named_weights import fill, named_tensor
from tests.textbook_network import TextbookD2LS, TorchvisionConvNeXt
from tests.tracked_runs import make_recipe, make_shards, make_store

ATTO = [CNBlockConfig(*sizes) for sizes in ((40, 80, 2), (80, 160, 2), (160, 320, 6), (320, None, 2))]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A recipe file with one stage, and the network and file of a published checkpoint with two."""
    folder = tmp_path_factory.mktemp("published")
    shards = make_shards(folder / "shards")
    make_store(folder)
    recipe = make_recipe(shards, **{"tracking.uri": f"sqlite:///{folder}/mlflow.db"})
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    backbone = TorchvisionConvNeXt(ConvNeXt(ATTO).features)
    network = fill(TextbookD2LS(backbone, (40, 80, 160, 320), 4, stages=2)).eval()
    unused = {
        f"decoder.interactor.layers.{layer}.{name}.weight": torch.ones(8)
        for layer in range(2)
        for name in ("self_attn.q_proj", "mlp.lin1", "norm1", "norm3")
    }
    state = {f"net.{name}": value for name, value in (network.state_dict() | unused).items()}
    torch.save({"epoch": 3, "state_dict": state}, folder / "d2ls.ckpt")
    return folder, network


def command(folder, checkpoint="d2ls.ckpt", target="model", *more):
    main([str(folder / checkpoint), str(folder / target), str(folder / "recipe.yaml"), *more])


def test_a_checkpoint_becomes_a_registered_model(world, capsys):
    folder, theirs = world
    command(folder, "d2ls.ckpt", "model", "--register")
    said = capsys.readouterr().out
    assert "dropped: decoder.interactor.layers.*.self_attn.q_proj.weight (2)" in said
    assert "dropped: decoder.interactor.final_attn_token_to_image.k_proj.bias (1)" in said
    assert "4 classes, 2 stages" in said
    assert "models:/d2ls-blobs/1 is registered, alias challenger" in said
    dropped = json.loads((folder / "model/model.json").read_text())["extra"]["dropped"]
    assert len(dropped) == 8 + 5
    result = load_model(
        "models:/d2ls-blobs@challenger", device="cpu", tracking_uri=f"sqlite:///{folder}/mlflow.db"
    )
    raw = (named_tensor("raw", (1, 3, 64, 64)) * 50 + 128).clamp(0, 255).round()
    published = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        expected = theirs(published(raw))[0].softmax(1)[0]
    image = raw[0].permute(1, 2, 0).numpy().astype(np.uint8)
    np.testing.assert_allclose(result.probabilities(image), expected.numpy(), atol=1e-5)


def test_what_is_refused_leaves_nothing(world):
    folder, theirs = world
    (folder / "mine").mkdir()
    with pytest.raises(StorageError, match="mine: exists"):
        command(folder, target="mine")
    torch.save({"state_dict": {"net.conv.weight": torch.ones(1)}}, folder / "other.ckpt")
    with pytest.raises(WeightsError, match=r"other\.ckpt: no decoder\.token.*\(conv\.weight"):
        command(folder, "other.ckpt", "new")
    torch.save({"state_dict": {}, "config": argparse.Namespace()}, folder / "pickled.ckpt")
    with pytest.raises(WeightsError, match=r"more than tensors.*weights_only=False"):
        command(folder, "pickled.ckpt", "new")
    with pytest.raises(WeightsError, match=r"Is model\.backbone \(convnext_femto\) the checkpoint's"):
        command(folder, "d2ls.ckpt", "new", "model.backbone=convnext_femto")
    torch.save(TextbookD2LS(theirs.backbone, (40, 80, 160, 320), 5).state_dict(), folder / "five.pth")
    with pytest.raises(WeightsError, match=r"is for 5 classes.*holds 4 classes \(field, forest"):
        command(folder, "five.pth", "new")
    assert not (folder / "new").exists()
