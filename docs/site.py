"""Hooks of the documentation site: the first page is the README, the reference of recipe keys comes from the models.

Links to files outside docs/ point into the repository where `repo_url` is set in mkdocs.yml, else they are plain text.
"""

import posixpath
import re
import sys
import types
import typing
from pathlib import Path

import yaml
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File
from pydantic import BeforeValidator, RootModel

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = "examples/own_images.ipynb"
UNIONS = (typing.Union, types.UnionType)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s:]+)(#[^)]*)?\)")


@event_priority(100)  # before mkdocs-jupyter, which turns notebooks into pages
def on_files(files, config):
    """Adds the pages that are not in docs/."""
    folder, name = posixpath.split(NOTEBOOK)
    files.append(File(name, str(ROOT / folder), config.site_dir, config.use_directory_urls))
    files.append(File.generated(config, "index.md", content=first_page()))
    files.append(File.generated(config, "reference/recipe.md", content=recipe_keys()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Replaces links that leave docs/."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def replaced(match):
        image, text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        if path.startswith("docs/") or image:
            return match[0]
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{page.file.src_uri}: {target} does not exist")
        if path == NOTEBOOK:
            page_folder = posixpath.dirname(page.file.src_uri) or "."
            return f"[{text}]({posixpath.relpath(posixpath.basename(path), page_folder)})"
        return f"[{text}]({config.repo_url}/blob/main/{path}{anchor or ''})" if config.repo_url else text

    return LINK.sub(replaced, markdown)


def first_page():
    """Returns the README with links relative to docs/."""
    text = (ROOT / "README.md").read_text()

    def moved(match):
        image, words, target, anchor = match.groups()
        relative = target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}"
        return f"{image}[{words}]({relative}{anchor or ''})"

    return LINK.sub(moved, text)


def recipe_keys():
    """Returns one table a section of a recipe: key, type, default, meaning."""
    sys.path.insert(0, str(ROOT))
    from pipeline.config import Recipe

    lines = [
        "# Recipe keys",
        "",
        "Generated from the models in `pipeline/config`. Change any key on the command line: `train.epochs=10`. "
        "`<name>` stands for a name of your choice, `[]` for each entry of a list.",
    ]
    lines += section_table(Recipe, "")
    return "\n".join(lines) + "\n"


def section_table(section, prefix, about=""):
    """Returns the lines of a section and of the sections below it."""
    hints = typing.get_type_hints(section, include_extras=True)
    values, below = [], []
    for name, field in section.model_fields.items():
        key, meaning = f"{prefix}{name}", " ".join((field.description or "").split())
        inner, place = inner_section(hints[name])
        if inner is None or place:
            row = [
                f"`{key}`",
                ", ".join([type_text(hints[name]), *bounds(hints[name])]),
                default_text(field),
                meaning,
            ]
            values.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |")
        if inner is not None:
            below += section_table(inner, f"{key}{place}.", "" if place else meaning)
    title = prefix.rstrip(".") or "top level"
    about = f"{' '.join((section.__doc__ or '').split(chr(10) * 2)[0].split())} {about}".rstrip()
    table = ["", f"## {title.replace('<', '&lt;')}", "", about]
    if values:
        table += ["", "| key | type | default | meaning |", "|---|---|---|---|", *values]
    return table + below


def inner_section(annotation):
    """Returns the section class in an annotation, and what stands for its place in a key: nothing, `.<name>`, `[]`."""
    if hasattr(annotation, "model_fields"):
        return annotation, ""
    place = {dict: ".<name>", tuple: "[]"}.get(typing.get_origin(annotation), "")
    for argument in typing.get_args(annotation):
        section, deeper = inner_section(argument)
        if section is not None:
            return section, place + deeper
    return None, ""


def default_text(field):
    """Returns a default as YAML shows it."""
    if field.is_required():
        return "required"
    value = RootModel(field.get_default(call_default_factory=True)).model_dump(
        mode="json", exclude_defaults=True
    )
    if value is None:
        return "unset"
    if value in ("", [], {}):
        return "empty"
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return f"`{text.strip().removesuffix('...').strip()}`"


def type_text(annotation):
    """Returns a type in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        words = type_text(arguments[0])
        lenient = any(isinstance(item, BeforeValidator) for item in arguments[1:])
        return "str or list of str" if lenient and words == "list of str" else words
    if origin is typing.Literal:
        return ", ".join(map(str, arguments))
    if origin in UNIONS:
        return " or ".join(type_text(argument) for argument in arguments if argument is not type(None))
    if origin is tuple:
        number = "list of" if arguments[-1] is Ellipsis else f"{len(arguments)} x"
        return f"{number} {type_text(arguments[0])}"
    if origin is dict:
        return f"mapping of names to {type_text(arguments[1])}"
    if hasattr(annotation, "model_fields"):
        return "mapping"
    return "any" if annotation is typing.Any else annotation.__name__


def bounds(annotation):
    """Returns the bounds of a number, optional or not, or of the numbers in a mapping."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        limits = [limit for item in arguments[1:] for limit in getattr(item, "metadata", [])]
        signs = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        return [
            f"{sign} {getattr(item, name)}" for item in limits for name, sign in signs if hasattr(item, name)
        ]
    return [text for argument in arguments for text in bounds(argument)] if origin in (*UNIONS, dict) else []
