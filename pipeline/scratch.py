"""Temporary folders that do not outlive a killed process: the next call removes what it left."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

PREFIX = "d2ls-scratch-"
LOCK_FILE = "in-use.lock"
GRACE_SECONDS = 60.0
"""A folder younger than this is left alone: its process may not have locked it yet."""


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yields an empty folder on this machine's temporary disk, and removes it afterwards.

    The folder is locked while it is in use. The operating system gives the lock up when the process ends in any way,
    so folders of killed processes are known, and removed here.
    """
    remove_abandoned()
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name,
        filelock.FileLock(Path(name, LOCK_FILE)),
    ):
        folder = Path(name, "files")
        folder.mkdir()
        yield folder


def remove_abandoned() -> int:
    """Removes scratch folders of this user whose process has ended; returns how many."""
    removed = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            status = folder.stat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < GRACE_SECONDS:
                continue
            with filelock.FileLock(folder / LOCK_FILE, blocking=False):
                shutil.rmtree(folder, ignore_errors=True)
            removed += 1
        except (OSError, filelock.Timeout):
            continue
    return removed
