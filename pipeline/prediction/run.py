"""Runs `pipeline.predict`: list the scenes, plan each, print the plan, then map scene by scene."""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d2ls.bundle import ModelInfo, read_info
from d2ls.errors import ConfigError, D2LSError, DataError
from d2ls.inference import Progress
from pipeline import process_identity
from pipeline.console import ProgressDisplay, format_duration
from pipeline.models import (
    REGISTRY_SCHEMES,
    fetch_model,
    files_digest,
    load_predictor,
    registered_report,
)
from pipeline.models.workers import spread
from pipeline.prediction.areas import parse_report
from pipeline.prediction.inputs import READERS, Job, list_jobs
from pipeline.prediction.map_scene import MapReport, map_scene, read_scene
from pipeline.prediction.mosaic import mosaic_job
from pipeline.prediction.outputs import BusyError, busy, is_held
from pipeline.prediction.plan import ScenePlan, check_disk, megabytes, plan_scene
from pipeline.prediction.request import MapOptions, PredictRequest

if TYPE_CHECKING:
    from d2ls.inference import Predictor

MEASURED_FROM = 10
"""Number of batches of windows from which on one batch is timed first."""


@dataclass(frozen=True)
class Survey:
    """The plans of all scenes of a request.

    Attributes:
        plans: plans of the scenes that can be mapped.
        errors: errors of the others.
    """

    plans: dict[Job, ScenePlan]
    errors: dict[Job, D2LSError]

    @property
    def open(self) -> list[ScenePlan]:
        """Plans of unfinished maps."""
        return [plan for plan in self.plans.values() if not plan.finished]

    @property
    def windows(self) -> int:
        """Windows to predict."""
        return sum(plan.windows for plan in self.open)

    @property
    def disk(self) -> int:
        """Bytes needed on disk."""
        return sum(plan.disk for plan in self.open)


def predict(request: PredictRequest) -> int:
    """Maps all scenes of a request; returns the exit status.

    Raises:
        ConfigError: impossible input, output or option.
        DataError: the error of the only scene, or the number of scenes that could not be mapped.
        StorageError: no room for the maps, or another process makes them.
    """
    if request.mosaic:
        jobs = [mosaic_job(request.source, request.target)]
    else:
        jobs = list_jobs(request.source, request.target, request.kind)
    polygons = request.options.polygons
    if len(jobs) > 1 and polygons is not None and polygons.file:
        raise ConfigError(
            f"--polygons {polygons.file}: {len(jobs)} scenes have a file of polygons each; leave the name out"
        )
    return map_jobs(request, jobs)


def map_jobs(request: PredictRequest, jobs: list[Job]) -> int:
    """Maps scenes with progress on the terminal; see `predict`."""
    failed = 0
    for _, result in map_scenes(request, jobs, tell=say):
        if isinstance(result, D2LSError):
            if len(jobs) == 1:
                raise result
            failed += 1
            say(f"error: {result}")
        elif result.skipped:
            say(f"{result.target}: finished before, left as it is (--overwrite maps it again)")
        else:
            say(f"{result.target}: {result.height} x {result.width} in {format_duration(result.seconds)}")
    if failed:
        raise DataError(
            f"{failed} of {len(jobs)} scenes could not be mapped; the others are done. Repair or remove them and run "
            "the same command again: it maps what is missing"
        )
    return 0


def map_scenes(
    request: PredictRequest, jobs: list[Job], *, tell: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[Job, MapReport | D2LSError]]:
    """Maps scenes; yields each one when it is done, with a report or an error.

    Args:
        request: model and settings.
        jobs: scenes and their maps.
        tell: called with each line to print before the work.
    """
    with fetch_model(request.model, tracking_uri=request.tracking_uri) as folder:
        info, digest = read_info(folder, where=request.model), files_digest(folder)
        request = _with_registered_report(request, info, tell)
        survey = survey_scenes(request, jobs, info, digest)
        yield from survey.errors.items()
        _tell(survey, request, tell)
        for job, plan in survey.plans.items():
            if plan.finished:
                yield job, MapReport(*job, plan.height, plan.width, 0.0, plan.notes, skipped=True)
        if survey.open:
            yield from _map_open(request, survey, folder, digest, tell)


def _with_registered_report(
    request: PredictRequest, info: ModelInfo, tell: Callable[[str], None]
) -> PredictRequest:
    """Takes the report that was registered with a model where areas are counted and no other report is named."""
    areas, model = request.options.areas, request.model
    if areas is None or areas.report or not model.startswith(REGISTRY_SCHEMES):
        return request
    text = registered_report(model, tracking_uri=request.tracking_uri)
    if text is None:
        tell(
            f"note: {model} was registered without an evaluation report, so areas are not adjusted for its errors; "
            "name one with --evaluation-report"
        )
        return request
    counts = parse_report(text, info.classes, where=f"evaluation report of {model}")
    areas = replace(areas, tested=tuple(map(tuple, counts.tolist())))
    return replace(request, options=replace(request.options, areas=areas))


def survey_scenes(request: PredictRequest, jobs: list[Job], info: ModelInfo, digest: str) -> Survey:
    """Reads the headers of all scenes and plans each.

    Raises:
        D2LSError: the error of the only scene.
        BusyError: another process is working on one of the maps.
        StorageError: the disk has no room for all of them.
    """
    look = request.settings.windows(info)

    def plan(job: Job) -> ScenePlan | D2LSError:
        try:
            with read_scene(job[0], request.options.reading(info)) as scene:
                return plan_scene(scene, *job, info, look, request.options, digest)
        except D2LSError as error:
            return error

    with ThreadPoolExecutor(READERS) as pool:
        results = dict(zip(jobs, pool.map(plan, jobs), strict=True))
    errors = {job: result for job, result in results.items() if isinstance(result, D2LSError)}
    if errors and len(jobs) == 1:
        raise errors[jobs[0]]
    plans = {job: result for job, result in results.items() if isinstance(result, ScenePlan)}
    survey = Survey(plans, errors)
    for scene in survey.open:
        if is_held(scene.outputs):
            raise busy(scene.outputs)
    check_disk(survey.disk, request.target)
    return survey


def _tell(survey: Survey, request: PredictRequest, tell: Callable[[str], None]) -> None:
    """Reports the amount of work and the notes, each once with its scenes."""
    if not survey.open:
        return
    finished = len(survey.plans) - len(survey.open)
    before = f" ({finished} more finished before)" if finished else ""
    free = check_disk(0, request.target)
    room = f", {megabytes(free)} free" if free is not None else ""
    tell(
        f"{len(survey.open)} scene(s){before}, {survey.windows:,} window(s), up to {megabytes(survey.disk)} on "
        f"disk{room}"
    )
    notes: dict[str, list[str]] = {}
    for plan in survey.open:
        for note in plan.notes:
            notes.setdefault(note, []).append(plan.source)
    for note, sources in notes.items():
        more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
        tell(f"note: {sources[0]}{more}: {note}")


def _map_open(
    request: PredictRequest, survey: Survey, folder: Path, digest: str, tell: Callable[[str], None]
) -> Iterator[tuple[Job, MapReport | D2LSError]]:
    """Maps unfinished scenes, in this process or on Ray workers, with progress on the terminal."""
    jobs = [(plan.source, plan.outputs.target) for plan in survey.open]
    done = 0
    with ProgressDisplay("mapping") as display:

        def on_windows(count: int) -> None:
            display.advance(done + count, survey.windows)

        if request.cluster.worker_range[1] > 1 and len(jobs) > 1:
            results = _map_on_workers(request, jobs, folder, digest, tell)
        else:
            results = _map_here(request, jobs, survey, folder, digest, tell, on_windows)
        for job, result in results:
            done += survey.plans[job].windows
            on_windows(0)
            yield job, result


def _map_here(
    request: PredictRequest,
    jobs: list[Job],
    survey: Survey,
    folder: Path,
    digest: str,
    tell: Callable[[str], None],
    on_windows: Callable[[int], None],
) -> Iterator[tuple[Job, MapReport | D2LSError]]:
    predictor = load_predictor(folder, where=request.model, **request.settings.to_dict())
    seconds = _seconds_per_window(predictor, survey)
    if seconds is not None:
        tell(f"about {format_duration(seconds * survey.windows)} on {predictor.device}")
    for job in jobs:
        windows = survey.plans[job].windows

        def on_progress(state: Progress, windows: int = windows) -> None:
            on_windows(windows - (state.total - state.done))

        try:
            yield job, map_scene(predictor, *job, request.options, digest=digest, progress=on_progress)
        except BusyError:
            raise
        except D2LSError as error:
            yield job, error


def _map_on_workers(
    request: PredictRequest, jobs: list[Job], folder: Path, digest: str, tell: Callable[[str], None]
) -> Iterator[tuple[Job, MapReport | D2LSError]]:
    tell(f"on {request.cluster.worker_range[1]} Ray workers")
    owner = process_identity.this_process()
    pieces = [(job, request.options, digest, owner) for job in jobs]
    results = spread(map_piece, pieces, folder, request.model, request.settings.to_dict(), request.cluster)
    for number, result in results:
        yield jobs[number], result


def map_piece(predictor: "Predictor", piece: tuple[Job, MapOptions, str, str]) -> MapReport:
    """Maps one scene on a Ray worker."""
    (source, target), options, digest, owner = piece
    return map_scene(predictor, source, target, options, digest=digest, owner=owner)


def _seconds_per_window(predictor: "Predictor", survey: Survey) -> float | None:
    """Times a batch if there are many; returns None otherwise."""
    if survey.windows < MEASURED_FROM * predictor.batch_size:
        return None
    height, width = (
        min(predictor.window, max(plan.grid_size[axis] for plan in survey.open)) for axis in (0, 1)
    )
    shape = (predictor.batch_size, height, width, len(predictor.info.bands))
    pixels = np.random.default_rng(0).integers(0, 255, shape).astype(predictor.info.dtype)
    predictor.window_probabilities(pixels[:1]).cpu()  # the first call is slower
    started = time.monotonic()
    predictor.window_probabilities(pixels).cpu()
    return (time.monotonic() - started) / predictor.batch_size


def say(text: str) -> None:
    """Writes a line to the error stream."""
    sys.stderr.write(f"{text}\n")
