"""What going on with a sweep needs: `<output_dir>/<name>/sweep.json`, and that no other process goes on with it."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

from d2ls import storage
from d2ls.errors import ConfigError
from d2ls.scratch import only_process
from pipeline.config import Recipe, parse_recipe
from pipeline.config.recipe import apply_overrides


@dataclass(frozen=True)
class SweepState:
    """A sweep as it was started, or gone on with last.

    Attributes:
        name: of the sweep.
        recipe: complete, as plain values, local locations absolute.
        repeat: seeds of the best configuration, in all.
    """

    name: str
    recipe: dict[str, Any]
    repeat: int = 1

    @classmethod
    def load(cls, storage_uri: str, name: str) -> Self:
        """Reads the state of a sweep; its storage is the one it was found in, wherever it was begun.

        Raises:
            ConfigError: no such sweep (names those that are there), or a damaged file.
        """
        uri = _location(storage_uri, name)
        if not storage.exists(uri):
            known = sorted({entry.base_name for entry in storage.list_files(storage_uri)})
            sweeps = [entry for entry in known if storage.exists(_location(storage_uri, entry))]
            raise ConfigError(
                f"--resume {name}: no such sweep in {storage_uri}. There are: {', '.join(sweeps) or 'none'}"
            )
        try:
            found = json.loads(storage.read_bytes(uri))
            return cls(name, {**found["recipe"], "output_dir": storage_uri}, int(found.get("repeat", 1)))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{uri}: not the state of a sweep ({type(error).__name__}: {error}); start a new sweep"
            ) from error

    def save(self) -> None:
        """Writes the state, whole."""
        content = json.dumps(asdict(self), indent=2)
        storage.write_bytes(_location(self.recipe["output_dir"], self.name), content.encode())

    def resumed(self, overrides: Sequence[str] = ()) -> Recipe:
        """Returns the recipe to go on with.

        Args:
            overrides: `key.sub=value` strings; keys that decide what a trial computes must be as they were.

        Raises:
            ConfigError: a key is another one now.
        """
        before = parse_recipe(self.recipe, where=f"sweep {self.name}")
        values = apply_overrides(self.recipe, [each for each in overrides if not names_storage(each)])
        recipe = parse_recipe(values).anchored()
        changed = recipe.changes_since(before, resuming="sweep")
        if changed:
            raise ConfigError(
                f"sweep {self.name} was started with another recipe: {'; '.join(changed)}. Take the change back, or "
                "start a new sweep under another --name"
            )
        return recipe


def names_storage(override: str) -> bool:
    """Says whether a `key=value` string is about where runs lie."""
    return override.partition("=")[0].strip() == "output_dir"


@contextmanager
def only_driver(storage_uri: str, name: str) -> Iterator[None]:
    """Keeps a sweep to one process of this machine; a killed one's hold ends with it.

    Raises:
        ConfigError: another process runs the sweep.
    """
    # Not in the storage: object stores know no locks, and a sweep that is refused should leave nothing there.
    digest = hashlib.sha256(storage.join(storage_uri, name).encode()).hexdigest()[:16]
    with ExitStack() as held:
        try:
            held.enter_context(only_process(f"sweep-{digest}"))
        except BlockingIOError:
            raise ConfigError(
                f"sweep {name} is being run by another process; wait for it, or stop it first"
            ) from None
        yield


def _location(storage_uri: str, name: str) -> str:
    return storage.join(storage_uri, name, "sweep.json")
