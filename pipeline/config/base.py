"""Base of all recipe sections: frozen, strict, with errors that name the key and tell what to do."""

import difflib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Self

import pydantic
from pydantic import BaseModel, ConfigDict
from pydantic_core import ErrorDetails

from d2ls.errors import ConfigError, nearest
from pipeline.renamed import new_key

Scalar = bool | int | float | str


class Section(BaseModel):
    """A frozen part of a recipe; unknown keys and wrong types are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """Validates plain values, as YAML or JSON give them.

        Args:
            values: nested dictionaries, lists and scalars.
            where: what to name in the error, usually the recipe file.

        Raises:
            ConfigError: lists every wrong key with what is allowed and the nearest right spelling.
        """
        try:
            text = json.dumps(values)
        except TypeError as error:
            raise ConfigError(f"{where}: a value has a type that recipes do not support: {error}") from error
        try:
            return cls.model_validate_json(text)
        except pydantic.ValidationError as error:
            lines = [
                f"  {explain(cls, detail, json.loads(text))}" for detail in error.errors(include_url=False)
            ]
            raise ConfigError("\n".join([f"{where}: {len(lines)} wrong value(s)", *lines])) from error


def known_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Lists all dotted keys below a section class."""
    keys = []
    for name, info in section.model_fields.items():
        nested = nested_section(info.annotation)
        keys.extend(known_keys(nested, f"{prefix}{name}.") if nested else [prefix + name])
    return keys


def explain(root: type[BaseModel], detail: ErrorDetails, values: Any) -> str:
    """Turns one pydantic error of some values into a line: the key, the problem, the allowed values."""
    location = _keys(detail, values)
    key = ".".join(str(part) for part in location) or "recipe"
    if detail["type"] == "extra_forbidden":
        new = new_key(key)
        return f"{key}: is now {new}" if new else f"{key}: no such key. {_suggest(root, location)}"
    if detail["type"] == "missing":
        return f"{key}: missing, and it has no default"
    message = detail["msg"].removeprefix("Value error, ")
    given = detail["input"]
    shown = "" if isinstance(given, dict) and len(given) > 3 else f" (got {given!r})"
    return f"{key}: {message[:1].lower()}{message[1:]}{shown}"


def _suggest(root: type[BaseModel], location: Sequence[str | int]) -> str:
    here: type[BaseModel] | None = root
    for part in location[:-1]:
        info = here.model_fields.get(str(part)) if here else None
        here = nested_section(info.annotation) if info else None
    wrong = str(location[-1])
    local = list(here.model_fields) if here else []
    if difflib.get_close_matches(wrong, local, n=1, cutoff=0.6):
        return nearest(wrong, local)
    elsewhere = [key for key in known_keys(root) if key.rsplit(".", 1)[-1] == wrong]
    if elsewhere:
        return f"Did you mean {' or '.join(elsewhere)}?"
    return nearest(wrong, local)


def nested_section(annotation: Any) -> type[BaseModel] | None:
    """Returns the section class in an annotation such as `Section` or `Section | None`."""
    candidates = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else (annotation,)
    )
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)


def _keys(detail: ErrorDetails, values: Any) -> list[str | int]:
    """Returns the location of an error without the branches of unions that pydantic tried (`int`, `Section`)."""
    keys: list[str | int] = []
    for part in detail["loc"]:
        known = range(len(values)) if isinstance(values, list) else values if isinstance(values, dict) else ()
        if part in known:
            values = values[part]
            keys.append(part)
    return [*keys, detail["loc"][-1]] if detail["type"] == "missing" else keys
