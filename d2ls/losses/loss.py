"""The training loss: named terms over one micro-step of all ranks, and their weighted sum.

Every term is computed over the samples of all ranks: sums and counts are reduced before anything is divided. Each rank
returns the loss of the whole micro-step. The mean of its gradients over ranks, as DistributedDataParallel computes it,
is the gradient of a single process with all samples.

The divisors of the terms follow from the labels alone (`D2LSLoss.label_counts`). Where a batch is accumulated in
micro-steps, they are counted over the whole batch first. So cross entropy, focal, Tversky and Lovász are the same for
any number of micro-steps. Dice and the contrastive terms are not sums over images: they see one micro-step.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from d2ls.boundary import near_boundary
from d2ls.distributed import sum_over_ranks
from d2ls.errors import ConfigError
from d2ls.labels import IGNORE
from d2ls.losses.contrastive import contrastive_ratio, infonce
from d2ls.losses.pixels import cross_entropy_sum, focal_sum
from d2ls.losses.regions import dice_loss, lovasz_sum, overlap_sums, tversky_sum
from d2ls.models.d2ls import D2LSOutput

ContrastiveKind = Literal["none", "ratio", "infonce"]
IgnoredPixels = Literal["exclude", "include"]
DEFAULT_CONTRASTIVE_WEIGHT = {"none": 0.0, "ratio": 1.0, "infonce": 0.1}

OF_LOGITS = ("cross_entropy", "focal", "dice", "tversky", "lovasz")
"""Terms of the main logits; at least one of them must have a weight above 0."""

_PER_IMAGE = ("tversky", "lovasz")


class LossTerms(NamedTuple):
    """Named terms and what they add up to.

    Attributes:
        terms: unweighted scalars, float32: cross_entropy, focal, dice, tversky, lovasz, static_cross_entropy,
            contrastive. A term that is switched off, or whose input the network does not return, is absent.
        weights: the weight of each of these terms.
        total: the sum of weight times term, which is minimised.
    """

    terms: dict[str, Tensor]
    weights: dict[str, float]
    total: Tensor


class D2LSLoss(nn.Module):
    """The weighted sum of the terms below; a weight of 0 switches a term off.

    Cross entropy and focal are weighted means over the labelled pixels: the weighted sum divided by the sum of the
    weights. A weight depends on the pixel's class and on whether it is near a boundary. Tversky and Lovász are means
    over the images with labels.

    Args:
        cross_entropy_weight: weight of the cross entropy.
        label_smoothing: share of the target that the cross entropies spread over all classes.
        class_weights: K weights of the classes in cross entropy and focal; None: all 1.
        boundary_factor: weight of pixels near a class boundary of the labels, in cross entropy and focal; 1: as other
            pixels.
        boundary_px: how near, in pixels; see `d2ls.boundary`.
        focal_weight: weight of the focal loss.
        focal_gamma: exponent of the focal loss.
        dice_weight: weight of Dice.
        dice_smooth: added to numerator and denominator of Dice.
        tversky_weight: weight of Tversky.
        tversky_alpha: weight of false positives in Tversky.
        tversky_beta: weight of false negatives in Tversky.
        lovasz_weight: weight of Lovász-softmax.
        static_weight: weight of the static branch's cross entropy.
        contrastive: ratio (the published form), infonce (this project's form, with a temperature) or none.
        contrastive_weight: None: 1.0 for ratio, 0.1 for infonce (whose value is near the log of its candidates).
        temperature: of infonce.
        ignored_pixels: exclude: cross entropy and focal are divided by the labelled pixels; include: by all pixels,
            ignored ones too, as the published code does.

    Raises:
        ConfigError: a value out of range.
    """

    _class_weights: Tensor | None

    def __init__(
        self,
        *,
        cross_entropy_weight: float = 1.0,
        label_smoothing: float = 0.05,
        class_weights: Sequence[float] | None = None,
        boundary_factor: float = 1.0,
        boundary_px: int = 3,
        focal_weight: float = 0.0,
        focal_gamma: float = 2.0,
        dice_weight: float = 1.0,
        dice_smooth: float = 0.05,
        tversky_weight: float = 0.0,
        tversky_alpha: float = 0.3,
        tversky_beta: float = 0.7,
        lovasz_weight: float = 0.0,
        static_weight: float = 0.4,
        contrastive: ContrastiveKind = "ratio",
        contrastive_weight: float | None = None,
        temperature: float = 0.1,
        ignored_pixels: IgnoredPixels = "exclude",
    ) -> None:
        super().__init__()
        if contrastive not in DEFAULT_CONTRASTIVE_WEIGHT:
            raise ConfigError(f"contrastive is {contrastive!r}; allowed are none, ratio, infonce")
        if ignored_pixels not in ("exclude", "include"):
            raise ConfigError(f"ignored_pixels is {ignored_pixels!r}; allowed are exclude, include")
        _check(
            ("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "at least 0 and below 1"),
            ("temperature", temperature, temperature > 0, "above 0"),
            ("dice_smooth", dice_smooth, dice_smooth >= 0, "at least 0"),
            ("focal_gamma", focal_gamma, focal_gamma >= 0, "at least 0"),
            ("tversky_alpha", tversky_alpha, tversky_alpha > 0, "above 0"),
            ("tversky_beta", tversky_beta, tversky_beta > 0, "above 0"),
            ("boundary_factor", boundary_factor, boundary_factor >= 1, "at least 1"),
            ("boundary_px", boundary_px, boundary_px >= 1, "at least 1"),
        )
        if class_weights is not None and not (
            all(0 <= weight < math.inf for weight in class_weights) and any(class_weights)
        ):
            raise ConfigError(
                f"class_weights {list(class_weights)} must be finite, not below 0, and not all 0"
            )
        self.label_smoothing, self.dice_smooth, self.temperature = label_smoothing, dice_smooth, temperature
        self.focal_gamma, self.tversky_alpha, self.tversky_beta = focal_gamma, tversky_alpha, tversky_beta
        self.boundary_factor, self.boundary_px = boundary_factor, boundary_px
        self.contrastive, self.ignored_pixels = contrastive, ignored_pixels
        default = DEFAULT_CONTRASTIVE_WEIGHT[contrastive]
        self.weights = {
            "cross_entropy": cross_entropy_weight,
            "focal": focal_weight,
            "dice": dice_weight,
            "tversky": tversky_weight,
            "lovasz": lovasz_weight,
            "static_cross_entropy": static_weight,
            "contrastive": default if contrastive_weight is None else contrastive_weight,
        }
        keys = {"static_cross_entropy": "static_weight"}
        _check(
            *(
                (keys.get(name, f"{name}_weight"), weight, 0 <= weight < math.inf, "finite and at least 0")
                for name, weight in self.weights.items()
            )
        )
        if not any(self.weights[name] for name in OF_LOGITS):
            raise ConfigError(f"one of {', '.join(f'{name}_weight' for name in OF_LOGITS)} must be above 0")
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("_class_weights", weights, persistent=False)

    def forward(self, output: D2LSOutput, labels: Tensor, counts: Tensor | None = None) -> LossTerms:
        """Computes the terms of a micro-step; all ranks call this together.

        Args:
            output: of this rank; logits B K H W. Other fields may be None, as from networks without a dictionary.
            labels: B H W, int64 or uint8, class ids or 255 for pixels without a label.
            counts: what to divide by, over all ranks, in place of this micro-step's own `label_counts`. For a
                micro-step that weighs w in its batch: w times the counts of the whole batch.

        Returns:
            The terms over all ranks, the same on every rank.

        Raises:
            ConfigError: a contrastive term is set, and the dictionary is the same for every image.
        """
        labels = labels.long()
        terms = self._label_terms(output, labels, counts)
        if self.contrastive != "none" and self.weights["contrastive"] != 0:
            terms |= self._contrastive_term(output)
        return _weighted(terms, self.weights)

    def label_counts(self, labels: Tensor) -> Tensor:
        """Counts what terms are divided by; counts of several micro-steps or ranks add up.

        Args:
            labels: B H W, int64 or uint8.

        Returns:
            2, float32: weighted pixels, and images with a labelled pixel.
        """
        labels = labels.long()
        return self._counts(labels, self._boundary_factors(labels))

    def _counts(self, labels: Tensor, factors: Tensor | None) -> Tensor:
        labelled, weights = labels != IGNORE, self._class_weights_on(labels.device)
        of_pixel = labelled.float() if weights is None else weights[labels.where(labelled, 0)] * labelled
        pixels = (of_pixel if factors is None else of_pixel * factors).sum()
        if self.ignored_pixels == "include":
            pixels = pixels + (~labelled).sum(dtype=torch.float32)
        return torch.stack([pixels, labelled.flatten(1).any(1).sum(dtype=torch.float32)])

    def _label_terms(self, output: D2LSOutput, labels: Tensor, counts: Tensor | None) -> dict[str, Tensor]:
        """Computes all terms that compare with labels from one reduction over ranks."""
        factors = self._boundary_factors(labels)
        parts = self._sums(output, labels, factors)
        if counts is None:
            parts["counts"] = self._counts(labels, factors)
        sums = _sum_together(parts)
        counts = sums.pop("counts") if counts is None else counts
        pixels, images = counts.masked_fill(counts == 0, 1)
        dice = {"dice": dice_loss(sums.pop("dice"), self.dice_smooth)} if "dice" in sums else {}
        means = {name: value / (images if name in _PER_IMAGE else pixels) for name, value in sums.items()}
        return {name: (means | dice)[name] for name in self.weights if name in means | dice}

    def _sums(self, output: D2LSOutput, labels: Tensor, factors: Tensor | None) -> dict[str, Tensor]:
        """Sums each term that has a weight over this rank's samples."""
        logits, static = output.logits, output.static_logits
        weights = self._class_weights_on(labels.device)

        def cross_entropy(logits: Tensor) -> Tensor:
            return cross_entropy_sum(
                logits,
                labels,
                label_smoothing=self.label_smoothing,
                class_weights=weights,
                pixel_weights=factors,
            )

        ways: dict[str, Callable[[], Tensor]] = {
            "cross_entropy": lambda: cross_entropy(logits),
            "focal": lambda: focal_sum(
                logits, labels, gamma=self.focal_gamma, class_weights=weights, pixel_weights=factors
            ),
            "dice": lambda: overlap_sums(logits, labels),
            "tversky": lambda: tversky_sum(logits, labels, alpha=self.tversky_alpha, beta=self.tversky_beta),
            "lovasz": lambda: lovasz_sum(logits, labels),
        }
        if static is not None:
            ways["static_cross_entropy"] = lambda: cross_entropy(static)
        return {name: way() for name, way in ways.items() if self.weights[name] != 0}

    def _class_weights_on(self, device: torch.device) -> Tensor | None:
        if self._class_weights is not None and self._class_weights.device != device:
            self.to(device)
        return self._class_weights

    def _boundary_factors(self, labels: Tensor) -> Tensor | None:
        """Returns the factor of each pixel, B H W; None where all are 1."""
        if self.boundary_factor == 1:
            return None
        return torch.where(near_boundary(labels, self.boundary_px), self.boundary_factor, 1.0)

    def _contrastive_term(self, output: D2LSOutput) -> dict[str, Tensor]:
        if output.static_dictionary is None:
            return {}
        if output.dynamic_dictionary is None:
            raise ConfigError(
                f"contrastive: {self.contrastive} needs a dynamic dictionary; this network's is the same for every "
                "image. Set contrastive: none, or dictionary: dynamic"
            )
        if self.contrastive == "ratio":
            return {"contrastive": contrastive_ratio(output.dynamic_dictionary)}
        return {"contrastive": infonce(output.dynamic_dictionary, output.static_dictionary, self.temperature)}


def _check(*values: tuple[str, float, bool, str]) -> None:
    """Refuses values out of range.

    Args:
        values: key, value, whether it is allowed, and what is allowed.

    Raises:
        ConfigError: names each one that is not.
    """
    wrong = [f"{key} is {value}, it must be {allowed}" for key, value, fine, allowed in values if not fine]
    if wrong:
        raise ConfigError("; ".join(wrong))


def _sum_together(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums tensors over ranks in one collective."""
    flat = sum_over_ranks(torch.cat([part.flatten() for part in parts.values()]))
    pieces = torch.split(flat, [part.numel() for part in parts.values()])
    return {name: piece.view(parts[name].shape) for name, piece in zip(parts, pieces, strict=True)}


def _weighted(terms: dict[str, Tensor], weights: Mapping[str, float]) -> LossTerms:
    used = {name: weights[name] for name in terms}
    total = torch.stack([weight * terms[name] for name, weight in used.items()]).sum()
    return LossTerms(terms, used, total)
