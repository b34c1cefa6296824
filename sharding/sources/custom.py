"""One's own data: images and label images named by globs, classes by colours or ids, splits as one says."""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2ls.errors import ConfigError
from d2ls.labels import IGNORE, ClassTable, Color, LabelCodes
from sharding.files import FileRef, FileTree, natural
from sharding.sources.base import Protocol, Scene, Source, nearest, refuse_unknown
from sharding.sources.splitting import draw

UNUSED = "unused"
"""Name of a split whose scenes are left out."""

Code = int | Color


@dataclass(frozen=True)
class OwnClass:
    """A class: its name, display colour, raw codes (ids or colours; empty: the colour), and whether it is scored."""

    name: str
    color: Color
    codes: tuple[Code, ...] = ()
    scored: bool = True


@dataclass(frozen=True)
class OwnSplit:
    """How scenes are divided; exactly one of the first three is given.

    Attributes:
        folders: split to globs of image paths below the root.
        scenes: split to scene names or globs of them.
        fractions: split to its share of the scenes; shares add up to 1.
        seed: for `fractions`.
    """

    folders: Mapping[str, Sequence[str]] | None = None
    scenes: Mapping[str, Sequence[str]] | None = None
    fractions: Mapping[str, float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        given = [name for name in ("folders", "scenes", "fractions") if getattr(self, name)]
        if len(given) != 1:
            raise ConfigError(
                f"data.custom.split: give one of folders, scenes or fractions, got {given or 'none of them'}"
            )
        if self.fractions and (
            min(self.fractions.values()) <= 0 or abs(sum(self.fractions.values()) - 1) > 1e-6
        ):
            raise ConfigError(
                f"data.custom.split.fractions: shares must be above 0 and add up to 1, got {dict(self.fractions)}"
            )


@dataclass(frozen=True)
class OwnData:
    """Everything the reader needs to know.

    Attributes:
        images: glob below the root; `*` stays within a folder, `**` does not.
        masks: glob with the same wildcards: the texts they stand for pair image and label image.
        classes: the classes.
        split: division into splits.
        ignored: raw codes that are neither trained on nor scored.
        scene: what makes a scene: `file` (each image is one), `folder` (the first folder below the root), or a
            regular expression on the image's path whose first group names it. None: not known.
        bands: channel names in file order.
    """

    images: str
    masks: str
    classes: tuple[OwnClass, ...]
    split: OwnSplit
    ignored: tuple[Code, ...] = ()
    scene: str | None = None
    bands: tuple[str, ...] = ("red", "green", "blue")
    license: str = "unknown"
    ground_sampling_distance: float | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


class Custom(Source):
    """Reader of one's own data."""

    name = "custom"

    def __init__(
        self, root: str | Path, protocol: Protocol, access: Mapping[str, bool], **options: Any
    ) -> None:
        refuse_unknown(options, ("own",), self.name)
        own = options.get("own")
        if not isinstance(own, OwnData):
            raise ConfigError(
                "data.custom: the source custom needs this section (images, masks, classes, split)"
            )
        super().__init__(root, protocol, access)
        self.own = own
        self.classes = ClassTable.create(
            (item.name for item in own.classes),
            (item.color for item in own.classes),
            (item.scored for item in own.classes),
        )
        self.codes = label_codes(own)
        self.bands = own.bands
        self.license = own.license
        self.ground_sampling_distance = own.ground_sampling_distance

    def scenes(self) -> Iterator[Scene]:
        """Yields the scenes of all splits but `unused`."""
        tree = self.tree()
        images = _matching(tree, self.own.images, "images")
        masks = _matching(tree, self.own.masks, "masks")
        paths = {ref: name for name, ref in tree.files.items()}
        found = list(self.pairs(images, masks))
        groups = {key: self._group(paths[image]) for key, image, _ in found}
        splits = self._splits({key: paths[image] for key, image, _ in found}, groups)
        for key, image, mask in found:
            split = splits.get(key)
            if split is None:
                where = "folders" if self.own.split.folders else "scenes"
                self.missing.append(
                    f"{image}: data.custom.split.{where} puts it into no split "
                    f"(scene {groups[key] or key!r}); name it there, under {UNUSED!r} if it is to be left out"
                )
            elif split != UNUSED:
                yield Scene(key, split, image, mask, groups[key], dict(self.own.tags))

    def _group(self, path: str) -> str | None:
        rule = self.own.scene
        if rule is None or rule == "file":
            return str(Path(path).with_suffix("")) if rule else None
        if rule == "folder":
            return path.split("/")[0]
        match = re.search(rule, path)
        if match is None:
            self.missing.append(f"{path}: data.custom.scene ({rule}) does not match this path")
            return path
        return match[1]

    def _splits(self, paths: Mapping[str, str], groups: Mapping[str, str | None]) -> dict[str, str]:
        split = self.own.split
        if split.fractions:
            units = sorted({groups[key] or key for key in paths}, key=natural)
            drawn = draw(units, split.fractions, split.seed)
            return {key: drawn[groups[key] or key] for key in paths}
        texts = paths if split.folders else {key: groups[key] or key for key in paths}
        result: dict[str, str] = {}
        for name, patterns in (split.folders or split.scenes or {}).items():
            for pattern in patterns:
                hits = [key for key, text in texts.items() if fnmatch.fnmatchcase(text, pattern)]
                self._note_pattern(name, pattern, hits, result, set(texts.values()))
                result.update(dict.fromkeys(hits, name))
        return result

    def _note_pattern(
        self, split: str, pattern: str, hits: list[str], taken: Mapping[str, str], known: set[str]
    ) -> None:
        if not hits and split != UNUSED:  # what is left out need not be there
            self.missing.append(
                f"data.custom.split: {pattern!r} of {split} fits nothing. {nearest(pattern, sorted(known)[:20])}"
            )
        for key in hits:
            if taken.get(key, split) != split:
                self.missing.append(f"{key}: is in the splits {taken[key]} and {split}")


def label_codes(own: OwnData) -> LabelCodes:
    """Makes the label codes of one's own classes.

    Raises:
        ConfigError: ids and colours mixed, or a code with two meanings.
    """
    codes: dict[Code, int] = {}
    meaning = [
        (code, index) for index, item in enumerate(own.classes) for code in item.codes or (item.color,)
    ]
    for code, value in [*meaning, *((code, IGNORE) for code in own.ignored)]:
        if codes.setdefault(code, value) != value:
            raise ConfigError(
                f"data.custom: code {code} has two meanings; give it to one class, or to ignored"
            )
    ids = {code: value for code, value in codes.items() if isinstance(code, int)}
    colors = {code: value for code, value in codes.items() if not isinstance(code, int)}
    if ids and colors:
        raise ConfigError(
            f"data.custom: ids {list(ids)[:3]} and colours {list(colors)[:3]} are mixed; "
            "give every class (and ignored) codes of one kind"
        )
    return LabelCodes.from_ids(ids) if ids else LabelCodes.from_colors(colors)


def _matching(tree: FileTree, glob: str, what: str) -> dict[str, FileRef]:
    rule = re.compile(_glob_rule(glob))
    files: dict[str, FileRef] = {}
    for name, ref in tree.files.items():
        match = rule.fullmatch(name)
        if match is None:
            continue
        key = "/".join(part.strip("/") for part in match.groups() if part) or Path(name).stem
        if key in files:
            raise ConfigError(
                f"data.custom.{what}: {glob!r} gives {files[key]} and {ref} the same wildcards ({key}); "
                "use a narrower glob, for instance with the suffix in it"
            )
        files[key] = ref
    if not files:
        some = ", ".join(list(tree.files)[:3])
        raise ConfigError(
            f"data.custom.{what}: {glob!r} fits no file below {tree.root}; files there: {some} ..."
        )
    return files


def _glob_rule(glob: str) -> str:
    """Regular expression of a glob, with a group for each wildcard."""
    pieces = {"**/": "((?:[^/]+/)*)", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", glob)
    return "".join(
        pieces.get(part) or (f"({part})" if part.startswith("[") else re.escape(part)) for part in parts
    )
