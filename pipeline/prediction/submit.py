"""Submissions to the servers of LoveDA and UAVid: the test images mapped, written and checked by the server's rules."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from d2ls.errors import ConfigError, DataError
from pipeline.prediction import submission
from pipeline.prediction.inputs import Job, list_jobs
from sharding.raster.scene import open_scene

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from d2ls.bundle import ModelInfo
    from pipeline.config.train import ClusterConfig
    from pipeline.prediction.map_scene import MapOptions


def submit(
    values: argparse.Namespace, options: "MapOptions", settings: dict[str, Any], cluster: "ClusterConfig"
) -> int:
    """Makes a submission. What is wrong with the test images is said before anything is predicted.

    Maps are kept in `OUTPUT.maps` until the submission stands, so an interrupted one goes on.

    Raises:
        ConfigError: the model knows other classes.
        DataError: the images are not the benchmark's test images, or the result fails the check.
        StorageError: the output cannot be written, or is a folder that exists already.
    """
    from d2ls.bundle import read_info
    from pipeline.models import fetch_model
    from pipeline.predict import map_all

    rules = submission.RULES[values.submission]
    target = Path(values.output)
    submission.refuse_existing(target)
    maps = target.with_name(f"{target.name}.maps")
    jobs = list_jobs(values.input, str(maps), "png")
    entries = {rules.entry(source): (source, mapped) for source, mapped in jobs}
    expected = check_images(rules, jobs)
    with fetch_model(values.model, tracking_uri=values.tracking_uri) as folder:
        info = read_info(folder, where=values.model)
    check_classes(rules, info, values.model)
    status = map_all(values, jobs, options, settings, cluster)
    submission.write(rules, target, _read(entries))
    submission.check(rules, target, expected)
    submission.remove_folder(maps)
    sys.stderr.write(f"{target}: {len(entries)} files, checked by the rules of {rules.name}\n")
    return status


def check_images(rules: submission.Rules, jobs: list[Job]) -> dict[str, submission.Size]:
    """Returns path in the submission and size of every test image.

    Raises:
        DataError: wrong count, name or size; lists all.
    """
    found, wrong = {}, []
    for source, _ in jobs:
        entry = rules.entry(source)
        with open_scene(Path(source)) as scene:
            size = scene.height, scene.width
        if size not in rules.sizes:
            wrong.append(f"{source}: {size[0]} x {size[1]} pixels")
        if entry in found:
            wrong.append(f"{source}: a second image for {entry}")
        found[entry] = size
    if len(found) != rules.count:
        wrong.append(f"{len(found)} images, {rules.count} are wanted")
    if wrong:
        listed = "\n".join(f"  {line}" for line in wrong[: submission.SHOWN])
        raise DataError(f"these are not the test images of {rules.name}:\n{listed}")
    return found


def check_classes(rules: submission.Rules, info: "ModelInfo", model: str) -> None:
    """Refuses a model whose class ids mean something else on the server.

    Raises:
        ConfigError: other classes, or in another order.
    """
    if info.classes.names != rules.classes.names:
        raise ConfigError(
            f"{model} knows the classes {list(info.classes.names)}, {rules.name} wants {list(rules.classes.names)}"
        )


def _read(entries: dict[str, Job]) -> "Iterator[tuple[str, npt.NDArray[np.uint8]]]":
    for name, (_, mapped) in entries.items():
        with Image.open(mapped) as image:
            yield name, np.asarray(image)
