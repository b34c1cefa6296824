"""`python -m pipeline.predict MODEL INPUT OUTPUT`: images of any size to georeferenced label maps."""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from d2ls.errors import ConfigError, D2LSError, DataError
from pipeline.cli import parser, run_command
from pipeline.config.train import ClusterConfig

if TYPE_CHECKING:
    from d2ls.inference import Progress, Segmenter
    from pipeline.prediction.inputs import Job
    from pipeline.prediction.map_scene import MapOptions, MapReport

DESCRIPTION = (
    "Maps images with a trained model: one label per pixel, windows blended into each other, coordinates kept. A map "
    "that was interrupted goes on where it stopped when the same command is given again."
)
EXAMPLES = """\
  python -m pipeline.predict models:/d2ls-loveda@champion scene.tif map.tif
  python -m pipeline.predict models:/d2ls-loveda@champion rgbn.tif map.tif --bands 1,2,3 --overlay
  python -m pipeline.predict runs/demo-final scenes/ maps/ --workers 4       a folder, on four Ray workers
  python -m pipeline.predict runs/demo-final 'scenes/*.jpg' maps/ --format png
  python -m pipeline.predict runs/demo-final 16bit.tif map.tif --stretch 0,10000 --probabilities
  python -m pipeline.predict runs/demo-final fine.tif map.tif --resample --augmentation flips
  python -m pipeline.predict runs/loveda LoveDA/Test loveda.zip --submission loveda
"""


def map_piece(segmenter: "Segmenter", piece: tuple["Job", "MapOptions", str]) -> "MapReport":
    """Maps one scene on a Ray worker."""
    from pipeline.prediction.map_scene import map_scene

    (source, target), options, digest = piece
    return map_scene(segmenter, source, target, options, digest=digest)


def predict(
    model: str,
    jobs: "list[Job]",
    options: "MapOptions",
    *,
    settings: dict[str, Any] | None = None,
    cluster: ClusterConfig | None = None,
    tracking_uri: str | None = None,
    progress: "Callable[[Job, Progress], None]" = lambda _job, _progress: None,
) -> "Iterator[tuple[Job, MapReport | D2LSError]]":
    """Maps scenes; yields each one as it is done, an error in place of a report where it could not be.

    Args:
        model: anything that `pipeline.load_model` takes.
        jobs: scenes and their maps.
        options: how to map.
        settings: further arguments of `pipeline.load_model`: window, overlap, augmentation, batch_size.
        cluster: Ray workers to spread scenes over; None, or one worker, stays in this process.
        tracking_uri: MLflow store of `models:/` and `runs:/`.
        progress: told as windows are done, in this process alone.
    """
    from pipeline.models import fetch_model, files_digest, load_segmenter
    from pipeline.prediction.map_scene import map_scene
    from pipeline.prediction.workers import spread

    settings = settings or {}
    with fetch_model(model, tracking_uri=tracking_uri) as folder:
        digest = files_digest(folder)
        if cluster is not None and cluster.worker_range[1] > 1 and len(jobs) > 1:
            pieces = [(job, options, digest) for job in jobs]
            for number, result in spread(map_piece, pieces, folder, model, settings, cluster):
                yield jobs[number], result
            return
        segmenter = load_segmenter(folder, where=model, **settings)
    for job in jobs:
        try:
            told = _teller(progress, job)
            yield job, map_scene(segmenter, *job, options, digest=digest, progress=told)
        except D2LSError as error:
            yield job, error


def _teller(progress: "Callable[[Job, Progress], None]", job: "Job") -> "Callable[[Progress], None]":
    return lambda state: progress(job, state)


def _parser() -> argparse.ArgumentParser:
    arguments = parser("pipeline.predict", DESCRIPTION, EXAMPLES)
    add = arguments.add_argument
    add("model", metavar="MODEL", help="models:/name@alias, models:/name/version, runs:/id/path, or a folder")
    add("input", metavar="INPUT", help="image, folder, 'pattern' or URI: PNG, JPEG, WebP, TIFF, GeoTIFF")
    add(
        "output",
        metavar="OUTPUT",
        help="map.tif or map.png for one scene, else a folder (or a submission's name)",
    )
    add("--format", choices=("tif", "png"), default="tif", help="of maps in a folder (default: tif)")
    add(
        "--window",
        type=int,
        metavar="N",
        help="side of the windows in pixels (default: that of the training)",
    )
    add("--overlap", type=float, metavar="F", help="overlap of windows, share of their side (default: 0.25)")
    add(
        "--augmentation", default="none", metavar="PRESET",
        help="test-time augmentation: none, flips (4 x the time), flips_turns (8 x), flips_scales (12.5 x)",
    )  # fmt: skip
    add("--batch-size", type=int, default=4, help="windows at once (default: 4)")
    add("--bands", metavar="1,2,3", help="bands of the file to look at, from 1, in the model's order")
    add("--stretch", metavar="LOW,HIGH", help="file values that stand for the model's darkest and brightest")
    add("--resample", action="store_true", help="bring scenes to the ground distance of the training first")
    add("--probabilities", action="store_true", help="also write OUTPUT.probabilities.tif, a band a class")
    add("--overlay", action="store_true", help="also write OUTPUT.overlay.jpg, the map over the image")
    add("--overwrite", action="store_true", help="map again what is finished")
    add("--submission", choices=("loveda", "uavid"), help="make and check what the benchmark's server takes")
    add(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="Ray workers for many scenes (default: 1: this process)",
    )
    add("--address", help="Ray cluster to join (default: RAY_ADDRESS, else a local one)")
    add("--device", help="cpu, cuda, cuda:1 ... (default: cuda where there is one)")
    add(
        "--store", "--tracking-uri", dest="tracking_uri", metavar="URI",
        help="MLflow store (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)",
    )  # fmt: skip
    return arguments


def _numbers(text: str | None, option: str, kind: type) -> tuple[Any, ...] | None:
    try:
        return tuple(kind(part) for part in text.split(",")) if text is not None else None
    except ValueError:
        raise ConfigError(f"{option} {text}: give numbers with commas between them") from None


def _options(values: argparse.Namespace) -> "MapOptions":
    from pipeline.prediction.map_scene import MapOptions

    stretch = _numbers(values.stretch, "--stretch", float)
    if stretch is not None and (len(stretch) != 2 or not all(map(math.isfinite, stretch))):
        raise ConfigError(
            f"--stretch {values.stretch}: give the low and the high value, for instance 0,10000"
        )
    return MapOptions(
        bands=_numbers(values.bands, "--bands", int),
        stretch=stretch,
        resample=values.resample,
        probabilities=values.probabilities,
        overlay=values.overlay,
        overwrite=values.overwrite,
    )


def _settings(values: argparse.Namespace) -> dict[str, Any]:
    from d2ls.inference import overlap_pixels, views

    views(values.augmentation)
    overlap_pixels(values.window or 1, values.overlap or 0.0)
    if values.batch_size < 1:
        raise ConfigError(f"--batch-size {values.batch_size}: at least 1")
    names = ("augmentation", "batch_size", "window", "overlap", "device")
    return {name: getattr(values, name) for name in names}


def main(argv: list[str] | None = None) -> int:
    """Parses, maps every scene, says what came of it; status 1 where one could not be mapped."""
    values = _parser().parse_args(argv)
    from pipeline.prediction.inputs import list_jobs

    options, settings = _options(values), _settings(values)
    cluster = ClusterConfig.parse(
        {"workers": values.workers, "address": values.address, "max_failures": 3}, where="command line"
    )
    if values.submission:
        from pipeline.prediction.submit import submit

        return submit(values, options, settings, cluster)
    jobs = list_jobs(values.input, values.output, values.format)
    return map_all(values, jobs, options, settings, cluster)


def map_all(
    values: argparse.Namespace,
    jobs: "list[Job]",
    options: "MapOptions",
    settings: dict[str, Any],
    cluster: ClusterConfig,
) -> int:
    """Maps scenes with progress on the terminal; returns the exit status.

    Raises:
        DataError: of the only scene, or how many of several could not be mapped.
    """
    ticker = Ticker(len(jobs))
    failed: list[str] = []
    results = predict(
        values.model, jobs, options, settings=settings, cluster=cluster, tracking_uri=values.tracking_uri,
        progress=ticker.windows,
    )  # fmt: skip
    for job, result in results:
        if isinstance(result, D2LSError):
            if len(jobs) == 1:
                raise result
            failed.append(str(result))
            ticker.line(f"error: {result}")
        else:
            ticker.done(job, result)
    if failed:
        raise DataError(f"{len(failed)} of {len(jobs)} scenes could not be mapped; the others are done")
    return 0


class Ticker:
    """Progress with time left, in place on a terminal, now and then a line elsewhere.

    Args:
        scenes: number of scenes.
    """

    def __init__(self, scenes: int) -> None:
        self._scenes, self._finished = scenes, 0
        self._started = self._begun = self._shown = time.monotonic()
        self._before = 0
        self._scene: Job | None = None
        self._live = sys.stderr.isatty()

    def windows(self, job: "Job", progress: "Progress") -> None:
        """Shows how far the scene at hand is."""
        now = time.monotonic()
        if job != self._scene:  # the rate is counted from the first batch on
            self._scene, self._begun, self._before = job, now, progress.done
            return
        if now - self._shown < (0.5 if self._live else 20.0):
            return
        self._shown = now
        rate = (progress.done - self._before) / max(now - self._begun, 1e-9)
        left = (progress.total - progress.done) / max(rate, 1e-9)
        scene = f"scene {self._finished + 1}/{self._scenes}, " if self._scenes > 1 else ""
        text = (
            f"{scene}window {progress.done}/{progress.total}, {rate:.1f} a second, "
            f"{_duration(left)} left{' in this scene' if scene else ''}"
        )
        if self._live:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
        else:
            self.line(text)

    def done(self, job: "Job", report: "MapReport") -> None:
        """Says what became of a scene."""
        self._finished += 1
        for note in report.notes:
            self.line(f"note: {job[0]}: {note}")
        if report.skipped:
            self.line(f"{report.target}: finished before, left as it is (--overwrite maps it again)")
            return
        elapsed = time.monotonic() - self._started
        left = elapsed / self._finished * (self._scenes - self._finished)
        more = f"; {self._finished}/{self._scenes}, {_duration(left)} left" if self._scenes > 1 else ""
        self.line(f"{report.target}: {report.height} x {report.width} in {_duration(report.seconds)}{more}")

    def line(self, text: str) -> None:
        """Writes a whole line."""
        sys.stderr.write(f"{chr(13) + chr(27) + '[K' if self._live else ''}{text}\n")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


if __name__ == "__main__":
    run_command(main)
