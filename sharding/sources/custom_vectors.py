"""The description of vector labels and areas in a recipe, and its conversion to class ids and files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from d2ls.errors import ConfigError, nearest
from d2ls.labels import IGNORE
from sharding.files import FileRef
from sharding.raster.vector_labels import VectorLabels, VectorLayer
from sharding.raster.vectors import VECTOR_SUFFIXES

KEY = "data.custom.vectors"

Finder = Callable[[Sequence[str], str], list[FileRef]]
"""Finds the files of globs; the second argument is their key, for messages."""


@dataclass(frozen=True)
class CustomLayer:
    """Vector files that are read in the same way.

    Attributes:
        files: globs below the root.
        layer: layer of each file; None: the only one.
        attribute: attribute that holds the class; None: all features are of `class_name`.
        values: class to its attribute values; the value of a class that is not listed is its name.
        class_name: see `attribute`.
        ignored: attribute values that are neither trained on nor scored.
        buffer_m: see `VectorLayer`; also `crs`, `encoding`.
    """

    files: tuple[str, ...]
    layer: str | None = None
    attribute: str | None = None
    values: Mapping[str, Sequence[str]] = field(default_factory=dict)
    class_name: str | None = None
    ignored: tuple[str, ...] = ()
    buffer_m: float | None = None
    crs: str | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if (self.attribute is None) == (self.class_name is None):
            raise ConfigError(
                f"{KEY}: give either attribute (its values are the classes) or class_name (the class of all features)"
            )


@dataclass(frozen=True)
class CustomVectors:
    """Vector labels.

    Attributes:
        layers: in the order in which they are drawn.
        background: class of pixels that no feature covers; None: they are ignored.
        order: class names, later ones over earlier ones; empty: the order of the features decides.
        order_by: attribute whose ascending values decide the order; None: none does.
        all_touched: see `VectorLabels`.
    """

    layers: tuple[CustomLayer, ...]
    background: str | None = None
    order: tuple[str, ...] = ()
    order_by: str | None = None
    all_touched: bool = False


@dataclass(frozen=True)
class CustomArea:
    """Polygons of the labelled ground: globs of files, their layer, and the CRS of files that name none."""

    files: tuple[str, ...]
    layer: str | None = None
    crs: str | None = None


def vector_labels(spec: CustomVectors, classes: Sequence[str], files: Finder) -> VectorLabels:
    """Resolves names of classes and globs of files to class ids and files.

    Raises:
        ConfigError: a class that is not declared, a value of two classes, or no such file.
    """

    def number(name: str, key: str) -> int:
        if name not in classes:
            raise ConfigError(
                f"{KEY}.{key}: no class {name!r} in data.custom.classes. {nearest(name, classes)}"
            )
        return list(classes).index(name)

    layers = [
        VectorLayer(
            file,
            layer.layer,
            layer.attribute,
            _values(layer, classes, number),
            number(layer.class_name, "class_name") if layer.class_name else IGNORE,
            layer.buffer_m,
            layer.crs,
            layer.encoding,
        )
        for layer in spec.layers
        for file in vector_files(layer.files, f"{KEY}.files", files)
    ]
    background = number(spec.background, "background") if spec.background else IGNORE
    order = tuple(number(name, "order") for name in spec.order)
    drawn = [name for name in classes if name != spec.background]
    if order and (len(set(order)) != len(order) or not set(drawn) <= set(spec.order)):
        raise ConfigError(
            f"{KEY}.order: name each class once, the lowest first; classes but the background: {', '.join(drawn)}"
        )
    if order and spec.order_by:
        raise ConfigError(f"{KEY}: give one of order and order_by")
    return VectorLabels(tuple(layers), background, order, spec.order_by or "", spec.all_touched)


def vector_files(globs: Sequence[str], key: str, files: Finder) -> list[FileRef]:
    """Finds vector files.

    Raises:
        ConfigError: none, or a file of another format.
    """
    refs = files(globs, key)
    for ref in refs:
        if ref.suffix not in VECTOR_SUFFIXES:
            raise ConfigError(
                f"{key}: {ref} is no vector file that is read. Formats: {', '.join(VECTOR_SUFFIXES)}"
            )
    return refs


def _values(
    layer: CustomLayer, classes: Sequence[str], number: Callable[[str, str], int]
) -> tuple[tuple[str, int], ...]:
    if layer.attribute is None:
        return ()
    meanings = {name: number(name, "values") for name in layer.values}
    pairs = [(text, index) for name, index in meanings.items() for text in layer.values[name]]
    named = {text for text, _ in pairs} | {*layer.ignored}
    pairs += [
        (name, index) for index, name in enumerate(classes) if name not in layer.values and name not in named
    ]
    values: dict[str, int] = {}
    for text, index in [*pairs, *((text, IGNORE) for text in layer.ignored)]:
        if values.setdefault(text, index) != index:
            names = [classes[k] if k != IGNORE else "ignored" for k in (values[text], index)]
            raise ConfigError(
                f"{KEY}: the value {text!r} has two meanings, {names[0]!r} and {names[1]!r}; take it out of one"
            )
    return tuple(values.items())
