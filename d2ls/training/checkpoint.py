"""Saves and restores checkpoints; `checkpoint_files` describes what one consists of.

Rank 0 copies the tensors to host memory and goes on training; a thread writes them, uploads them and deletes older
checkpoints.
"""

import concurrent.futures
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from d2ls import storage
from d2ls.bundle import WEIGHTS_FILE, ModelInfo
from d2ls.errors import CheckpointError, StorageError
from d2ls.models.saving import write_bundle
from d2ls.training import checkpoint_files
from d2ls.training.callbacks import EvaluationReport
from d2ls.training.checkpoint_files import RAW_FILE, STATE_FILE, CheckpointRef, checkpoint_name
from d2ls.training.ema import ExponentialMovingAverage
from d2ls.training.process_group import ProcessGroup
from d2ls.training.train_state import STATE_VERSION, TrainingState

_log = logging.getLogger(__name__)

Completed = tuple[CheckpointRef, EvaluationReport | None]
"""A checkpoint that is complete, and the evaluation it was saved after; None in mid-epoch."""


@dataclass
class Checkpointer:
    """Writes and finds the checkpoints of one run. All ranks call it; rank 0 writes.

    Attributes:
        root: folder or URI that holds them.
        group: the ranks of the run.
        describe: makes the model description for a state.
        identity: what must be equal for a run to go on (seed, global batch size, data digest, ...).
    """

    root: str
    group: ProcessGroup
    describe: Callable[[TrainingState], ModelInfo]
    identity: Mapping[str, Any]

    def __post_init__(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: concurrent.futures.Future[CheckpointRef] | None = None
        self._report: EvaluationReport | None = None

    def save(
        self,
        state: TrainingState,
        network: nn.Module,
        optimizer: Optimizer,
        ema: ExponentialMovingAverage | None = None,
        report: EvaluationReport | None = None,
    ) -> Completed | None:
        """Starts to write a checkpoint.

        Args:
            state: progress of the run.
            network: unwrapped, raw weights.
            optimizer: its optimizer.
            ema: averaged weights, where they are used.
            report: the evaluation of this state; `best.json` points to this checkpoint where it is the best so far.

        Returns:
            The checkpoint started before this one, which is complete now, unless `completed` returned it already.

        Raises:
            CheckpointError: the one before could not be written.
            StorageError: likewise, because the object store did not answer.
        """
        if not self.group.is_main:
            return None
        previous = self.completed(wait=True)
        raw = _to_host(dict(network.state_dict()))
        content = {
            "version": STATE_VERSION,
            "identity": dict(self.identity),
            "progress": state.to_dict(),
            "optimizer": _to_host(optimizer.state_dict()),
            "ema_updates": ema.updates if ema else 0,
        }
        kept = {checkpoint_name(state.step)}
        if state.best_step:
            kept = {checkpoint_name(state.step), checkpoint_name(state.best_step)}
        self._report = report
        self._writing = self._thread.submit(
            self._write,
            state.step,
            info=self.describe(state),
            weights=_to_host(dict(ema.weights)) if ema else raw,
            raw=raw if ema else None,
            content=content,
            kept=kept,
            best=_best(state) if report is not None and report.best else None,
        )
        return previous

    def completed(self, *, wait: bool = False) -> Completed | None:
        """Returns the checkpoint that has become complete since the last call, if any; always None on ranks above 0.

        Raises:
            CheckpointError: it could not be written; older ones are intact.
            StorageError: likewise, because the object store did not answer.
        """
        if self._writing is None or not (wait or self._writing.done()):
            return None
        writing, self._writing = self._writing, None
        return writing.result(), self._report

    def close(self) -> None:
        """Waits until nothing is being written."""
        self._thread.shutdown()

    def restore(
        self, network: nn.Module, optimizer: Optimizer, ema: ExponentialMovingAverage | None = None
    ) -> TrainingState | None:
        """Loads the newest undamaged checkpoint into network and optimizer; all ranks call it.

        What interrupted writers left behind is deleted first.

        Returns:
            The progress to go on from; None where there is no complete checkpoint.

        Raises:
            CheckpointError: checkpoints are there and none is readable, or they are of another run.
        """
        candidates = self._list()
        for candidate in reversed(candidates):
            with contextlib.ExitStack() as stack:
                folder, problem = self.group.run_together(
                    partial(checkpoint_files.fetch, candidate.uri, stack)
                )
                problem = next(filter(None, self.group.all_gather(problem)), "")
                if not problem:
                    state = self.group.run_together(partial(self._load, folder, network, optimizer, ema))
                    self.group.run_together(partial(self._point_to_best, state))
                    return state
                _log.warning("%s is damaged (%s); taking the one before", candidate.uri, problem)
        if candidates:
            raise CheckpointError(f"{self.root}: every checkpoint is damaged; start a run under a new name")
        return None

    def _list(self) -> list[CheckpointRef]:
        """Lists the complete checkpoints, oldest first, as rank 0 sees them."""

        def clean_and_list() -> list[CheckpointRef]:
            if not self.group.is_main:
                return []
            checkpoint_files.delete_incomplete(self.root)
            return checkpoint_files.complete_checkpoints(self.root)

        refs: list[CheckpointRef] = self.group.broadcast(self.group.run_together(clean_and_list))
        return refs

    def _load(
        self, folder: Path, network: nn.Module, optimizer: Optimizer, ema: ExponentialMovingAverage | None
    ) -> TrainingState:
        content = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
        self._check_identity(content, folder)
        raw = folder / RAW_FILE
        network.load_state_dict(load_file(raw if raw.exists() else folder / WEIGHTS_FILE))
        optimizer.load_state_dict(content["optimizer"])
        if ema is not None:
            ema.load(load_file(folder / WEIGHTS_FILE), content["ema_updates"])
        return TrainingState.from_dict(content["progress"])

    def _point_to_best(self, state: TrainingState) -> None:
        """Makes `best.json` agree with a state: a kill may have come between them, or a newer checkpoint is gone."""
        if self.group.is_main and state.best_step:
            checkpoint_files.write_best(self.root, _best(state))

    def _check_identity(self, content: Mapping[str, Any], folder: Path) -> None:
        if content["version"] != STATE_VERSION:
            raise CheckpointError(
                f"{self.root}: checkpoint version {content['version']}, this release reads version {STATE_VERSION}. "
                "Resume with the release that wrote it, or start a run under a new name"
            )
        theirs, ours = content["identity"], dict(self.identity)
        differing = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
        if differing:
            changes = "; ".join(
                f"{key} was {theirs.get(key)!r}, is {ours.get(key)!r}" for key in sorted(differing)
            )
            raise CheckpointError(
                f"{self.root}: checkpoint {folder.name} is of another run: {changes}. "
                "Resume with the same values, or start a run under a new name"
            )

    def _write(
        self,
        step: int,
        *,
        info: ModelInfo,
        weights: dict[str, Tensor],
        raw: dict[str, Tensor] | None,
        content: dict[str, Any],
        kept: set[str],
        best: dict[str, Any] | None,
    ) -> CheckpointRef:
        uri = storage.join(self.root, checkpoint_name(step))
        with checkpoint_files.writing_folder(self.root) as folder:
            try:
                write_bundle(folder, weights, info)
                if raw is not None:
                    save_file(raw, str(folder / RAW_FILE))
                torch.save(content, folder / STATE_FILE)
                checkpoint_files.publish(folder, uri)
                if best is not None:
                    checkpoint_files.write_best(self.root, best)
            except (OSError, StorageError, RuntimeError, SafetensorError) as error:
                reason = checkpoint_files.write_failure(error, folder)
                # Trying again helps where an object store does not answer, not where a disk is full.
                is_outage = isinstance(error, StorageError) and not storage.is_local(self.root)
                raise (StorageError if is_outage else CheckpointError)(
                    f"{uri}: the checkpoint could not be written: {reason}. Older checkpoints are intact; make room "
                    "or repair the storage, then go on with --resume"
                ) from error
        try:
            checkpoint_files.delete_older(self.root, kept)
        except StorageError as error:  # the new checkpoint is complete; the next one deletes again
            _log.warning("an older checkpoint cannot be deleted now: %s", error)
        return CheckpointRef(uri, step)


def _best(state: TrainingState) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint_name(state.best_step),
        "epoch": state.best_epoch,
        "score": state.best_score,
        "scores": state.best_scores,
    }


def _to_host(values: Any) -> Any:
    """Copies all tensors in nested dicts, lists and tuples to host memory."""
    if isinstance(values, Tensor):
        return values.detach().to("cpu", copy=True).contiguous()
    if isinstance(values, dict):
        return {key: _to_host(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(_to_host(value) for value in values)
    return values
