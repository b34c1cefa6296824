"""Evaluations as Markdown: one model in full, several side by side, published figures in separate columns."""

import dataclasses
import io
import json
import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from d2ls import storage
from d2ls.errors import TrackingError
from d2ls.labels import IGNORE, ClassTable
from d2ls.metrics import BINS
from pipeline.demo import NAME as DEMO
from pipeline.evaluation.published import PublishedTable, published_table
from pipeline.evaluation.result import Evaluation, Interval
from pipeline.figures import Picture, confusion_figure, prediction_sheet, reliability_diagram
from pipeline.models import NO_TEMPERATURE

if TYPE_CHECKING:
    from rich.console import Console


def markdown(evaluations: Sequence[Evaluation]) -> str:
    """Writes the report; all evaluations are of one split."""
    first = evaluations[0]
    lines = [*_head(evaluations), ""]
    lines += _overview(evaluations)
    for evaluation in evaluations:
        lines += ["", *_mapping(evaluation), *_classes(evaluation), *_boundaries(evaluation)]
    lines += ["", *_published(first)]
    for evaluation in evaluations:
        lines += ["", *_samples(evaluation)]
    return "\n".join(lines).rstrip() + "\n"


def _head(evaluations: Sequence[Evaluation]) -> list[str]:
    first = evaluations[0]
    data = first.dataset
    lines = [
        f"# Evaluation on {data.get('name', '?')}, split `{first.split}`",
        "",
        f"{len(first.samples)} samples of {len(first.scenes)} scene(s), {first.confusion.sum():,} labelled pixels, "
        f"each counted once. Protocol {data.get('protocol', '?')}, digest `{data.get('digest', '?')[:12]}`.",
    ]
    left_out = [n for n, flag in zip(first.classes.names, first.classes.scored, strict=True) if not flag]
    if left_out:
        lines.append(
            f"The data set's convention takes means without {', '.join(left_out)}; its pixels still count as errors of "
            'other classes. "All classes" takes means over every class.'
        )
    settings = ", ".join(f"{key} {value}" for key, value in first.settings.items())
    lines.append(f"Settings: {settings}.")
    if not first.intervals:
        reason = (
            "one scene says nothing about others" if len(first.scenes) < 2 else "the bootstrap is turned off"
        )
        lines.append(f"No intervals: {reason}.")
    else:
        lines.append("Intervals: 95 %, bootstrap over scenes.")
    lines.append(
        f"ECE: expected calibration error of the winning probability, {BINS} bins; in brackets at temperature 1."
    )
    if first.boundary_px:
        lines.append(
            f"Boundary IoU and boundary F1: within {first.boundary_px} px, in each sample by itself; pixels without a "
            "label and edges of samples are no boundary."
        )
    fitted = [f"{e.temperature:g} ({e.model})" for e in evaluations if e.temperature is not None]
    if fitted:
        lines.append(f"Temperatures: {', '.join(fitted)}.")
    bare = [evaluation.model for evaluation in evaluations if evaluation.temperature is None]
    lines.extend(f"Note: {model} has {NO_TEMPERATURE}." for model in bare)
    others = [evaluation.model for evaluation in evaluations if not evaluation.seen]
    lines.extend(f"Note: {model} was trained on other data than these shards." for model in others)
    return lines


def _overview(evaluations: Sequence[Evaluation]) -> list[str]:
    lines = [
        "| model | mIoU | mF1 | OA | ECE | mIoU, all classes | mF1, all classes |",
        "|---|---|---|---|---|---|---|",
    ]
    for evaluation in evaluations:
        spread = evaluation.intervals
        cells = [
            _number(evaluation.scores.miou, spread.get("miou")),
            _number(evaluation.scores.mf1, spread.get("mf1")),
            _number(evaluation.scores.overall_accuracy, spread.get("overall_accuracy")),
            f"{_number(evaluation.scores.ece)} ({_number(evaluation.uncalibrated_ece)})",
            _number(evaluation.plain.miou),
            _number(evaluation.plain.mf1),
        ]
        lines.append(f"| {evaluation.model} | {' | '.join(cells)} |")
    majority = evaluations[0].majority
    cells = [_number(majority.miou), _number(majority.mf1), _number(majority.overall_accuracy), "", "", ""]
    lines.append(f"| *always the most frequent class* | {' | '.join(cells)} |")
    return lines


def _mapping(evaluation: Evaluation) -> list[str]:
    """What the classes of model and shards became; nothing where they are the same."""
    mapping, class_map = evaluation.mapping, evaluation.class_map
    if mapping is None or class_map is None:
        return []

    def those(classes: ClassTable, ids: Sequence[int], number: int) -> str:
        return ", ".join(name for name, i in zip(classes.names, ids, strict=True) if i == number) or "-"

    rows = [*enumerate(evaluation.classes.names), (IGNORE, "*left out*")]
    total, left_out = max(sum(evaluation.labelled), 1), evaluation.left_out
    return [
        f"## {evaluation.model}: classes by {class_map.file}",
        "",
        "The class of a pixel is the winner among the model's own classes; then both sides are translated. The ECE is "
        "about the probability of that winner.",
        "",
        "| compared as | classes of the model | classes of the shards |",
        "|---|---|---|",
        *(
            f"| {name} | {those(mapping.model_classes, mapping.predicted, number)} "
            f"| {those(mapping.label_classes, mapping.labelled, number)} |"
            for number, name in rows
        ),
        "",
        f"Left out: {left_out['label']:,} labelled pixels ({left_out['label'] / total:.1%}) by their label, and "
        f"{left_out['prediction']:,} ({left_out['prediction'] / total:.1%}) by what the model predicts.",
        "",
    ]


def _classes(evaluation: Evaluation) -> list[str]:
    scores, spread = evaluation.scores, evaluation.intervals
    pixels = evaluation.confusion.sum(axis=1)
    lines = [
        f"## {evaluation.model}: by class",
        "",
        "| class | pixels | IoU | F1 | precision | recall | scored |",
        "|---|---|---|---|---|---|---|",
    ]
    for index, name in enumerate(evaluation.classes.names):
        cells = [
            f"{pixels[index] / max(pixels.sum(), 1):.1%}",
            _number(scores.iou[index], spread["iou"][index] if spread else None),
            _number(scores.f1[index], spread["f1"][index] if spread else None),
            _number(scores.precision[index]),
            _number(scores.recall[index]),
            "yes" if scores.scored[index] else "no",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _boundaries(evaluation: Evaluation) -> list[str]:
    scores = evaluation.boundary
    if scores is None:
        return []
    lines = [
        "",
        "| class | boundary IoU | boundary F1 | precision | recall |",
        "|---|---|---|---|---|",
    ]
    rows = zip(evaluation.classes.names, scores.iou, scores.f1, scores.precision, scores.recall, strict=True)
    lines += [f"| {name} | {' | '.join(map(_number, values))} |" for name, *values in rows]
    spread = evaluation.intervals
    means = [
        _number(scores.miou, spread.get("boundary_iou")),
        _number(scores.mf1, spread.get("boundary_f1")),
    ]
    return [*lines, f"| *mean of the scored* | {' | '.join(means)} | | |"]


def _published(evaluation: Evaluation) -> list[str]:
    """Returns the figures of the paper in separate columns, because they come from other splits, protocols and code."""
    table = published_table(evaluation.dataset.get("source", evaluation.dataset.get("name", "")))
    if (
        table is None or evaluation.mapping or evaluation.dataset.get("name") == DEMO
    ):  # the demo's scenes are synthetic
        return []
    d2ls = table.rows["D2LS"]
    rival = max((n for n in table.rows if n != "D2LS"), key=lambda name: table.rows[name][-1])
    lines = [
        f"## Published figures for {table.dataset} ({table.measure}, {table.split} split)",
        "",
        "Not measured here, and not directly comparable: they come from another split and protocol. "
        + table.caution,
        "",
        f"| {table.measure} | this evaluation | published D2LS | published {rival} |",
        "|---|---|---|---|",
    ]
    ours = _ours(evaluation, table)
    for column, name in enumerate(table.columns):
        cells = [ours.get(name, ""), f"{d2ls[column]:.2f}", f"{table.rows[rival][column]:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _ours(evaluation: Evaluation, table: PublishedTable) -> dict[str, str]:
    values = evaluation.scores.iou if table.measure == "IoU" else evaluation.scores.f1
    scores = {
        "mIoU": evaluation.scores.miou,
        "mF1": evaluation.scores.mf1,
        "OA": evaluation.scores.overall_accuracy,
    }
    by_class = [name for name in table.columns if name not in scores]
    order = table.order or tuple(
        range(len(by_class))
    )  # tables omit classes that are not scored; those come last
    if max(order, default=0) < len(values):
        scores.update({name: values[index] for name, index in zip(by_class, order, strict=True)})
    return {name: f"{100 * value:.2f}" for name, value in scores.items() if not math.isnan(value)}


def _samples(evaluation: Evaluation) -> list[str]:
    ranked = evaluation.ranked()
    lines = [
        f"## {evaluation.model}: best and worst samples",
        "",
        "| best | right pixels | worst | right pixels |",
        "|---|---|---|---|",
    ]
    for (good, high), (bad, low) in zip(ranked[:5], ranked[::-1][:5], strict=True):
        lines.append(f"| {good} | {high:.1%} | {bad} | {low:.1%} |")
    return lines


def _number(value: float, interval: Interval | None = None) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" + (f" ({interval[0]:.3f}-{interval[1]:.3f})" if interval else "")


def attach(evaluation: Evaluation, tracking_uri: str | None) -> bool:
    """Attaches the report to the run and the version of a registered model; returns False for any other model.

    A report by a class map is not attached: it says nothing about the model's own classes.

    Raises:
        TrackingError: the store refuses.
    """
    if not evaluation.model.startswith("models:/") or evaluation.mapping:
        return False
    from pipeline.config.tracking import TrackingConfig
    from pipeline.registry import versions
    from pipeline.tracking import Store

    store = Store.open(TrackingConfig(uri=tracking_uri), create=False)
    version = versions.find(store, evaluation.model)
    name = f"evaluation/{evaluation.dataset.get('name', 'data')}-{evaluation.split}"
    if version.run_id:
        try:
            store.log_text(version.run_id, markdown([evaluation]), f"{name}.md")
            store.log_text(version.run_id, evaluation.to_json(), f"{name}.json")
        except TrackingError as error:  # the run was deleted, the version was not
            logging.getLogger(__name__).warning("the report is attached to the version alone: %s", error)
    scores = evaluation.scores
    text = (
        f"Evaluated on {evaluation.dataset.get('name')}, split {evaluation.split}, digest "
        f"{evaluation.dataset.get('digest', '')[:12]} (test-time augmentation "
        f"{evaluation.settings.get('tta', 'none')}): mIoU {scores.miou:.4f}, mF1 {scores.mf1:.4f}, "
        f"OA {scores.overall_accuracy:.4f}, ECE {scores.ece:.4f}"
    )
    if evaluation.boundary:
        boundary, distance = evaluation.boundary, evaluation.boundary_px
        text += f", within {distance} px boundary IoU {boundary.miou:.4f}, boundary F1 {boundary.mf1:.4f}"
    versions.note(store, version.name, version.version, text)
    return True


def show(console: "Console", evaluations: Sequence[Evaluation]) -> None:
    """Prints the report."""
    from rich.markdown import Markdown

    console.print(Markdown(markdown(evaluations)))


def prepare_folder(folder: str, models: int, *, overwrite: bool) -> None:
    """Makes the folder of a report; fails before the evaluation if the report cannot be written there.

    Args:
        folder: the folder.
        models: number of models in the report.
        overwrite: replace an existing report.

    Raises:
        StorageError: a file of the report exists, or the folder cannot be made.
    """
    kinds = ("confusion", "reliability", "samples")
    pictures = [f"{name}-{number}.png" for number in range(1, models + 1) for name in kinds]
    for name in () if overwrite else ("report.md", "report.json", *pictures):
        storage.check_free(
            storage.join(folder, name), "name another --output, or replace the report with --overwrite"
        )
    storage.make_folder(folder)


def write_report(
    evaluations: Sequence[Evaluation], folder: str, shards_uri: str, tracking_uri: str | None = None
) -> None:
    """Writes report.md, report.json, and pictures of each model: confusion, reliability, best and worst samples.

    Raises:
        StorageError: the report cannot be written.
    """
    content = json.dumps([evaluation.to_dict() for evaluation in evaluations], indent=2) + "\n"
    storage.write_bytes(storage.join(folder, "report.md"), markdown(evaluations).encode())
    storage.write_bytes(storage.join(folder, "report.json"), content.encode())
    for number, evaluation in enumerate(evaluations, 1):
        pictures = {
            "confusion": confusion_figure(evaluation.confusion, evaluation.classes),
            "reliability": reliability_diagram(evaluation.calibration, evaluation.temperature),
            "samples": samples_sheet(evaluation, shards_uri, tracking_uri),
        }
        for name, picture in pictures.items():
            storage.write_bytes(storage.join(folder, f"{name}-{number}.png"), _png(picture))


SHEET_SAMPLES = 3
"""Number of best and of worst samples on a sheet."""


def samples_sheet(evaluation: Evaluation, shards_uri: str, tracking_uri: str | None = None) -> Picture:
    """Shows the best and the worst samples: image, labels, prediction, errors."""
    import torch

    from d2ls.data import EvaluationLoader
    from d2ls.shards import ShardSet
    from pipeline.models import load_model

    ranked = [key for key, _ in evaluation.ranked()]
    chosen = ranked[:SHEET_SAMPLES] + ranked[SHEET_SAMPLES:][-SHEET_SAMPLES:]
    shards = ShardSet.open(shards_uri)
    rows = shards.index.filter(pc.is_in(shards.index["key"], pa.array(chosen)))
    predictor = load_model(evaluation.model, tracking_uri=tracking_uri)
    panels = {}
    for batch in EvaluationLoader(dataclasses.replace(shards, index=rows), evaluation.split, batch_size=1):
        image = batch.images[0].permute(1, 2, 0).numpy().astype(shards.card.dtype)
        labels, predicted = batch.labels[0], torch.from_numpy(predictor.predict(image))
        if evaluation.mapping:
            predicted, labels = evaluation.mapping.apply(predicted, labels)
        panels[batch.keys[0]] = (image, labels.numpy(), predicted.numpy())
    images, labels, predictions = zip(*(panels[key] for key in chosen), strict=True)
    return prediction_sheet(images, labels, predictions, evaluation.classes, titles=chosen)


def _png(picture: Picture) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    return stream.getvalue()
