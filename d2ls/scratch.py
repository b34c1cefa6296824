"""Temporary files and folders: renamed to their target when complete, removed otherwise, even after a kill.

Locks are on the folder itself and end with their process, so no lock file is left behind. The library `filelock` locks
lock files only; it is used where such a file may stay.
"""

import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

PREFIX = "d2ls.tmp-"
"""Prefix of the names of scratch folders. A folder with this prefix and without an owner may be removed."""

GRACE_SECONDS = 60.0
HOLD_TRIES = 5


@contextmanager
def scratch_folder(purpose: str, *, root: Path | None = None) -> Iterator[Path]:
    """Yields an empty folder and removes it afterwards.

    Args:
        purpose: a word for its name, which tells a person what the folder is for.
        root: where to make it; None takes the system's temporary folder.
    """
    root = root or Path(tempfile.gettempdir())
    remove_abandoned(root)
    # The lock is on the folder itself, so no lock file stays behind. It ends with the process, however that ends.
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-", dir=root))
    hold = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # on network disks without locks, folders of killed processes stay
            fcntl.flock(hold, fcntl.LOCK_SH)
        yield folder
    finally:
        os.close(hold)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_write(
    target: Path, *, scratch: str | None = None, folder: Path | None = None, sync: bool = True
) -> Iterator[Path]:
    """Yields a temporary path to write to; renames it to `target` if the block ends without an error.

    Readers of `target` see the old content or the new content, never a part of it. An error removes the temporary file.

    Args:
        target: file to write or to replace, or a folder that does not exist. Its parent folder is made.
        scratch: for large files: purpose of a `scratch_folder` to write in, so that what a killed process leaves is
            removed later. The temporary path then has the name of `target`; else a hidden name that ends in `.tmp`.
        folder: where to write, on the file system of `target`; None takes the folder of `target`.
        sync: wait until the content of a file is on the disk before the rename.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = folder or target.parent
    with scratch_folder(scratch, root=folder) if scratch else nullcontext() as own:
        partial = own / target.name if own else folder / f".{target.name}.{secrets.token_hex(4)}.tmp"
        try:
            yield partial
            if sync and partial.is_file():
                with partial.open("rb") as stream:
                    os.fsync(stream.fileno())
            partial.replace(target)
        finally:
            if own is None:
                partial.unlink(missing_ok=True)


def remove_abandoned(root: Path | None = None) -> list[Path]:
    """Removes scratch folders whose process has ended; returns them.

    Args:
        root: where to look; None takes the system's temporary folder.
    """
    removed = []
    for folder in (root or Path(tempfile.gettempdir())).glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, or another process removes it at this moment
            if _removed(folder):
                removed.append(folder)
    return removed


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Lets one process or thread at a time work in a folder; locks nothing on network disks without locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def only_process(name: str) -> Iterator[None]:
    """Lets one process of this user on this machine do some work; a killed process holds it no longer.

    Args:
        name: name of the work, used in a file name.

    Raises:
        BlockingIOError: another process is doing this work.
    """
    folder = Path(tempfile.gettempdir()) / f"{PREFIX}{name}-{os.getuid()}"
    hold = _hold_on(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()
        os.close(hold)


def _hold_on(folder: Path) -> int:
    for attempt in range(HOLD_TRIES):
        folder.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # removed in between
            hold = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if folder.stat().st_ino == os.fstat(hold).st_ino:
                    return hold
                os.close(hold)  # removed, or replaced by another file
            except BlockingIOError:
                os.close(hold)
                if attempt == HOLD_TRIES - 1:
                    raise
                time.sleep(0.05)  # perhaps another process that checks whether the folder is abandoned
    raise BlockingIOError(f"{folder}: other processes keep making and removing it")


def _removed(folder: Path) -> bool:
    """Removes a folder if it belongs to this user and no process holds it; returns whether it did."""
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return False
    hold = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # An empty folder may have been made a moment ago, and not be held yet.
        if not any(folder.iterdir()) and time.time() - folder.stat().st_mtime < GRACE_SECONDS:
            return False
        shutil.rmtree(folder)
    except BlockingIOError:
        return False
    finally:
        os.close(hold)
    return True
