"""Checkpoints: complete or not there at all, on a local disk or in an object store.

    <root>/step-00000123/
        model.safetensors, model.json   a model bundle, ready for prediction (averaged weights where they are used)
        raw.safetensors                 the raw weights, only where averaged ones are used
        state.pt                        optimizer, progress and history; loads with weights_only
        COMPLETE                        size and SHA-256 of every file above; written last

Rank 0 copies the tensors and goes on training; a thread writes, uploads and clears away. A checkpoint without COMPLETE
does not count, and is deleted at the next start.
"""

import concurrent.futures
import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from d2ls import storage
from d2ls.bundle import WEIGHTS_FILE, ModelInfo, write_bundle
from d2ls.errors import CheckpointError, StorageError
from d2ls.scratch import scratch_folder
from d2ls.training.checkpoint_files import COMPLETE_FILE, CheckpointRef, checkpoint_name, complete_checkpoints
from d2ls.training.ema import ExponentialMovingAverage
from d2ls.training.process_group import ProcessGroup
from d2ls.training.train_state import STATE_VERSION, TrainingState

RAW_FILE = "raw.safetensors"
STATE_FILE = "state.pt"
UPLOAD_TRIES = 5
SMALL_CHANGE = 2**20
"""Bytes; a disk with less is full."""

_log = logging.getLogger(__name__)


@dataclass
class Checkpointer:
    """Writes and finds the checkpoints of one run.

    Attributes:
        root: folder or URI that holds them.
        group: the ranks of the run; rank 0 writes.
        describe: makes the model description for a state.
        identity: what must be equal for a run to go on (seed, global batch, data digest, ...).
    """

    root: str
    group: ProcessGroup
    describe: Callable[[TrainingState], ModelInfo]
    identity: Mapping[str, Any]

    def __post_init__(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: concurrent.futures.Future[CheckpointRef] | None = None

    def save(
        self,
        state: TrainingState,
        network: nn.Module,
        optimizer: Optimizer,
        ema: ExponentialMovingAverage | None = None,
        *,
        best: bool = False,
    ) -> CheckpointRef | None:
        """Starts writing a checkpoint; rank 0 alone.

        Args:
            state: progress of the run.
            network: unwrapped, raw weights.
            optimizer: its optimizer.
            ema: averaged weights, where they are used.
            best: whether this state has the best selection score so far.

        Returns:
            The checkpoint started before this one, complete now, if its completion was not told yet.

        Raises:
            CheckpointError: the one before could not be written.
        """
        before = self.finished(wait=True)
        content = {
            "version": STATE_VERSION,
            "identity": dict(self.identity),
            "progress": state.to_dict(),
            "optimizer": _copied(optimizer.state_dict()),
            "averaged_updates": ema.updates if ema else 0,
        }
        raw = _copied(dict(network.state_dict()))
        kept = _copied(dict(ema.weights)) if ema else raw
        info = self.describe(state)
        pinned = (
            {checkpoint_name(state.step), checkpoint_name(state.best_step)}
            if state.best_step
            else {checkpoint_name(state.step)}
        )
        pointer = _pointer(state) if best else None
        self._running = self._thread.submit(
            self._write, state.step, info, kept, raw if ema else None, content, pinned, pointer
        )
        return before

    def finished(self, *, wait: bool = False) -> CheckpointRef | None:
        """Returns the checkpoint that has become complete since the last call, if any; rank 0 alone.

        Raises:
            CheckpointError: it could not be written; older ones are intact.
        """
        if self._running is None or not (wait or self._running.done()):
            return None
        running, self._running = self._running, None
        return running.result()

    def close(self) -> None:
        """Waits until nothing is being written."""
        self._thread.shutdown()

    def newest(self) -> CheckpointRef | None:
        """Finds the newest complete checkpoint; all ranks call it and get the same answer."""
        listed = self._listed()
        return listed[-1] if listed else None

    def restore(
        self, network: nn.Module, optimizer: Optimizer, ema: ExponentialMovingAverage | None = None
    ) -> TrainingState | None:
        """Puts the newest undamaged checkpoint into network and optimizer; all ranks call it.

        Returns:
            The progress to go on from; None where there is no complete checkpoint.

        Raises:
            CheckpointError: checkpoints are there and none is readable, or they are of another run.
        """
        candidates = self._listed()
        for candidate in reversed(candidates):
            with contextlib.ExitStack() as stack:
                folder, problem = self.group.run_together(lambda: _fetch(candidate.uri, stack))  # noqa: B023 (called at once)
                problem = next(filter(None, self.group.all_gather(problem)), "")
                if not problem:
                    return self.group.run_together(lambda: self._load(folder, network, optimizer, ema))  # noqa: B023
                _log.warning("%s is damaged (%s); taking the one before", candidate.uri, problem)
        if candidates:
            raise CheckpointError(f"{self.root}: every checkpoint is damaged; start a run under a new name")
        return None

    def _listed(self) -> list[CheckpointRef]:
        """Lists the complete checkpoints, oldest first: rank 0 looks, all ranks get its answer."""
        found = self.group.run_together(lambda: complete_checkpoints(self.root) if self.group.is_main else [])
        listed: list[CheckpointRef] = self.group.broadcast(found)
        return listed

    def clear_orphans(self) -> None:
        """Deletes what interrupted writers left behind; rank 0 alone, before the first save."""
        for entry in storage.list_files(self.root):
            path = entry.path if storage.is_local(self.root) else storage.join(self.root, entry.base_name)
            unfinished = entry.base_name.startswith(".step-") or (
                re.fullmatch(r"step-\d{8}", entry.base_name)
                and not storage.exists(storage.join(path, COMPLETE_FILE))
            )
            if unfinished:
                storage.delete(path)

    def _load(
        self, folder: Path, network: nn.Module, optimizer: Optimizer, ema: ExponentialMovingAverage | None
    ) -> TrainingState:
        from safetensors.torch import load_file

        content = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
        self._check_identity(content, folder)
        raw = folder / RAW_FILE
        network.load_state_dict(load_file(raw if raw.exists() else folder / WEIGHTS_FILE))
        optimizer.load_state_dict(content["optimizer"])
        if ema is not None:
            ema.load(load_file(folder / WEIGHTS_FILE), content["averaged_updates"])
        return TrainingState.from_dict(content["progress"])

    def _check_identity(self, content: Mapping[str, Any], folder: Path) -> None:
        if content["version"] != STATE_VERSION:
            raise CheckpointError(
                f"{self.root}: checkpoint version {content['version']}, this release reads version {STATE_VERSION}. "
                "Resume with the release that wrote it, or start a run under a new name"
            )
        theirs, ours = content["identity"], dict(self.identity)
        differing = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
        if differing:
            facts = "; ".join(
                f"{key} was {theirs.get(key)!r}, is {ours.get(key)!r}" for key in sorted(differing)
            )
            raise CheckpointError(
                f"{self.root}: checkpoint {folder.name} is of another run: {facts}. "
                "Resume with the same values, or start a run under a new name"
            )

    def _write(
        self,
        step: int,
        info: ModelInfo,
        weights: dict[str, Tensor],
        raw: dict[str, Tensor] | None,
        content: dict[str, Any],
        pinned: set[str],
        pointer: dict[str, Any] | None,
    ) -> CheckpointRef:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        uri = storage.join(self.root, checkpoint_name(step))
        with _scratch(self.root) as scratch:
            try:
                write_bundle(scratch, weights, info)
                if raw is not None:
                    save_file(raw, str(scratch / RAW_FILE))
                torch.save(content, scratch / STATE_FILE)
                _publish(scratch, uri)
                if pointer is not None:
                    best = storage.join(self.root, "best.json")
                    storage.write_bytes(best, json.dumps(pointer, indent=2).encode())
                self._prune(pinned)
            except (OSError, StorageError, RuntimeError, SafetensorError) as error:
                raise CheckpointError(
                    f"{uri}: the checkpoint could not be written: {_reason(error, scratch)}. Older checkpoints are "
                    "intact; make room or mend the storage, then go on with --resume"
                ) from error
        return CheckpointRef(uri, step)

    def _prune(self, pinned: set[str]) -> None:
        for found in complete_checkpoints(self.root):
            if checkpoint_name(found.step) not in pinned:
                storage.delete(storage.join(found.uri, COMPLETE_FILE))
                storage.delete(found.uri)


def _pointer(state: TrainingState) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint_name(state.best_step),
        "epoch": state.best_epoch,
        "score": state.best_score,
        "scores": state.best_scores,
    }


def _copied(values: Any) -> Any:
    """Copies all tensors in nested containers to the CPU."""
    return pytree.tree_map(
        lambda leaf: leaf.detach().to("cpu", copy=True).contiguous() if isinstance(leaf, Tensor) else leaf,
        values,
    )


def _scratch(root: str) -> AbstractContextManager[Path]:
    """Makes the folder a checkpoint is written to: beside its place on a local disk, else a temporary one."""
    if not storage.is_local(root):
        return scratch_folder("checkpoint")
    storage.make_folder(root)
    return scratch_folder("checkpoint", root=storage.local_path(root))


def _reason(error: Exception, scratch: Path) -> str:
    """Says why writing failed; PyTorch's own words for a full disk do not."""
    full = shutil.disk_usage(scratch.parent).free < SMALL_CHANGE and "No space" not in str(error)
    return f"No space left on the disk of {scratch.parent} ({error})" if full else str(error)


def _publish(scratch: Path, uri: str) -> None:
    """Marks the files as complete and moves or uploads them; the marker comes last."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(scratch.iterdir())
    }
    (scratch / COMPLETE_FILE).write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")
    if storage.is_local(uri):
        _move(scratch, storage.local_path(uri))
        return
    for name in [*files, COMPLETE_FILE]:
        _patiently(lambda name=name: storage.upload(scratch / name, storage.join(uri, name)))  # type: ignore[misc]


def _move(scratch: Path, target: Path) -> None:
    for path in [*scratch.iterdir(), scratch]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    if target.exists():  # the same step again, after a resume
        shutil.rmtree(target)
    scratch.chmod(0o755)
    scratch.rename(target)


def _patiently(action: Callable[[], None]) -> None:
    """Tries again where an object store fails now and then."""
    for attempt in range(UPLOAD_TRIES):
        try:
            action()
            return
        except StorageError:
            if attempt == UPLOAD_TRIES - 1:
                raise
            time.sleep(2.0**attempt)


def _fetch(uri: str, stack: contextlib.ExitStack) -> tuple[Path, str]:
    """Brings a checkpoint to a local folder; returns the folder and what is wrong with it, empty if nothing.

    Args:
        uri: of the checkpoint.
        stack: takes away a temporary folder.

    Raises:
        CheckpointError: the local disk has no room for it.
    """
    local = storage.is_local(uri)
    try:
        folder = storage.local_path(uri) if local else _temporary(stack)
        files = json.loads(storage.read_bytes(storage.join(uri, COMPLETE_FILE)))
        for name, facts in files.items():
            if not local:
                _patiently(lambda name=name: _download(storage.join(uri, name), folder / name))  # type: ignore[misc]
            if not (folder / name).is_file():
                return folder, f"no {name}"
            if _sha256(folder / name) != facts["sha256"]:
                return folder, f"{name} is not as it was written"
    except (StorageError, ValueError, KeyError) as error:
        return folder, str(error)
    except OSError as error:
        if local:
            return folder, str(error)
        raise CheckpointError(
            f"{uri}: the checkpoint cannot be brought to {tempfile.gettempdir()}: {error}. Make room there, or name "
            "another folder in TMPDIR, then go on with --resume"
        ) from error
    return folder, ""


def _temporary(stack: contextlib.ExitStack) -> Path:
    return stack.enter_context(scratch_folder("restore"))


def _download(uri: str, target: Path) -> None:
    target.write_bytes(storage.read_bytes(uri))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(io.DEFAULT_BUFFER_SIZE * 128):
            digest.update(block)
    return digest.hexdigest()
