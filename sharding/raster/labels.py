"""Label images as raw ids or colours: one band, a palette, ids as equal red, green and blue, with or without alpha."""

from typing import Any

import numpy as np
import numpy.typing as npt

from d2ls.errors import DataError
from d2ls.window import Window
from sharding.raster.base import Raster

MAX_BANDS = 4
"""Bands of a label image: grey, grey and alpha, red green blue, red green blue alpha."""


def read_labels(raster: Raster, window: Window | None, *, colors: bool) -> npt.NDArray[Any]:
    """Reads raw labels.

    Args:
        raster: the label image.
        window: part of it; None: all.
        colors: labels are colours, not ids.

    Returns:
        Ids (h w, any real type) or colours (h w 3, uint8). An alpha channel (or a mask of the file, as one) that is not
        opaque everywhere is appended: h w 2 (id, alpha) or h w 4.

    Raises:
        DataError: bands that are not labels, or a damaged file.
    """
    return without_opaque(read_with_alpha(raster, window, colors=colors), colors=colors)


def without_opaque(raw: npt.NDArray[Any], *, colors: bool) -> npt.NDArray[Any]:
    """Removes an alpha channel that is opaque everywhere from what `read_with_alpha` returns."""
    if raw.ndim == 2 or raw.shape[2] == 3 or (raw[..., -1] != _opaque(raw.dtype)).any():
        return raw
    return raw[..., :3] if colors else raw[..., 0]


def read_with_alpha(raster: Raster, window: Window | None, *, colors: bool) -> npt.NDArray[Any]:
    """As `read_labels`, but the alpha channel of a file that has one is always appended."""
    info = raster.info
    raw: npt.NDArray[Any]
    if not colors and (info.palette or info.bands == 1):
        raw = raster.indices(window)
    else:
        raw = raster.pixels(window)
        if colors and (raw.shape[2] not in (3, 4) or raw.dtype != np.uint8):
            raise DataError(f"{raster.ref}: {needs_colors(info.bands, info.dtype)}")
        if not colors:
            raw = _grey(raster, raw, window or Window(0, 0, *raw.shape[:2]))
    mask = raster.mask(window)
    if mask is None:
        return raw
    alpha = np.where(mask, _opaque(raw.dtype), 0).astype(raw.dtype)
    return (
        np.stack([raw, alpha], axis=-1) if raw.ndim == 2 else np.concatenate([raw, alpha[..., None]], axis=-1)
    )


def needs_colors(bands: int, dtype: str) -> str:
    """Returns the error message for a label image without colours."""
    return (
        f"label colours need 8-bit RGB or a palette, this file has {bands} x {dtype}. If it holds ids, give them as "
        "`label_values` in data.custom.classes and data.custom.ignored; otherwise save it as 8-bit RGB"
    )


def needs_ids(bands: int, dtype: str) -> str:
    """Returns the error message for a label image without ids."""
    return (
        f"label ids need one band, this file has {bands} x {dtype}. If it holds colours, give them as "
        "`label_values: [[red, green, blue]]` in data.custom.classes and data.custom.ignored; otherwise save the ids "
        "as one band"
    )


def _grey(raster: Raster, raw: npt.NDArray[Any], window: Window) -> npt.NDArray[Any]:
    """Takes ids out of equal bands (h w bands; if their number is even, the last one is alpha)."""
    bands = raw[..., :-1] if raw.shape[2] in (2, 4) else raw
    if bands.shape[2] > 1:
        differ = (bands != bands[..., :1]).any(axis=2)
        if raw.shape[2] > MAX_BANDS or differ.any():
            row, column = np.argwhere(differ)[0].tolist() if differ.any() else (0, 0)
            values = tuple(bands[row, column].tolist())
            raise DataError(
                f"{raster.ref}: {needs_ids(raster.info.bands, raster.info.dtype)}. The bands differ: {values} "
                f"at row {row + window.row} column {column + window.column}"
            )
    return bands[..., 0] if bands is raw else np.stack([bands[..., 0], raw[..., -1]], axis=-1)


def _opaque(dtype: np.dtype[Any]) -> int:
    return int(np.iinfo(dtype).max) if dtype.kind in "iu" else 1
