"""The file of `--map-classes`: what the classes of a model and of shards become, so that both can be compared.

model: {building: built, road: built, forest: vegetation, snow: null}      # null: such pixels are left out
shards: {Building: built, Tree: vegetation, Clutter: null}                 # without it: the classes of the shards
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from d2ls.errors import ConfigError, nearest
from d2ls.labels import IGNORE, ClassTable
from pipeline.config import read_yaml

if TYPE_CHECKING:
    from d2ls.inference.class_mapping import ClassMapping

Targets = Mapping[str, str | None]


@dataclass(frozen=True)
class ClassMap:
    """A class map as its file states it; it fits a model and shards or not.

    Attributes:
        file: the file.
        model: class of the model to common class; None leaves its pixels out.
        shards: class of the shards to common class, likewise; None: the classes of the shards are the common ones.
    """

    file: str
    model: Targets
    shards: Targets | None = None

    @classmethod
    def read(cls, file: str) -> Self:
        """Reads a file.

        Raises:
            ConfigError: no readable YAML, other keys than `model` and `shards`, or a name that is no text.
        """
        where = f"--map-classes {file}"
        try:
            content = read_yaml(Path(file).read_text(encoding="utf-8"), where=where)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: the file cannot be read: {error}") from error
        if not isinstance(content, dict) or "model" not in content or not set(content) <= {"model", "shards"}:
            raise ConfigError(
                f"{where}: the file has the section `model`, and `shards` or not, and nothing else"
            )
        model, shards = (_targets(content.get(name), f"{where}: {name}") for name in ("model", "shards"))
        return cls(file, model or {}, shards)

    def between(self, model: ClassTable, shards: ClassTable) -> "ClassMapping":
        """Returns the mapping for a model and a shard set.

        Every class of both has to be named. A common class that the shards do not have is not scored; where the model
        predicts it, that is an error of the labelled class.

        Raises:
            ConfigError: a class that does not exist or is not named, or a labelled class that the model cannot predict.
        """
        where = f"--map-classes {self.file}"
        of_shards = self.shards if self.shards is not None else {name: name for name in shards.names}
        _check_names(self.model, model, f"{where}: model")
        _check_names(of_shards, shards, f"{where}: shards")
        if self.shards is None:
            for target in filter(None, self.model.values()):
                if target not in shards.names:
                    raise ConfigError(
                        f"{where}: model: the shards have no class {target!r}. {nearest(target, shards.names)} For "
                        "common classes of both add the section `shards`"
                    )
        reachable = set(self.model.values())
        for name in shards.names:
            if of_shards[name] is not None and of_shards[name] not in reachable:
                raise ConfigError(
                    f"{where}: no class of the model becomes {of_shards[name]!r}, so {name!r} of the shards would "
                    f"always be wrong; leave its pixels out under `shards`: {name}: null"
                )
        return _mapping(self.model, model, of_shards, shards, where)


def _targets(values: Any, where: str) -> dict[str, str | None] | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: a mapping from class to class, not {values!r}")
    for name, target in values.items():
        if not isinstance(name, str) or not isinstance(target, str | None):
            raise ConfigError(
                f"{where}: {name!r}: {target!r}: classes are texts; quote them, and write null to leave out"
            )
    return dict(values)


def _check_names(targets: Targets, classes: ClassTable, where: str) -> None:
    for name in targets:
        if name not in classes.names:
            raise ConfigError(f"{where}: there is no class {name!r}. {nearest(name, classes.names)}")
    missing = [name for name in classes.names if name not in targets]
    if missing:
        raise ConfigError(
            f"{where}: nothing is said about {', '.join(missing)}; to leave its pixels out write {missing[0]}: null"
        )


def _mapping(
    of_model: Targets, model: ClassTable, of_shards: Targets, shards: ClassTable, where: str
) -> "ClassMapping":
    from d2ls.inference.class_mapping import ClassMapping

    colors: dict[str, tuple[int, int, int]] = {}
    scored: dict[str, bool] = {}
    for name, color, flag in zip(shards.names, shards.palette, shards.scored, strict=True):
        if (target := of_shards[name]) is not None:
            colors.setdefault(target, color)
            scored[target] = scored.get(target, False) or flag
    for name, color in zip(model.names, model.palette, strict=True):
        if (target := of_model[name]) is not None:
            colors.setdefault(target, color)
            scored.setdefault(target, False)
    if not any(scored.values()):
        raise ConfigError(f"{where}: no scored class of the shards is left to compare")
    ids = {target: number for number, target in enumerate(colors)}
    return ClassMapping(
        ClassTable.create(colors, colors.values(), [scored[target] for target in colors]),
        model,
        tuple(IGNORE if (target := of_model[name]) is None else ids[target] for name in model.names),
        shards,
        tuple(IGNORE if (target := of_shards[name]) is None else ids[target] for name in shards.names),
    )
