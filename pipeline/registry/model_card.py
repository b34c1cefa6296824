"""The model card: use, data, scores and limits of a registered model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from d2ls.bundle import ModelInfo

if TYPE_CHECKING:
    from d2ls.shards import DatasetCard
    from pipeline.config import Recipe


def scores(evaluation: Mapping[str, Any] | None) -> dict[str, float]:
    """Returns the scores of an evaluation that are logged as metrics: means, and IoU by class."""
    numbers: dict[str, float] = {}
    values = evaluation or {}
    values = values.get("scores", values)
    for key, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers[key] = float(value)
    by_class = values.get("iou")
    if isinstance(by_class, Mapping):
        numbers |= {f"iou/{name}": float(value) for name, value in by_class.items() if value is not None}
    return numbers


def model_card(
    info: ModelInfo,
    card: "DatasetCard",
    recipe: "Recipe",
    evaluation: Mapping[str, Any] | None,
    run_id: str,
) -> str:
    """Writes the card as Markdown: use, data, scores, limits."""
    numbers = scores(evaluation)
    names = card.classes.names
    scored = [name for name, flag in zip(names, card.classes.scored, strict=True) if flag]
    resolution = (
        f"{info.ground_sampling_distance} m per pixel"
        if info.ground_sampling_distance
        else "unknown resolution"
    )
    network = network_words(info)
    score = f"mIoU {numbers['miou']:.4f}" if "miou" in numbers else "not evaluated"
    return "\n".join(
        [
            f"**{score}** on split `{recipe.roles.test}` of {card.name}, {card.protocol} protocol; {network}.",
            "",
            f"Labels every pixel of an image as one of {len(names)} classes: {', '.join(names)}.",
            "",
            "## Input and output",
            f"Raw images, batch x height x width x {len(info.bands)} ({', '.join(info.bands)}), {info.dtype}; "
            'normalisation is inside. Class ids come back, uint8; with `params={"probabilities": True}` the '
            "probabilities, batch x class x height x width.",
            "",
            "## Data",
            f"- {card.name}, {card.protocol} protocol, digest `{card.digest}`",
            f"- trained on split `{recipe.roles.train}`, epoch selected on `{recipe.roles.val}`, reported on "
            f"`{recipe.roles.test}`; scenes in two splits: {_scenes(card)}",
            f"- licence of the data: {card.license}",
            "",
            f"## Scores on `{recipe.roles.test}`",
            *_score_lines(numbers, scored),
            "",
            _calibration(info, recipe, evaluation),
            "",
            "## Limits",
            f"- learned at {resolution} through windows of {info.window} pixels; the network looks at its whole "
            "window, so other windows or resolutions change its answers",
            f"- knows no class but the ones above, and no sensor, season or region beyond {card.name}",
            "- the scores hold for the test split alone",
            "",
            f"Network {network}; run `{run_id}`; recipe digest `{recipe.digest()[:12]}`.",
            "",
        ]
    )


def network_words(info: ModelInfo) -> str:
    """Describes the network: `D2LS, `resnet18d`, dynamic dictionary, 2 stages`."""
    config = info.config
    architecture = config.get("architecture", "d2ls")
    if architecture != "d2ls":
        return f"{architecture} (segmentation_models_pytorch), `{config['backbone']}`"
    words = f"D2LS, `{config['backbone']}`, {config['dictionary']} dictionary"
    return words if config["dictionary"] == "none" else f"{words}, stages: {config['stages']}"


def _score_lines(numbers: Mapping[str, float], scored: list[str]) -> list[str]:
    """Returns a line of means and a table of the classes."""
    if not numbers:
        return ["Not evaluated on the test split yet."]
    means = ", ".join(f"{key} {value:.4f}" for key, value in numbers.items() if "/" not in key)
    by_class = {key.removeprefix("iou/"): value for key, value in numbers.items() if key.startswith("iou/")}
    lines = [f"{means}; means over {', '.join(scored)}."]
    if by_class:
        lines += [
            "",
            "| class | IoU |",
            "|---|---|",
            *(f"| {key} | {value:.4f} |" for key, value in by_class.items()),
        ]
    return lines


def _calibration(info: ModelInfo, recipe: "Recipe", evaluation: Mapping[str, Any] | None) -> str:
    """How far the probabilities can be trusted."""
    if info.temperature is None:
        return "Probabilities are those of the softmax; no temperature was fitted."
    calibration = (evaluation or {}).get("calibration", {})
    before, after = calibration.get("ece_at_temperature_1"), calibration.get("ece")
    errors = (
        f"; expected calibration error on `{recipe.roles.test}` {before:.4f} without it, {after:.4f} with it"
        if before is not None and after is not None
        else ""
    )
    return f"Probabilities are at temperature {info.temperature:g}, fitted on split `{recipe.roles.val}`{errors}."


def _scenes(card: "DatasetCard") -> str:
    return "none (checked)" if card.scene_check == "disjoint" else "not known, the data set names no scenes"
