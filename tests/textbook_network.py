"""D2LS exactly as in the paper, without optimisation: the reference for tests and the baseline of benchmarks.

Parts carry the names of the published checkpoint, so `state_dict()` can be given to `load_published`. Published modules
that no forward pass uses are left out; the key biases are kept.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Projection(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, features):
        return self.proj(features.flatten(2).transpose(1, 2))


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of B C H W."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        width = dim // 2
        self.q_proj, self.k_proj = nn.Linear(dim, width), nn.Linear(dim, width)
        self.v_proj, self.out_proj = nn.Linear(dim, width), nn.Linear(width, dim)
        self.heads = heads

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, q, k, v):
        q, k, v = self.split(self.q_proj(q)), self.split(self.k_proj(k)), self.split(self.v_proj(v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        return self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.cross_attn_token_to_image = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, heads)

    def forward(self, d, e, d0, p):
        d = self.norm2(d + self.cross_attn_token_to_image(q=d + d0, k=e + p, v=e))
        e = self.norm4(e + self.cross_attn_image_to_token(q=e + p, k=d + d0, v=d))
        return d, e


class Interactor(nn.Module):
    def __init__(self, stages, dim, heads):
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, heads) for _ in range(stages))
        self.final_attn_token_to_image = Attention(dim, heads)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, d0, e, p):
        d = d0
        for layer in self.layers:
            d, e = layer(d, e, d0, p)
        return self.norm_final_attn(d + self.final_attn_token_to_image(q=d + d0, k=e + p, v=e)), e


class Token(nn.Module):
    def __init__(self, classes, dim, candidates):
        super().__init__()
        self.basic_queries = nn.Embedding(classes, dim)
        self.token_mlp = nn.Linear(dim, candidates * dim)


class Modulator(nn.Module):
    def __init__(self, channels, classes, dim, candidates):
        super().__init__()
        half = dim // 2
        self.mlp1 = Projection(channels, dim)
        self.gmp_branch = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Conv2d(half, half, 1))
        self.gap_branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(half, half, 1))
        self.mlp2 = nn.Sequential(
            nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, classes * candidates)
        )
        self.shape = classes, candidates

    def forward(self, f4):
        x = self.mlp1(f4).transpose(1, 2).unflatten(2, f4.shape[-2:])
        first, second = x.chunk(2, dim=1)
        pooled = torch.cat([self.gmp_branch(first), self.gap_branch(second)], dim=1).flatten(1)
        return self.mlp2(pooled).unflatten(1, self.shape).softmax(-1)


class Hypernetwork(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim // 16)])

    def forward(self, x):
        return self.layers[2](F.relu(self.layers[1](F.relu(self.layers[0](x)))))


class PositionalEncoding(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, dim // 2))

    def forward(self, height, width):
        matrix = self.positional_encoding_gaussian_matrix
        y = ((torch.arange(height, device=matrix.device) + 0.5) / height)[:, None].expand(height, width)
        x = ((torch.arange(width, device=matrix.device) + 0.5) / width)[None, :].expand(height, width)
        angles = 2 * math.pi * ((2 * torch.stack([x, y], dim=-1) - 1) @ matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Decoder(nn.Module):
    def __init__(self, channels, classes, stages, dim, heads, candidates):
        super().__init__()
        self.token = Token(classes, dim, candidates)
        self.feature_modulator = Modulator(channels, classes, dim, candidates)
        self.interactor = Interactor(stages, dim, heads)
        self.upsampler = nn.Sequential(
            nn.PixelShuffle(2), ChannelNorm(dim // 4), nn.GELU(), nn.PixelShuffle(2), nn.GELU()
        )
        self.output_hypernetwork_mlps = Hypernetwork(dim)
        self.candidates = candidates

    def dynamic(self, f4):
        static = self.token.basic_queries.weight
        weights = self.feature_modulator(f4)
        candidates = self.token.token_mlp(static).view(len(static), self.candidates, -1)
        return torch.stack([(image[:, :, None] * candidates).sum(1) for image in weights])

    def decode(self, d0, e0, p):
        d, e = self.interactor(d0, e0.flatten(2).transpose(1, 2), p.flatten(0, 1))
        upsampled = self.upsampler(e.transpose(1, 2).unflatten(2, e0.shape[-2:]))
        weights = self.output_hypernetwork_mlps(d)
        return (weights @ upsampled.flatten(2)).unflatten(2, upsampled.shape[-2:]), d


class TextbookD2LS(nn.Module):
    """The whole network.

    Args:
        backbone: B 3 H W to four maps, shallowest first; None: maps are given to `head`.
        channels: of the four maps.
    """

    def __init__(self, backbone, channels, classes, stages=3, dim=256, heads=8, candidates=4):
        super().__init__()
        if backbone is not None:
            self.backbone = backbone
        self.pe_layer = PositionalEncoding(dim)
        self.linear_c = nn.ModuleList(Projection(width, dim) for width in channels)
        self.aggregator = nn.Conv2d(4 * dim, dim, 1, bias=False)
        self.decoder = Decoder(channels[-1], classes, stages, dim, heads, candidates)

    def fuse(self, maps):
        size = maps[0].shape[-2:]
        projected = [
            F.interpolate(
                layer(f).transpose(1, 2).unflatten(2, f.shape[-2:]),
                size,
                mode="bilinear",
                align_corners=False,
            )
            for f, layer in zip(maps, self.linear_c, strict=True)
        ]
        return self.aggregator(torch.cat(projected[::-1], dim=1))

    def head(self, maps, auxiliary):
        """Returns dynamic logits, static logits (or None), D0 and the refined dynamic dictionary."""
        e0 = self.fuse(maps)
        p = self.pe_layer(*e0.shape[-2:])
        d0 = self.decoder.dynamic(maps[-1])
        logits, refined = self.decoder.decode(d0, e0, p)
        static = self.decoder.token.basic_queries.weight.expand_as(d0)
        return logits, self.decoder.decode(static, e0, p)[0] if auxiliary else None, d0, refined

    def forward(self, images, auxiliary=None):
        return self.head(self.backbone(images), self.training if auxiliary is None else auxiliary)


class TorchvisionConvNeXt(nn.ModuleList):
    """Four maps of torchvision's ConvNeXt, under the names of the published checkpoint."""

    def __init__(self, features):
        super().__init__([features])

    def forward(self, images):
        maps, x = [], images
        for index, layer in enumerate(self[0]):
            x = layer(x)
            if index % 2 == 1:
                maps.append(x)
        return maps
