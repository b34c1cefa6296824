"""Recipe sections `data` and `shards`: raw data set, tiling, codec, and where the shards are."""

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.base import Section


class ClassConfig(Section):
    """One class of one's own data."""

    name: str
    color: tuple[int, int, int]
    """Display colour; with `codes` unset also its colour in the label images."""
    codes: tuple[int | tuple[int, int, int], ...] | None = None
    """Raw ids or colours that mean this class."""
    scored: bool = True


class TilingConfig(Section):
    """How scenes are cut."""

    size: Annotated[int, Field(ge=32)] | None = None
    """Side of a square tile in pixels; unset: scenes stay whole."""
    stride: Annotated[int, Field(ge=1)] | None = None
    """Unset: the size."""
    padding: Literal["zero", "mirror"] = "zero"


class CodecConfig(Section):
    """How images are stored; masks are always lossless PNG."""

    name: Literal["png", "webp", "jpg", "tif"] = "png"
    quality: Annotated[int, Field(ge=1, le=100)] | None = None


class DataConfig(Section):
    """The raw data set."""

    source: str
    """loveda, uavid, potsdam, vaihingen, cloud, grass or custom."""
    root: str = "data"
    """Folder (or archive) of the raw data."""
    protocol: Literal["clean", "paper"] = "clean"
    options: dict[str, Any] = {}
    """Further options of the source."""
    tiling: dict[str, TilingConfig] = {}
    """A tiling a split; `default` for those not named."""
    codec: CodecConfig = CodecConfig()
    license: str = "unknown"


class ShardsConfig(Section):
    """Where the shards are."""

    uri: str
    """Folder or object store prefix."""
    target_mb: Annotated[float, Field(gt=0)] = 128.0
    """Size of a shard in megabytes."""
