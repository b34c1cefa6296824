"""`python -m pipeline.evaluate MODEL --shards URI --split S`: exact scores of trained models on a split."""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2ls import storage
from d2ls.errors import ConfigError, D2LSError, DataError
from pipeline.cli import parser, run_command
from pipeline.config import Recipe, load_recipe
from pipeline.config.predict import EvaluateConfig
from pipeline.config.train import ClusterConfig

if TYPE_CHECKING:
    from d2ls.bundle import ModelInfo
    from d2ls.inference import Segmenter
    from d2ls.inference.scoring import SampleCounts
    from d2ls.loader import Batch, EvaluationLoader
    from d2ls.shards import DatasetCard, ShardSet
    from pipeline.evaluation.result import Evaluation as Evaluation

SHARES_PER_WORKER = 8

DESCRIPTION = (
    "Scores trained models on a split of a shard set: every labelled pixel once, the same numbers for any number of "
    "workers. Several models are set side by side. A MODEL of the registry gets the report attached."
)
EXAMPLES = """\
  python -m pipeline.evaluate models:/d2ls-loveda@champion --shards shards/loveda --split val
  python -m pipeline.evaluate models:/d2ls-loveda/3 models:/d2ls-loveda/4 --shards shards/loveda --split val
  python -m pipeline.evaluate runs/demo-final --recipe demo                     shards and report split of a recipe
  python -m pipeline.evaluate runs/demo-final --recipe demo cluster.workers=4   on four Ray workers
  python -m pipeline.evaluate runs/demo-final --recipe demo evaluate.augmentation=flips --output report
"""


def evaluate(
    model: str,
    shards_uri: str,
    split: str,
    *,
    batch_size: int = 4,
    augmentation: str = "none",
    bootstrap: int = 1000,
    cluster: ClusterConfig | None = None,
    decoders: int = 0,
    seed: int = 0,
    tracking_uri: str | None = None,
    show: bool = False,
) -> "Evaluation":
    """Evaluates a model.

    Samples larger than the training window are cut into windows of that size, edge to edge, as in the selection
    during training.

    Args:
        model: anything that `pipeline.load_model` takes.
        shards_uri: shard set.
        split: name of the split.
        batch_size: samples the network sees together.
        augmentation: preset of test-time augmentation.
        bootstrap: resamplings over scenes for the intervals; 0 turns them off.
        cluster: Ray workers to spread the work over; None stays in this process.
        decoders: decoding processes beside this one; without effect on Ray workers, who decode themselves.
        seed: of the bootstrap.
        tracking_uri: MLflow store of `models:/` and `runs:/`.
        show: whether to show on the error stream how far it is.

    Raises:
        ConfigError: the model knows other classes than the shards.
        DataError: the model takes other bands or pixel types.
        ShardError: no such shards or split.
    """
    from d2ls.bundle import read_info
    from d2ls.shards import ShardSet
    from pipeline.console import step_progress
    from pipeline.evaluation.result import Evaluation
    from pipeline.models import fetch_model

    started = time.monotonic()
    settings = {"augmentation": augmentation, "batch_size": batch_size}
    with fetch_model(model, tracking_uri=tracking_uri) as folder:
        info = read_info(folder, where=model)
        shards = ShardSet.open(shards_uri)
        check_fit(model, info, shards.card, shards_uri)
        window = window_for(shards, split, info.window)
        share = _Share(shards_uri, split, batch_size, window, decoders)
        with step_progress(f"scoring {model} on {split}", silent=not show) as told:
            samples = _count(folder, model, settings, share, cluster, told)
    return Evaluation(
        model=model,
        dataset={
            "name": shards.card.name, "source": shards.card.source, "protocol": shards.card.protocol,
            "digest": shards.card.digest,
        },
        split=split,
        classes=shards.card.classes,
        samples=samples,
        settings={**settings, "window": window or "whole samples", "bootstrap": bootstrap},
        seed=seed,
        seconds=time.monotonic() - started,
        seen=info.dataset.get("digest") in (None, "", shards.card.digest),
    )  # fmt: skip


def evaluate_report(
    recipe: Recipe,
    model: str,
    *,
    cluster: ClusterConfig | None = None,
    bootstrap: int | None = None,
    tracking_uri: str | None = None,
) -> "Evaluation":
    """Evaluates a model on a recipe's report split with the recipe's settings; shows how far it is.

    Args:
        recipe: names shards, split and evaluation settings.
        model: anything that `pipeline.load_model` takes.
        cluster: Ray workers to spread the work over; None stays in this process.
        bootstrap: resamplings for the intervals; None: the recipe's.
        tracking_uri: MLflow store of `models:/` and `runs:/`.
    """
    settings = recipe.evaluate
    return evaluate(
        model,
        recipe.shards.uri,
        recipe.roles.report,
        batch_size=settings.batch_size,
        augmentation=settings.augmentation,
        bootstrap=settings.bootstrap if bootstrap is None else bootstrap,
        cluster=cluster,
        tracking_uri=tracking_uri,
        show=True,
    )


def check_fit(model: str, info: "ModelInfo", card: "DatasetCard", where: str) -> None:
    """Refuses a model for other classes, bands or pixel types than the shards hold.

    Raises:
        ConfigError: other classes.
        DataError: other bands or pixel types.
    """
    if info.classes.names != card.classes.names:
        raise ConfigError(
            f"{model} knows the classes {list(info.classes.names)}, {where} holds {list(card.classes.names)}: "
            "scores would mean nothing. Evaluate it on shards of its own classes"
        )
    if info.bands != card.bands or info.dtype != card.dtype:
        raise DataError(
            f"{model} takes bands {list(info.bands)} of {info.dtype}, {where} holds {list(card.bands)} of "
            f"{card.dtype}. Evaluate it on shards that were made with its bands (data.bands, data.custom.bands)"
        )


def window_for(shards: "ShardSet", split: str, window: int) -> int | None:
    """Side of the windows that samples are cut into, None where none is larger than the training window."""
    rows = shards.rows(split)
    sides = [*rows["height"].to_pylist(), *rows["width"].to_pylist()]
    return window if max(sides, default=0) > window else None


class _Share:
    """A rank's part of a split, as plain values."""

    def __init__(self, uri: str, split: str, batch_size: int, window: int | None, decoders: int) -> None:
        self.uri, self.split, self.batch_size, self.window, self.decoders = (
            uri,
            split,
            batch_size,
            window,
            decoders,
        )
        self.rank, self.world_size = 0, 1

    def of(self, rank: int, world_size: int) -> "_Share":
        share = _Share(self.uri, self.split, self.batch_size, self.window, 0)
        share.rank, share.world_size = rank, world_size
        return share


def count_share(
    segmenter: "Segmenter", share: _Share, told: Callable[[int, int], None] | None = None
) -> "list[SampleCounts]":
    """Counts the samples of a rank's part; tells after each batch how many of how many are done."""
    from d2ls.inference.scoring import count_samples, merge
    from d2ls.loader import EvaluationLoader
    from d2ls.shards import ShardSet

    with EvaluationLoader(
        ShardSet.open(share.uri), share.split, batch_size=share.batch_size, rank=share.rank,
        world_size=share.world_size, workers=share.decoders, window=share.window,
    ) as batches:  # fmt: skip
        return merge(count_samples(segmenter, _counted(batches, told) if told else batches))


def _counted(batches: "EvaluationLoader", told: Callable[[int, int], None]) -> "Iterator[Batch]":
    """Yields batches; tells when the one before is dealt with."""
    for done, batch in enumerate(batches):
        told(done, len(batches))
        yield batch


def _count(
    folder: Path,
    model: str,
    settings: dict[str, Any],
    share: _Share,
    cluster: ClusterConfig | None,
    told: Callable[[int, int], None],
) -> "list[SampleCounts]":
    from d2ls.inference.scoring import merge
    from pipeline.models import load_segmenter
    from pipeline.prediction.workers import spread

    if cluster is None:
        return count_share(load_segmenter(folder, where=model, **settings), share, told)
    # Several shares a worker: one that is slow or lost holds up little, and one sees how far it is.
    parts = cluster.worker_range[1] * SHARES_PER_WORKER
    shares = [share.of(rank, parts) for rank in range(parts)]
    found = []
    for done, (_, result) in enumerate(
        spread(count_share, shares, folder, model, settings, cluster), start=1
    ):
        told(done, parts)
        if isinstance(result, D2LSError):
            raise result
        found += result
    return merge(found)


def _parse(argv: list[str] | None) -> tuple[argparse.Namespace, Recipe | None]:
    arguments = parser("pipeline.evaluate", DESCRIPTION, EXAMPLES)
    arguments.add_argument(
        "model", nargs="+", metavar="MODEL",
        help="models:/name@alias, models:/name/version, runs:/id/path, or a run, checkpoint or bundle folder; after "
        "--recipe also key.sub=value",
    )  # fmt: skip
    arguments.add_argument("--shards", metavar="URI", help="shard set (default: the recipe's)")
    arguments.add_argument("--split", help="split to score (default: the recipe's report split)")
    arguments.add_argument("--recipe", help="recipe that says shards, split, evaluation settings and cluster")
    arguments.add_argument(
        "--workers", type=int, help="Ray workers (default: the recipe's, else 1: this process)"
    )
    arguments.add_argument(
        "--augmentation", help="test-time augmentation: none, flips, flips_turns, flips_scales"
    )
    arguments.add_argument("--batch-size", type=int, help="samples together (default: 4)")
    arguments.add_argument(
        "--bootstrap", type=int, help="resamplings for the intervals, 0: none (default: 1000)"
    )
    arguments.add_argument(
        "--store",
        "--tracking-uri",
        dest="tracking_uri",
        metavar="URI",
        help="MLflow store (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)",
    )
    arguments.add_argument(
        "--output", metavar="FOLDER", help="write report.md, report.json and pictures here"
    )
    arguments.add_argument("--overwrite", action="store_true", help="replace a report that is there")
    values = arguments.parse_args(argv)
    overrides = [word for word in values.model if "=" in word and not word.startswith(("models:", "runs:"))]
    values.model = [word for word in values.model if word not in overrides]
    if overrides and not values.recipe:
        raise ConfigError(f"{overrides[0]}: overrides change a recipe; name it with --recipe")
    if not values.model:
        raise ConfigError(
            "no MODEL given; name one before the overrides, for instance models:/d2ls-loveda@champion"
        )
    return values, load_recipe(values.recipe, overrides) if values.recipe else None


def _settings(
    values: argparse.Namespace, recipe: Recipe | None
) -> tuple[str, str, EvaluateConfig, ClusterConfig]:
    shards = values.shards or (recipe.shards.uri if recipe else None)
    split = values.split or (recipe.roles.report if recipe else None)
    if not shards or not split:
        raise ConfigError("name --shards URI and --split NAME, or a --recipe that says both")
    changes = {name: getattr(values, name) for name in ("batch_size", "augmentation", "bootstrap")}
    config = (recipe.evaluate if recipe else EvaluateConfig()).model_dump(mode="json")
    config |= {name: value for name, value in changes.items() if value is not None}
    cluster = (recipe.cluster if recipe else ClusterConfig()).model_dump(mode="json")
    if values.workers is not None:
        cluster["workers"] = values.workers
    return (
        shards, split, EvaluateConfig.parse(config, where="command line"),
        ClusterConfig.parse(cluster, where="command line"),
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Parses, evaluates every model, shows and writes the report."""
    values, recipe = _parse(argv)
    shards, split, config, cluster = _settings(values, recipe)
    from pipeline.evaluation.report import attach, markdown, report_files, write_report

    tracking = values.tracking_uri or (recipe.tracking.uri if recipe else None)
    if values.output:  # what cannot be written is said before the work
        for name in () if values.overwrite else report_files(len(values.model)):
            way = "name another --output, or replace the report with --overwrite"
            storage.check_free(storage.join(values.output, name), way)
        storage.make_folder(values.output)
    from rich.console import Console
    from rich.markdown import Markdown

    workers = cluster if cluster.worker_range[1] > 1 else None
    evaluations = [
        evaluate(
            model, shards, split, batch_size=config.batch_size, augmentation=config.augmentation,
            bootstrap=config.bootstrap, cluster=workers, seed=recipe.seed if recipe else 0, tracking_uri=tracking,
            show=True,
        )
        for model in values.model
    ]  # fmt: skip
    console = Console()
    console.print(Markdown(markdown(evaluations)))
    for evaluation in evaluations:
        if attach(evaluation, tracking):
            console.print(f"report attached to {evaluation.model}")
    if values.output:
        write_report(evaluations, values.output, shards, tracking)
        console.print(f"report in {values.output}")
    return 0


if __name__ == "__main__":
    run_command(main)
