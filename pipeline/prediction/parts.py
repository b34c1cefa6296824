"""Finished rows of an unfinished map, kept so that an interrupted map can be continued.

A folder `<map>.parts` beside the map (also in an object store): `plan.json` describes what is made and how; each band
of rows is a compressed file. With another plan the work starts again. The folder is removed when the map is finished.
Only files of this program are ever deleted.
"""

import contextlib
import json
import re
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from pyarrow import fs

from d2ls import storage
from d2ls.errors import ConfigError, StorageError
from pipeline.prediction.rows import Rows

Span = tuple[int, int]
PLAN_FILE = "plan.json"
IN_USE = "in-use.lock"
IN_USE_RECORD = "in-use.json"
PRODUCT = "d2ls parts of a map"
_UNFINISHED = re.compile(r"\..*\.tmp(\..*)?")
_OURS = re.compile(
    rf"\d{{6}}\.(labels|probabilities|confidence)|{PLAN_FILE}|{IN_USE}|{IN_USE_RECORD}|{_UNFINISHED.pattern}"
)


class Parts:
    """Bands of rows on storage.

    Args:
        uri: folder of the parts.
        plan: plain values; old parts are used only if they are equal.
        kinds: name and number of planes of each raster that is made, for instance `{"labels": 1}`.
        width: columns of the rasters.
        bands: rows of each band, top down.

    Raises:
        ConfigError: the folder exists and holds files of the user.
    """

    def __init__(
        self, uri: str, plan: dict[str, Any], kinds: dict[str, int], width: int, bands: list[Span]
    ) -> None:
        self.uri, self.kinds, self.width, self.bands = uri, kinds, width, bands
        content = {"product": PRODUCT, **plan, "kinds": kinds, "width": width, "bands": bands}
        self._plan = json.dumps(content, sort_keys=True).encode()
        check_ours(uri)
        self._remove(_UNFINISHED)  # of a killed process
        plan_file = storage.join(uri, PLAN_FILE)
        self._begun = storage.exists(plan_file) and storage.read_bytes(plan_file) == self._plan
        if not self._begun:
            self.remove()

    def finished(self) -> int:
        """Number of bands, from the top, that are complete."""
        if not self._begun:
            return 0
        there = {entry.base_name for entry in storage.list_files(self.uri)}
        for index in range(len(self.bands)):
            if not all(self._name(kind, index) in there for kind in self.kinds):
                return index
        return len(self.bands)

    def write(self, index: int, **rasters: npt.NDArray[np.uint8]) -> None:
        """Writes a band: one array per kind, h W or planes h W, uint8."""
        if not self._begun:  # only now, so that an unreadable scene leaves no folder
            storage.make_folder(self.uri)
            storage.write_bytes(storage.join(self.uri, PLAN_FILE), self._plan)
            self._begun = True
        for kind, pixels in rasters.items():
            content = zlib.compress(pixels.tobytes(), 1)
            storage.write_bytes(storage.join(self.uri, self._name(kind, index)), content)

    def rows(self, kind: str) -> Rows:
        """Yields all bands of a kind: first row, and pixels (h W, or planes h W for several planes).

        Raises:
            StorageError: a band is missing or damaged.
        """
        planes = self.kinds[kind]
        for index, (top, bottom) in enumerate(self.bands):
            name = storage.join(self.uri, self._name(kind, index))
            shape = (bottom - top, self.width) if planes == 1 else (planes, bottom - top, self.width)
            try:
                pixels = np.frombuffer(zlib.decompress(storage.read_bytes(name)), np.uint8).reshape(shape)
            except (zlib.error, ValueError) as error:
                raise StorageError(f"{name}: damaged ({error}); delete {self.uri} and start again") from error
            yield top, pixels

    def remove(self) -> None:
        """Deletes the parts, the plan last, and the folder if it is empty then."""
        self._remove(_OURS)
        remove_empty(self.uri)
        self._begun = False

    def _remove(self, names: re.Pattern[str]) -> None:
        for entry in storage.list_files(self.uri):
            if names.fullmatch(entry.base_name) and entry.base_name not in (IN_USE, IN_USE_RECORD):
                storage.delete(storage.join(self.uri, entry.base_name))

    @staticmethod
    def _name(kind: str, index: int) -> str:
        return f"{index:06d}.{kind}"


def check_ours(uri: str) -> None:
    """Refuses a folder that holds anything but parts.

    Raises:
        ConfigError: names its content.
    """
    kind = storage.info(uri).type
    if kind == fs.FileType.NotFound:
        return
    entries = storage.list_files(uri) if kind == fs.FileType.Directory else []
    strange = [entry.base_name for entry in entries if not _OURS.fullmatch(entry.base_name)]
    if kind != fs.FileType.Directory or strange or not _has_our_plan(uri, len(entries)):
        what = f"holds {strange[0]}" if strange else "is there"
        raise ConfigError(
            f"{uri}: {what} and is not of this program; finished rows would lie there. Move it, or name another OUTPUT"
        )


def _has_our_plan(uri: str, files: int) -> bool:
    """Returns whether a folder holds a plan of this program; a folder without a plan must hold no parts."""
    plan = storage.join(uri, PLAN_FILE)
    if not storage.exists(plan):
        return files <= 2  # a lock, and the plan that a full disk cut off
    try:
        return json.loads(storage.read_bytes(plan)).get("product") == PRODUCT
    except (ValueError, AttributeError):
        return False


def remove_empty(uri: str) -> None:
    """Removes a folder if it is empty."""
    if not storage.is_local(uri):
        if not storage.list_files(uri):
            storage.delete(uri)  # object stores keep a marker
        return
    with contextlib.suppress(OSError):  # not empty, or missing
        storage.local_path(uri).rmdir()
