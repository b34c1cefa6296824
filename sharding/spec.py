"""A shard set to make, as plain values from the sections `data` and `shards` of a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from d2ls.errors import ConfigError, nearest
from d2ls.labels import IGNORE, Color, LabelCodes
from sharding.codecs import Codec
from sharding.sources import Source, open_source
from sharding.tiling import Tiling

DEFAULT_TILING = "default"
"""Key of the tiling for splits that have none of their own."""


@dataclass(frozen=True)
class ShardSpec:
    """A shard set to make.

    Attributes:
        name: name of the data set in the card.
        uri: folder or object-store prefix of the shard set.
        source: reader, see `sharding.sources.open_source`.
        root: raw data.
        protocol: `clean` or `paper`.
        options: of the reader.
        tiling: split to tiling, with a `default`; the source's own if none is given.
        codec: image codec.
        bands: channels to take, by name; empty for all.
        max_value: pixel value that stands for 1.0; None for the full range of the type.
        scale: values of float and signed images that stand for dark and bright: one pair for all channels, or a pair
            per channel; None: 0 to `max_value`.
        ground_sampling_distance: metres per pixel; None takes the value of the source.
        treat_as_ignored: raw label codes unknown to the data set that become 255 and are counted.
        splits: splits to make; empty for all.
        train_split: the one whose pixels give mean and standard deviation, and whose tiles may overlap.
        val_split: the one that selects epochs; empty if not known.
        test_split: the one that is reported at the end; empty if not known.
        target_bytes: approximate size of a shard.
        seed: order of the scenes in the shards.
        license: empty takes the one of the source.
        check_archives: compare archives with their published MD5 sums.
        follow_links: accept links that lead out of the root.
    """

    name: str
    uri: str
    source: str
    root: str
    protocol: str = "clean"
    options: Mapping[str, Any] = field(default_factory=dict)
    tiling: Mapping[str, Tiling] = field(default_factory=dict)
    codec: Codec = field(default_factory=Codec)
    bands: tuple[str, ...] = ()
    max_value: float | None = None
    scale: tuple[tuple[float, float], ...] | None = None
    ground_sampling_distance: float | None = None
    treat_as_ignored: tuple[int | Color, ...] = ()
    splits: tuple[str, ...] = ()
    train_split: str = "train"
    val_split: str = ""
    test_split: str = ""
    target_bytes: int = 64_000_000
    seed: int = 0
    license: str = ""
    check_archives: bool = True
    follow_links: bool = False

    def open(self) -> Source:
        """Makes the reader."""
        return open_source(
            self.source,
            self.root,
            protocol=self.protocol,
            check_archives=self.check_archives,
            follow_links=self.follow_links,
            **self.options,
        )

    def tiling_of(self, split: str, source: Source) -> Tiling:
        """Returns the tiling of a split: the spec's own or default one, the source's, or whole scenes.

        A pixel may be labelled in several tiles only in training.
        """
        given = [
            chosen.get(name) for chosen in (self.tiling, source.tiling) for name in (split, DEFAULT_TILING)
        ]
        tiling = next((tiling for tiling in given if tiling is not None), Tiling())
        return replace(tiling, once=split != self.train_split)

    def band_indices(self, names: tuple[str, ...]) -> tuple[int, ...]:
        """Returns the positions in the file of the channels to take.

        Raises:
            ConfigError: no such channel.
        """
        for band in self.bands:
            if band not in names:
                raise ConfigError(f"data.bands: no band {band!r}. {nearest(band, names)}")
        return tuple(names.index(band) for band in self.bands or names)

    def codes(self, source: Source) -> LabelCodes:
        """Returns the label codes; those of `treat_as_ignored` are ignored.

        Raises:
            ConfigError: a code that is a class already, or an id where labels are colours.
        """
        if not self.treat_as_ignored:
            return source.codes
        known: Mapping[Any, int] = source.codes.ids or source.codes.colors
        for code in self.treat_as_ignored:
            if isinstance(code, int) != bool(source.codes.ids):
                kind = "ids" if source.codes.ids else "colours (red, green, blue)"
                raise ConfigError(
                    f"data.treat_as_ignored: {code} does not fit, labels of {self.source} are {kind}"
                )
            if known.get(code, IGNORE) != IGNORE:
                raise ConfigError(
                    f"data.treat_as_ignored: {code} is the class {source.classes.names[known[code]]!r}; "
                    "a class cannot be ignored"
                )
        merged = {**known, **dict.fromkeys(self.treat_as_ignored, IGNORE)}
        codes = source.codes
        return replace(codes, ids=merged) if codes.ids else replace(codes, colors=merged)
