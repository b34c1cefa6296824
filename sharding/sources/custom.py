"""Reader of the user's own data: images and label images are given by globs, the splits by the recipe."""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from d2ls.errors import ConfigError, nearest
from d2ls.labels import ClassTable
from sharding.files import FileRef, FileTree, composed, natural
from sharding.raster.scene import IMAGE_SUFFIXES
from sharding.raster.vector_labels import VectorLabels
from sharding.sources.base import LeftOut, Protocol, Scene, Source, refuse_unknown
from sharding.sources.blocks import fold_split
from sharding.sources.custom_spec import CustomSpec, label_codes, refuse_equal_colors
from sharding.sources.custom_vectors import vector_files, vector_labels
from sharding.sources.globs import compile_glob, fits
from sharding.sources.pieces import Divider, read_areas
from sharding.sources.splitting import SplitLists, draw

UNUSED = "unused"
"""Name of a split whose scenes are left out."""


class Custom(Source):
    """Reader of the user's own data, see `CustomSpec`."""

    name = "custom"

    def __init__(
        self, root: str | Path, protocol: Protocol, access: Mapping[str, bool], **options: Any
    ) -> None:
        refuse_unknown(options, ("spec",), self.name)
        spec = options.get("spec")
        if not isinstance(spec, CustomSpec):
            raise ConfigError(
                "data.custom: the source custom needs this section (images, masks, classes, split)"
            )
        super().__init__(root, protocol, access)
        self.spec = spec
        refuse_equal_colors(spec.classes)
        try:
            self.classes = ClassTable.create(
                (item.name for item in spec.classes),
                (item.color for item in spec.classes),
                (item.scored for item in spec.classes),
            )
        except ConfigError as error:
            raise ConfigError(f"data.custom.classes: {error}") from error
        self.codes = label_codes(spec)
        self.bands, self.band_order = spec.bands, spec.band_order
        self.reading, self.align = spec.reading, spec.align
        self.license = spec.license
        self.ground_sampling_distance = spec.ground_sampling_distance

    def scenes(self) -> Iterator[Scene]:
        """Yields the scenes of all splits but `unused`; records what is left out, and why."""
        tree = self.tree()
        images, masks = self._files(tree)
        labels = self._labels(tree, images, masks)
        paths = {ref: name for name, ref in tree.files.items()}
        names = {key: paths[ref] for key, ref in images.items()}
        if self.spec.split.fractions or self.spec.split.fold:  # images without labels do not count
            names = {key: name for key, name in names.items() if key in labels}
        groups = {key: self._group(name) for key, name in names.items()}
        splits = self._splits(tree, names, groups)
        scenes: list[Scene] = []
        left_out: dict[str, list[FileRef]] = {}
        for key, image in images.items():
            split = splits.get(key)
            if split == UNUSED:
                left_out.setdefault(f"data.custom.split puts them into {UNUSED!r}", []).append(image)
            elif split is None and self.spec.split.lists:
                left_out.setdefault("in no file of data.custom.split.lists", []).append(image)
            elif key not in labels:
                self.missing.append(
                    f"{image}: no label image for it. Add one, correct data.custom.masks, "
                    f'or name it in data.custom.unused (for instance ["{paths[image]}"])'
                )
            elif split is None:
                self.missing.append(
                    f"{image}: data.custom.split.{self.spec.split.way} puts it into no split "
                    f"(scene {groups[key] or key!r}); name it there, under {UNUSED!r} if it is to be left out"
                )
            else:
                scenes.append(Scene(key, split, image, labels[key], groups[key], dict(self.spec.tags)))
        self.missing += [
            f"{ref}: no image for this label image. Add one, correct data.custom.images, "
            "or name it in data.custom.unused"
            for key, ref in masks.items()
            if key not in images
        ]
        self.left_out += [LeftOut(why, len(refs), str(refs[0])) for why, refs in left_out.items()]
        yield from self._divided(tree, scenes)

    def _labels(
        self, tree: FileTree, images: Mapping[str, FileRef], masks: Mapping[str, FileRef]
    ) -> dict[str, FileRef | VectorLabels]:
        """Returns the labels of each image: its label image, or the vector labels of all that have none."""
        labels: dict[str, FileRef | VectorLabels] = dict(masks)
        if self.spec.vectors:
            vectors = vector_labels(self.spec.vectors, self.classes.names, partial(_vector_files, tree))
            labels |= {key: vectors for key in images if key not in masks}
        return labels

    def _divided(self, tree: FileTree, scenes: list[Scene]) -> Iterator[Scene]:
        """Yields the scenes, or the pieces of ground into which the recipe divides them."""
        spec, split = self.spec, self.spec.split
        if not (spec.vectors or spec.area or split.blocks):
            yield from scenes
            return
        areas = None
        if spec.area:
            files = vector_files(spec.area.files, "data.custom.area.files", partial(_vector_files, tree))
            areas = read_areas(files, spec.area.layer, spec.area.crs, split.areas)
        divider = Divider(self.codes, self.reading, self.align, self.classes.num_classes, areas)
        if split.blocks:
            yield from divider.by_blocks(scenes, split)
        elif split.areas:
            yield from divider.by_attribute(scenes, split.areas)
        else:
            yield from divider.restrict(scenes)
        self.notes += [note for layer in areas or () for note in layer.notes] + divider.notes
        self.missing += divider.problems
        self.extra |= divider.extra

    def _files(self, tree: FileTree) -> tuple[dict[str, FileRef], dict[str, FileRef]]:
        """Returns images and label images by the texts that their wildcards matched, without the unused files."""
        masks = _matching(tree, self.spec.masks, "masks", ()) if self.spec.masks else {}
        images = _matching(tree, self.spec.images, "images", set(masks.values()))
        paths = {ref: name for name, ref in tree.files.items()}
        pairs = {
            key: [group[key] for group in (images, masks) if key in group] for key in {**images, **masks}
        }
        unused = {
            key: refs for key, refs in pairs.items() if any(fits(paths[r], self.spec.unused) for r in refs)
        }
        taken = {ref for refs in pairs.values() for ref in refs}
        self._note_left_out("named in data.custom.unused", [ref for refs in unused.values() for ref in refs])
        strangers = [ref for ref in tree.files.values() if ref.suffix in IMAGE_SUFFIXES and ref not in taken]
        for suffix in dict.fromkeys(ref.suffix for ref in strangers):
            self._note_left_out(
                f"{suffix} files that fit neither data.custom.images nor data.custom.masks",
                [ref for ref in strangers if ref.suffix == suffix],
            )
        return (
            {key: ref for key, ref in images.items() if key not in unused},
            {key: ref for key, ref in masks.items() if key not in unused},
        )

    def _note_left_out(self, why: str, refs: Sequence[FileRef]) -> None:
        if refs:
            self.left_out.append(LeftOut(why, len(refs), str(refs[0])))

    def _group(self, path: str) -> str | None:
        rule = self.spec.scene
        if rule is None or rule == "file":
            return str(Path(path).with_suffix("")) if rule else None
        if rule == "folder":
            return path.split("/")[0]
        match = re.search(rule, path)
        if match is None or not match[1]:
            self.missing.append(f"{path}: data.custom.scene ({rule}) finds no scene name in this path")
            return path
        return match[1]

    def _splits(
        self, tree: FileTree, paths: Mapping[str, str], groups: Mapping[str, str | None]
    ) -> dict[str, str]:
        split = self.spec.split
        if split.blocks or split.areas:
            return dict.fromkeys(paths, "")  # images are divided
        if split.fractions or split.fold:
            units = sorted({groups[key] or key for key in paths}, key=natural)
            if split.fold:
                k, n = split.fold.k, split.fold.n
                folds = draw(units, {str(fold): 1 / n for fold in range(1, n + 1)}, split.seed)
                drawn = {unit: fold_split(int(fold), k, n) for unit, fold in folds.items()}
            else:
                drawn = draw(units, split.fractions or {}, split.seed)
            return {key: drawn[groups[key] or key] for key in paths}
        result: dict[str, str] = {}
        if split.lists:
            lists = SplitLists(tree, paths)
            for name, files in split.lists.items():
                for file in files:
                    self._assign(name, lists.read(file, self.missing), result)
            return result
        texts = paths if split.folders else {key: groups[key] or key for key in paths}
        for name, patterns in (split.folders or split.scenes or {}).items():
            for pattern in patterns:
                hits = [key for key, text in texts.items() if _names(pattern, text, bool(split.folders))]
                if not hits and name != UNUSED:  # files to leave out need not exist
                    self.missing.append(
                        f"data.custom.split.{split.way}.{name}: {pattern!r} matches nothing. "
                        f"{nearest(pattern, sorted(set(texts.values()))[:20])}"
                    )
                self._assign(name, hits, result)
        return result

    def _assign(self, split: str, keys: list[str], taken: dict[str, str]) -> None:
        for key in keys:
            if taken.setdefault(key, split) != split:
                self.missing.append(
                    f"{key}: data.custom.split.{self.spec.split.way} puts it into both {taken[key]} and {split}; "
                    "take it out of one"
                )


def _vector_files(tree: FileTree, globs: Sequence[str], key: str) -> list[FileRef]:
    """Returns the files that fit globs, in natural order.

    Raises:
        ConfigError: a glob matches none.
    """
    refs: dict[FileRef, None] = {}
    for glob in globs:
        rules = compile_glob(glob)
        hits = [ref for name, ref in tree.files.items() if any(rule.fullmatch(name) for rule in rules)]
        if not hits:
            raise ConfigError(
                f"{key}: {glob!r} matches no file below {tree.root}. {nearest(glob, list(tree.files)[:20])}"
            )
        refs |= dict.fromkeys(hits)
    return list(refs)


def _names(pattern: str, text: str, folders: bool) -> bool:
    return fits(text, (pattern,)) if folders else fnmatch.fnmatchcase(text, composed(pattern))


def _matching(
    tree: FileTree, globs: Sequence[str], what: str, excluded: "set[FileRef] | tuple[()]"
) -> dict[str, FileRef]:
    """Returns the files that fit the globs, by the texts that their wildcards matched."""
    files: dict[str, FileRef] = {}
    for glob in globs:
        rules = compile_glob(glob)
        hits = [
            (match, ref)
            for name, ref in tree.files.items()
            if (match := next((m for rule in rules if (m := rule.fullmatch(name))), None))
        ]
        if not hits:
            some = ", ".join(list(tree.files)[:3])
            raise ConfigError(
                f"data.custom.{what}: {glob!r} matches no file below {tree.root}; files there: {some} ..."
            )
        for match, ref in hits:
            if ref in excluded:
                continue
            key = "/".join(part.strip("/") for part in match.groups() if part) or Path(match.string).stem
            if files.setdefault(key, ref) != ref:
                raise ConfigError(
                    f"data.custom.{what}: {glob!r} gives {files[key]} and {ref} the same wildcards ({key}); use a "
                    "narrower glob, with the suffix in it, or with a wildcard for the folder that tells them apart"
                )
    if not files:
        raise ConfigError(
            f"data.custom.{what}: every file that fits {', '.join(globs)} fits data.custom.masks too; make one of "
            "the globs narrower"
        )
    return files
