"""Which bands of a file are the wanted ones: one rule for sharding and prediction.

1. Where the file names all wanted bands (by description or by colour interpretation), they are taken by name.
2. Else, where the file has as many bands as are wanted, with or without its alpha channel, they are taken in order,
   unless a name that the file gives contradicts that order.
3. Else there is no safe choice.
"""

from collections.abc import Sequence
from typing import Literal

from sharding.raster.base import RasterInfo

BandOrder = Literal["refuse", "names", "positions"]
"""Where a recipe's band order and a file's names differ: refuse the file, follow its names, or ignore them."""

_DEFAULT = ("red", "green", "blue")
"""What writers tag three bands with unasked, also where they hold something else (near infrared, red, green)."""


def find_bands(info: RasterInfo, wanted: Sequence[str]) -> tuple[int, ...] | None:
    """Applies the rule; returns positions from 0, or None where there is no safe choice."""
    named = bands_by_name(info, wanted)
    if named is not None:
        return named
    plain = bands_in_order(info, wanted)
    return None if plain is None or contradiction(info, wanted) else plain


def bands_by_name(info: RasterInfo, wanted: Sequence[str]) -> tuple[int, ...] | None:
    """Returns the positions of the wanted bands by their names in the file, None unless each has just one.

    Descriptions that name all of them go before colour interpretation, which writers set unasked.
    """
    lower = [name.lower() for name in wanted]
    for names in ([description for description, _ in info.names], _effective(info, wanted)):
        if all(names.count(name) == 1 for name in lower):
            return tuple(names.index(name) for name in lower)
    return None


def bands_in_order(info: RasterInfo, wanted: Sequence[str]) -> tuple[int, ...] | None:
    """Returns the positions of the bands, with or without alpha, where they are as many as are wanted."""
    if info.bands == len(wanted):
        return tuple(range(info.bands))
    colors = tuple(band for band in range(info.bands) if band != info.alpha)
    return colors if len(colors) == len(wanted) else None


def contradiction(info: RasterInfo, wanted: Sequence[str]) -> str:
    """Says where the names in the file contradict the order of the wanted bands; empty where they do not."""
    plain = bands_in_order(info, wanted)
    names = _effective(info, wanted)
    lower = [name.lower() for name in wanted]
    if plain is None or (bands_by_name(info, wanted) is None and _by_default(info, lower)):
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


def _effective(info: RasterInfo, wanted: Sequence[str]) -> list[str]:
    """Name of each band in the words of the wanted ones; empty where it is none of them."""
    known = {name.lower() for name in wanted}
    return [next((name for name in names if name in known), "") for names in info.names]


def _by_default(info: RasterInfo, wanted: list[str]) -> bool:
    described = any(description in wanted for description, _ in info.names)
    return not described and tuple(meaning for _, meaning in info.names[:3]) == _DEFAULT
