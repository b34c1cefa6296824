"""The D2LS network: encoder, aggregator, dictionary, interactor, decoder."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2ls.models.backbone import Backbone
from d2ls.models.decoder import Decoder, PlainDecoder
from d2ls.models.dictionary import DynamicDictionary, Modulator, StaticDictionary
from d2ls.models.interactor import FourierPosition, Interactor
from d2ls.models.normalization import Normalization

SMALLEST = 32


class D2LSOutput(NamedTuple):
    """Output of every network, in training and in evaluation. A tuple, so that `torch.export` can return it.

    Attributes:
        logits: B K H W, scores of the K classes at input resolution.
        static_logits: B K H W of the auxiliary branch (the static dictionary through the same decoder), or None.
        static_dictionary: K C, learned class vectors; None where the network has no dictionary.
        dynamic_dictionary: B K C, D0 of each image; None unless the dictionary is dynamic.
        dictionaries: B K C each: D0, the dictionary after every stage and the one after the closing attention
            (L + 2 tensors); empty where the network has no dictionary.
    """

    logits: Tensor
    static_logits: Tensor | None = None
    static_dictionary: Tensor | None = None
    dynamic_dictionary: Tensor | None = None
    dictionaries: tuple[Tensor, ...] = ()


class DictionaryHead(nn.Module):
    """The head of a network with a dictionary: everything behind the aggregator.

    Args:
        static: the static dictionary.
        modulator: weighs the candidates by the deepest map; None for a static dictionary.
        dynamic: mixes the dynamic dictionary; None for a static dictionary.
        position: encodes pixel positions.
        interactor: refines dictionary and pixel features.
        decoder: computes logits from both.
        static_branch: whether an auxiliary branch exists.
    """

    def __init__(
        self,
        *,
        static: StaticDictionary,
        modulator: Modulator | None,
        dynamic: DynamicDictionary | None,
        position: FourierPosition,
        interactor: Interactor,
        decoder: Decoder,
        static_branch: bool = True,
    ) -> None:
        super().__init__()
        self.static, self.modulator, self.dynamic = static, modulator, dynamic
        self.position, self.interactor, self.decoder = position, interactor, decoder
        self.static_branch = static_branch and dynamic is not None

    def forward(self, fused: Tensor, deepest: Tensor, auxiliary: bool) -> D2LSOutput:
        """Computes logits and dictionaries.

        Args:
            fused: E0, B C h w.
            deepest: F4, B C4 h4 w4.
            auxiliary: whether the static branch is computed, where there is one.

        Returns:
            The output, logits B K 4h 4w.
        """
        static = self.static()
        initial = self._initial(static, deepest)
        branches = [initial, static.expand_as(initial)] if auxiliary and self.static_branch else [initial]
        height, width = fused.shape[-2:]
        pixels = fused.permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(1)
        position = self.position(height, width).flatten(0, 1).to(pixels.dtype)
        dictionaries, pixels = self.interactor(torch.stack(branches, dim=1), pixels, position)
        logits = self.decoder(pixels, dictionaries[-1], (height, width))
        return D2LSOutput(
            logits=logits[:, 0],
            static_logits=logits[:, 1] if len(branches) > 1 else None,
            static_dictionary=static,
            dynamic_dictionary=initial if self.dynamic is not None else None,
            dictionaries=tuple(dictionary[:, 0] for dictionary in dictionaries),
        )

    def _initial(self, static: Tensor, deepest: Tensor) -> Tensor:
        if self.dynamic is None or self.modulator is None:
            return static.expand(len(deepest), -1, -1)
        mixed: Tensor = self.dynamic(static, self.modulator(deepest))
        return mixed


class PlainHead(nn.Module):
    """The head of a network without a dictionary."""

    def __init__(self, decoder: PlainDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, fused: Tensor, deepest: Tensor, auxiliary: bool) -> D2LSOutput:
        """Computes logits (B K 4h 4w) from E0 (B C h w); the other arguments have no effect here."""
        height, width = fused.shape[-2:]
        return D2LSOutput(self.decoder(fused.permute(0, 2, 3, 1).flatten(1, 2), (height, width)))


class D2LS(nn.Module):
    """Dynamic dictionary learning for segmentation (Zou et al., ICCV 2025).

    Args:
        backbone: four maps at strides 4, 8, 16, 32.
        aggregator: four maps to E0 at stride 4.
        head: E0 and the deepest map to the output.
        normalization: turns raw pixels into what the backbone expects.
        config: plain values from which `build_model` makes the same architecture.
    """

    def __init__(
        self,
        backbone: Backbone,
        aggregator: nn.Module,
        head: nn.Module,
        *,
        normalization: Normalization,
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        self.backbone, self.aggregator, self.head = backbone, aggregator, head
        self.normalization = normalization
        self.config = config

    def forward(self, images: Tensor, auxiliary: bool | None = None) -> D2LSOutput:
        """Segments images.

        Args:
            images: raw pixels, B bands H W, uint8, uint16 or float. H and W are free. The normalised images are
                padded with zeros at the lower and right edge, to a multiple of 4 (32 for a plain transformer) and to
                at least 32; the logits are cropped.
            auxiliary: whether the static branch is computed; None: in training only. Without effect where the
                network has no such branch.

        Returns:
            The output, logits B K H W.
        """
        height, width = images.shape[-2:]
        maps = self.backbone(pad(self.normalization(images), self.backbone.multiple))
        fused = self.aggregator(maps)
        output: D2LSOutput = self.head(fused, maps[-1], self.training if auxiliary is None else auxiliary)
        return crop(output, height, width)


def pad(images: Tensor, multiple: int) -> Tensor:
    """Pads with zeros at the lower and right edge to multiples of a number, and to 32 at least."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, _padded(width, multiple) - width, 0, _padded(height, multiple) - height))


def _padded(size: int, multiple: int) -> int:
    """Written as an `if` instead of `max`, so that an exporter records a smallest size instead of a formula."""
    return (size + multiple - 1) // multiple * multiple if size > SMALLEST - multiple else SMALLEST


def crop(output: D2LSOutput, height: int, width: int) -> D2LSOutput:
    """Cuts both logits (B K H' W') back to height x width."""
    static = output.static_logits
    return D2LSOutput(  # not output._replace, which torch.compile of PyTorch 2.11 does not trace
        _cropped(output.logits, height, width),
        None if static is None else _cropped(static, height, width),
        output.static_dictionary,
        output.dynamic_dictionary,
        output.dictionaries,
    )


def _cropped(logits: Tensor, height: int, width: int) -> Tensor:
    """Returns a slice; for exporters a copy, as the strides of a slice would fix whether the program pads."""
    if not torch.compiler.is_exporting():
        return logits[..., :height, :width]
    rows, columns = (torch.arange(size, device=logits.device) for size in (height, width))
    return logits.index_select(-2, rows).index_select(-1, columns)
