"""Recipe sections `data` and `shards`: raw data set, tiling, codec, and where the shards are."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.base import Section

Byte = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Byte, Byte, Byte]
Code = Annotated[int, Field(ge=-(2**31), le=2**32 - 1)] | Color
"""A raw label: an id, or a colour (red, green, blue)."""


def _word(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return "nan" if str(value).lower() == "nan" else value


Ignored = Annotated[Code | Literal["nan", "transparent"], BeforeValidator(_word)]
"""A raw label, NaN (of float label images), or pixels with an alpha of 0."""


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""One text, or a list of them."""


Range = tuple[float, float]


class ClassConfig(Section):
    """A class of custom data."""

    name: str
    """Shown in reports, in legends and in the shards' card."""
    color: Color
    """Display colour. If `label_values` is unset, also the colour of the class in the label images."""
    label_values: tuple[Code, ...] | None = None
    """Raw ids or colours that mean this class."""
    scored: bool = True
    """Whether the means (mIoU, mean F1) count this class; it is trained and listed anyway."""


def _value_texts(value: Any) -> Any:
    """Spells attribute values as `sharding.raster.vectors.value_text` does."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple("null" if v is None else str(v).lower() if isinstance(v, bool) else str(v) for v in values)


Values = Annotated[tuple[str, ...], BeforeValidator(_value_texts)]
"""One attribute value, or a list of them: texts, numbers, `null`."""


class LayerConfig(Section):
    """A layer of labels drawn as polygons, lines or points."""

    files: Texts
    """Globs below `data.root`: GeoPackage, GeoJSON, Shapefile or FlatGeobuf."""
    layer: str | None = None
    """Layer of the file; unset: the only one."""
    attribute: str | None = None
    """Attribute whose values are the classes."""
    values: dict[str, Values] = {}
    """Attribute values of each class. For a class that is not listed, the value is its name."""
    class_name: str | None = None
    """In place of `attribute`: all features are of this class."""
    ignored: Values = ()
    """Attribute values that are neither trained on nor scored; `null` for a missing one."""
    buffer_m: Annotated[float, Field(gt=0)] | None = None
    """Distance in metres around lines and points that gets their label; unset: lines and points are refused."""
    crs: str | None = None
    """CRS of files that name none, e.g. `EPSG:25832`."""
    encoding: str | None = None
    """Encoding of the texts of a Shapefile that does not name it, e.g. `cp1252`."""


class VectorsConfig(Section):
    """Labels drawn as polygons, lines or points. The keys of a single layer may stand here, without `layers`."""

    layers: Annotated[tuple[LayerConfig, ...], Field(min_length=1)]
    """Drawn in this order, later ones over earlier ones."""
    background: str | None = None
    """Class of pixels that no feature covers; unset: they are ignored."""
    order: Texts = ()
    """Classes in the order in which they are drawn, the lowest first; unset: the order of the features."""
    order_by: str | None = None
    """Attribute whose ascending values are the order in which features are drawn."""
    all_touched: bool = False
    """Label every pixel that a feature touches, not only those whose centre it covers."""

    @model_validator(mode="before")
    @classmethod
    def _single_layer(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        own = {key: value for key, value in values.items() if key in cls.model_fields}
        layers = values.get("layers", [{key: value for key, value in values.items() if key not in own}])
        return {**values, "layers": tuple(layers)} if "layers" in own else {**own, "layers": tuple(layers)}


class AreaConfig(Section):
    """Polygons of the labelled ground; everything else is ignored."""

    files: Texts
    """Globs below `data.root`, as of `vectors`."""
    layer: str | None = None
    """Layer of the file; unset: the only one."""
    crs: str | None = None
    """CRS of files that name none."""


class BlocksConfig(Section):
    """Square blocks of ground, each in one split."""

    size_m: Annotated[float, Field(gt=0)]
    """Side of a block in metres."""
    buffer_m: Annotated[float, Field(ge=0)] = 0.0
    """Metres between splits that are neither trained on nor scored."""
    fractions: dict[str, Annotated[float, Field(gt=0, le=1)]] | None = None
    """Share of the labelled pixels for each split; unset with `fold`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides between blocks that fit equally well."""


class FoldConfig(Section):
    """Fold k of n is the split test, the next one val, the others train."""

    k: Annotated[int, Field(ge=1)]
    """Fold that is `test`, from 1 to n."""
    n: Annotated[int, Field(ge=3)]
    """Number of folds."""


class SplitConfig(Section):
    """Division of custom scenes into splits; give one of folders, scenes, lists, fractions, areas, blocks or fold."""

    folders: dict[str, Texts] | None = None
    """Globs of image paths below the root for each split, e.g. `train: ["train/*"]`; images under `unused` are left
    out."""
    scenes: dict[str, Texts] | None = None
    """Names (or globs) of scenes for each split; scenes under `unused` are left out."""
    lists: dict[str, Texts] | None = None
    """Text files below the root for each split, with one image per line, e.g. `train: train.txt`; images in no file are
    left out."""
    fractions: dict[str, Annotated[float, Field(gt=0, le=1)]] | None = None
    """Share of the scenes for each split; the shares add up to 1. Scenes are never divided."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of `fractions` and `fold`."""
    areas: str | None = None
    """Attribute of the polygons of `area` that names the split of each."""
    blocks: BlocksConfig | None = None
    """Blocks of ground: one image may lie in several splits."""
    fold: FoldConfig | None = None
    """Cross-validation over scenes or, with `blocks`, over blocks."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = ("folders", "scenes", "lists", "fractions", "areas", "blocks", "fold")
        given = [name for name in ways if getattr(self, name)]
        if len(given) != 1 and given != ["blocks", "fold"]:
            raise ValueError(f"give one of {', '.join(ways)}; given: {', '.join(given) or 'none'}")
        if self.blocks and bool(self.blocks.fractions) == bool(self.fold):
            raise ValueError("blocks need one of blocks.fractions and fold")
        for fractions in (self.fractions, self.blocks.fractions if self.blocks else None):
            if fractions and abs(sum(fractions.values()) - 1) > 1e-6:
                raise ValueError(f"fractions add up to {sum(fractions.values()):g}, they must add up to 1")
        return self


class CustomConfig(Section):
    """Custom data: its files, classes and split."""

    images: Texts
    """Globs below `data.root`; `*` stays within a folder, `**` does not; `{tif,png}` is either."""
    masks: Texts = ()
    """Globs with as many wildcards as `images`: an image and a label image belong together if the wildcards match the
    same text. A file that matches both is a label image. Unset: all labels are `vectors`."""
    vectors: VectorsConfig | None = None
    """Labels of the images that have no label image."""
    area: AreaConfig | None = None
    classes: Annotated[tuple[ClassConfig, ...], Field(min_length=1)]
    """The classes; class ids follow this order."""
    split: SplitConfig
    ignored: tuple[Ignored, ...] = ()
    """Raw labels that are neither trained on nor scored; `nan` for NaN, `transparent` for pixels with an alpha of 0."""
    unused: Texts = ()
    """Globs of images and label images that are left out, e.g. images without labels."""
    scene: str | None = None
    """What a scene is: `file`, `folder`, or a regular expression on the image's path whose first group is the name of
    the scene. A scene stays in one split. Unset: not known."""
    bands: tuple[str, ...] = ("red", "green", "blue")
    """Names of the channels in the image files, in their order."""
    band_order: Literal["refuse", "names", "positions"] = "refuse"
    """If `bands` and the names in a file (descriptions, colour interpretation) differ: refuse the file, take bands by
    the names in the file, or take them by position."""
    nodata: Annotated[float, Field(allow_inf_nan=True)] | None = None
    """Value of pixels without data (in all bands), in addition to the nodata tags of the files. These pixels are
    ignored."""
    align: Literal["refuse", "resample", "ignore"] = "refuse"
    """If image and label image are georeferenced to different grids of the same ground: refuse them, take the label at
    the centre of each image pixel, or pair pixels as they are stored."""
    page: Annotated[int, Field(ge=1)] | None = None
    """Page of TIFF files of several pages that holds the image, from 1."""


class TilingConfig(Section):
    """Cutting of scenes into tiles."""

    size: Annotated[int, Field(ge=32)] | None = None
    """Side of a square tile in pixels; unset: scenes stay whole."""
    stride: Annotated[int, Field(ge=1)] | None = None
    """Distance between neighbouring tiles in pixels; unset: the size."""
    padding: Literal["zero", "mirror"] = "zero"
    """Image content beyond the edge; labels there are always ignored."""
    edge: Literal["shift", "pad", "drop"] = "shift"
    """The last tile if tiles do not fit evenly: moved back inside, extended over the edge, or left out."""

    @model_validator(mode="after")
    def _no_gaps(self) -> Self:
        if self.stride is not None and (self.size is None or self.stride > self.size):
            raise ValueError(
                f"stride {self.stride} must not exceed size {self.size}: pixels would be left out"
            )
        return self


class CodecConfig(Section):
    """Codec of images; masks are always lossless PNG."""

    name: Literal["png", "webp", "jpg", "tif"] = "tif"
    """`tif`: in blocks, so that a crop decodes only what it needs. `webp` is lossless. `png` and `jpg` files that are
    tiles already are kept unchanged."""
    quality: Annotated[int, Field(ge=1, le=100)] | None = None
    """Quality of jpg; unset: 95."""
    level: Annotated[int, Field(ge=0, le=22)] | None = None
    """Effort of png (0 to 9), webp (0 to 6) or zstd (1 to 22)."""
    compression: Literal["none", "zstd"] = "none"
    """Compression of tif."""


class DataConfig(Section):
    """The raw data set."""

    source: str
    """loveda, uavid, potsdam, vaihingen, cloud, grass or custom."""
    root: str = "data"
    """Folder (or archive) of the raw data."""
    protocol: Literal["clean", "paper"] = "clean"
    """`clean`: nothing is selected on the test split; `paper`: splits and tiles as in the released scripts."""
    options: dict[str, Any] = {}
    """Options of a benchmark's reader, e.g. `{imagery: IRRG}` of potsdam."""
    custom: CustomConfig | None = None
    """Description of custom data; only with `source: custom`."""
    tiling: dict[str, TilingConfig] = {}
    """A tiling per split; `default` for splits that are not named."""
    codec: CodecConfig = CodecConfig()
    splits: tuple[str, ...] = ()
    """Splits to make; empty: all."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training samples that a training uses, drawn with `seed`; a larger share contains the smaller ones.
    The shards and the statistics in their card stay those of all samples."""
    bands: tuple[str, ...] = ()
    """Channels to take, in this order; empty: all."""
    max_value: Annotated[float, Field(gt=0)] | None = None
    """Pixel value that stands for 1.0; unset: 255 or 65535. For float and signed images: the same as `scale: [0,
    max_value]`."""
    scale: Range | tuple[Range, ...] | None = None
    """For float and signed images (reflectance, radar, heights): the values that stand for dark and bright. The network
    clips values outside. One pair, or a pair for each channel that is used."""
    ground_sampling_distance: Annotated[float, Field(gt=0)] | None = None
    """Metres per pixel; unset: the value of the source."""
    treat_as_ignored: tuple[Code, ...] = ()
    """Raw labels outside the definition of the data set that are ignored instead of refused; the card counts them."""
    check_archives: bool = True
    """Compare archives with their published MD5 sums."""
    follow_links: bool = False
    """Accept symbolic links that lead out of the root."""
    license: str = ""
    """Licence of the data, for the card and the registry; empty: the licence that the source names."""

    @model_validator(mode="after")
    def _custom_has_its_section(self) -> Self:
        if (self.source == "custom") != (self.custom is not None):
            raise ValueError(
                "source: custom needs the section data.custom"
                if self.custom is None
                else f"the section data.custom goes with source: custom, not with {self.source}"
            )
        return self


class ShardsConfig(Section):
    """Location and size of the shards."""

    uri: str
    """Folder or object store prefix."""
    target_mb: Annotated[float, Field(gt=0)] = 64.0
    """Approximate size of a shard in megabytes."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the order of the scenes in the shards."""
