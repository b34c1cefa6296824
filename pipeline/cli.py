"""Shared by all commands: parsing of `RECIPE key.sub=value`, quiet start-up, errors without a traceback."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2ls.errors import D2LSError
from pipeline import renamed
from pipeline.compute import set_up_process

if TYPE_CHECKING:
    from pipeline.config import Recipe
    from pipeline.config.train import ClusterConfig


COMPLETING = "_ARGCOMPLETE"
"""Environment variable by which a shell asks for completions, through argcomplete."""


class _Parser(argparse.ArgumentParser):
    """Takes options and `key.sub=value` in any order: `RECIPE --name a train.epochs=3`."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses arguments as `argparse` does, positional ones anywhere; a RECIPE with a default may be left out."""
        if COMPLETING in os.environ:
            import argcomplete

            argcomplete.autocomplete(self, exit_method=sys.exit)
        known = self._option_string_actions
        for word in sys.argv[1:] if args is None else args:
            option = word.partition("=")[0]
            new = renamed.OPTIONS.get(option)
            if new in known and option not in known:
                self.error(f"{option} is now {new}")
        options = self.parse_intermixed_args(args, namespace)
        for name in ("name", "resume", "force"):
            if getattr(options, name, None) == "":  # "$NAME" of a shell where it is not set
                self.error(f"argument --{name}: the text is empty")
        default, recipe = self.get_default("recipe"), getattr(options, "recipe", None)
        is_file = os.path.isfile(recipe or "")  # noqa: PTH113  # Path.is_file raises for long overrides
        if default and recipe and ("=" in recipe or recipe[0] == "@") and not is_file:
            options.recipe, options.overrides = default, [recipe, *options.overrides]
        if any(override.startswith("@") for override in getattr(options, "overrides", None) or ()):
            from pipeline.config.recipe import expand_files

            options.overrides = expand_files(options.overrides)
        return options


def parser(command: str, description: str, examples: str) -> argparse.ArgumentParser:
    """Makes a parser whose help shows examples.

    Args:
        command: module name, as typed after `python -m`.
        description: what it does, in a sentence or two.
        examples: command lines with a comment each, shown as they are.
    """
    short = command.removeprefix("pipeline.").replace("_", "-")
    return _Parser(
        prog=f"d2ls {short}" if Path(sys.argv[0]).name == "d2ls" else f"python -m {command}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_recipe(arguments: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """Adds the positional `RECIPE key.sub=value ...` that all recipe-driven commands take."""
    recipe: Any = arguments.add_argument(
        "recipe",
        nargs="?" if default else None,
        default=default,
        metavar="RECIPE",
        help="recipe file, or the name of one in recipes/" + (f" (default: {default})" if default else ""),
    )
    overrides: Any = arguments.add_argument(
        "overrides",
        nargs="*",
        default=[],  # else argparse calls it required where RECIPE is missing
        metavar="key.sub=value",
        help="change any key of the recipe, e.g. train.epochs=10 (values are YAML); @FILE sets all keys in a YAML file",
    )
    recipe.completer, overrides.completer = _complete_recipe, _complete_key


def _complete_recipe(prefix: str, **_: Any) -> list[str]:
    from argcomplete.completers import FilesCompleter

    from pipeline.config.recipe import recipe_names

    return [*recipe_names(), *FilesCompleter(("yaml", "yml"))(prefix)]


def _complete_key(**_: Any) -> list[str]:
    from pipeline.config.base import known_keys
    from pipeline.config.recipe import Recipe

    return [f"{key}=" for key in known_keys(Recipe)]


def add_workers(arguments: argparse.ArgumentParser) -> None:
    """Adds `--workers` and `--address`: where a model is scored."""
    arguments.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of Ray workers, of the recipe's size, to score on (default: score in this process)",
    )
    arguments.add_argument(
        "--address", help="Ray cluster to score on, with the recipe's workers unless --workers is given"
    )


def add_tracking_uri(arguments: argparse.ArgumentParser) -> None:
    """Adds `--tracking-uri`: the store in which models are looked up."""
    arguments.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)",
    )


def scoring_cluster(recipe: "Recipe", workers: int | None, address: str | None) -> "ClusterConfig | None":
    """Returns the recipe's Ray workers with the changes of the command line; None if it names neither.

    Raises:
        ConfigError: not a possible number of workers.
    """
    if workers is None and address is None:
        return None
    return recipe.cluster.changed(workers, address)


def warn(sentences: Iterable[str]) -> None:
    """Prints warnings to the error stream."""
    for words in sentences:
        print(f"warning: {words}", file=sys.stderr)  # noqa: T201


def _give_up_output() -> None:
    """Drops what cannot be written, after `| head` or on a full disk: Python would try again when it ends."""
    try:
        print(end="", flush=True)  # noqa: T201
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command: quiet libraries, clear errors, exit status 0, 1 (error) or 130 (interrupted)."""
    set_up_process()
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        status = main()
        print(end="", flush=True)  # noqa: T201
    except (D2LSError, OSError) as error:
        if os.environ.get("D2LS_TRACEBACK"):
            raise
        _give_up_output()
        hint = "" if isinstance(error, D2LSError) else " (D2LS_TRACEBACK=1 shows where)"
        print(f"error: {error}{hint}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    sys.exit(status or 0)
