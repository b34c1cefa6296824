"""The folder of a run: the only place that knows the paths and formats of its files.

<output_dir>/<run name>/
    recipe.yaml       the resolved recipe
    run.json          name, MLflow run, state, driver process
    history.jsonl     a line of metrics per epoch
    progress.json     the latest step, for the progress display
    profile.json.gz   trace of some steps, with --profile
    failure.json      error that trying again does not fix
    checkpoints/      see d2ls.training.checkpoint; best.json there names the best one
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from d2ls import storage
from d2ls.errors import CheckpointError, ConfigError, StorageError
from d2ls.scratch import locked_folder
from pipeline import process_identity
from pipeline.config import Recipe, load_recipe, parse_recipe, read_yaml
from pipeline.config.recipe import STORAGE_VARIABLE
from pipeline.tracking.runs import shareable

LONGEST_NAME = 128
"""Characters of a run's name. A trial's name extends that of its sweep, and file systems allow 255 bytes."""

RUNNING, FINISHED, FAILED, KILLED, PRUNED = "running", "finished", "failed", "killed", "pruned"


def absolute(uri: str) -> str:
    """Makes a local path absolute, because workers have another working folder; returns other locations unchanged."""
    return str(storage.local_path(uri)) if storage.is_local(uri) else uri


def check_name(name: str, option: str) -> None:
    """Refuses a name that not every file system, object store and MLflow accepts.

    Only ASCII letters: Unicode has two spellings of a letter with an accent, so two names could look like one.

    Args:
        name: of a run or a sweep.
        option: the option that gave it, for the message.

    Raises:
        ConfigError: a path, an empty or overlong name, spaces, control characters or letters outside of ASCII.
    """
    if not re.fullmatch(rf"[A-Za-z0-9_][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}", name):
        shown = name if len(name) <= LONGEST_NAME else f"{name[:20]}... ({len(name)} characters)"
        raise ConfigError(
            f"{option} {shown!r}: use up to {LONGEST_NAME} of the letters a-z and A-Z, digits, '-', '_' and '.', the "
            "first one no '-' or '.'"
        )


def new_name(recipe: Recipe) -> str:
    """Returns a new, unique name."""
    return f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def default_storage() -> str:
    """Returns the folder of all runs unless a recipe names another one."""
    root, below = os.environ.get(STORAGE_VARIABLE), str(Recipe.model_fields["output_dir"].default)
    return storage.join(root, below) if root else below


def run_folders(storage_uri: str) -> "Iterator[RunFolder]":
    """Yields the folders of runs and sweeps below a storage."""
    root = absolute(storage_uri)
    for entry in storage.list_files(root):
        folder = RunFolder(storage.join(root, entry.base_name), entry.base_name)
        if storage.exists(storage.join(folder.uri, "run.json")):
            yield folder


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Attributes:
        uri: absolute location.
        name: name of the run, the last part of `uri`.
    """

    uri: str
    name: str

    @classmethod
    def of(cls, storage_uri: str, name: str) -> Self:
        """Returns the folder of a run; reads and creates nothing.

        Raises:
            ConfigError: not a possible name.
        """
        check_name(name, "run name")
        return cls(storage.join(absolute(storage_uri), name), name)

    @property
    def poll_seconds(self) -> float:
        """Seconds between two reads of a file that changes; more in an object store."""
        return 0.3 if storage.is_local(self.uri) else 5.0

    @property
    def checkpoints(self) -> str:
        """Folder of the checkpoints."""
        return storage.join(self.uri, "checkpoints")

    @property
    def history(self) -> str:
        """File with the metrics of all epochs."""
        return storage.join(self.uri, "history.jsonl")

    @property
    def progress(self) -> str:
        """File with the latest step."""
        return storage.join(self.uri, "progress.json")

    @property
    def profile(self) -> str:
        """File with the trace of some steps."""
        return storage.join(self.uri, "profile.json.gz")

    @property
    def spool(self) -> Path:
        """Local queue of what MLflow has not received: in the run folder; in the temporary folder for a remote run."""
        if storage.is_local(self.uri):
            return storage.local_path(storage.join(self.uri, "spool"))
        digest = hashlib.sha256(self.uri.encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"d2ls-spool-{os.getuid()}-{digest}"

    def waiting(self) -> bool:
        """Returns whether this machine still has entries to send to MLflow."""
        return self.spool.is_dir() and any(self.spool.glob("*.json"))

    def keep_queue(self) -> None:
        """Moves the queue of a remote run to its storage: this machine may be gone when MLflow answers again."""
        if storage.is_local(self.uri) or not self.waiting():
            return
        # An entry counts when its JSON file is there.
        files = [*self.spool.glob("*.png"), *self.spool.glob("*.json")]
        try:
            for file in files:
                storage.upload(file, storage.join(self._kept, file.name))
        except StorageError as error:
            logging.getLogger(__name__).warning("log entries stay on this machine: %s", error)
            return
        for file in files:
            file.unlink(missing_ok=True)

    def kept_queue(self) -> list[str]:
        """Returns the files that `keep_queue` moved to the storage."""
        if storage.is_local(self.uri):
            return []
        return [entry.base_name for entry in storage.list_files(self._kept) if entry.is_file]

    def fetch_queue(self, files: Sequence[str]) -> None:
        """Moves files of `kept_queue` to the queue on this machine."""
        self.spool.mkdir(parents=True, exist_ok=True)
        for name in sorted(files, key=lambda name: name.endswith(".json")):
            storage.download(storage.join(self._kept, name), self.spool / name)
        storage.delete(self._kept)

    @property
    def _kept(self) -> str:
        return storage.join(self.uri, "spool")

    def check_free(self) -> None:
        """Refuses a name that is taken.

        Raises:
            ConfigError: a run of this name exists.
        """
        if self.exists():
            raise ConfigError(
                f"{self.uri}: run {self.name} exists already ({self.metadata().get('state', 'unknown state')}). "
                f"Go on with it by --resume {self.name}, or choose another --name"
            )

    def create(self, recipe: Recipe) -> None:
        """Creates the folder and saves the recipe.

        Raises:
            ConfigError: a run of this name exists.
        """
        with self._locked():
            self.check_free()
            # First: a run without it cannot be resumed, and its name is taken.
            content = shareable(recipe).to_yaml().encode()
            storage.write_bytes(storage.join(self.uri, "recipe.yaml"), content)
            self._add({"name": self.name, "recipe_digest": recipe.digest(), "created": time.time()})
        storage.make_folder(self.checkpoints)

    def exists(self) -> bool:
        """Returns whether a run of this name was started, or its folder holds anything but a killed write."""
        names = [entry.base_name for entry in storage.list_files(self.uri)]
        return any(not (name.startswith(".") and name.endswith(".tmp")) for name in names)

    def metadata(self) -> dict[str, Any]:
        """Returns the content of run.json; empty if the file does not exist."""
        return self._read("run.json") or {}

    def update(self, **values: Any) -> None:
        """Adds values to run.json, or replaces them."""
        with self._locked():
            self._add(values)

    def end(self, state: str, reason: str = "") -> None:
        """Records how the run ended, and why; a trial that its sweep pruned stays pruned."""
        with self._locked():
            if self.metadata().get("state") != PRUNED:
                ended = {"state": state, "ended": time.time(), "reason": reason}
                self._add({**ended, "mlflow_status": None})  # MLflow does not know this reason yet

    def claim(self) -> None:
        """Marks the run as running in this process.

        Raises:
            ConfigError: another process of this machine is training it.
        """
        with self._locked():
            metadata = self.metadata()
            owner = metadata.get("driver", "")
            if metadata.get("state") == RUNNING and process_identity.is_another(owner):
                raise ConfigError(
                    f"run {self.name} is being trained by process {process_identity.process_id(owner)}; wait for it, "
                    "or stop it first"
                )
            self._add({"state": RUNNING, "driver": process_identity.this_process(), "reason": ""})

    def recipe(self) -> Recipe:
        """Returns the recipe of the run.

        Raises:
            ConfigError: no such run.
        """
        try:
            text = storage.read_bytes(storage.join(self.uri, "recipe.yaml")).decode()
        except StorageError as error:
            if storage.is_local(self.uri) and not Path(self.uri).exists():
                names = sorted(path.parent.name for path in Path(self.uri).parent.glob("*/recipe.yaml"))
                raise ConfigError(
                    f"{self.uri}: no run to resume here. There are: {', '.join(names) or 'none'}"
                ) from None
            raise ConfigError(f"{self.uri}: no run to resume here ({error})") from error
        if storage.is_local(self.uri):
            return load_recipe(Path(self.uri) / "recipe.yaml")
        where = f"{self.uri}/recipe.yaml"
        return parse_recipe(read_yaml(text, where=where), where=where)

    def epochs(self) -> list[dict[str, float]]:
        """Returns the metrics of all finished epochs, oldest first."""
        if not storage.exists(self.history):
            return []
        text = storage.read_bytes(self.history).decode()
        return [json.loads(line) for line in text.splitlines() if line]

    def latest(self) -> dict[str, Any]:
        """Returns the latest step, see `ProgressWriter`; empty before the first one."""
        return self._read("progress.json") or {}

    def add_epoch(self, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of an epoch; replaces those of an epoch that a resumed run repeats."""
        kept = [row for row in self.epochs() if row["epoch"] < metrics["epoch"]]
        self._write_epochs([*kept, dict(metrics)])

    def backfill_history(self, history: Sequence[Mapping[str, float]]) -> None:
        """Adds epochs of a checkpoint's history that history.jsonl lacks: a process may die between the two writes."""
        rows = {row["epoch"]: row for row in self.epochs()}
        # A partial epoch, which a time budget ended, has fewer steps than the same epoch once completed.
        steps = {epoch: row.get("step", 0.0) for epoch, row in rows.items()}
        missing = [dict(row) for row in history if row.get("step", 0.0) > steps.get(row["epoch"], -1.0)]
        if missing:
            rows |= {row["epoch"]: row for row in missing}
            self._write_epochs([rows[epoch] for epoch in sorted(rows)])

    def _write_epochs(self, rows: Sequence[Mapping[str, float]]) -> None:
        content = "".join(f"{json.dumps(row)}\n" for row in rows)
        storage.write_bytes(self.history, content.encode())

    def best(self) -> dict[str, Any] | None:
        """Returns the content of best.json and `uri`, the best checkpoint; None before the first evaluation."""
        pointer = self._read("checkpoints/best.json")
        return {**pointer, "uri": storage.join(self.checkpoints, pointer["checkpoint"])} if pointer else None

    def fail(self, error: BaseException) -> None:
        """Records an error that trying again does not fix; on a full disk, deletes progress.json to make room."""
        content = json.dumps({"type": type(error).__name__, "message": str(error)}).encode()
        where = storage.join(self.uri, "failure.json")
        try:
            storage.write_bytes(where, content)
        except StorageError:
            storage.delete(self.progress)
            storage.write_bytes(where, content)

    def failure(self) -> dict[str, str] | None:
        """Returns the recorded error; None if there is none."""
        return self._read("failure.json")

    def clear_failure(self) -> None:
        """Deletes the recorded error before a new attempt."""
        storage.delete(storage.join(self.uri, "failure.json"))

    def _add(self, values: Mapping[str, Any]) -> None:
        content = {**self.metadata(), **values}
        storage.write_bytes(
            storage.join(self.uri, "run.json"), (json.dumps(content, indent=2) + "\n").encode()
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lets one process at a time change run.json: a driver and its sweep both do.

        Object stores and some network disks have no locks; there the last writer wins.
        """
        if not storage.is_local(self.uri):
            yield
            return
        storage.make_folder(self.uri)
        with locked_folder(storage.local_path(self.uri)):
            yield

    def _read(self, name: str) -> dict[str, Any] | None:
        where = storage.join(self.uri, name)
        if not storage.exists(where):
            return None
        try:
            content: dict[str, Any] = json.loads(storage.read_bytes(where))
        except ValueError as error:
            raise CheckpointError(f"{where}: not readable as JSON ({error}); delete it to go on") from error
        return content
