"""Finished rows of a map in the making, kept so that an interrupted map goes on where it stopped.

A folder `<map>.parts` beside the map (also in an object store): `plan.json` says what is being made and how; each band
of rows is a compressed file. Another plan starts afresh; the finished map takes the folder away.
"""

import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from d2ls import storage
from d2ls.errors import StorageError

Span = tuple[int, int]
Rows = Iterator[tuple[int, npt.NDArray[np.uint8]]]
"""Pieces of a raster from the top down: first row, and pixels h W or planes h W."""

PLAN_FILE = "plan.json"


class Parts:
    """Bands of rows on storage.

    Args:
        uri: folder of the parts.
        plan: plain values; whatever must be equal for old parts to be of use.
        kinds: name and number of planes of each raster that is made together, `{"labels": 1}` for instance.
        width: columns of the rasters.
        bands: rows of each band, top down.
    """

    def __init__(
        self, uri: str, plan: dict[str, Any], kinds: dict[str, int], width: int, bands: list[Span]
    ) -> None:
        self.uri, self.kinds, self.width, self.bands = uri, kinds, width, bands
        text = json.dumps({**plan, "kinds": kinds, "width": width, "bands": bands}, sort_keys=True)
        self._plan = text.encode()
        plan_file = storage.join(uri, PLAN_FILE)
        self._begun = storage.exists(plan_file) and storage.read_bytes(plan_file) == self._plan
        if not self._begun:
            storage.delete(uri)

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
        """Keeps a band: one array a kind, h W or planes h W, uint8."""
        if not self._begun:  # a scene that cannot be read leaves no folder
            storage.make_folder(self.uri)
            storage.write_bytes(storage.join(self.uri, PLAN_FILE), self._plan)
            self._begun = True
        for kind, pixels in rasters.items():
            content = zlib.compress(pixels.tobytes(), 1)
            storage.write_bytes(storage.join(self.uri, self._name(kind, index)), content)

    def rows(self, kind: str) -> Rows:
        """Yields all bands of a kind: first row, and pixels (h W, or planes h W where there are several).

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
        """Takes the folder away."""
        storage.delete(self.uri)

    @staticmethod
    def _name(kind: str, index: int) -> str:
        return f"{index:06d}.{kind}"
