"""Promotion: a model is registered as challenger, scored against the champion, and promoted if it is better.

Only this file and `pipeline.promote --force` move the alias `champion`. The caller passes a function that scores
models.
"""

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from d2ls.errors import TrackingError
from pipeline.registry import versions
from pipeline.registry.logged_model import register_checkpoint
from pipeline.registry.versions import CHALLENGER, ModelVersion
from pipeline.tracking import Store
from pipeline.tracking.connection import PATIENCE, patiently

if TYPE_CHECKING:
    from d2ls.shards import DatasetCard
    from pipeline.config import Recipe

Evaluate = Callable[[str], Mapping[str, Any]]
"""Evaluates `models:/name/version` on the current test split; returns `Evaluation.to_dict()`."""


@dataclass(frozen=True)
class Decision:
    """The decision on a challenger.

    Attributes:
        version: with its aliases after the decision.
        promoted: whether it is the champion now.
        reason: the reason, with the scores.
    """

    version: ModelVersion
    promoted: bool
    reason: str

    def __str__(self) -> str:
        return f"{'champion' if self.promoted else 'not champion'}: {self.reason}"


def register_and_promote(
    store: Store,
    run_id: str,
    checkpoint: str,
    recipe: "Recipe",
    card: "DatasetCard",
    evaluation: Mapping[str, Any],
    evaluate: Evaluate,
) -> Decision:
    """Registers a checkpoint as challenger; makes it champion if the recipe allows it and it scores better.

    Args:
        store: the registry; waits for a server that does not answer.
        run_id: run that trained it.
        checkpoint: folder or URI of the checkpoint.
        recipe: names the model; with `registry.promote: never` it stays a challenger.
        card: card of the shards.
        evaluation: evaluation of the checkpoint on the test split.
        evaluate: scores the champion on the same data.
    """
    version = patiently(
        lambda: register_checkpoint(
            store, run_id, checkpoint, recipe.model_name, card=card, evaluation=evaluation, recipe=recipe
        ),
        PATIENCE,
    )
    if recipe.registry.promote == "never":
        command = f"python -m pipeline.promote {shlex.quote(version.name)}"
        return Decision(version, False, f"registry.promote: never; {command}")
    return promote_if_better(store, version, evaluation, recipe, evaluate)


def promote_if_better(
    store: Store,
    version: ModelVersion,
    evaluation: Mapping[str, Any] | None,
    recipe: "Recipe",
    evaluate: Evaluate,
) -> Decision:
    """Makes a version champion if it beats the current champion on the same test split.

    Args:
        store: where the registry is.
        version: the challenger.
        evaluation: its evaluation on the current test split; None evaluates it here.
        recipe: names the test split.
        evaluate: scores a version; the champion, and the challenger without an evaluation.

    Raises:
        TrackingError: the champion's files are gone, so it cannot be scored.
    """
    champion = versions.champion(store, version.name)
    if champion is not None and champion.version == version.version:
        return Decision(champion, True, "it is already the champion")
    evaluation = evaluation or evaluate(version.uri)
    champion_miou = None
    if champion is not None:
        try:
            champion_miou = _miou(evaluate(champion.uri))
        except TrackingError as error:  # its files were deleted
            raise TrackingError(f"{error}. Promote without scoring it: --force REASON") from error
    better, reason = should_promote(_miou(evaluation), champion_miou)
    latest = versions.champion(store, version.name)
    if latest is not None and (champion is None or latest.version != champion.version):
        # Scoring takes minutes; another sweep has promoted its version meanwhile, which may be better than this one.
        return promote_if_better(store, version, evaluation, recipe, evaluate)
    digest = evaluation.get("dataset", {}).get("digest", "")[:12]
    against = f", version {champion.version}" if champion else ""
    reason = f"{reason}{against} ({recipe.roles.test} split, data digest {digest})"
    if better:
        return Decision(versions.promote(store, version.name, version.version, reason), True, reason)
    versions.note(store, version.name, version.version, f"Not promoted: {reason}")
    return Decision(versions.by_version(store, version.name, version.version), False, reason)


def should_promote(challenger: float, champion: float | None) -> tuple[bool, str]:
    """Decides by scores on the same test split; the champion stays if they are equal.

    Args:
        challenger: mean IoU of the challenger.
        champion: mean IoU of the current champion, None if there is none.

    Returns:
        The decision and its reason.
    """
    if math.isnan(challenger):
        return False, "the test split has no labelled pixel of a scored class, so there is no score"
    if champion is None:
        return True, f"mIoU {challenger:.4f} on the test split; there was no champion"
    if challenger > champion or math.isnan(champion):
        return True, f"mIoU {challenger:.4f} beats the champion's {champion:.4f} on the same test split"
    return False, f"mIoU {challenger:.4f} does not beat the champion's {champion:.4f} on the same test split"


def candidate(store: Store, name: str, number: str | None = None) -> ModelVersion:
    """Returns the version to promote: the one with that number, else the challenger.

    Raises:
        TrackingError: no such model or version, or no challenger; names those that exist.
    """
    if number and number not in (CHALLENGER, f"@{CHALLENGER}"):
        return versions.find(store, f"models:/{name}/{number.lstrip('v')}")
    challenger = versions.by_alias(store, name, CHALLENGER)
    if challenger is None and versions.search(store, name):
        raise TrackingError(f"{name}: no version is called {CHALLENGER}; name one: --version N")
    return challenger or versions.find(
        store, f"models:/{name}@{CHALLENGER}"
    )  # raises an error that names the models


def _miou(evaluation: Mapping[str, Any]) -> float:
    miou = evaluation["scores"]["miou"]
    return math.nan if miou is None else float(miou)
