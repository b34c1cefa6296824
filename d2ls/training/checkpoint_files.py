"""Checkpoint folders that are complete or do not count: layout, publishing, checking. Needs no torch.

    <root>/step-00000123/
        model.safetensors, model.json   a model bundle, ready for prediction (averaged weights where they are used)
        raw.safetensors                 the raw weights, only where averaged ones are used
        state.pt                        optimizer, progress and history; loads with weights_only
        COMPLETE                        size and SHA-256 of every file above; written last
    <root>/best.json                    the checkpoint with the best validation score, and its scores

A checkpoint without COMPLETE does not count. `publish` makes a checkpoint appear whole or not at all, `fetch` brings it
back and checks every byte.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2ls import storage
from d2ls.errors import CheckpointError, StorageError
from d2ls.scratch import scratch_folder

COMPLETE_FILE = "COMPLETE"
BEST_FILE = "best.json"
RAW_FILE = "raw.safetensors"
STATE_FILE = "state.pt"
UPLOAD_TRIES = 5
FULL_DISK_BYTES = 2**20
"""A disk with less free space counts as full."""


@dataclass(frozen=True)
class CheckpointRef:
    """A complete checkpoint.

    Attributes:
        uri: its folder.
        step: optimizer steps done.
    """

    uri: str
    step: int


def checkpoint_name(step: int) -> str:
    """Returns the folder name of the checkpoint after a step."""
    return f"step-{step:08d}"


def complete_checkpoints(root: str) -> list[CheckpointRef]:
    """Lists the complete checkpoints below a folder, oldest first."""
    names = [entry.base_name for entry in storage.list_files(root) if _is_checkpoint(entry.base_name)]
    refs = [CheckpointRef(storage.join(root, name), int(name.removeprefix("step-"))) for name in names]
    return [ref for ref in refs if _is_complete(ref.uri)]


def delete_incomplete(root: str) -> None:
    """Deletes what interrupted writers left below a folder."""
    for entry in storage.list_files(root):
        uri = entry.path if storage.is_local(root) else storage.join(root, entry.base_name)
        if entry.base_name.startswith(".step-") or (
            _is_checkpoint(entry.base_name) and not _is_complete(uri)
        ):
            storage.delete(uri)


def delete_older(root: str, kept: Collection[str]) -> None:
    """Deletes all complete checkpoints below a folder but the named ones; COMPLETE goes first."""
    for ref in complete_checkpoints(root):
        if checkpoint_name(ref.step) not in kept:
            storage.delete(storage.join(ref.uri, COMPLETE_FILE))
            storage.delete(ref.uri)


def writing_folder(root: str) -> AbstractContextManager[Path]:
    """Makes the folder a checkpoint is written to: beside its place on a local disk, else a temporary one."""
    if not storage.is_local(root):
        return scratch_folder("checkpoint")
    storage.make_folder(root)
    return scratch_folder("checkpoint", root=storage.local_path(root))


def publish(folder: Path, uri: str) -> None:
    """Marks the files of a folder as complete and moves or uploads them; COMPLETE comes last."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
    }
    (folder / COMPLETE_FILE).write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")
    if storage.is_local(uri):
        _move(folder, storage.local_path(uri))
        return
    _retry(lambda: storage.delete(storage.join(uri, COMPLETE_FILE)))  # of the same step, before a resume
    for name in [*files, COMPLETE_FILE]:
        _retry(lambda name=name: storage.upload(folder / name, storage.join(uri, name)))  # type: ignore[misc]


def write_best(root: str, pointer: Mapping[str, Any]) -> None:
    """Writes which checkpoint is the best."""
    _retry(lambda: storage.write_bytes(storage.join(root, BEST_FILE), json.dumps(pointer, indent=2).encode()))


def fetch(uri: str, stack: contextlib.ExitStack) -> tuple[Path, str]:
    """Brings a checkpoint to a local folder and compares every file with its checksum.

    Args:
        uri: of the checkpoint.
        stack: removes the temporary folder, where one is needed.

    Returns:
        The folder, and what is wrong with it; empty if nothing.

    Raises:
        CheckpointError: the local disk has no room for it.
        StorageError: the object store does not answer; the checkpoint may be fine.
    """
    local = storage.is_local(uri)
    try:
        folder = storage.local_path(uri) if local else stack.enter_context(scratch_folder("restore"))
        files = json.loads(storage.read_bytes(storage.join(uri, COMPLETE_FILE)))
        for name, described in files.items():
            if not local and storage.exists(storage.join(uri, name)):
                _retry(lambda name=name: _download(storage.join(uri, name), folder / name))  # type: ignore[misc]
            if not (folder / name).is_file():
                return folder, f"no {name}"
            if _sha256(folder / name) != described["sha256"]:
                return folder, f"{name} is not as it was written"
    except (ValueError, KeyError) as error:
        return folder, str(error)
    except StorageError as error:
        if not local:
            raise
        return folder, str(error)
    except OSError as error:
        if local:
            return folder, str(error)
        raise CheckpointError(
            f"{uri}: the checkpoint cannot be brought to {tempfile.gettempdir()}: {error}. Make room there, or name "
            "another folder in TMPDIR, then go on with --resume"
        ) from error
    return folder, ""


def write_failure(error: Exception, folder: Path) -> str:
    """Returns why writing to a folder failed; PyTorch's message for a full disk does not tell."""
    full = shutil.disk_usage(folder.parent).free < FULL_DISK_BYTES and "No space" not in str(error)
    return f"No space left on the disk of {folder.parent} ({error})" if full else str(error)


def _is_checkpoint(name: str) -> bool:
    return re.fullmatch(r"step-\d{8}", name) is not None


def _is_complete(uri: str) -> bool:
    return storage.exists(storage.join(uri, COMPLETE_FILE))


def _move(folder: Path, target: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    if (
        target.exists()
    ):  # the same step again, after a resume; a kill in here must not leave half a "complete" one
        (target / COMPLETE_FILE).unlink(missing_ok=True)
        shutil.rmtree(target)
    folder.chmod(0o755)
    folder.rename(target)


def _retry(action: Callable[[], None]) -> None:
    """Runs an action again, after growing pauses, where an object store fails now and then."""
    for attempt in range(UPLOAD_TRIES):
        try:
            action()
            return
        except StorageError:
            if attempt == UPLOAD_TRIES - 1:
                raise
            time.sleep(2.0**attempt)


def _download(uri: str, target: Path) -> None:
    target.write_bytes(storage.read_bytes(uri))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
