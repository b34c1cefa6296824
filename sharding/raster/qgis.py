"""Styles that QGIS loads automatically: `map.qml` beside a raster, the table `layer_styles` in a GeoPackage.

When QGIS adds a layer, it reads the `.qml` file with the name of the raster, or the row of `layer_styles` in the
GeoPackage whose `useAsDefault` is set.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Comment, Element, SubElement, indent, tostring

import pyarrow as pa
import pyogrio

from d2ls.labels import Color

_VERSION = "3.28"

GPKG_VERSION = {"VERSION": "1.3"}
"""Options of new GeoPackages: GDAL before 3.7, in QGIS 3.22, warns about version 1.4, which GDAL writes now."""


def raster_style(names: Sequence[str], palette: Sequence[Color], comment: str) -> str:
    """Returns the style of a label raster: a palette with names.

    Args:
        names: K class names; the position is the pixel value.
        palette: K colours.
        comment: kept in the file as an XML comment; without two hyphens in a row.
    """
    root = Element("qgis", version=_VERSION, styleCategories="Symbology")
    root.append(Comment(f" {comment} "))
    renderer = SubElement(
        SubElement(root, "pipe"), "rasterrenderer",
        {"type": "paletted", "band": "1", "opacity": "1", "alphaBand": "-1", "nodataColor": ""},
    )  # fmt: skip
    SubElement(renderer, "rasterTransparency")
    entries = SubElement(renderer, "colorPalette")
    for value, (name, (red, green, blue)) in enumerate(zip(names, palette, strict=True)):
        color = f"#{red:02x}{green:02x}{blue:02x}"
        SubElement(entries, "paletteEntry", value=str(value), color=color, alpha="255", label=name)
    return _text(root)


def polygon_style(
    names: Sequence[str], palette: Sequence[Color], attribute: str = "class", opacity: int = 140
) -> str:
    """Returns the style of a polygon layer: a filled symbol for each value of an attribute.

    Args:
        names: K values of the attribute.
        palette: K colours.
        attribute: its name.
        opacity: of the fill, from 0 to 255; outlines are opaque.
    """
    root = Element("qgis", version=_VERSION, styleCategories="Symbology")
    renderer = SubElement(root, "renderer-v2", type="categorizedSymbol", attr=attribute, symbollevels="0")
    categories = SubElement(renderer, "categories")
    symbols = SubElement(renderer, "symbols")
    for number, (name, color) in enumerate(zip(names, palette, strict=True)):
        SubElement(categories, "category", symbol=str(number), value=name, label=name, render="true")
        symbol = SubElement(symbols, "symbol", type="fill", name=str(number), alpha="1")
        layer = SubElement(
            symbol, "layer", {"class": "SimpleFill", "enabled": "1", "pass": "0", "locked": "0"}
        )
        options = SubElement(layer, "Option", type="Map")
        rgb = ",".join(map(str, color))
        values = {
            "color": f"{rgb},{opacity}",
            "style": "solid",
            "outline_color": f"{rgb},255",
            "outline_width": "0.3",
        }
        for key, value in values.items():
            SubElement(options, "Option", type="QString", name=key, value=value)
    return _text(root)


def write_style(path: Path, layer: str, style: str) -> None:
    """Adds the default style of a layer to its GeoPackage."""
    row = {
        "f_table_catalog": "", "f_table_schema": "", "f_table_name": layer, "f_geometry_column": "geom",
        "styleName": layer, "styleQML": style, "styleSLD": "", "useAsDefault": True, "description": "",
        "owner": "", "ui": "", "update_time": datetime.datetime.now(datetime.UTC).replace(tzinfo=None),
    }  # fmt: skip
    table = pa.table({name: [value] for name, value in row.items()})
    pyogrio.write_arrow(
        table, path, layer="layer_styles", driver="GPKG", append=True, layer_options={"FID": "id"}
    )


def _text(root: Element) -> str:
    indent(root)
    document = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
    return document + tostring(root, encoding="unicode") + "\n"
