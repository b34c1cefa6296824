"""Class tables, and the lookup from the ids or colours of label images to class ids.

A class id is the position of the class in the table, 0..K-1. `IGNORE` (255) marks pixels that are neither trained
on nor scored, in every data set.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from d2ls.errors import ConfigError, LabelError

IGNORE = 255
"""Class id of pixels without a label."""

IGNORE_COLOR = (0, 0, 0)
"""Display colour of `IGNORE`; use `ClassTable.colorize(..., ignore_color=...)` where a class is black itself."""

MAX_WHOLE = 2**53
"""Floats below this hold every whole number exactly."""

ROUNDING = 80
"""Largest distance of a channel from 0 or 255 that `LabelCodes.rounded` bridges."""

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """Names, display colours and scored flags of the K classes of a data set.

    Attributes:
        names: K distinct class names; the position is the class id.
        palette: K colours (red, green, blue), each 0..255.
        scored: K flags; a class that is not scored stays in the confusion matrix but out of the means.
    """

    names: tuple[str, ...]
    palette: tuple[Color, ...]
    scored: tuple[bool, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) < IGNORE:
            raise ConfigError(f"a class table needs 1 to {IGNORE - 1} classes, got {len(self.names)}")
        if not len(self.names) == len(self.palette) == len(self.scored):
            raise ConfigError(
                f"class table is uneven: {len(self.names)} names, {len(self.palette)} colours, {len(self.scored)} flags"
            )
        if len(set(self.names)) != len(self.names):
            raise ConfigError(f"class names repeat: {list(self.names)}")
        if not any(self.scored):
            raise ConfigError("no class is scored: a mean over no class has no value")

    @classmethod
    def create(
        cls, names: Iterable[str], palette: Iterable[Iterable[int]], scored: Iterable[bool] | None = None
    ) -> Self:
        """Builds a table from any sequences; by default all classes are scored."""
        names = tuple(names)
        colors = tuple(_color(color) for color in palette)
        return cls(names, colors, tuple(scored) if scored is not None else (True,) * len(names))

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.names)

    def to_json(self) -> list[dict[str, Any]]:
        """Returns a list of K plain dictionaries, one a class, in order of class id."""
        rows = zip(self.names, self.palette, self.scored, strict=True)
        return [{"name": name, "color": list(color), "scored": scored} for name, color, scored in rows]

    @classmethod
    def from_json(cls, rows: Iterable[Mapping[str, Any]]) -> Self:
        """Inverse of `to_json`."""
        rows = list(rows)
        return cls.create(
            (row["name"] for row in rows),
            (row["color"] for row in rows),
            (row.get("scored", True) for row in rows),
        )

    def colorize(
        self, ids: npt.NDArray[np.integer], ignore_color: Color = IGNORE_COLOR
    ) -> npt.NDArray[np.uint8]:
        """Paints class ids (H W, 0..K-1 or 255) as an RGB picture (H W 3, uint8)."""
        lookup = np.empty((256, 3), dtype=np.uint8)
        lookup[:] = ignore_color
        lookup[: self.num_classes] = self.palette
        return lookup[np.asarray(ids, dtype=np.uint8)]


@dataclass(frozen=True)
class LabelCodes:
    """How a data set writes labels: raw code (id or colour) to class id, `IGNORE` for what is not a class.

    Attributes:
        ids: raw id to class id; empty where colours are used.
        colors: raw colour to class id; empty where ids are used.
        nan_ignored: NaN in label images of a float type is `IGNORE`.
        transparent_ignored: pixels with an alpha of 0 are `IGNORE`.
        rounded: an unknown colour whose channels are near 0 or 255 is the colour of these, for label images that were
            compressed with loss.
    """

    ids: Mapping[int, int]
    colors: Mapping[Color, int]
    nan_ignored: bool = False
    transparent_ignored: bool = False
    rounded: bool = False

    def __post_init__(self) -> None:
        if bool(self.ids) == bool(self.colors):
            raise ConfigError("label codes need either ids or colours, and not both")

    @classmethod
    def from_ids(cls, ids: Mapping[int, int]) -> Self:
        """Codes of single-channel label images."""
        return cls(ids=dict(ids), colors={})

    @classmethod
    def from_colors(cls, colors: Mapping[Color, int]) -> Self:
        """Codes of RGB label images."""
        return cls(ids={}, colors={_color(color): value for color, value in colors.items()})

    def encode(
        self, raw: npt.NDArray[Any], *, where: str, origin: tuple[int, int] = (0, 0)
    ) -> npt.NDArray[np.uint8]:
        """Turns a raw label image into class ids.

        Args:
            raw: H W (ids, integers or floats that are whole numbers) or H W 3 (colours, RGB, uint8); an additional last
                channel is alpha.
            where: what to name in the error, usually the file.
            origin: row and column of the first pixel in that file, where `raw` is a window of it.

        Returns:
            H W, uint8, values 0..K-1 or 255.

        Raises:
            LabelError: a code is undefined or not a whole number, or a pixel is transparent; names value, count and
                first position (row, column).
        """
        channels = 3 if self.colors else 1
        if raw.ndim != 2 and raw.shape[2] == channels + 1:
            return self._encode_transparent(raw, where, origin)
        if self.ids:
            if raw.ndim != 2:
                raise LabelError(
                    f"{where}: label ids need a single-channel image, this one has shape {raw.shape}"
                )
            return self._encode_ids(raw, where, origin)
        if raw.ndim != 3 or raw.shape[2] != 3:
            raise LabelError(f"{where}: label colours need an RGB image, this one has shape {raw.shape}")
        codes = {_pack_color(color): value for color, value in self.colors.items()}
        packed = _pack(raw)
        if self.rounded:
            rounded = _pack(_ROUND[raw])
            bridged = np.isin(rounded, list(codes)) & ~np.isin(packed, list(codes))
            packed = np.where(bridged, rounded, packed)
        return self._lookup(packed, codes, where, origin, as_color=True)

    def _encode_ids(
        self, raw: npt.NDArray[Any], where: str, origin: tuple[int, int]
    ) -> npt.NDArray[np.uint8]:
        if raw.dtype.kind not in "iu":
            return self._encode_floats(raw, where, origin)
        if raw.dtype != np.uint8:
            return self._lookup(raw.astype(np.int64), dict(self.ids), where, origin, as_color=False)
        codes = {code: value for code, value in self.ids.items() if 0 <= code < 256}
        content = raw.tobytes()  # bytes.translate is several times faster than indexing
        if content.translate(None, bytes(codes)):
            strange = ~np.isin(raw, list(codes))
            _raise_unknown(raw, strange, where, origin, list(self.ids), as_color=False)
        table = bytes(codes.get(code, IGNORE) for code in range(256))
        return np.frombuffer(content.translate(table), np.uint8).reshape(raw.shape)

    def _encode_floats(
        self, raw: npt.NDArray[Any], where: str, origin: tuple[int, int]
    ) -> npt.NDArray[np.uint8]:
        if raw.dtype.kind != "f":
            raise LabelError(f"{where}: label ids are whole numbers, this image holds {raw.dtype}")
        nan = np.isnan(raw)
        whole = (np.abs(raw) < MAX_WHOLE) & (np.floor(raw) == raw)
        strange = ~whole & ~nan if self.nan_ignored else ~whole
        if strange.any():
            declare = (
                " or declare NaN as ignored: data.custom.ignored: [nan, ...]" if nan[strange].any() else ""
            )
            raise LabelError(
                f"{where}: label ids are whole numbers, this image of {raw.dtype} holds "
                f"{_listed(raw, strange, origin, '{:.6g}'.format)}. Save the class ids as an integer type{declare}."
            )
        known = next(iter(self.ids))
        ids = self._lookup(
            np.where(nan, known, raw).astype(np.int64), dict(self.ids), where, origin, as_color=False
        )
        ids[nan] = IGNORE
        return ids

    def _encode_transparent(
        self, raw: npt.NDArray[Any], where: str, origin: tuple[int, int]
    ) -> npt.NDArray[np.uint8]:
        """Encodes labels with an alpha channel. Transparent pixels are ignored if the codes allow it, else an error."""
        values, alpha = raw[..., :-1], raw[..., -1]
        opaque = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
        refused = (alpha != opaque) & ((alpha != 0) | (not self.transparent_ignored))
        if refused.any():
            raise LabelError(
                f"{where}: labels are transparent, alpha is {_listed(alpha, refused, origin, str)} (opaque: {opaque}). "
                "Save the label image without an alpha channel, or, where an alpha of 0 means no label, declare it: "
                "data.custom.ignored: [transparent, ...]"
            )
        known = np.array(next(iter(self.colors or self.ids)), values.dtype)
        shown = np.where((alpha == 0)[..., None], known, values)
        ids = self.encode(shown if self.colors else shown[..., 0], where=where, origin=origin).copy()
        ids[alpha == 0] = IGNORE
        return ids

    @staticmethod
    def _lookup(
        raw: npt.NDArray[np.integer],
        mapping: dict[int, int],
        where: str,
        origin: tuple[int, int],
        *,
        as_color: bool,
    ) -> npt.NDArray[np.uint8]:
        codes = np.array(sorted(mapping), dtype=raw.dtype)
        values = np.array([mapping[int(code)] for code in codes], dtype=np.uint8)
        runs, starts = _runs(raw)
        position = np.minimum(np.searchsorted(codes, runs), len(codes) - 1)
        if (codes[position] != runs).any():
            position = np.minimum(np.searchsorted(codes, raw), len(codes) - 1)
            _raise_unknown(raw, codes[position] != raw, where, origin, sorted(mapping), as_color=as_color)
        lengths = np.diff(starts, append=raw.size)
        return np.repeat(values[position], lengths).reshape(raw.shape)


def _runs(raw: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.intp]]:
    """Returns values and starts of the runs of equal pixels in reading order: label images are mostly long runs."""
    flat = raw.reshape(-1)
    starts = (
        np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1]))) if flat.size else np.empty(0, np.intp)
    )
    return flat[starts], starts


def _color(color: Iterable[int]) -> Color:
    red, green, blue = (int(part) for part in color)
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise ConfigError(f"colour {(red, green, blue)} is outside 0..255")
    return red, green, blue


def _pack(raw: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    packed = raw[..., 0].astype(np.int32)
    for band in (1, 2):
        packed <<= 8
        packed |= raw[..., band]
    return packed


_ROUND = np.arange(256, dtype=np.uint8)
_ROUND[: ROUNDING + 1], _ROUND[255 - ROUNDING :] = 0, 255


def _pack_color(color: Color) -> int:
    return (color[0] << 16) | (color[1] << 8) | color[2]


def _unpack(code: int) -> Color:
    return (code >> 16) & 255, (code >> 8) & 255, code & 255


def count_code(raw: npt.NDArray[Any], code: int | Color) -> int:
    """Counts the pixels of a raw label image (as `LabelCodes.encode` takes it) that hold an id or a colour."""
    channels = 1 if isinstance(code, int) else 3
    if raw.ndim == 3:
        return int((raw[..., :channels] == np.array(code)).all(axis=-1).sum())
    return int((raw == code).sum())


def _listed(
    raw: npt.NDArray[Any], strange: npt.NDArray[np.bool_], origin: tuple[int, int], text: Callable[[Any], str]
) -> str:
    """Lists the values of some pixels (H W) with their counts and first positions in the file."""
    codes, first, counts = np.unique(raw[strange], return_index=True, return_counts=True)
    positions = np.argwhere(strange)
    listed = []
    for code, index, count in zip(codes.tolist()[:5], first, counts, strict=False):
        row, column = (positions[index] + origin).tolist()
        listed.append(f"{text(code)} in {count} pixels, first at row {row} column {column}")
    return "; ".join(listed) + (f" and {len(codes) - 5} more" if len(codes) > 5 else "")


def _raise_unknown(
    raw: npt.NDArray[np.integer],
    unknown: npt.NDArray[np.bool_],
    where: str,
    origin: tuple[int, int],
    known: list[int],
    *,
    as_color: bool,
) -> None:
    allowed = [_unpack(code) for code in known] if as_color else known
    kind = "colour" if as_color else "id"
    listed = _listed(raw, unknown, origin, lambda code: str(_unpack(code) if as_color else code))
    raise LabelError(
        f"{where}: unknown label {kind} {listed}. Known: {allowed}. "
        f"Correct the label image, or name the {kind}: as `label_values` of a class in data.custom.classes, as ignored "
        "in data.custom.ignored or, of a published data set, in data.treat_as_ignored."
    )
