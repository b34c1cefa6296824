"""Joins tiles of one scene in a GDAL virtual raster, so that windows cross their borders and the map has no seams."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import rasterio
import rasterio.errors

from d2ls import storage
from d2ls.errors import ConfigError, DataError
from pipeline.prediction.ground import utm_zone
from pipeline.prediction.inputs import MAP_SUFFIXES, Job, list_images, list_jobs, same_file
from pipeline.prediction.tags import MOSAIC_TAG, quiet_gdal
from sharding.raster.base import Georeference, crs_text
from sharding.raster.gdal import GDAL_SUFFIXES

_TYPE_NAMES = {
    "uint8": "Byte", "int8": "Int8", "uint16": "UInt16", "int16": "Int16", "uint32": "UInt32", "int32": "Int32",
    "float32": "Float32", "float64": "Float64",
}  # fmt: skip

ALIGNED = 0.01
"""Largest distance, in pixels, of a tile from the grid of the first one."""


@dataclass(frozen=True)
class _Tile:
    path: str
    place: Georeference
    height: int
    width: int
    bands: tuple[tuple[str, str, str, float, float], ...]  # type, meaning, description, scale, offset of each
    nodata: tuple[float | None, ...]  # of each band
    masked: bool  # by a mask or an alpha channel, and not by nodata values


def mosaic_job(source: str, target: str) -> Job:
    """Joins the images of a folder or pattern in a virtual raster beside the map; returns the raster and the map.

    Args:
        source: folder or pattern of tiles, local. A single file (also a `.vrt`) is returned unchanged.
        target: the map, a local file.

    Raises:
        ConfigError: the map is not a local file, or is one of the tiles.
        DataError: no tiles, or tiles that do not fit, see `write_mosaic`.
    """
    if Path(source).is_file():
        ((source, target),) = list_jobs(source, target)
        return source, target
    if not (storage.is_local(source) and storage.is_local(target)):
        raise ConfigError("--mosaic: INPUT and OUTPUT are local; copy the tiles first")
    if Path(target).suffix.lower() not in MAP_SUFFIXES:
        raise ConfigError(
            f"{target}: a mosaic gives one map; name it as OUTPUT, for instance {target}/map.tif"
        )
    tiles = list_images(source)
    for tile in tiles:
        if same_file(tile, target):
            raise ConfigError(f"{target}: the map would replace a tile; name another OUTPUT")
    joined = storage.local_path(target).with_suffix(".mosaic.vrt")
    write_mosaic(tiles, joined)
    return str(joined), target


def write_mosaic(tiles: Sequence[str], target: Path) -> None:
    """Writes a virtual raster of tiles; if tiles overlap, the last one by name is on top.

    Args:
        tiles: local georeferenced rasters of one grid.
        target: the `.vrt`. A file with the same content is not written again, so its time is that of the last change.

    Raises:
        DataError: a tile has another grid or other bands; the message tells how to convert it.
        ConfigError: another file is in the place of the virtual raster.
    """
    described = [_tile(path) for path in sorted(tiles)]
    for tile in described[1:]:
        _require_same_grid(described[0], tile)
    content = _document(described, target.parent).encode()
    if target.exists():
        there = target.read_bytes()
        if there == content:
            return
        if f'<MDI key="{MOSAIC_TAG}">'.encode() not in there:
            raise ConfigError(f"{target}: exists and is not of this program; move it, or name another OUTPUT")
    storage.write_bytes(target, content)


def _tile(path: str) -> _Tile:
    if not storage.is_local(path) or Path(path).suffix.lower() not in GDAL_SUFFIXES:
        raise DataError(f"{path}: tiles of a mosaic are local files of {', '.join(GDAL_SUFFIXES)}")
    try:
        with quiet_gdal(), rasterio.open(path) as file:
            place = Georeference.of(file)
            meanings = [meaning.name for meaning in file.colorinterp]
            if not place.placed or not place.crs:
                raise DataError(
                    f"{path}: has no georeference or no CRS, so it cannot be a tile of a mosaic. Take it out of INPUT"
                )
            if "palette" in meanings or place.transform.b or place.transform.d:
                raise DataError(
                    f"{path}: colour tables and rotated tiles are not joined; warp them with gdalwarp first"
                )
            flags = {flag.name for band in file.mask_flag_enums for flag in band}
            if unknown := set(file.dtypes) - set(_TYPE_NAMES):
                raise DataError(f"{path}: pixels are {', '.join(sorted(unknown))}, which is not read")
            texts = [description or "" for description in file.descriptions]
            bands = tuple(zip(file.dtypes, meanings, texts, file.scales, file.offsets, strict=True))
            masked = "per_dataset" in flags
            return _Tile(
                path,
                place,
                file.height,
                file.width,
                bands,
                (None,) * file.count if masked else file.nodatavals,
                masked,
            )
    except rasterio.errors.RasterioError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _require_same_grid(first: _Tile, tile: _Tile) -> None:
    """Refuses a tile that is not on the grid of the first one.

    Raises:
        DataError: with the gdalwarp command that converts it.
    """
    a, b = first.place, tile.place
    step_x, step_y = a.transform.a, a.transform.e
    if a.crs != b.crs:
        zones = {place.crs.to_epsg() for place in (a, b)}
        utm = all(code and code // 100 in (326, 327) for code in zones)
        what = "lie in different UTM zones" if utm else "have different CRS"
        target = crs_text(a.crs) if a.crs.is_projected else utm_zone(a, first.height, first.width)
        raise DataError(
            f"{first.path} ({crs_text(a.crs)}) and {tile.path} ({crs_text(b.crs)}) {what}; one map has one. Bring them "
            f"to one: gdalwarp -t_srs {target} -tr {abs(step_x):g} {abs(step_y):g} -tap {tile.path} out.tif"
        )
    off = [(b.transform.c - a.transform.c) / step_x, (b.transform.f - a.transform.f) / step_y]
    scale = [tile.width * (b.transform.a / step_x - 1), tile.height * (b.transform.e / step_y - 1)]
    if max(abs(value) for value in scale) > ALIGNED or max(abs(v - round(v)) for v in off) > ALIGNED:
        raise DataError(
            f"{tile.path}: its pixels do not lie on the grid of {first.path}. Bring all tiles to one: gdalwarp -tr "
            f"{abs(step_x):g} {abs(step_y):g} -tap {tile.path} out.tif"
        )
    if tile.bands != first.bands:
        raise DataError(
            f"{tile.path}: bands {_band_text(tile)}, those of {first.path} are {_band_text(first)}; a mosaic is of "
            "tiles of one kind"
        )
    same = all(map(_same_nodata, tile.nodata, first.nodata))
    if not same or tile.masked != first.masked:
        raise DataError(
            f"{tile.path}: differs from {first.path} in which pixels hold no data ({_nodata_text(tile)} and "
            f"{_nodata_text(first)}); bring them to one with gdal_edit.py -a_nodata"
        )


def _same_nodata(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))


def _band_text(tile: _Tile) -> str:
    texts = []
    for dtype, meaning, description, scale, offset in tile.bands:
        scaled = f"scaled by {scale:g}, {offset:g}" if (scale, offset) != (1, 0) else ""
        texts.append(" ".join(text for text in (dtype, meaning, description, scaled) if text))
    return ", ".join(texts)


def _nodata_text(tile: _Tile) -> str:
    return "a mask" if tile.masked else f"nodata {', '.join(map(str, dict.fromkeys(tile.nodata)))}"


def _document(tiles: list[_Tile], folder: Path) -> str:
    first = tiles[0].place.transform
    offsets = [
        (round((t.place.transform.c - first.c) / first.a), round((t.place.transform.f - first.f) / first.e))
        for t in tiles
    ]
    left, top = (min(offset[axis] for offset in offsets) for axis in (0, 1))
    width = max(column + tile.width for (column, _), tile in zip(offsets, tiles, strict=True)) - left
    height = max(row + tile.height for (_, row), tile in zip(offsets, tiles, strict=True)) - top
    place = first @ rasterio.Affine.translation(left, top)
    root = Element("VRTDataset", rasterXSize=str(width), rasterYSize=str(height))
    SubElement(root, "SRS").text = tiles[0].place.crs.to_wkt()
    SubElement(root, "GeoTransform").text = ", ".join(repr(float(value)) for value in place.to_gdal())
    SubElement(SubElement(root, "Metadata"), "MDI", key=MOSAIC_TAG).text = str(len(tiles))
    placed = [(tile, column - left, row - top) for tile, (column, row) in zip(tiles, offsets, strict=True)]
    for number, (dtype, meaning, description, scale, offset) in enumerate(tiles[0].bands, 1):
        nodata = tiles[0].nodata[number - 1]
        band = SubElement(root, "VRTRasterBand", dataType=_TYPE_NAMES[dtype], band=str(number))
        if nodata is not None:
            SubElement(band, "NoDataValue").text = repr(nodata)
        if meaning != "undefined":
            SubElement(band, "ColorInterp").text = meaning.capitalize()
        if description:
            SubElement(band, "Description").text = description
        if (scale, offset) != (1, 0):
            SubElement(band, "Scale").text, SubElement(band, "Offset").text = repr(scale), repr(offset)
        for tile, column, row in placed:  # pixels without data leave what lies below
            below = 0 if meaning == "alpha" and tile.masked else nodata
            _source(band, tile, str(number), column, row, folder, below, masked=tile.masked)
    if None in tiles[0].nodata:  # pixels between the tiles hold no data
        mask = SubElement(SubElement(root, "MaskBand"), "VRTRasterBand", dataType="Byte")
        for tile, column, row in placed:
            _source(mask, tile, "mask,1", column, row, folder, 0)
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def _source(
    band: Element,
    tile: _Tile,
    number: str,
    column: int,
    row: int,
    folder: Path,
    nodata: float | None,
    *,
    masked: bool = False,
) -> None:
    source = SubElement(band, "SimpleSource" if nodata is None and not masked else "ComplexSource")
    path = storage.local_path(tile.path)
    name = os.path.relpath(path.parent.resolve() / path.name, folder.resolve())  # ".." leads out of links
    SubElement(source, "SourceFilename", relativeToVRT="1").text = name
    SubElement(source, "SourceBand").text = number
    size = {"xSize": str(tile.width), "ySize": str(tile.height)}
    SubElement(source, "SrcRect", {"xOff": "0", "yOff": "0"} | size)
    SubElement(source, "DstRect", {"xOff": str(column), "yOff": str(row)} | size)
    if nodata is not None:
        SubElement(source, "NODATA").text = repr(nodata)
    elif masked:
        SubElement(source, "UseMaskBand").text = "true"
