"""What going on with a sweep needs: `<storage>/<name>/sweep.json`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from d2ls import storage
from d2ls.errors import ConfigError
from pipeline import driver
from pipeline.config import Recipe, parse_recipe
from pipeline.config.recipe import FREE_ON_RESUME, apply_overrides

FREE = (*FREE_ON_RESUME, "sweep.concurrent", "sweep.final", "sweep.trials")
"""Keys that may change when a sweep goes on: trials that are done stay comparable with those to come."""


@dataclass(frozen=True)
class SweepState:
    """A sweep as it was started, or gone on with last.

    Attributes:
        name: of the sweep.
        recipe: complete, as plain values, local locations absolute.
        repeat: seeds of the best configuration, in all.
        driver: process that runs it.
    """

    name: str
    recipe: dict[str, Any]
    repeat: int = 1
    driver: str = ""

    @classmethod
    def load(cls, storage_uri: str, name: str) -> Self:
        """Reads the state of a sweep.

        Raises:
            ConfigError: no such sweep; names those that are there.
        """
        uri = _location(storage_uri, name)
        if not storage.exists(uri):
            known = sorted({entry.base_name for entry in storage.list_files(storage_uri)})
            sweeps = [entry for entry in known if storage.exists(_location(storage_uri, entry))]
            raise ConfigError(
                f"--resume {name}: no such sweep in {storage_uri}. There are: {', '.join(sweeps) or 'none'}"
            )
        return cls(**json.loads(storage.read_bytes(uri)))

    def save(self) -> None:
        """Writes the state, whole; the sweep is this process's from now on."""
        content = json.dumps({**asdict(self), "driver": driver.this_process()}, indent=2)
        storage.write_bytes(_location(self.recipe["storage"], self.name), content.encode())

    def resumed(self, overrides: Sequence[str] = ()) -> Recipe:
        """Returns the recipe to go on with.

        Args:
            overrides: `key.sub=value` strings; keys that decide what a trial computes must be as they were.

        Raises:
            ConfigError: the sweep is running, or a key is another one now.
        """
        if driver.is_another(self.driver):
            raise ConfigError(
                f"sweep {self.name} is being run by process {driver.process_id(self.driver)}; wait for it, or stop it "
                "first"
            )
        before = parse_recipe(self.recipe, where=f"sweep {self.name}")
        values = apply_overrides(self.recipe, [each for each in overrides if not each.startswith("storage=")])
        recipe = parse_recipe(values).anchored()
        changed = recipe.changes_since(before, free=FREE)
        if changed:
            raise ConfigError(
                f"sweep {self.name} was started with another recipe: {'; '.join(changed)}. Take the change back, or "
                "start a new sweep under another --name"
            )
        return recipe


def _location(storage_uri: str, name: str) -> str:
    return storage.join(storage_uri, name, "sweep.json")
