"""The training loss: named terms over one micro-step of all ranks, and their weighted sum.

Every term is computed over the samples of all ranks: sums and counts are reduced before anything is divided. Each rank
returns the loss of the whole micro-step. The mean of its gradients over ranks, as DistributedDataParallel computes it,
is the gradient of a single process with all samples.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2ls.distributed import gather_over_ranks, sum_over_ranks
from d2ls.errors import ConfigError
from d2ls.labels import IGNORE
from d2ls.models.d2ls import D2LSOutput

ContrastiveKind = Literal["none", "ratio", "infonce"]
IgnoredPixels = Literal["exclude", "include"]
DEFAULT_CONTRASTIVE_WEIGHT = {"none": 0.0, "ratio": 1.0, "infonce": 0.1}


class LossTerms(NamedTuple):
    """Named terms and what they add up to.

    Attributes:
        terms: unweighted scalars, float32: cross_entropy, dice, static_cross_entropy, contrastive. A term that is
            switched off, or whose input the network does not return, is absent.
        weights: the weight of each of these terms.
        total: the sum of weight times term, which is minimised.
    """

    terms: dict[str, Tensor]
    weights: dict[str, float]
    total: Tensor


class D2LSLoss(nn.Module):
    """Cross entropy with label smoothing, Dice, the same cross entropy of the static branch, and a contrastive term.

    Args:
        label_smoothing: share of the target spread over all classes.
        dice_weight: weight of Dice; 0 switches it off.
        dice_smooth: added to numerator and denominator of Dice.
        static_weight: weight of the static branch's cross entropy; 0 switches it off.
        contrastive: ratio (the published form), infonce (this project's form, with a temperature) or none.
        contrastive_weight: None: 1.0 for ratio, 0.1 for infonce (whose value is near the log of its candidates).
        temperature: of infonce.
        ignored_pixels: exclude: cross entropy is divided by the labelled pixels; include: by all pixels, ignored ones
            too, as the published code does.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        *,
        label_smoothing: float = 0.05,
        dice_weight: float = 1.0,
        dice_smooth: float = 0.05,
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
        if not 0 <= label_smoothing < 1 or temperature <= 0 or dice_smooth < 0:
            raise ConfigError(
                f"label_smoothing {label_smoothing} must be in 0..1 (1 left out), temperature {temperature} above 0, "
                f"dice_smooth {dice_smooth} not below 0"
            )
        self.label_smoothing, self.dice_smooth, self.temperature = label_smoothing, dice_smooth, temperature
        self.contrastive, self.ignored_pixels = contrastive, ignored_pixels
        default = DEFAULT_CONTRASTIVE_WEIGHT[contrastive]
        self.weights = {
            "cross_entropy": 1.0,
            "dice": dice_weight,
            "static_cross_entropy": static_weight,
            "contrastive": default if contrastive_weight is None else contrastive_weight,
        }

    def forward(self, output: D2LSOutput, labels: Tensor) -> LossTerms:
        """Computes the terms of a micro-step; all ranks call this together.

        Args:
            output: of this rank; logits B K H W. Other fields may be None, as from networks without a dictionary.
            labels: B H W, int64 or uint8, class ids or 255 for pixels without a label.

        Returns:
            The terms over all ranks, the same on every rank.

        Raises:
            ConfigError: a contrastive term is set, and the dictionary is the same for every image.
        """
        terms = self._pixel_terms(output, labels.long())
        if self.contrastive != "none" and self.weights["contrastive"] != 0:
            terms |= self._contrastive_term(output)
        return _weighted(terms, self.weights)

    def _pixel_terms(self, output: D2LSOutput, labels: Tensor) -> dict[str, Tensor]:
        """Computes cross entropies and Dice from one reduction over ranks."""
        parts = {
            "count": self._count(labels),
            "cross_entropy": self._cross_entropy_sum(output.logits, labels),
        }
        if self.weights["dice"] != 0:
            parts["dice"] = dice_sums(output.logits, labels)
        if output.static_logits is not None and self.weights["static_cross_entropy"] != 0:
            parts["static_cross_entropy"] = self._cross_entropy_sum(output.static_logits, labels)
        sums = _sum_together(parts)
        count = sums.pop("count").clamp_min(1)
        return {
            name: dice_loss(value, self.dice_smooth)
            if name == "dice"
            else value.squeeze(0) / count.squeeze(0)
            for name, value in sums.items()
        }

    def _count(self, labels: Tensor) -> Tensor:
        if self.ignored_pixels == "include":
            return torch.full((1,), labels.numel(), dtype=torch.float32, device=labels.device)
        return (labels != IGNORE).sum(dtype=torch.float32).view(1)

    def _cross_entropy_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            logits.float(), labels, ignore_index=IGNORE, label_smoothing=self.label_smoothing, reduction="sum"
        ).view(1)

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


def dice_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Computes the sums that Dice consists of, over the labelled pixels of this rank.

    Args:
        logits: B K H W.
        labels: B H W, class ids or 255.

    Returns:
        3 K, float32, for each class: probability on its own pixels, probability anywhere, pixels.
    """
    probabilities = logits.float().softmax(dim=1)
    classes = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
    truth = (labels.unsqueeze(1) == classes).float()
    labelled = (labels != IGNORE).unsqueeze(1).float()
    pixels = (0, 2, 3)
    return torch.stack(
        [(probabilities * truth).sum(pixels), (probabilities * labelled).sum(pixels), truth.sum(pixels)]
    )


def dice_loss(sums: Tensor, smooth: float) -> Tensor:
    """Computes the Dice loss from the sums of `dice_sums`: the mean over all K, where a class without pixels adds 0."""
    overlap, predicted, present = sums
    score = (2 * overlap + smooth) / (predicted + present + smooth).clamp_min(1e-7)
    return ((1 - score) * (present > 0)).mean()


def contrastive_ratio(dictionary: Tensor) -> Tensor:
    """Computes the published contrastive term over the images of all ranks.

    It is the mean squared distance of every image's class vector to the batch mean of its class, divided by the mean
    squared distance of the means of two classes plus 1e-6. It is 0 where all ranks together have one image.

    Args:
        dictionary: D0 of this rank, B K C; B may differ between ranks.
    """
    vectors = dictionary.float()
    B, K, _ = vectors.shape
    sums = torch.cat([vectors.sum(0).flatten(), vectors.new_full((1,), B)])
    total, images = sum_over_ranks(sums).tensor_split([-1])
    means = (total / images).view(K, -1)
    within = sum_over_ranks((vectors - means).pow(2).sum()) / (images * K)
    between = 2 * (means - means.mean(0)).pow(2).sum() / (K - 1)
    return (within / (between + 1e-6)).squeeze(0)


def infonce(dictionary: Tensor, static: Tensor, temperature: float) -> Tensor:
    """Computes a contrastive term with a temperature (this project's form) over the images of all ranks.

    Anchors are the class vectors of every image; candidates are the class vectors of all other images and the static
    ones; positives are the candidates of the same class. All have unit length. The value is the mean, over anchors and
    positives, of minus the log probability of the positive among the candidates. It has a meaning for one image too.

    Args:
        dictionary: D0 of this rank, B K C; B may differ between ranks.
        static: K C, the same on all ranks.
        temperature: divides the cosines.
    """
    images = gather_over_ranks(dictionary.float())
    B, K, C = images.shape
    anchors = F.normalize(images.reshape(B * K, C), dim=-1)
    candidates = torch.cat([anchors, F.normalize(static.float(), dim=-1)])
    image_of = torch.arange(B + 1, device=images.device).repeat_interleave(K)
    class_of = torch.arange(K, device=images.device).repeat(B + 1)
    other = image_of[: B * K, None] != image_of
    with torch.autocast(images.device.type, enabled=False):
        scores = (anchors @ candidates.mT / temperature).masked_fill(~other, -torch.inf)
    positive = (class_of[: B * K, None] == class_of) & other
    surprise = scores.logsumexp(dim=1, keepdim=True) - scores.masked_fill(~positive, 0)
    return (surprise * positive).sum() / positive.sum()


def _sum_together(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums tensors over ranks in one collective."""
    flat = sum_over_ranks(torch.cat([part.flatten() for part in parts.values()]))
    pieces = torch.split(flat, [part.numel() for part in parts.values()])
    return {name: piece.view(parts[name].shape) for name, piece in zip(parts, pieces, strict=True)}


def _weighted(terms: dict[str, Tensor], weights: Mapping[str, float]) -> LossTerms:
    used = {name: weights[name] for name in terms}
    total = torch.stack([weight * terms[name] for name, weight in used.items()]).sum()
    return LossTerms(terms, used, total)
