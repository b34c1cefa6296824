"""The state for `--resume`, `<output_dir>/<name>/sweep.json`, and a lock that lets one process run a sweep."""

import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

from d2ls import storage
from d2ls.errors import ConfigError
from d2ls.scratch import only_process
from pipeline.config import Recipe, load_recipe, parse_recipe
from pipeline.config.recipe import apply_overrides
from pipeline.tracking.connection import found_again


@dataclass(frozen=True)
class SweepState:
    """State of a sweep when it was last started or resumed.

    Attributes:
        name: of the sweep.
        recipe: the complete recipe, as plain values with absolute local paths.
        seeds: number of seeds with which the best configuration is trained.
        store: MLflow store that it logged to.
    """

    name: str
    recipe: dict[str, Any]
    seeds: int = 1
    store: str = ""

    @classmethod
    def load(cls, storage_uri: str, name: str) -> Self:
        """Reads the state of a sweep. Its `output_dir` becomes the folder that it is in now, even if it was moved.

        Raises:
            ConfigError: no such sweep (names the existing ones), or a damaged file.
        """
        uri = _location(storage_uri, name)
        if not storage.exists(uri):
            known = sorted({entry.base_name for entry in storage.list_files(storage_uri)})
            sweeps = [entry for entry in known if storage.exists(_location(storage_uri, entry))]
            raise ConfigError(
                f"--resume {name}: no such sweep in {storage_uri}. There are: {', '.join(sweeps) or 'none'}"
            )
        try:
            state = json.loads(storage.read_bytes(uri))
            recipe = {**state["recipe"], "output_dir": storage_uri}
            return cls(name, recipe, int(state["seeds"]), str(state.get("store", "")))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{uri}: not the state of a sweep ({type(error).__name__}: {error}); start a new sweep"
            ) from error

    def save(self) -> None:
        """Writes the state."""
        content = json.dumps(asdict(self), indent=2)
        storage.write_bytes(_location(self.recipe["output_dir"], self.name), content.encode())

    def resumed(self, overrides: Sequence[str] = ()) -> Recipe:
        """Returns the recipe to resume with, for the same MLflow store.

        Args:
            overrides: `key.sub=value` strings; keys that decide what a trial computes must not change.

        Raises:
            ConfigError: such a key has changed.
        """
        before = parse_recipe(self.recipe, where=f"sweep {self.name}")
        values = apply_overrides(self.recipe, [text for text in overrides if not is_output_dir(text)])
        recipe = parse_recipe(values).anchored()
        changed = recipe.changes_since(before, resuming="sweep")
        if changed:
            raise ConfigError(
                f"sweep {self.name} was started with another recipe: {'; '.join(changed)}. Take the change back, or "
                "start a new sweep under another --name"
            )
        return recipe.with_values({"tracking.uri": recipe.tracking.uri or found_again(self.store)})


def is_output_dir(override: str) -> bool:
    """Returns whether a `key=value` string sets `output_dir`."""
    return override.partition("=")[0].strip() == "output_dir"


def resume_command(output_dir: str, name: str) -> str:
    """Returns the command that continues a sweep. It names the folder if that is not the one of the demo, the default
    recipe of the command.
    """
    folder, usual = map(_absolute, (output_dir, load_recipe("demo").output_dir))
    where = "" if folder == usual else f" {shlex.quote(f'output_dir={folder}')}"
    return f"python -m pipeline.sweep --resume {name}{where}"


@contextmanager
def only_driver(storage_uri: str, name: str) -> Iterator[None]:
    """Lets only one process of this machine run a sweep; a killed process releases it.

    Raises:
        ConfigError: another process runs the sweep.
    """
    # Not in the storage: object stores have no locks, and a refused sweep should leave nothing there.
    digest = hashlib.sha256(storage.join(storage_uri, name).encode()).hexdigest()[:16]
    with ExitStack() as held:
        try:
            held.enter_context(only_process(f"sweep-{digest}"))
        except BlockingIOError:
            raise ConfigError(
                f"sweep {name} is being run by another process; wait for it, or stop it first"
            ) from None
        yield


def _absolute(uri: str) -> str:
    return str(storage.local_path(uri)) if storage.is_local(uri) else uri


def _location(storage_uri: str, name: str) -> str:
    return storage.join(storage_uri, name, "sweep.json")
