"""Cross-attention between a dictionary of K vectors and a map of N pixels, in both directions, by two routes.

Absorbed: a score is q . (W_k e), which equals (W_k' q) . e. So the projection W_k of the pixels is applied to the K H
queries instead (K classes, H heads). For few classes these are fewer than the attention is wide, and nothing on the
pixel side is projected at all. Values and output projection are treated alike.
Projected: the pixels are projected as in any attention; cheaper for many classes. The results are equal.

No attention here has a key bias, as it would not change the softmax. Letters as in `pixel_ops`.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from d2ls.models import pixel_ops

Route = Literal["absorbed", "projected"]


def cheaper_route(num_classes: int, embed_dim: int, heads: int) -> Route:
    """Chooses the route with fewer multiplications per pixel."""
    width = embed_dim // 2
    absorbed = 2 * num_classes * heads * embed_dim
    projected = 2 * width * (embed_dim + num_classes)
    return "absorbed" if absorbed <= projected else "projected"


class CrossAttention(nn.Module):
    """The four projections of both attentions, of width A = C/2."""

    def __init__(self, embed_dim: int, heads: int, route: Route) -> None:
        super().__init__()
        width = embed_dim // 2
        self.query = nn.Linear(embed_dim, width)
        self.key = nn.Linear(embed_dim, width, bias=False)
        self.value = nn.Linear(embed_dim, width)
        self.out = nn.Linear(width, embed_dim)
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.route = route

    def split(self, projected: Tensor) -> Tensor:
        """Splits heads: ... K A to ... H K A/H."""
        return projected.view(*projected.shape[:-1], self.heads, -1).transpose(-3, -2)

    def by_head(self, layer: nn.Linear) -> Tensor:
        """Splits the weight A C of a projection: H A/H C."""
        return layer.weight.view(self.heads, -1, layer.in_features)


class DictionaryToPixelAttention(CrossAttention):
    """Attention of the dictionary (queries) over the pixels (keys E + P, values E)."""

    def forward(self, queries: Tensor, features: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Computes what is added to the dictionary.

        Args:
            queries: D + D0, B S K C.
            features: E, B T N C.
            position: P, N C.

        Returns:
            B S K C; and E unchanged, which the next operation must use (for the reason see
            `pixel_kernels.AttendPixels`).
        """
        q = self.split(self.query(queries)) * self.scale
        attend = self._absorbed if self.route == "absorbed" else self._projected
        attended, features = attend(q, features, position)
        return self.out(attended.transpose(2, 3).flatten(3)), features

    def _absorbed(self, q: Tensor, features: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        B, T, _, C = features.shape
        rows = q @ self.by_head(self.key)
        context, features = pixel_ops.attend_pixels(features, position, rows.reshape(B, T, -1, C))
        attended = context.view(rows.shape) @ self.by_head(self.value).mT
        return attended + self.value.bias.view(self.heads, 1, -1), features

    def _projected(self, q: Tensor, features: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.split(self.key(features + position)), self.split(self.value(features))
        return F.scaled_dot_product_attention(q, _like(k, q), _like(v, q), scale=1.0), features


class PixelToDictionaryAttention(CrossAttention):
    """Attention of the pixels (queries E + P) over the dictionary (keys D + D0, values D), with residual and norm."""

    def __init__(self, embed_dim: int, heads: int, route: Route) -> None:
        super().__init__(embed_dim, heads, route)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-5)

    def forward(self, features: Tensor, position: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Computes the refined pixel features.

        Args:
            features: E, B T N C.
            position: P, N C.
            keys: D + D0, B S K C.
            values: D, B S K C.

        Returns:
            E of the next stage, B S N C.
        """
        k, v = self.split(self.key(keys)) * self.scale, self.split(self.value(values))
        attend = self._absorbed if self.route == "absorbed" else self._projected
        return attend(features, position, k, v)

    def _absorbed(self, features: Tensor, position: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = k @ self.by_head(self.query)
        offsets = (k @ self.query.bias.view(self.heads, -1, 1)).squeeze(-1)
        values = v @ self.out.weight.t().reshape(self.heads, -1, self.out.out_features)
        values = values + self.out.bias / self.heads
        norm = self.norm.weight, self.norm.bias, self.norm.eps
        return pixel_ops.refine_pixels(features, position, rows, offsets, values, *norm)

    def _projected(self, features: Tensor, position: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = _like(self.split(self.query(features + position)), k)
        attended = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        refined: Tensor = self.norm(features + self.out(attended.transpose(2, 3).flatten(3)))
        return refined


def _like(pixel_side: Tensor, dictionary_side: Tensor) -> Tensor:
    """Repeats B T ... for the S branches of the dictionary side, without a copy."""
    return pixel_side.expand(*dictionary_side.shape[:2], *pixel_side.shape[2:])
