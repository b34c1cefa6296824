"""Readers of raw data sets, opened by name. To add one, write a file in this folder and name it in `SOURCES`."""

import importlib
from pathlib import Path
from typing import Any, cast

from d2ls.errors import ConfigError, nearest
from sharding.sources.base import Protocol, Scene, Source

__all__ = ["SOURCES", "Protocol", "Scene", "Source", "open_source"]

SOURCES = {
    "loveda": ("sharding.sources.loveda", "LoveDA"),
    "uavid": ("sharding.sources.uavid", "UAVid"),
    "potsdam": ("sharding.sources.potsdam", "Potsdam"),
    "vaihingen": ("sharding.sources.vaihingen", "Vaihingen"),
    "cloud": ("sharding.sources.cloud", "Cloud"),
    "grass": ("sharding.sources.grass", "Grass"),
    "custom": ("sharding.sources.custom", "Custom"),
}
"""Module and class of each name in recipes."""


def open_source(
    name: str,
    root: str | Path,
    *,
    protocol: str = "clean",
    check_archives: bool = True,
    follow_links: bool = False,
    **options: Any,
) -> Source:
    """Makes the reader of a data set, without reading any file.

    Args:
        name: one of `SOURCES`.
        root: folder or archive with the raw data.
        protocol: `clean` or `paper`.
        check_archives: compare archives with their published MD5 sums.
        follow_links: accept links that lead out of the root.
        **options: options of this source.

    Raises:
        ConfigError: unknown source, protocol or option, or an impossible value.
    """
    if name not in SOURCES:
        raise ConfigError(f"data.source: no source {name!r}. {nearest(name, SOURCES)}")
    if protocol not in ("clean", "paper"):
        raise ConfigError(f"data.protocol: {protocol!r} is neither clean nor paper")
    module, kind = SOURCES[name]
    access = {"check_archives": check_archives, "follow_links": follow_links}
    reader = getattr(importlib.import_module(module), kind)
    return cast(Source, reader(root, cast(Protocol, protocol), access, **options))
