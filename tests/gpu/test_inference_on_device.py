"""Evaluation and prediction on a device give what the CPU gives, within a tolerance."""

import numpy as np
import pytest
import torch

from d2ls.bundle import ModelInfo
from d2ls.inference import Predictor
from d2ls.models import build_model
from d2ls.training.evaluator import Evaluator
from d2ls.training.process_group import ProcessGroup
from tests.tiny_trainer import SIZE, make_trainer

SAME_PIXELS = 0.999
"""Share of pixels that get the same class: where two classes are equally likely, rounding decides."""

PROBABILITY = 2e-3
"""Largest difference of a class probability, in float32 without TensorFloat-32."""

BACKBONES = ["test_convnext", "test_resnet", "swin_tiny_patch4_window7_224"]
CASES = [("cpu", "test_resnet"), *(pytest.param("cuda", name, marks=pytest.mark.gpu) for name in BACKBONES)]


@pytest.mark.parametrize(("device", "backbone"), CASES, indirect=["device"])
def test_evaluation_gives_the_same_scores(device, shards, backbone):
    tables = []
    layouts = torch.contiguous_format, torch.channels_last
    for place, layout in zip((torch.device("cpu"), device), layouts, strict=True):
        group = ProcessGroup.current(place)
        trainer = make_trainer(shards, group=group, backbone=backbone)
        network = trainer.network.eval().to(memory_format=layout)
        evaluator = Evaluator("val", shards.card.classes, trainer.evaluator.batches, group)
        tables.append(evaluator(network)[0])
    assert tables[0].sum() == tables[1].sum() > 0
    assert np.abs(tables[0] - tables[1]).sum() / 2 <= (1 - SAME_PIXELS) * tables[0].sum()


@pytest.mark.parametrize(("device", "backbone"), CASES, indirect=["device"])
def test_prediction_gives_the_same_map(device, shards, backbone):
    torch.manual_seed(0)
    network = build_model(
        backbone=backbone, num_classes=4, stages=1, embed_dim=32, heads=2, upsampling_init="published"
    ).eval()
    info = ModelInfo.from_card(network, shards.card, window=SIZE)
    image = np.random.default_rng(0).integers(0, 255, (2 * SIZE + 7, 2 * SIZE - 3, 3), np.uint8)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    maps, probabilities = [], []
    for place in ("cpu", device):
        predictor = Predictor(network, info, device=place, tta="flips")
        maps.append(predictor.predict(image))
        probabilities.append(predictor.probabilities(image))
    assert (maps[0] == maps[1]).mean() >= SAME_PIXELS
    assert np.abs(probabilities[0] - probabilities[1]).max() <= PROBABILITY
