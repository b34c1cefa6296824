"""Small networks that replace D2LS in tests of the code around it."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from d2ls.bundle import ModelInfo
from d2ls.labels import ClassTable


class Output(NamedTuple):
    logits: Tensor


class Scale(nn.Module):
    def __init__(self, max_value: float) -> None:
        super().__init__()
        self.max_value = max_value

    def forward(self, raw: Tensor) -> Tensor:
        return raw.float() / self.max_value - 0.5


class LocalStub(nn.Module):
    """One 5 x 5 convolution with seeded weights, which looks two pixels far."""

    def __init__(self, bands: int = 3, classes: int = 4, max_value: float = 255.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.conv = nn.Conv2d(bands, classes, 5, padding=2)
        with torch.no_grad():
            self.conv.weight.copy_(torch.randn(self.conv.weight.shape, generator=generator))
            self.conv.bias.copy_(torch.randn(self.conv.bias.shape, generator=generator))
        self.normalization = Scale(max_value)
        self.config = {"stub": True}
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor, auxiliary: bool | None = None) -> Output:
        self.seen.append(tuple(images.shape))
        return Output(self.conv(self.normalization(images)))


def model_info(
    *, bands: int = 3, classes: int = 4, window: int = 32, dtype: str = "uint8", gsd: float | None = None
) -> ModelInfo:
    names = ["ground", "house", "road", "tree", "water", "field", "car"][:classes]
    colors = [
        (200, 180, 60),
        (220, 20, 60),
        (90, 90, 90),
        (10, 120, 30),
        (30, 60, 200),
        (150, 220, 90),
        (9, 9, 9),
    ]
    return ModelInfo(
        config={},
        normalization={},
        classes=ClassTable.create(names, colors[:classes]),
        bands=("red", "green", "blue", "nir")[:bands],
        dtype=dtype,
        window=window,
        ground_sampling_distance=gsd,
    )


def tiny_bundle(
    folder: Path,
    classes: ClassTable,
    *,
    bands: tuple[str, ...] = ("red", "green", "blue"),
    dtype: str = "uint8",
    window: int = 64,
    gsd: float | None = None,
    seed: int = 0,
) -> Path:
    """Writes the smallest D2LS network, untrained, as a bundle folder."""
    from d2ls.models import build_model
    from d2ls.models.saving import save_bundle

    torch.manual_seed(seed)
    top = 255.0 if dtype == "uint8" else 65535.0
    network = build_model(
        backbone="test_convnext",
        num_classes=classes.num_classes,
        stages=1,
        bands=len(bands),
        embed_dim=32,
        heads=2,
        upsampling_init="published",
        normalization={"mean": [0.5] * len(bands), "std": [0.2] * len(bands), "max_value": top},
    )
    info = ModelInfo(
        config=network.config,
        normalization=network.normalization.to_json(),
        classes=classes,
        bands=bands,
        dtype=dtype,
        window=window,
        ground_sampling_distance=gsd,
        dataset={"name": "tiny", "protocol": "clean", "digest": "1" * 64},
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_bundle(folder, network, info)
    return folder
