"""Suspected label errors: places where a confident model contradicts the label, ranked, as a layer for QGIS."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.features
import shapely
import shapely.affinity
import shapely.geometry

from d2ls import storage
from d2ls.data import EvaluationLoader
from d2ls.errors import ConfigError
from d2ls.labels import IGNORE, ClassTable
from d2ls.scratch import atomic_write
from d2ls.shards import ShardSet
from pipeline.evaluation.parts import open_split
from pipeline.evaluation.request import MIN_PROBABILITY, EvaluateRequest
from pipeline.models import load_predictor
from pipeline.prediction.polygonize import components
from sharding.raster.base import Georeference, crs_text
from sharding.raster.qgis import polygon_style
from sharding.raster.vectors import write_features

if TYPE_CHECKING:
    from d2ls.inference import Predictor

MIN_PIXELS = 16
"""Smallest size. Smaller places are borders between classes, where labels and maps always differ a little."""

MAX_PLACES = 10_000
"""Largest number of places that are written, the most suspicious first."""


@dataclass(frozen=True)
class Suspect:
    """A region of pixels with one label in which the model is confident of another class.

    Attributes:
        shape: outline in pixels of the sample.
        label: class id of the label.
        predicted: class id that the model predicts.
        pixels: size.
        probability: mean probability of the predicted class.
        score: sum over the pixels of its probability minus that of the label; decides the rank.
    """

    shape: Any
    label: int
    predicted: int
    pixels: int
    probability: float
    score: float


def find_suspects(
    labels: npt.NDArray[np.uint8],
    probabilities: npt.NDArray[np.float32],
    min_probability: float = MIN_PROBABILITY,
) -> list[Suspect]:
    """Finds the places of a sample where a confident model contradicts the label.

    Args:
        labels: class ids, H W, 255 for pixels without a label.
        probabilities: K H W.
        min_probability: lowest probability of the predicted class in each pixel.
    """
    predicted = probabilities.argmax(axis=0)
    confidence = probabilities.max(axis=0)
    wrong = (labels != IGNORE) & (predicted != labels) & (confidence >= min_probability)
    if not wrong.any():
        return []
    of_label = np.take_along_axis(probabilities, np.where(wrong, labels, 0)[None], axis=0)[0]
    pairs = np.where(wrong, labels.astype(np.int32) * 256 + predicted, -1)
    ids, values, pixels, _ = components(pairs, np.zeros(labels.shape, np.uint8))
    large = wrong & (pixels >= MIN_PIXELS)[ids]
    sums = [
        np.bincount(ids.ravel(), band.ravel(), len(pixels)) for band in (confidence, confidence - of_label)
    ]
    return [
        Suspect(
            shapely.geometry.shape(outline), int(values[i] // 256), int(values[i] % 256), int(pixels[i]),
            float(sums[0][i] / pixels[i]), float(sums[1][i]),
        )
        for outline, i in (
            (outline, int(number)) for outline, number in rasterio.features.shapes(ids, mask=large, connectivity=4)
        )
    ]  # fmt: skip


def write_suspects(
    request: EvaluateRequest, target: Path, *, min_probability: float = MIN_PROBABILITY
) -> int:
    """Writes the suspected label errors of a split into a GeoPackage, a layer for each CRS of the scenes.

    Samples of images without a georeference go into the layer `pixels`, in columns and negative rows of their image.

    Args:
        request: model and split.
        target: local file that does not exist yet, or may be replaced.
        min_probability: see `find_suspects`.

    Returns:
        Number of places.

    Raises:
        ConfigError: the model was trained for other classes than those of the shards.
        DataError: the model takes other bands or pixel types.
    """
    with open_split(request) as split:
        shards = split.shards
        predictor = load_predictor(
            split.folder, where=request.model, tta=request.tta, batch_size=request.batch_size
        )
    places: list[tuple[Suspect, dict[str, Any]]] = []
    for suspects, meta in _samples(predictor, shards, request.split, min_probability):
        places += [(suspect, meta) for suspect in suspects]
        if len(places) > 2 * MAX_PLACES:
            places = _best(places)
    write_layers(target, _best(places), shards.card.classes)
    return min(len(places), MAX_PLACES)


def check_target(target: str, requests: int, *, overwrite: bool) -> Path:
    """Refuses a target that cannot be written, before any work is done.

    Raises:
        ConfigError: not a local .gpkg, or several models.
        StorageError: it exists already.
    """
    if requests > 1:
        raise ConfigError(f"--suspects {target}: {requests} models; name one")
    if not storage.is_local(target) or not target.lower().endswith(".gpkg"):
        raise ConfigError(f"--suspects {target}: name a local file that ends in .gpkg")
    if not overwrite:
        storage.check_free(target, "name another --suspects, or replace it with --overwrite")
    return storage.local_path(target)


def _best(places: list[tuple[Suspect, dict[str, Any]]]) -> list[tuple[Suspect, dict[str, Any]]]:
    return sorted(places, key=lambda pair: (-pair[0].score, pair[1]["key"]))[:MAX_PLACES]


def _samples(
    predictor: "Predictor", shards: ShardSet, split: str, min_probability: float
) -> Iterator[tuple[list[Suspect], dict[str, Any]]]:
    rows = {row["key"]: row for row in shards.rows(split).to_pylist()}
    with EvaluationLoader(shards, split, batch_size=1) as batches:
        for batch in batches:
            image = batch.images[0].permute(1, 2, 0).numpy().astype(shards.card.dtype)
            suspects = find_suspects(batch.labels[0].numpy(), predictor.probabilities(image), min_probability)
            if suspects:
                row = rows[batch.keys[0]]
                tar = shards.shard_uri(row["shard"])
                meta = json.loads(storage.read_range(tar, row["meta_offset"], row["meta_length"]))
                yield suspects, {"scene": row["scene"], **meta, "key": row["key"]}


def write_layers(target: Path, ranked: list[tuple[Suspect, dict[str, Any]]], classes: ClassTable) -> None:
    """Writes places into a GeoPackage, which gets its name when it is complete.

    Args:
        target: local file; replaced if it exists.
        ranked: places, the most suspicious one first, and the metadata of the sample that each lies in.
        classes: names and colours; QGIS draws a place in the colour of the predicted class.
    """
    layers: dict[str, list[int]] = defaultdict(list)
    for rank, (_, meta) in enumerate(ranked):
        layers[meta.get("crs") or "pixels"].append(rank)
    style = polygon_style(classes.names, classes.palette, "predicted", opacity=60)
    with atomic_write(target, scratch="suspects") as partial:
        for crs, ranks in (layers or {"pixels": []}).items():
            placed = None if crs == "pixels" else rasterio.CRS.from_user_input(crs)
            name = "suspects" if len(layers) <= 1 else f"suspects {crs_text(placed) or 'pixels'}"
            shapes = [_place(*ranked[rank]) for rank in ranks]
            columns = _columns([(rank, *ranked[rank]) for rank in ranks], classes)
            write_features(partial, name, np.array(shapes, object), columns, placed, style=style)


def _transform(meta: dict[str, Any]) -> Any:
    """Returns the transform from pixels of the sample to its CRS, or to columns and negative rows of its image."""
    if meta.get("crs") and meta.get("transform"):
        return rasterio.Affine(*meta["transform"])
    row, column, *_ = meta.get("window", (0, 0))
    return rasterio.Affine(1, 0, column, 0, -1, -row)


def _place(suspect: Suspect, meta: dict[str, Any]) -> Any:
    transform = _transform(meta)
    numbers = (transform.a, transform.b, transform.d, transform.e, transform.c, transform.f)
    return shapely.affinity.affine_transform(suspect.shape, numbers)


def _columns(
    rows: list[tuple[int, Suspect, dict[str, Any]]], classes: ClassTable
) -> dict[str, npt.NDArray[Any]]:
    names = np.array(classes.names, object)
    texts = {
        "scene": [str(meta["scene"]) for _, _, meta in rows],
        "sample": [str(meta["key"]) for _, _, meta in rows],
        "window": [" ".join(map(str, meta.get("window", ()))) for _, _, meta in rows],
        "label": [names[suspect.label] for _, suspect, _ in rows],
        "predicted": [names[suspect.predicted] for _, suspect, _ in rows],
    }
    return {
        "rank": np.array([rank + 1 for rank, _, _ in rows], np.int32),
        **{name: np.array(values, object) for name, values in texts.items()},
        "pixels": np.array([suspect.pixels for _, suspect, _ in rows], np.int64),
        "area_m2": np.array([suspect.pixels * _square_metres(meta) for _, suspect, meta in rows], np.float64),
        "probability": np.array([suspect.probability for _, suspect, _ in rows], np.float64),
        "score": np.array([suspect.score for _, suspect, _ in rows], np.float64),
    }


def _square_metres(meta: dict[str, Any]) -> float:
    """Returns the ground area of a pixel; NaN (empty in QGIS) if unknown."""
    if not meta.get("crs") or not meta.get("transform"):
        return float("nan")
    crs = rasterio.CRS.from_user_input(meta["crs"])
    metres = Georeference(crs, _transform(meta)).pixel_metres(1, 1)
    return float("nan") if metres is None else metres**2
