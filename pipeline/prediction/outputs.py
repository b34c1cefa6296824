"""The output files of a map: which of them may be replaced, and a lock that lets only one process work on them."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import filelock
from pyarrow import fs

from d2ls import storage
from d2ls.errors import ConfigError, StorageError
from pipeline import process_identity
from pipeline.prediction.map_writer import is_our_aux_file
from pipeline.prediction.parts import IN_USE, IN_USE_RECORD, remove_empty
from pipeline.prediction.provenance import Provenance, read_provenance
from pipeline.prediction.request import MapOptions

SILENT_SECONDS = 300.0
"""Age from which on a lock record in an object store counts as left by a killed process of another machine."""

_BEAT_SECONDS = 30.0

State = Literal["finished", "outdated", "missing"]


class BusyError(StorageError):
    """Another process is working on the same output."""


@dataclass(frozen=True)
class Outputs:
    """Files of one map.

    Attributes:
        target: the map, `.tif` or `.png`, local or by URI.
        probabilities: whether class probabilities are written.
        overlay: whether a picture of the map over the image is written.
        confidence: whether the probability of the winning class is written.
        style: whether the style for QGIS is written.
        polygons: location of the polygons; None: none.
        areas: whether tables of areas are written.
    """

    target: str
    probabilities: bool = False
    overlay: bool = False
    confidence: bool = False
    style: bool = False
    polygons: str | None = None
    areas: bool = False

    @classmethod
    def of(cls, target: str, options: MapOptions) -> Self:
        """Lists the files that options ask for, with the map at `target`."""
        beside = f"{target.rpartition('.')[0]}.gpkg"
        polygons = (options.polygons.file or beside) if options.polygons else None
        return cls(
            target, options.probabilities, options.overlay, options.confidence, options.style, polygons,
            options.areas is not None,
        )  # fmt: skip

    def moved(self, target: str) -> Self:
        """Returns the files for another name of the map; polygons with a name given by the user keep it."""
        own = self.polygons if self.polygons != self.beside("gpkg") else None
        moved = replace(self, target=target)
        return replace(moved, polygons=self.polygons and (own or moved.beside("gpkg")))

    def beside(self, ending: str) -> str:
        """Returns the location of a file that accompanies the map."""
        return f"{self.target.rpartition('.')[0]}.{ending}"

    @property
    def files(self) -> tuple[str, ...]:
        """All files; the map comes last, because it marks all of them as finished."""
        kinds = {
            "probabilities.tif": self.probabilities, "confidence.tif": self.confidence, "overlay.jpg": self.overlay,
            "qml": self.style, "areas.csv": self.areas, "areas.md": self.areas,
        }  # fmt: skip
        extra = [self.beside(ending) for ending, chosen in kinds.items() if chosen]
        extra += [self.polygons] if self.polygons else []
        return (*extra, self.target)

    @property
    def parts(self) -> str:
        """Folder of finished rows while the map is being made."""
        return f"{self.target}.parts"

    def check(self, planned: Provenance, *, overwrite: bool) -> State:
        """Refuses to replace files that this program did not make.

        A map of this program may be completed, or made again if its scene has changed. All other files need
        `overwrite`.

        Returns:
            `finished`: all files exist and were made as planned; `outdated`: one was made before the scene changed;
            `missing`: a file has to be made.

        Raises:
            ConfigError: a file of the user, or another map, is in the way.
        """
        states: set[State] = set()
        for file in self.files:
            kind = storage.info(file).type
            if kind == fs.FileType.NotFound:
                states.add("missing")
                continue
            if kind != fs.FileType.File:
                raise ConfigError(f"{file}: is a folder; name a file as OUTPUT, for instance {file}/map.tif")
            states.add("missing" if overwrite else self._state_of(file, planned))
        self._check_aux_file(overwrite)
        return "outdated" if "outdated" in states else "missing" if "missing" in states else "finished"

    def finished(self, planned: Provenance, *, overwrite: bool) -> frozenset[str]:
        """Returns the files that exist as planned. They are not written again: the user may have added to them."""
        if overwrite:
            return frozenset()
        made = {file: read_provenance(file) for file in self.files}
        return frozenset(file for file, how in made.items() if how is not None and how.is_same_map(planned))

    def _state_of(self, file: str, planned: Provenance) -> State:
        existing = read_provenance(file)
        if existing is None:
            raise ConfigError(
                f"{file}: exists and is not a map of this program, it is left as it is. Name another OUTPUT, or "
                "replace it with --overwrite (INPUT and OUTPUT come in this order; quote a pattern: 'scenes/*.tif')"
            )
        if not existing.is_same_map(planned) and not existing.is_earlier_state(planned):
            raise ConfigError(
                f"{file}: is a map {planned.difference(existing)}, left as it is. Name another OUTPUT, or replace "
                "it with --overwrite"
            )
        return "finished" if existing.is_same_map(planned) else "outdated"

    def _check_aux_file(self, overwrite: bool) -> None:
        """Checks `<map>.aux.xml`, which holds the class names of a map."""
        aux = f"{self.target}.aux.xml"
        if overwrite or not self.target.lower().endswith((".tif", ".tiff")) or storage.exists(self.target):
            return
        if storage.exists(aux) and not is_our_aux_file(storage.read_bytes(aux)):
            raise ConfigError(
                f"{aux}: exists and is not of this program; move it, or replace it with --overwrite"
            )


@contextlib.contextmanager
def hold(outputs: Outputs, *, owner: str = "") -> Iterator[Callable[[], None]]:
    """Makes this process the only one that works on a map; yields a function to call from time to time.

    On a local disk it is a lock, which the operating system releases when the process ends. In an object store it is
    a record that the process renews. The record of a dead process of this machine is taken over at once; one of
    another machine, after `SILENT_SECONDS` without a renewal.

    Args:
        outputs: the files.
        owner: name of the run; processes of the same run take over from each other.

    Raises:
        BusyError: another process is working on it.
        StorageError: the folder of the parts cannot be made.
    """
    if not storage.is_local(outputs.target):
        with _hold_record(outputs, owner) as renew:
            yield renew
        return
    folder = storage.local_path(outputs.parts)
    storage.make_folder(outputs.parts)
    lock = filelock.FileLock(folder / IN_USE, blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise busy(outputs) from None
    except NotImplementedError:  # the file system has no locks
        with _hold_record(outputs, owner) as renew:
            yield renew
        return
    except OSError as error:
        raise StorageError(f"{outputs.parts}: cannot be written: {error}") from error
    try:
        if not (folder / IN_USE).exists():  # the previous process has just ended, and removed it
            raise busy(outputs)
        yield lambda: None
    finally:
        (folder / IN_USE).unlink(missing_ok=True)
        lock.release()
        remove_empty(outputs.parts)


def is_held(outputs: Outputs) -> bool:
    """Returns whether another process of this machine, or of one that shares the disk, is working on a map."""
    if not storage.is_local(outputs.target):
        return False  # reported when the work on it begins
    file = storage.local_path(outputs.parts) / IN_USE
    if not file.exists():
        return False
    lock = filelock.FileLock(file, blocking=False)
    try:
        lock.acquire()
    except (filelock.Timeout, NotImplementedError, OSError):
        return True
    lock.release()
    return False


@contextlib.contextmanager
def _hold_record(outputs: Outputs, owner: str) -> Iterator[Callable[[], None]]:
    record = storage.join(outputs.parts, IN_USE_RECORD)
    process = process_identity.this_process()
    owner = owner or process
    before = _read_record(record)
    if before and not process_identity.is_gone(before["process"]) and before["owner"] != owner:
        silent = time.time() - before["time"]
        if process_identity.is_another(before["process"]) or silent < SILENT_SECONDS:
            raise busy(outputs, before["process"], SILENT_SECONDS - silent)
    written = 0.0

    def renew() -> None:
        nonlocal written
        if time.time() - written > _BEAT_SECONDS:
            written = time.time()
            content = {"process": process, "owner": owner, "time": written}
            storage.write_bytes(record, json.dumps(content).encode())

    renew()
    if (_read_record(record) or {}).get("process") != process:
        raise busy(outputs)
    try:
        yield renew
    finally:
        storage.delete(record)
        remove_empty(outputs.parts)


def _read_record(record: str) -> dict[str, Any] | None:
    if not storage.exists(record):
        return None
    try:
        values = json.loads(storage.read_bytes(record))
        return {
            "process": str(values["process"]),
            "owner": str(values["owner"]),
            "time": float(values["time"]),
        }
    except (ValueError, KeyError, TypeError):
        return None


def busy(outputs: Outputs, process: str = "", seconds: float = 0.0) -> BusyError:
    """Returns the error that another process is working on a map; `seconds` until its record may be taken over."""
    by = f" ({process})" if process else ""
    wait = f"; if that was killed, its hold ends in {seconds:.0f} s" if seconds > 0 else ""
    return BusyError(
        f"{outputs.target}: is being mapped by another process now{by}. Wait for it, or name another OUTPUT{wait}"
    )
