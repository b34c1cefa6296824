"""Checks the code on the pages: parses commands, validates recipes, runs Python.

A block says what it is by the info string of its fence. `python` runs in a small world, or only compiles where
`<!-- not run: REASON -->` stands above it; `yaml` is a recipe, a part of one, or a class map; `text` is no code. All
others, also indented ones, are lines for a shell: our commands are parsed by their own parsers, with the recipe and the
keys they name; programs of others have to be known. Commands and keys within a sentence are held to the same.
"""

import ast
import functools
import importlib
import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import nbformat
import numpy as np
import pydantic
import pytest
import torch
import yaml
from markdown_it import MarkdownIt

from d2ls.errors import ConfigError
from pipeline import cli
from pipeline.__main__ import COMMANDS
from pipeline.config import Recipe, load_recipe
from pipeline.config.base import nested_section
from pipeline.config.recipe import RECIPES, check_key
from pipeline.evaluation.class_map import ClassMap
from tests.inference_stubs import tiny_bundle
from tests.shards import CLASSES, make_shards

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOREIGN = {
    "aws", "cd", "cp", "curl", "export", "git", "kubectl", "sed", "source",
    "gdal_translate", "gdalbuildvrt", "gdalwarp", "ogr2ogr",
    "mlflow", "pip", "ray",
}  # fmt: skip
"""Programs of others: of the shell, GDAL, MLflow, pip and Ray. Cluster tests run those of Ray."""


class Block(NamedTuple):
    """A block of code on a page, or a piece of it within a sentence (kind `inline`)."""

    place: str
    kind: str
    text: str
    not_run: str = ""

    def __str__(self):
        return self.place


def blocks_of(page):
    reader = MarkdownIt("commonmark").enable("table")
    above = ""
    for token in reader.parse(page.read_text()):
        place = f"{page.relative_to(ROOT)}:{token.map[0] + 1}" if token.map else ""
        if token.type in ("fence", "code_block"):
            reason = re.search(r"<!-- not run: (.+?) -->", above, re.DOTALL)
            yield Block(place, token.info.split(" ")[0], token.content, reason[1] if reason else "")
        for child in token.children or ():
            if child.type == "code_inline":
                yield Block(place, "inline", child.content)
        above = token.content if token.type == "html_block" else ""


def blocks_of_notebook(file):
    """Yields the cells for a shell and the files that cells write."""
    for number, cell in enumerate(nbformat.read(file, 4).cells, 1):
        first, _, rest = cell.source.partition("\n")
        kind = {"%%bash": "bash", "%%writefile my.yaml": "yaml"}.get(first)
        if kind:
            yield Block(f"{file.relative_to(ROOT)}:{number}", kind, rest)


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
BLOCKS += blocks_of_notebook(ROOT / "examples" / "own_images.ipynb")
INLINE = [block for block in BLOCKS if block.kind == "inline"]
PYTHON = [block for block in BLOCKS if block.kind == "python"]
SHELL = [block for block in BLOCKS if block.kind in ("", "bash")]


def test_each_block_says_what_it_is():
    known = {"python", "yaml", "text", "mermaid", "bash", "", "inline"}
    assert [str(block) for block in BLOCKS if block.kind not in known] == []
    assert len(SHELL) > 40
    assert len(PYTHON) > 4


# Commands


class Parsed(Exception):  # noqa: N818
    """Raised with the parsed arguments of a command, instead of running it."""


@pytest.fixture
def parse(monkeypatch):
    """Returns a function that parses a command line of ours and checks the recipe that it names."""
    original = cli._Parser.parse_args

    def stop(self, args=None, namespace=None):
        raise Parsed(original(self, args, namespace))

    monkeypatch.setattr(cli._Parser, "parse_args", stop)
    monkeypatch.chdir(ROOT)

    def parsed(module, words):
        try:
            importlib.import_module(f"pipeline.{module}").main(words)
        except Parsed as options:
            (values,) = options.args
        recipe = getattr(values, "recipe", None)
        if recipe:
            known = Path(recipe).is_file() or (RECIPES / f"{recipe}.yaml").is_file()
            load_recipe(recipe if known else "own", getattr(values, "overrides", ()))
        return values

    return parsed


def command_lines(text):
    """Yields the words of each command of a shell text, also of a command in another one (`ray job submit`)."""
    text = re.sub(r"<<'END'(.*?)\n.*?\nEND$", r"\1", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\$\(.*\)", "VALUE", text)
    for line in text.replace("\\\n", " ").splitlines():
        words = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word in ("&&", "|", "--") and words:
                yield words
                words = []
            elif word not in ("&&", "|") and (words or not re.match(r"\w+=", word)):
                words.append(word)


def check_options(script, words):
    """Fails where a script does not name an option."""
    text = script.read_text()
    assert [word for word in words if word.startswith("--") and f'"{word}"' not in text] == []


def check_command(words, parse, dev):
    """Fails if a command does not get past its parser."""
    program, *rest = words
    if program in ("python", "python3") and rest[0] == "-m":
        if rest[1].startswith("pipeline."):
            parse(rest[1].removeprefix("pipeline."), rest[2:])
        else:
            module = importlib.util.find_spec(rest[1])
            assert module, f"no module {rest[1]}"
            if rest[1].startswith("benchmarks."):
                check_options(Path(module.origin), rest)
    elif program == "d2ls":
        parse(COMMANDS[rest[0]][0], rest[1:])
    elif program == "dev.py" or rest[:1] == ["dev.py"]:
        dev(rest if program == "dev.py" else rest[1:])
    elif program in ("python", "python3") and rest[0].endswith(".py"):
        check_options(ROOT / rest[0], rest)
    else:
        assert program in FOREIGN or program == "python", (
            f"{program}: name it in FOREIGN, or mark the block as text"
        )


@pytest.fixture
def dev(monkeypatch):
    """Returns a function that parses arguments of dev.py and returns the command lines they stand for."""
    spec = importlib.util.spec_from_file_location("d2ls_dev", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "set_up", lambda: None)
    monkeypatch.setattr(module, "run_all", lambda lines: lines)

    def run(words):
        monkeypatch.setattr("sys.argv", ["dev.py", *words])
        return module.main()

    return run


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_are_parsed_by_their_own_parsers(block, parse, dev):
    for words in command_lines(block.text):
        check_command(words, parse, dev)


OURS = re.compile(r"(python3? -m (pipeline|benchmarks|tests)\.|d2ls [a-z]|(python3 )?dev\.py [a-z])")


def test_commands_within_sentences_are_parsed_too(parse, dev):
    commands = {block.text: block for block in INLINE if OURS.match(block.text)}
    assert len(commands) > 20
    for text, block in commands.items():
        for words in command_lines(text):
            if len(words) < 4 and words[:2] == ["python", "-m"]:  # the name of a command, not a call
                assert importlib.util.find_spec(words[2]), block
            elif len(words) > 2 or words[0] != "d2ls":
                check_command(words, parse, dev)
            else:
                assert words[1] in COMMANDS, block


def head_of(file):
    """Returns the docstring of a script, or the comments of a recipe."""
    if file.suffix == ".py":
        return ast.get_docstring(ast.parse(file.read_text())) or ""
    return "\n".join(line[1:] for line in file.read_text().splitlines() if line.startswith("#"))


def test_commands_at_the_head_of_scripts_and_recipes_are_parsed(parse, dev):
    folders = {"docs": "*.py", "examples": "*.py", "benchmarks": "*.py", "recipes": "**/*.yaml"}
    count = 0
    for file in (file for folder, glob in folders.items() for file in (ROOT / folder).glob(glob)):
        for line in head_of(file).replace("\\\n", " ").splitlines():
            command = re.match(r" *((?:python3? (?:-m )?[\w./]+|d2ls [a-z-]+)(?: \S+)*)(?:  |$)", line)
            if command and (OURS.match(command[1]) or ".py" in command[1]):
                count += 1
                for words in command_lines(re.sub(r"[\[\]](?=\s|-|$)", "", command[1])):
                    check_command(words, parse, dev)
    assert count > 40


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_the_help_are_parsed(name, parse, dev, capsys):
    module = COMMANDS[name][0]
    text = importlib.import_module(f"pipeline.{module}").EXAMPLES
    for words in command_lines(text):
        check_command(words, parse, dev)


def test_an_option_that_does_not_exist_is_noticed(parse, dev, capsys):
    with pytest.raises(SystemExit):
        check_command(shlex.split("python -m pipeline.shard loveda --strict"), parse, dev)
    with pytest.raises(ConfigError, match="epoch: no such key"):
        check_command(shlex.split("d2ls train my.yaml train.epoch=3"), parse, dev)
    for words in (["python", "benchmarks/head.py"], ["python", "-m", "benchmarks.scale"]):
        check_command(words, parse, dev)
        with pytest.raises(AssertionError, match="--strict"):
            check_command([*words, "--strict"], parse, dev)
    with pytest.raises(AssertionError, match="name it in FOREIGN"):
        check_command(["docker", "run"], parse, dev)


# Recipes


def fields():
    """Yields name and field of all keys of all sections."""

    def of(section):
        for name, field in section.model_fields.items():
            yield name, field
            for inner in sections_in(field.annotation):
                yield from of(inner)

    return of(Recipe)


def sections_in(annotation):
    inner = nested_section(annotation)
    if inner:
        return [inner]
    return [result for part in getattr(annotation, "__args__", ()) for result in sections_in(part)]


FIELDS = list(fields())
NAMES = {name for name, _ in FIELDS}


def is_part_of_a_recipe(values):
    """Returns whether each key is one of a recipe, with a value that it may have."""
    return all(
        any(fits(field, value) for name, field in FIELDS if name == key) for key, value in values.items()
    )


def fits(field, value):
    model = pydantic.create_model("Part", part=(field.rebuild_annotation(), ...))
    try:
        model.model_validate_json(json.dumps({"part": value}), strict=True)
    except pydantic.ValidationError:
        return False
    return True


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "yaml"], ids=str)
def test_yaml_is_valid_and_comments_in_it_name_keys(block, tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(block.text)
    values = yaml.safe_load(block.text)
    if {"name", "data", "shards"} <= set(values):
        load_recipe(file)
    elif set(values) == {"model", "shards"}:
        ClassMap.read(str(file))
    else:
        assert is_part_of_a_recipe(values)
    for key in re.findall(r"^ *# (\w+):", block.text, re.MULTILINE):
        assert key in NAMES


def test_keys_within_sentences_exist_and_take_the_values_shown():
    sections = "|".join(
        name for name, field in Recipe.model_fields.items() if nested_section(field.annotation)
    )
    dotted = re.compile(rf"(?:{sections})(?:\.[a-z_]+)+(?==|$)")
    keys, wrong = 0, []
    for block in INLINE:
        key = dotted.match(block.text)
        if key and not key[0].endswith((".json", ".onnx", ".safetensors", ".txt")):
            keys += 1
            try:
                check_key(key[0])
            except ConfigError as error:
                wrong.append(f"{block.place}: {error}")
        elif (
            re.match(r"[a-z_]+: \S", block.text) and "docs/cluster" not in block.place
        ):  # there: of Ray's files
            name = block.text.partition(":")[0]
            if name in NAMES and not is_part_of_a_recipe(yaml.safe_load(block.text)):
                wrong.append(f"{block.place}: {block.text}")
    assert "\n".join(wrong) == ""
    assert keys > 40


# Python


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Names that the blocks use: shards, a model, images and a rank, with small objects in place of large ones."""
    folder = tmp_path_factory.mktemp("world")
    make_shards(folder / "shards", [4, 4])
    make_shards(folder / "shards", [2], split="val")
    tiny_bundle(folder / "model", CLASSES)
    names = {
        "rank": 0, "ranks": 1, "first_epoch": 0, "epochs": 1, "first_step": 0,
        "image": np.zeros((70, 90, 3), np.uint8),
        "images": torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
    }  # fmt: skip
    exchanged = {
        "s3://bucket/loveda": str(folder / "shards"),
        "models:/d2ls-loveda@champion": str(folder / "model"),
        "models:/d2ls-demo@champion": str(folder / "model"),
        "crop_size=512": "crop_size=32",
        "(512, 512, 3)": "(70, 90, 3)",
        "workers=4": "workers=0",
        "convnext_base": "test_convnext",
    }
    return names, exchanged


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles_resolves_and_runs(block, world):
    names, exchanged = world
    tree = ast.parse(block.text)
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {
                alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names
            }
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
    for node in ast.walk(tree):
        root, *attributes = ast.unparse(node).split(".") if isinstance(node, ast.Attribute) else [""]
        if root in modules:
            functools.reduce(getattr, attributes, modules[root])
    if not block.not_run:
        text = block.text
        for long, short in exchanged.items():
            text = text.replace(long, short)
        exec(compile(text, block.place, "exec"), dict(names))
