"""`d2ls COMMAND ...`, or `python -m pipeline COMMAND ...`: all commands under one name."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from d2ls.errors import nearest
from pipeline.cli import COMPLETING, run_command

COMMANDS = {
    "doctor": ("doctor", "check machine, cluster, MLflow, shards; show how to fix problems"),
    "shard": ("shard", "raw images and labels to shards"),
    "train": ("train", "train one network"),
    "sweep": (
        "sweep",
        "shards, trials, final training, evaluation, registry in one; the demo without a recipe",
    ),
    "evaluate": ("evaluate", "score a model on a split"),
    "register": ("register", "put the model of a run into the registry"),
    "promote": ("promote", "make a registered model the champion if it scores better"),
    "predict": ("predict", "map images with a model"),
    "export": ("export", "write a model as ONNX"),
    "import-published": ("import_published", "turn a checkpoint of the authors' code into a model"),
}
"""Command to its module below `pipeline`, and what it does; in the order of work."""

HELP = """\
usage: d2ls COMMAND [OPTION ...]      the same as python -m pipeline.COMMAND

From images to maps, in the order of work:

{commands}

d2ls COMMAND --help shows options and examples. First try:

  d2ls sweep                                    the demo: makes its own data, ends with a registered model
  d2ls predict models:/d2ls-demo@champion IMAGE.tif MAP.tif

Your own data: copy recipes/own.yaml, name your files and classes, then

  d2ls shard my.yaml --check                    read every file, list all problems, write nothing
  d2ls sweep my.yaml
"""


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Runs a command with the arguments that follow its name."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if COMPLETING in os.environ:
        words = [command_to_complete()]
    if not words or words[0] in ("-h", "--help"):
        print(help_text(), end="")  # noqa: T201
        return 0
    name, *rest = words
    if name not in COMMANDS:
        print(f"error: {name}: no such command. {nearest(name, COMMANDS)}", file=sys.stderr)  # noqa: T201
        return 2
    command = importlib.import_module(f"pipeline.{COMMANDS[name][0]}")
    status: int | None = command.main(rest)
    return status


def command_to_complete() -> str:
    """Returns the command whose arguments the shell wants to complete. If that is the name of a command, completes it
    and exits.
    """
    words = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])].split(" ")
    if len(words) > 2 and words[1] in COMMANDS:
        os.environ[COMPLETING] = "2"  # the command's parser sees the words behind its name
        return words[1]
    import argcomplete

    names = argparse.ArgumentParser(add_help=False)
    names.add_argument("command", choices=COMMANDS)
    argcomplete.autocomplete(names, exit_method=sys.exit)
    sys.exit(1)


def help_text() -> str:
    """Returns the help with all commands."""
    width = max(map(len, COMMANDS))
    return HELP.format(
        commands="\n".join(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())
    )


def script() -> None:
    """Entry point of the script `d2ls`."""
    run_command(main)


if __name__ == "__main__":
    script()
