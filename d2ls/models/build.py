"""One flat builder: from plain values to a network."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import nn

from d2ls.errors import ConfigError
from d2ls.models.aggregator import Aggregator, DeepestOnly
from d2ls.models.attention import Route, cheaper_route
from d2ls.models.backbone import RGB, Backbone
from d2ls.models.baselines import Baseline, build_baseline, check_library
from d2ls.models.d2ls import D2LS, DictionaryHead, PlainHead
from d2ls.models.decoder import Decoder, PlainDecoder, equalize_sub_pixels
from d2ls.models.dictionary import DynamicDictionary, Modulator, StaticDictionary
from d2ls.models.interactor import FourierPosition, Interactor
from d2ls.models.normalization import Normalization, backbone_normalization
from d2ls.models.weights import load_backbone

DictionaryKind = Literal["dynamic", "static", "none"]
UpsamplingInit = Literal["icnr", "published"]
MOST_STAGES = 6


def build_model(
    *,
    backbone: str,
    num_classes: int,
    architecture: str = "d2ls",
    stages: int = 3,
    pretrained: bool = False,
    weights: str | None = None,
    weights_by_order: bool = False,
    bands: int = 3,
    rgb: Sequence[int] = RGB,
    embed_dim: int = 256,
    heads: int = 8,
    candidates: int = 4,
    dictionary: DictionaryKind = "dynamic",
    aggregator: bool = True,
    static_branch: bool = True,
    freeze_backbone: bool = False,
    drop_path: float = 0.0,
    upsampling_init: UpsamplingInit = "icnr",
    normalization: dict[str, Any] | None = None,
    route: Route | None = None,
) -> D2LS | Baseline:
    """Builds a network; deterministic under `torch.manual_seed`.

    Args:
        backbone: a timm name with four maps at strides 4, 8, 16, 32.
        num_classes: K, at least 2.
        architecture: d2ls, or one of `BASELINES` with the same backbone, for which stages, embed_dim, heads,
            candidates, dictionary, aggregator and static_branch have no effect.
        stages: L, 0 to 6; 0 keeps the closing attention. No effect where `dictionary` is none.
        pretrained: use timm's weights for the backbone, downloaded if needed. Nothing else downloads.
        weights: use a local file of backbone weights (.safetensors, .pth) instead.
        weights_by_order: match its entries by order instead of by names; see `load_backbone`.
        bands: channels of the images.
        rgb: positions of red, green and blue among more than three bands; they keep the pretrained filters. Empty:
            there are none.
        embed_dim: C, a multiple of 16 and of twice the heads.
        heads: H.
        candidates: R, at least 2.
        dictionary: dynamic (mixed for each image), static (learned, the same for all) or none (a plain 1x1 head).
        aggregator: whether the four maps are fused; False: only the deepest one is used.
        static_branch: whether the static dictionary runs through the decoder as an auxiliary branch in training;
            there is none unless the dictionary is dynamic.
        freeze_backbone: keep the backbone as it is: no gradient, and evaluation mode.
        drop_path: stochastic depth rate of the backbone.
        upsampling_init: initial weights of D2LS before its pixel shuffles: icnr (the sub-pixels of a pixel start
            equal, see `equalize_sub_pixels`) or published (independent).
        normalization: values of `Normalization.to_json`; None: the backbone's own for three bands, and mean 0, std 1
            for other counts.
        route: how the attentions are computed; None: the cheaper one for this many classes.

    Raises:
        ConfigError: an unknown backbone or architecture, a baseline without its library, or an impossible value.
        WeightsError: the weight file does not fit.
    """
    _check(num_classes, stages, embed_dim, heads, candidates, dictionary, pretrained, weights, bands, rgb)
    if upsampling_init not in get_args(UpsamplingInit):
        raise ConfigError(f"upsampling_init is {upsampling_init!r}; allowed are icnr, published")
    if architecture != "d2ls":
        check_library(architecture)
    encoder = Backbone(
        backbone, bands=bands, rgb=rgb, pretrained=pretrained, drop_path=drop_path, freeze=freeze_backbone
    )
    if weights is not None:
        load_backbone(encoder, weights, by_order=weights_by_order)
    normalize = _normalization(backbone, bands, normalization)
    config: dict[str, Any] = {
        "architecture": architecture, "backbone": backbone, "num_classes": num_classes, "bands": bands,
        "freeze_backbone": freeze_backbone, "drop_path": drop_path, "normalization": normalize.to_json(),
    }  # fmt: skip
    if architecture != "d2ls":
        return build_baseline(architecture, encoder, num_classes, normalization=normalize, config=config)
    config |= {
        "stages": stages, "embed_dim": embed_dim, "heads": heads, "candidates": candidates,
        "dictionary": dictionary, "aggregator": aggregator, "static_branch": static_branch,
    }  # fmt: skip
    fuse = (Aggregator if aggregator else DeepestOnly)(encoder.channels, embed_dim)
    head: nn.Module
    if dictionary == "none":
        head = PlainHead(PlainDecoder(num_classes, embed_dim))
    else:
        is_dynamic = dictionary == "dynamic"
        head = DictionaryHead(
            static=StaticDictionary(num_classes, embed_dim),
            modulator=Modulator(encoder.channels[-1], num_classes, candidates, embed_dim)
            if is_dynamic
            else None,
            dynamic=DynamicDictionary(candidates, embed_dim) if is_dynamic else None,
            position=FourierPosition(embed_dim),
            interactor=Interactor(
                stages, embed_dim, heads, route or cheaper_route(num_classes, embed_dim, heads)
            ),
            decoder=Decoder(embed_dim),
            static_branch=static_branch,
        )
    network = D2LS(encoder, fuse, head, normalization=normalize, config=config)
    if upsampling_init == "icnr":
        for layer in _layers_before_upsampling(network):
            equalize_sub_pixels(layer)
    return network


def _layers_before_upsampling(network: D2LS) -> list[nn.Linear]:
    """Returns the layers whose outputs are summed to E. A norm over all channels of E keeps equal channels equal."""
    fuse, head = network.aggregator, network.head
    stages: Any = head.interactor.stages if isinstance(head, DictionaryHead) else ()
    first: Any = fuse.mix if isinstance(fuse, Aggregator) else fuse.projection
    return [first, *(stage.read_dictionary.out for stage in stages)]


def _normalization(backbone: str, bands: int, values: dict[str, Any] | None) -> Normalization:
    if values is not None:
        chosen = Normalization.from_json(values)
        if chosen.bands != bands:
            raise ConfigError(f"normalisation is for {chosen.bands} bands, the network takes {bands}")
        return chosen
    return backbone_normalization(backbone) if bands == 3 else Normalization([0.0] * bands, [1.0] * bands)


def _check(
    num_classes: int,
    stages: int,
    embed_dim: int,
    heads: int,
    candidates: int,
    dictionary: str,
    pretrained: bool,
    weights: str | None,
    bands: int,
    rgb: Sequence[int],
) -> None:
    if num_classes < 2:
        raise ConfigError(f"num_classes is {num_classes}; a dictionary needs at least 2 classes")
    if not 0 <= stages <= MOST_STAGES:
        raise ConfigError(f"stages is {stages}; allowed are 0 to {MOST_STAGES}")
    if embed_dim % 16 or embed_dim % (2 * heads):
        raise ConfigError(f"embed_dim {embed_dim} must be a multiple of 16 and of twice the {heads} heads")
    if dictionary not in ("dynamic", "static", "none"):
        raise ConfigError(f"dictionary is {dictionary!r}; allowed are dynamic, static, none")
    if dictionary == "dynamic" and candidates < 2:
        raise ConfigError(f"candidates is {candidates}; mixing needs at least 2 (or set dictionary: static)")
    if bands > 3 and rgb and (len(set(rgb)) != 3 or not all(0 <= place < bands for place in rgb)):
        raise ConfigError(f"rgb is {tuple(rgb)}; it names three of the bands 0 to {bands - 1}, or is empty")
    if pretrained and weights is not None:
        raise ConfigError(f"both pretrained and weights ({weights}) are given; remove one of them")
