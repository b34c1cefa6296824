"""A queue on disk for log entries that the store has not taken yet.

Each entry is a JSON file; the names sort by age. A picture is a file beside its entry. An entry appears complete or not
at all, and is deleted after the store took it, so a killed process loses no entry.
"""

import itertools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2ls.scratch import atomic_write

MOST_ENTRIES = 20_000
MOST_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Entry:
    """One thing to log.

    Attributes:
        kind: `metrics`, `picture`, `text` or `tags`.
        run_id: run that it is logged to.
        values: see `RunWriter`.
        file: its JSON file, None before it is put.
    """

    kind: str
    run_id: str
    values: dict[str, Any]
    file: Path | None = None

    @property
    def picture(self) -> Path:
        """The PNG file beside the entry."""
        assert self.file is not None
        return self.file.with_suffix(".png")


@dataclass
class Spool:
    """The queue of one or more runs in a local folder.

    Attributes:
        folder: made on first use.
        most_entries: number from which on entries are refused.
        most_bytes: size from which on pictures are refused.
        dropped: how many entries were refused.
    """

    folder: Path
    most_entries: int = MOST_ENTRIES
    most_bytes: int = MOST_BYTES
    dropped: int = 0
    _counter: "itertools.count[int]" = field(default_factory=itertools.count, repr=False)
    _entries: int = field(default=-1, repr=False)
    _bytes: int = field(default=0, repr=False)

    def put(self, entry: Entry, png: bytes | None = None) -> bool:
        """Adds an entry; returns False if the queue is full or the disk refuses it."""
        try:
            try:
                return self._put(entry, png)
            except FileNotFoundError:  # the sender of the last entry has just removed the folder
                return self._put(entry, png)
        except OSError:
            self.dropped += 1
            return False

    def oldest(self, count: int) -> list[Entry]:
        """Returns up to a number of entries, oldest first; sets damaged ones aside."""
        entries = []
        for file in self._files()[:count]:
            try:
                values = json.loads(file.read_text(encoding="utf-8"))
                entries.append(Entry(values["kind"], values["run_id"], values["values"], file))
            except FileNotFoundError:
                continue  # another process has sent it
            except (ValueError, KeyError, OSError):
                self._set_aside(file)
        return entries

    def done(self, entries: Sequence[Entry]) -> None:
        """Deletes entries that the store took."""
        for entry in entries:
            assert entry.file is not None
            entry.picture.unlink(missing_ok=True)
            entry.file.unlink(missing_ok=True)
        self._entries = -1

    def refuse(self, entry: Entry) -> None:
        """Sets aside an entry that the store will never take."""
        assert entry.file is not None
        self._set_aside(entry.file)

    def __len__(self) -> int:
        return len(self._files())

    def remove(self) -> None:
        """Deletes the folder if it is empty."""
        try:
            self.folder.rmdir()
        except OSError:
            return

    def _put(self, entry: Entry, png: bytes | None) -> bool:
        self._measure()
        size = len(png or b"")
        if self._entries >= self.most_entries or (png and self._bytes + size > self.most_bytes):
            self.dropped += 1
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{time.time_ns():020d}-{os.getpid()}-{next(self._counter):06d}"
        if png is not None:
            (self.folder / f"{name}.png").write_bytes(png)
        with atomic_write(self.folder / f"{name}.json", sync=False) as partial:
            partial.write_text(
                json.dumps({"kind": entry.kind, "run_id": entry.run_id, "values": entry.values})
            )
        self._entries += 1
        self._bytes += size
        return True

    def _files(self) -> list[Path]:
        try:
            return sorted(Path(item.path) for item in os.scandir(self.folder) if item.name.endswith(".json"))
        except FileNotFoundError:
            return []

    def _measure(self) -> None:
        """Counts the files again after deletions; in between `put` keeps count."""
        if self._entries >= 0:
            return
        self._entries = self._bytes = 0
        if self.folder.is_dir():
            for item in os.scandir(self.folder):
                self._entries += item.name.endswith(".json")
                self._bytes += _size(item)

    def _set_aside(self, file: Path) -> None:
        refused = self.folder / "refused"
        refused.mkdir(exist_ok=True)
        for part in (file.with_suffix(".png"), file):
            if part.exists():
                part.replace(refused / part.name)
        self._entries = -1


def _size(item: "os.DirEntry[str]") -> int:
    try:
        return item.stat().st_size if item.is_file() else 0
    except FileNotFoundError:
        return 0
