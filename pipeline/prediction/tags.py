"""Tags in the files of a map. Each holds the record of how it was made, see `provenance`."""

import contextlib
import hashlib
import html
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pyogrio
import rasterio
import rasterio.errors
from PIL import Image

from d2ls import storage
from d2ls.errors import StorageError
from d2ls.scratch import scratch_folder

MAP_TAG = "d2ls_map"
"""Tag of all files that belong to a map. In a JPEG it is the comment, in text a comment of this name."""

MOSAIC_TAG = "d2ls_mosaic"
"""Tag of a virtual raster of tiles."""

TABLE_TAG = "d2ls_table"
"""Name of the comment in a Markdown table that holds the SHA-256 of the CSV file of the same name."""


def comment(provenance: str, **more: str) -> str:
    """Formats tags for a comment in XML or Markdown, which must not hold two hyphens in a row."""
    tags = {MAP_TAG: provenance, **more}
    return " ".join(f"{name}={value}" for name, value in tags.items()).replace("--", "\\u002d\\u002d")


def read_tags(uri: Path | str) -> dict[str, str]:
    """Reads the tags of a file; empty if there are none, or if it cannot be read."""
    suffix = Path(uri).suffix.lower()
    try:
        if suffix in (".tif", ".tiff", ".vrt"):
            return _of_raster(uri)
        if suffix == ".gpkg":
            return _of_geopackage(uri)
        if suffix in (".qml", ".md"):
            return _of_text(storage.read_bytes(uri).decode("utf-8", "replace"))
        if suffix == ".csv":
            return _of_table(str(uri))
        return _of_picture(uri)
    except (OSError, SyntaxError, ValueError, StorageError, rasterio.errors.RasterioError):
        return {}
    except (Image.DecompressionBombError, pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError):
        return {}


def _of_raster(uri: Path | str) -> dict[str, str]:
    remote = {} if storage.is_local(uri) else {"opener": storage.open_input}
    with quiet_gdal(), rasterio.open(uri if remote else storage.local_path(uri), **remote) as file:
        return dict(file.tags())


def _of_picture(uri: Path | str) -> dict[str, str]:
    with storage.open_input(uri) as stream, Image.open(stream) as image:
        tags = {str(key): str(value) for key, value in image.info.items()}
        text = image.info.get("comment", b"")
        return {**tags, MAP_TAG: text.decode("utf-8", "replace")} if text else tags


def _of_geopackage(uri: Path | str) -> dict[str, str]:
    if storage.is_local(uri):
        return dict(pyogrio.read_info(storage.local_path(uri), layer=0)["dataset_metadata"] or {})
    with scratch_folder("tags") as folder:
        storage.download(str(uri), folder / "copy.gpkg")
        return _of_geopackage(folder / "copy.gpkg")


def _of_text(text: str) -> dict[str, str]:
    match = re.search(rf"<!-- {MAP_TAG}=(\{{.*\}})(?: {TABLE_TAG}=(\w+))? -->", text)
    if match is None:
        return {}
    return {MAP_TAG: html.unescape(match[1]), TABLE_TAG: match[2] or ""}


def _of_table(uri: str) -> dict[str, str]:
    """Returns the tags of a CSV file. It cannot hold tags, so they are in the Markdown table beside it."""
    tags = read_tags(f"{uri.rpartition('.')[0]}.md")
    same = hashlib.sha256(storage.read_bytes(uri)).hexdigest() == tags.get(TABLE_TAG)
    return {MAP_TAG: tags[MAP_TAG]} if same else {}


@contextlib.contextmanager
def quiet_gdal() -> Iterator[None]:
    """Silences the warning about rasters without a georeference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield
