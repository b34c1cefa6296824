"""Globs of recipes: the files that they match, and the texts that their wildcards match."""

import fnmatch
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from sharding.files import composed

_WILDCARD = re.compile(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])")
_GROUPS = {"**/": "((?:[^/]+/)*)", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}


def expand_braces(glob: str) -> list[str]:
    """Expands braces as a shell does: `*.{tif,png}` is `*.tif` and `*.png`."""
    match = re.search(r"\{([^{}]*,[^{}]*)\}", glob)
    if match is None:
        return [glob]
    head, tail = glob[: match.start()], glob[match.end() :]
    return [whole for option in match[1].split(",") for whole in expand_braces(head + option + tail)]


def compile_glob(glob: str) -> list[re.Pattern[str]]:
    """Returns patterns of whole relative paths, one for each alternative in braces, with a group for each wildcard.

    `*` stays within a folder, `**` does not. The suffix is compared without regard to case: `*.tif` fits `A.TIF`.
    """
    return [re.compile(_rule(part)) for part in expand_braces(composed(glob))]


def fits(path: str, globs: Iterable[str]) -> bool:
    """Returns whether a relative path fits one of the globs; `*` goes across folders here."""
    return any(
        fnmatch.fnmatchcase(_lower_suffix(path), _lower_suffix(part))
        for glob in globs
        for part in expand_braces(composed(glob))
    )


def _rule(glob: str) -> str:
    suffix = PurePosixPath(glob).suffix
    if not suffix or _WILDCARD.search(suffix):
        return _literal(glob)
    return f"{_literal(glob[: -len(suffix)])}(?i:{re.escape(suffix)})"


def _literal(glob: str) -> str:
    parts = _WILDCARD.split(glob)
    return "".join(
        _GROUPS.get(part) or (f"({part})" if part.startswith("[") else re.escape(part)) for part in parts
    )


def _lower_suffix(path: str) -> str:
    suffix = PurePosixPath(path).suffix
    return path[: len(path) - len(suffix)] + suffix.lower()
