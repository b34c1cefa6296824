"""Temporary folders that do not outlive their process: a killed one's are removed by the next that needs a folder."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "d2ls.tmp-"
"""Begins the name of every scratch folder, and of nothing else: what bears it and has no owner may be removed."""


@contextmanager
def scratch_folder(purpose: str, *, root: Path | None = None) -> Iterator[Path]:
    """Yields an empty folder and removes it afterwards.

    Args:
        purpose: a word for its name, so that a person who sees it knows what it is.
        root: where to make it; None takes the system's temporary folder.
    """
    root = root or Path(tempfile.gettempdir())
    remove_abandoned(root)
    # The hold is on the folder itself, so that no lock file stays, and ends with the process whatever ends it.
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-", dir=root))
    hold = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network disks know no locks; there, folders of killed processes stay
            fcntl.flock(hold, fcntl.LOCK_SH)
        yield folder
    finally:
        os.close(hold)
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(root: Path | None = None) -> list[Path]:
    """Removes scratch folders whose process has ended; returns them.

    Args:
        root: where to look; None takes the system's temporary folder.
    """
    removed = []
    for folder in (root or Path(tempfile.gettempdir())).glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, or another process removes it at this moment
            if _abandoned(folder):
                shutil.rmtree(folder)
                removed.append(folder)
    return removed


def _abandoned(folder: Path) -> bool:
    """Returns whether nobody holds a folder of this user."""
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return False
    hold = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(hold)
    # Empty: perhaps just made, and not held yet. There is nothing to gain by removing it either.
    return any(folder.iterdir())
