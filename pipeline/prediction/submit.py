"""Makes submissions for LoveDA and UAVid: maps the test images, writes them, and checks them by the server's rules."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from d2ls import storage
from d2ls.bundle import ModelInfo, read_info
from d2ls.errors import ConfigError, DataError
from pipeline.models import fetch_model
from pipeline.prediction import submission
from pipeline.prediction.inputs import Job, list_jobs
from pipeline.prediction.map_scene import read_scene
from pipeline.prediction.parts import remove_empty
from pipeline.prediction.request import PredictRequest
from pipeline.prediction.run import map_jobs, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt


def submit(request: PredictRequest) -> int:
    """Makes a submission. The test images are checked before anything is predicted.

    Maps are kept in `OUTPUT.maps` until the submission is complete, so an interrupted one can be continued.

    Raises:
        ConfigError: the model has other classes, or the output exists already.
        DataError: the images are not the benchmark's test images, or the result fails the check.
        StorageError: the output cannot be written.
    """
    assert request.submission
    rules = submission.RULES[request.submission]
    target = _local_target(request.target)
    overwrite = request.options.overwrite
    submission.refuse_existing(target, overwrite=overwrite)
    maps = target.with_name(f"{target.name}.maps")
    jobs = list_jobs(request.source, str(maps), "png")
    entries = {rules.entry(source): (source, mapped) for source, mapped in jobs}
    expected = check_images(rules, jobs)
    with fetch_model(request.model, tracking_uri=request.tracking_uri) as folder:
        check_classes(rules, read_info(folder, where=request.model), request.model)
    status = map_jobs(replace(request, target=str(maps)), jobs)
    submission.write(rules, target, _read(entries), expected=expected, overwrite=overwrite)
    _remove_maps(maps, jobs)
    say(f"{target}: {len(entries)} files, checked by the rules of {rules.name}")
    return status


def _local_target(target: str) -> Path:
    if not storage.is_local(target):
        raise ConfigError(f"{target}: submissions are written to a local disk; name a local file or folder")
    return storage.local_path(target)


def _remove_maps(folder: Path, jobs: list[Job]) -> None:
    """Deletes the maps of the submission, and their folders if they are empty then."""
    for _, mapped in jobs:
        Path(mapped).unlink(missing_ok=True)
    for below in sorted(folder.rglob("*"), reverse=True):
        if below.is_dir():
            remove_empty(str(below))
    remove_empty(str(folder))


def check_images(rules: submission.Rules, jobs: list[Job]) -> dict[str, submission.Size]:
    """Returns the size of every test image by its path in the submission.

    Raises:
        DataError: a wrong count, name or size; lists all of them.
    """
    sizes, wrong = {}, []
    for source, _ in jobs:
        entry = rules.entry(source)
        with read_scene(source) as scene:
            size = scene.height, scene.width
        if size not in rules.sizes:
            wrong.append(f"{source}: {size[0]} x {size[1]} pixels")
        if entry in sizes:
            wrong.append(f"{source}: a second image for {entry}")
        sizes[entry] = size
    if len(sizes) != rules.count:
        wrong.append(f"{len(sizes)} images, {rules.count} are expected")
    if wrong:
        listed = "\n".join(f"  {line}" for line in wrong[: submission.SHOWN])
        raise DataError(
            f"these are not the test images of {rules.name}; name its unpacked test folder as INPUT:\n{listed}"
        )
    return sizes


def check_classes(rules: submission.Rules, info: ModelInfo, model: str) -> None:
    """Refuses a model whose class ids have other meanings on the server.

    Raises:
        ConfigError: other classes, or in another order.
    """
    if info.classes.names != rules.classes.names:
        raise ConfigError(
            f"{model} knows the classes {list(info.classes.names)}, {rules.name} wants {list(rules.classes.names)}; "
            "take a model that was trained on that data set"
        )


def _read(entries: dict[str, Job]) -> "Iterator[tuple[str, npt.NDArray[np.uint8]]]":
    for name, (_, mapped) in entries.items():
        with Image.open(mapped) as image:
            yield name, np.asarray(image)
