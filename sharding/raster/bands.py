"""Which bands of a file to take: one rule for sharding and prediction.

1. If the file names all expected bands (by description or by colour interpretation), they are taken by name.
2. Else, if the file has the expected number of bands, with or without its alpha channel, they are taken in order. A
   name in the file that contradicts this order prevents it.
3. Else there is no safe choice.
"""

from collections.abc import Sequence
from typing import Literal

from sharding.raster.base import RasterInfo

BandOrder = Literal["refuse", "names", "positions"]
"""What to do if a recipe's band order and a file's names differ: refuse the file, follow its names, or ignore them."""

_DEFAULT = ("red", "green", "blue")
"""Tags that many programs set on three bands by default, even on near infrared, red, green."""


def find_bands(info: RasterInfo, expected: Sequence[str]) -> tuple[int, ...] | None:
    """Applies the rule; returns positions from 0, or None if there is no safe choice."""
    named = bands_by_name(info, expected)
    if named is not None:
        return named
    plain = bands_in_order(info, expected)
    return None if plain is None or contradiction(info, expected) else plain


def bands_by_name(info: RasterInfo, expected: Sequence[str]) -> tuple[int, ...] | None:
    """Returns the positions of the expected bands by their names in the file; None unless each name occurs once.

    If descriptions name all bands, they take precedence over colour interpretations, which many programs set by
    default.
    """
    lower = [name.lower() for name in expected]
    for names in ([description for description, _ in info.names], _effective(info, expected)):
        if all(names.count(name) == 1 for name in lower):
            return tuple(names.index(name) for name in lower)
    return None


def bands_in_order(info: RasterInfo, expected: Sequence[str]) -> tuple[int, ...] | None:
    """Returns the positions of the bands, with or without alpha, if their number is the expected one, else None."""
    if info.bands == len(expected):
        return tuple(range(info.bands))
    colors = tuple(band for band in range(info.bands) if band != info.alpha)
    return colors if len(colors) == len(expected) else None


def contradiction(info: RasterInfo, expected: Sequence[str]) -> str:
    """Describes how the names in the file contradict the order of the expected bands; empty if they do not."""
    plain = bands_in_order(info, expected)
    names = _effective(info, expected)
    lower = [name.lower() for name in expected]
    if plain is None or (bands_by_name(info, expected) is None and _by_default(info, lower)):
        return ""
    differ = [
        f"band {position + 1} is {names[position]!r} in the file and {name!r} in the recipe"
        for position, name in zip(plain, lower, strict=True)
        if names[position] and names[position] != name
    ]
    return ", ".join(differ)


def band_text(info: RasterInfo) -> str:
    """Lists the bands of a file: `4 band(s) (red, green, blue, alpha)`."""
    names = [description or meaning or "unnamed" for description, meaning in info.names]
    shown = f" ({', '.join(names)})" if any(name != "unnamed" for name in names) else ""
    return f"{info.bands} band(s){shown}"


def _effective(info: RasterInfo, expected: Sequence[str]) -> list[str]:
    """Returns the expected name of each band, empty if it has none."""
    known = {name.lower() for name in expected}
    return [next((name for name in names if name in known), "") for names in info.names]


def _by_default(info: RasterInfo, expected: list[str]) -> bool:
    described = any(description in expected for description, _ in info.names)
    return not described and tuple(meaning for _, meaning in info.names[:3]) == _DEFAULT
