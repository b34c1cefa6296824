"""Hooks of the documentation site: the first page is the README, the reference of recipe keys comes from the models.

Links to files outside docs/ point into the repository where `repo_url` is set in mkdocs.yml, else they are plain text.
"""

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s:]+)(#[^)]*)?\)")


def on_files(files, config):
    """Adds the pages that have no file."""
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
        "Generated from the models in `pipeline/config`. Change any key on the command line: `train.epochs=10`.",
    ]
    lines += section_table(Recipe, "")
    return "\n".join(lines) + "\n"


def section_table(section, prefix):
    """Returns the lines of a section and of the sections below it."""
    from pipeline.config.base import nested_section

    values, below = [], []
    for name, field in section.model_fields.items():
        inner = nested_section(field.annotation)
        if inner is not None:
            below += section_table(inner, f"{prefix}{name}.")
            continue
        default = (
            "required" if field.is_required() else f"`{plain(field.get_default(call_default_factory=True))}`"
        )
        meaning = " ".join((field.description or "").split())
        values.append(
            f"| `{prefix}{name}` | {type_text(field)} | {default} | {meaning.replace('|', '&#124;')} |"
        )
    title = prefix.rstrip(".") or "top level"
    about = " ".join((section.__doc__ or "").split("\n\n")[0].split())
    table = ["", f"## {title}", "", about]
    if values:
        table += ["", "| key | type | default | meaning |", "|---|---|---|---|", *values]
    return table + below


def plain(value):
    """Returns a default as YAML would show it."""
    words = {None: "unset", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    return str(value).replace("|", "&#124;")


def type_text(field):
    """Returns a short name of a field's type, with its bounds."""
    text = str(field.annotation).removeprefix("<class '").removesuffix("'>")
    text = re.sub(r"typing\.Literal\[([^\]]*)\]", lambda match: match[1].replace("'", ""), text)
    text = re.sub(r"Annotated\[(\w+), [^\]]*\]\)?\]", r"\1", text)
    text = re.sub(r"[\w.]+\.(\w+)", r"\1", text).replace(" | None", "").replace("NoneType", "")
    bounds = ", ".join(
        f"{sign} {getattr(item, name)}"
        for item in field.metadata
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if getattr(item, name, None) is not None
    )
    return (f"{text}, {bounds}" if bounds else text).replace("|", "&#124;")
