"""Reads the YAML of recipes and overrides, with limits on the expansion of aliases."""

import re
from typing import Any

import yaml

from d2ls.errors import ConfigError

MAX_CHARACTERS = 2**20
"""Longest YAML text that is read, in characters; recipes have a few thousand."""

MAX_VALUES = 100_000
"""Largest number of values of a text with its aliases (`*name`) expanded."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number (YAML 1.1 wants 1.0e-4), dates as text, and refuses a key given twice."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Names the place of a value that looks like a number and is none, such as 0b_."""
        try:
            return super().construct_object(node, deep)
        except ConfigError:
            raise
        except (ValueError, LookupError, AttributeError) as error:
            kind = node.tag.rpartition(":")[2]
            words = f"{node.value!r} looks like a value of the type {kind} and is none; a text needs quotes"
            raise yaml.constructor.ConstructorError(None, None, words, node.start_mark) from error


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _unique_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            raise ConfigError(
                f"key {key!r} is given twice, the second time in line {key_node.start_mark.line + 1}"
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(text: str, *, where: str) -> Any:
    """Reads one YAML document into plain values.

    Args:
        text: the document.
        where: what to name in errors: the file, or the override.

    Raises:
        ConfigError: not YAML, a key given twice, too long, nested too deeply, an alias inside of itself, or aliases
            that expand to more than `MAX_VALUES` values.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(
            f"{where}: {len(text):,} characters of YAML; at most {MAX_CHARACTERS:,} are read. Is it a recipe?"
        )
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if (count := _expanded(node, {}, where)) > MAX_VALUES:
            raise ConfigError(
                f"{where}: its aliases (*name) expand to {count:,} values; at most {MAX_VALUES:,} are read. "
                "Write the values out, or use fewer aliases"
            )
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not a readable YAML text: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply; flatten it") from error
    except TypeError as error:  # a list or mapping as a key
        raise ConfigError(f"{where}: a key must be a plain value: {error}") from error
    except ConfigError as error:
        words = str(error)
        raise ConfigError(words if words.startswith(where) else f"{where}: {words}") from error
    finally:
        if loader:
            loader.dispose()


def _expanded(node: yaml.Node, known: dict[int, int], where: str) -> int:
    """Counts the values of a node with all aliases expanded; each distinct node is visited once."""
    if (count := known.get(id(node))) is not None:
        if not count:
            raise ConfigError(f"{where}: an alias in line {node.start_mark.line + 1} contains itself")
        return count
    known[id(node)] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    known[id(node)] = 1 + sum(_expanded(child, known, where) for child in children)
    return known[id(node)]
