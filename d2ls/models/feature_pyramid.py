"""Makes four maps from the single map of a plain vision transformer."""

from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

STRIDE = 16


class SimpleFeaturePyramid(nn.Module):
    """Makes maps at strides 4, 8, 16 and 32, each directly from the last map of a transformer.

    Two transposed convolutions of stride 2 lead to stride 4, one to stride 8, a max pooling to stride 32. Each map
    then passes a 1x1 and a 3x3 convolution with layer norms over channels. There is no batch norm. Source: Li et al.
    2022, Exploring Plain Vision Transformer Backbones for Object Detection (arXiv 2203.16527), section 3.

    Args:
        channels: channels of the transformer's map.
        width: channels of all four maps.
    """

    def __init__(self, channels: int, width: int = 256) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.levels = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(channels, half, 2, 2),
                    LayerNorm2d(half),
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, 2, 2),
                    *_project(quarter, width),
                ),
                nn.Sequential(nn.ConvTranspose2d(channels, half, 2, 2), *_project(half, width)),
                nn.Sequential(*_project(channels, width)),
                nn.Sequential(nn.MaxPool2d(2), *_project(channels, width)),
            ]
        )
        self.channels = (width,) * len(self.levels)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Computes F1..F4 (B width h w, strides 4, 8, 16, 32) from the map at stride 16, of even height and width."""
        return [level(features) for level in self.levels]


def _project(channels: int, width: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, 1, bias=False),
        LayerNorm2d(width),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        LayerNorm2d(width),
    ]
