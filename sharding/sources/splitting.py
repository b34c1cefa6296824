"""Divides scenes over splits: by shares (a scene is never divided), or by the lists of a data set."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Self

from d2ls.errors import ConfigError, DataError, nearest
from sharding.files import FileTree, composed
from sharding.sources.base import Scene


def draw(units: Sequence[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Divides scenes by shares: shuffles them by the seed and cuts at rounded shares, at least one scene per split.

    Args:
        units: scene names, in a fixed order.
        fractions: split to share; the shares add up to 1.
        seed: another seed, another division.

    Returns:
        Scene to split.

    Raises:
        ConfigError: fewer scenes than splits.
    """
    if len(units) < len(fractions):
        raise ConfigError(
            f"{len(units)} scene(s) cannot fill {len(fractions)} splits ({', '.join(fractions)}): "
            "scenes are never divided. Give more scenes or, of your own data, name fewer splits in "
            "data.custom.split.fractions or make smaller scenes with data.custom.scene."
        )
    order = list(units)
    random.Random(seed).shuffle(order)
    counts = {name: max(1, int(share * len(order))) for name, share in fractions.items()}
    while (rest := len(order) - sum(counts.values())) != 0:
        change = 1 if rest > 0 else -1
        allowed = [name for name in counts if counts[name] + change >= 1]
        most = max(allowed, key=lambda name: change * (fractions[name] * len(order) - counts[name]))
        counts[most] += change
    splits = [name for name, count in counts.items() for _ in range(count)]
    return dict(zip(order, splits, strict=True))


@dataclass(frozen=True)
class HeldOut:
    """A share of the training scenes that is held out to select epochs and trials: the split `select`.

    For data sets whose test labels are hidden: scores can then be reported on the official validation part.

    Attributes:
        fraction: share of the units, above 0 and below 1.
        seed: another seed, another choice.
    """

    fraction: float
    seed: int = 42

    @classmethod
    def take(cls, options: dict[str, Any]) -> Self | None:
        """Takes the option `select` out of a source's options; None if it is not given.

        Raises:
            ConfigError: not `{fraction: ..., seed: ...}`.
        """
        value = options.pop("select", None)
        if value is None:
            return None
        share = value.get("fraction") if isinstance(value, Mapping) else None
        if not isinstance(share, float) or not 0 < share < 1 or set(value) - {"fraction", "seed"}:
            raise ConfigError(
                f"data.options.select: {value!r} is not possible; allowed: {{fraction: 0.1, seed: 42}}"
            )
        return cls(share, int(value.get("seed", 42)))

    def apply(self, scenes: Iterable[Scene], unit: Callable[[Scene], str]) -> Iterator[Scene]:
        """Yields all scenes, some of `train` as `select`; scenes of one unit stay together."""
        scenes = list(scenes)
        units = list(dict.fromkeys(unit(scene) for scene in scenes if scene.split == "train"))
        shares = {"train": 1 - self.fraction, "select": self.fraction}
        splits = draw(units, shares, self.seed) if units else {}
        for scene in scenes:
            yield replace(scene, split=splits[unit(scene)]) if scene.split == "train" else scene


class SplitLists:
    """Text files that name the images of a split, one per line: a path or the end of a path, with or without suffix.

    If a whole line fits no image, its first column is used (`images/1.png labels/1.png`). Empty lines and lines that
    begin with `#` are ignored.

    Args:
        tree: the files of the data set, the lists among them.
        paths: key to relative path of each image.
    """

    def __init__(self, tree: FileTree, paths: Mapping[str, str]) -> None:
        self._tree = tree
        self._keys: dict[str, set[str]] = {}
        self._example = next(iter(paths.values()), "")
        for key, path in paths.items():
            whole = PurePosixPath(path)
            for start in range(len(whole.parts)):
                end = PurePosixPath(*whole.parts[start:])
                for name in (str(end), str(end.with_suffix("")), key):
                    self._keys.setdefault(name, set()).add(key)

    def read(self, file: str, problems: list[str]) -> list[str]:
        """Returns the keys of the images that a list names; lines that fit none or several are added to `problems`.

        Raises:
            ConfigError: no such list below the root.
            DataError: the list is not text.
        """
        key = "data.custom.split.lists"
        ref = self._tree.files.get(composed(file))
        if ref is None:
            lists = [name for name in self._tree.files if name.endswith((".txt", ".lst", ".csv"))]
            raise ConfigError(f"{key}: no file {file!r} below {self._tree.root}. {nearest(file, lists)}")
        try:
            lines = composed(ref.read().decode("utf-8-sig")).splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{ref}: not a text file in UTF-8, as {key} needs it: {error}") from error
        matched: list[str] = []
        strange: list[str] = []
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            keys = self._look_up(line)
            matched += keys if len(keys) == 1 else []
            if len(keys) != 1:
                strange.append(
                    f"line {number} ({line.strip()!r}) fits {len(keys) or 'no'} image{'s' * bool(keys)}"
                )
        if strange:
            problems.append(
                f"{ref}: {len(strange)} of {len(lines)} lines name no image, or several: {strange[0]}. Images are "
                f"called {self._example!r}; correct {key} or data.custom.images, or take the lines out"
            )
        elif not matched:
            problems.append(f"{ref}: names no image; correct {key}")
        return matched

    def _look_up(self, line: str) -> list[str]:
        first = line.replace(",", " ").replace(";", " ").split()[:1]
        for text in (line.strip(), *first):
            keys = self._keys.get(text.removeprefix("./").removeprefix("/"))
            if keys:
                return sorted(keys)
        return []
