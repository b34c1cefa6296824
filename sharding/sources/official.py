"""Base of LoveDA and UAVid, whose publishers fix train, val and test and keep the labels of test secret."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from sharding.files import FileRef
from sharding.sources.base import Protocol, Scene, Source, collect, refuse_unknown
from sharding.sources.splitting import HeldOut


class OfficialParts(Source):
    """A reader of three parts. The option `select` (`{fraction: 0.1, seed: 42}`) holds out training scenes.

    The test part is a split if its labels exist, else it is left out. Under the protocol `paper` train holds the
    scenes of val too, and nothing is held out.

    Attributes:
        parts: the parts as spelled in folder names; their splits are in lower case.
        kinds: names of the folders of images and of label images.
        pattern: regular expression of a file with `{part}` and `{kind}`; its two groups are the key.
        expected: what should lie below the root, in words.
    """

    parts: ClassVar[tuple[str, str, str]]
    kinds: ClassVar[tuple[str, str]]
    pattern: ClassVar[str]
    expected: ClassVar[str]

    def __init__(
        self, root: str | Path, protocol: Protocol, access: Mapping[str, bool], **options: Any
    ) -> None:
        rest = dict(options)
        self._held_out = HeldOut.take(rest)
        refuse_unknown(rest, ("select",), self.name)
        super().__init__(root, protocol, access)
        if protocol == "paper":
            self.extra["departures"] = [
                "train holds the scenes of val too: whatever is selected on val is selected on train"
            ]

    @abstractmethod
    def scene(self, key: str, split: str, image: FileRef, mask: FileRef | None) -> Scene:
        """Makes a scene of a pair of files; adds problems to `missing`."""

    def scenes(self) -> Iterator[Scene]:
        """Yields the scenes of the three parts; with the option `select`, some scenes of train as split `select`."""
        if self.protocol == "paper":
            yield from self._as_released()
        elif self._held_out:
            yield from self._held_out.apply(self._official(), lambda scene: scene.group or scene.id)
        else:
            yield from self._official()

    def _as_released(self) -> Iterator[Scene]:
        scenes = [replace(scene, group=scene.group or scene.id) for scene in self._official()]
        yield from (replace(scene, split="train") for scene in scenes if scene.split in ("train", "val"))
        yield from (scene for scene in scenes if scene.split != "train")

    def _official(self) -> Iterator[Scene]:
        tree = self.tree()
        any_file = False
        for part in self.parts:
            images, masks = (
                collect(
                    (f"{match[1]}/{match[2]}", ref)
                    for match, ref in tree.find(self.pattern.format(part=part, kind=kind))
                )
                for kind in self.kinds
            )
            split = part.lower()
            hidden = split == "test" and not masks
            for key, image, mask in self.pairs(images, masks, masks_needed=not hidden):
                any_file = True
                yield self.scene(key, split, image, mask)
        if not any_file:
            raise self.nothing_found(self.expected)
