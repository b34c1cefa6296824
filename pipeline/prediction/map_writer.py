"""Writes label maps: cloud-optimised GeoTIFF with colour table and class names, PNG, class probabilities.

Files are written under a temporary name beside the target, read back, and then renamed.
"""

import contextlib
import json
import shutil
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.errors
import rasterio.shutil
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rasterio.windows import Window

from d2ls import storage
from d2ls.errors import ConfigError, StorageError
from d2ls.labels import IGNORE, ClassTable
from d2ls.scratch import atomic_write
from pipeline.prediction.rows import Rows, realigned
from sharding.raster import GDAL_CACHE_BYTES, MAX_WHOLE_PIXELS
from sharding.raster.scene import Georeference

PROBABILITY_STEPS = 250
"""Probabilities are stored as 0..250 with scale 1/250; 255 is nodata."""

_AUX_MARK = "d2ls_class_names"
_TILE = 512
_LITTLE = 64 * 2**20  # a disk with fewer free bytes counts as nearly full
_COG = {"COMPRESS": "DEFLATE", "BLOCKSIZE": str(_TILE), "BIGTIFF": "IF_SAFER"}


@dataclass(frozen=True)
class Layout:
    """Shape and georeference of a raster to write."""

    height: int
    width: int
    georeference: Georeference
    tags: dict[str, str]


def write_labels(
    target: Path, rows: Rows, layout: Layout, classes: ClassTable, *, workspace: Path | None = None
) -> None:
    """Writes a label map as GeoTIFF (`.tif`) or palette PNG (`.png`).

    Args:
        target: local file; replaced if it exists.
        rows: class ids and 255.
        layout: size, georeference, tags.
        classes: names and colours.
        workspace: folder on the same disk for unfinished files; None: beside the target.

    Raises:
        ConfigError: another suffix, or too large for a PNG.
        StorageError: it cannot be written; nothing is left behind.
    """
    suffix = target.suffix.lower()
    if suffix == ".png":
        _write_png(target, rows, layout, classes, workspace)
        return
    if suffix not in (".tif", ".tiff"):
        raise ConfigError(f"{target}: label maps are written as .tif or .png, not {suffix!r}")
    tags = {**layout.tags, "classes": json.dumps(classes.to_json())}

    def describe(file: Any) -> None:
        file.write_colormap(1, color_map(classes))
        file.set_band_description(1, "class")
        file.update_tags(**tags)

    storage.write_bytes(aux_file(target), _categories(classes).encode())
    with _named(target):
        _write_cog(target, rows, layout, 1, describe, workspace)


def write_steps(
    target: Path, rows: Rows, layout: Layout, names: Sequence[str], *, workspace: Path | None = None
) -> None:
    """Writes bands of quantised probabilities (0..250 and 255) as GeoTIFF; see `write_labels`.

    Args:
        target: local file; replaced if it exists.
        rows: steps, bands h W (h W for one band).
        layout: size, georeference, tags.
        names: of the bands.
        workspace: folder on the same disk for unfinished files; None: beside the target.

    Raises:
        StorageError: it cannot be written; nothing is left behind.
    """

    def describe(file: Any) -> None:
        for index, name in enumerate(names, 1):
            file.set_band_description(index, name)
        file.scales = (1 / PROBABILITY_STEPS,) * len(names)
        file.update_tags(**layout.tags)

    with _named(target):
        _write_cog(target, rows, layout, len(names), describe, workspace)


def quantize(probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Turns probabilities (K h W) into steps; 255 where the label map (h W) has no data."""
    steps = np.rint(probabilities * PROBABILITY_STEPS).clip(0, PROBABILITY_STEPS).astype(np.uint8)
    steps[..., labels == IGNORE] = IGNORE
    return steps


def color_map(classes: ClassTable) -> dict[int, tuple[int, int, int, int]]:
    """Returns the colour table of a label raster: classes opaque, 255 transparent, the rest black."""
    table = dict.fromkeys(range(256), (0, 0, 0, 255))
    for index, (red, green, blue) in enumerate(classes.palette):
        table[index] = (red, green, blue, 255)
    table[IGNORE] = (0, 0, 0, 0)
    return table


def aux_file(target: Path) -> Path:
    """Returns the sidecar file in which GDAL keeps the class names of a raster."""
    return target.with_name(target.name + ".aux.xml")


def is_our_aux_file(content: bytes) -> bool:
    """Returns whether this program wrote a sidecar of class names; GDAL keeps the mark when it changes the file."""
    return f'<MDI key="{_AUX_MARK}">'.encode() in content


def _write_cog(
    target: Path, rows: Rows, layout: Layout, bands: int, describe: Any, workspace: Path | None
) -> None:
    """Writes a plain tiled TIFF first: GDAL makes the cloud-optimised layout only from a finished file."""
    profile = {
        "driver": "GTiff", "height": layout.height, "width": layout.width, "count": bands, "dtype": "uint8",
        "nodata": IGNORE, **_place(layout.georeference), "tiled": True, "blockxsize": _TILE, "blockysize": _TILE,
        "compress": "deflate", "zlevel": 1, "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    with _gdal(), atomic_write(target, folder=workspace, sync=False) as final:
        plain = final.with_name(f"{final.name}.plain.tmp")
        try:
            with rasterio.open(plain, "w", **profile) as file:
                expected = _write_rows(file, rows, layout, bands)
                describe(file)
            _copy(plain, final)
            if expected != _checksum(final):
                raise StorageError(f"{target}: the written file does not read back equal; is the disk full?")
        finally:
            for leftover in (plain, aux_file(plain), aux_file(final)):
                leftover.unlink(missing_ok=True)


def _place(georeference: Georeference) -> dict[str, Any]:
    """Returns rasterio's arguments for the georeference: transform or ground control points, and CRS."""
    if georeference.gcps and not georeference.placed:
        return {"crs": georeference.gcps_crs, "gcps": list(georeference.gcps)}
    placed = {"transform": georeference.transform} if georeference.placed else {}
    return {"crs": georeference.crs, **placed}


def _copy(plain: Path, final: Path) -> None:
    try:
        rasterio.shutil.copy(plain, final, driver="COG", OVERVIEW_RESAMPLING="NEAREST", **_COG)
    except Exception as error:  # GDAL's own errors, whose classes are in a private module of rasterio
        raise OSError(str(error)) from error


def _write_rows(file: Any, rows: Rows, layout: Layout, bands: int) -> int:
    """Writes pieces aligned to tiles; returns the checksum of all pixels in the order of `_checksum`."""
    checksum = written = 0
    for top, block in realigned(rows, _TILE):
        block = block.reshape(bands, -1, layout.width)
        file.write(block, window=Window(0, top, layout.width, block.shape[1]))
        checksum = zlib.crc32(block.tobytes(), checksum)
        written = top + block.shape[1]
    if written != layout.height:
        raise StorageError(f"{file.name}: {written} of {layout.height} rows came")
    return checksum


def _checksum(path: Path) -> int:
    checksum = 0
    with rasterio.open(path) as file:
        for top in range(0, file.height, _TILE):
            height = min(_TILE, file.height - top)
            checksum = zlib.crc32(file.read(window=Window(0, top, file.width, height)).tobytes(), checksum)
    return checksum


def _write_png(target: Path, rows: Rows, layout: Layout, classes: ClassTable, workspace: Path | None) -> None:
    if layout.height * layout.width > MAX_WHOLE_PIXELS:
        raise ConfigError(
            f"{target}: {layout.height} x {layout.width} pixels is too much for a PNG; write a .tif instead"
        )
    labels = np.concatenate([block for _, block in rows])
    image = Image.fromarray(labels)
    notes = PngInfo()
    for key, value in layout.tags.items():
        notes.add_text(key, value)
    colors = np.zeros((256, 3), np.uint8)
    colors[: classes.num_classes] = classes.palette
    image.putpalette(colors.tobytes())
    save_image(target, image, workspace, transparency=IGNORE, pnginfo=notes)


def save_image(target: Path, image: Image.Image, workspace: Path | None = None, **options: Any) -> None:
    """Saves a picture, complete or not at all; the suffix decides the format."""
    file_format = Image.registered_extensions()[target.suffix.lower()]
    with _named(target), atomic_write(target, folder=workspace, sync=False) as partial:
        image.save(partial, file_format, **options)


def _categories(classes: ClassTable) -> str:
    names = "".join(f"      <Category>{escape(name)}</Category>\n" for name in classes.names)
    return (
        '<PAMDataset>\n  <PAMRasterBand band="1">\n    <CategoryNames>\n'
        f"{names}    </CategoryNames>\n  </PAMRasterBand>\n"
        f'  <Metadata domain="D2LS">\n    <MDI key="{_AUX_MARK}">1</MDI>\n  </Metadata>\n</PAMDataset>\n'
    )


@contextlib.contextmanager
def _gdal() -> Iterator[None]:
    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES, GDAL_NUM_THREADS="1"), warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


@contextlib.contextmanager
def _named(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, rasterio.errors.RasterioError) as error:
        raise StorageError(
            f"{target}: cannot be written: {error.__cause__ or error}{_space(target)}"
        ) from error


def _space(target: Path) -> str:
    """Returns a hint if the disk is (nearly) full, which GDAL's messages do not mention."""
    try:
        free = shutil.disk_usage(target.parent).free
    except OSError:
        return ""
    return f" (the disk is nearly full: {free / 2**20:.1f} MiB left)" if free < _LITTLE else ""
