"""Requests for evaluations, from Python or from the command line."""

from argparse import Namespace
from dataclasses import dataclass

from d2ls.errors import ConfigError
from pipeline.cli import add_tracking_uri, parser
from pipeline.config import Recipe, load_recipe
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.train import ClusterConfig
from pipeline.evaluation.class_map import ClassMap

MIN_PROBABILITY = 0.9
"""Lowest probability of the model's class that contradicts a label."""


@dataclass(frozen=True)
class EvaluateRequest:
    """The request for an evaluation of one model.

    Attributes:
        model: anything that `pipeline.load_model` takes.
        shards_uri: shard set.
        split: name of the split.
        batch_size: samples per forward pass.
        tta: preset of test-time augmentation.
        bootstrap: resamplings over scenes for the intervals; 0 turns them off.
        cluster: Ray workers to spread the work over; None evaluates in this process.
        decoders: decoding processes beside this one; without effect on Ray workers, which decode themselves.
        tracking_uri: MLflow store of `models:/` and `runs:/`.
        temperature: of the probabilities; None: the model's own.
        class_map: for a model of other classes than the shards have.
        boundary_px: distance of boundary IoU and boundary F1 in pixels; None: not computed.
        boundary_m: the same in metres.
    """

    model: str
    shards_uri: str
    split: str
    batch_size: int = 4
    tta: str = "none"
    bootstrap: int = 1000
    cluster: ClusterConfig | None = None
    decoders: int = 0
    tracking_uri: str | None = None
    temperature: float | None = None
    class_map: ClassMap | None = None
    boundary_px: int | None = None
    boundary_m: float | None = None


@dataclass(frozen=True)
class EvaluateCommand:
    """The parsed command line.

    Attributes:
        requests: one per model, all on one split.
        output: folder of the report; None writes none.
        overwrite: replace an existing report.
        tracking_uri: MLflow store.
        suspects: GeoPackage of suspected label errors; None writes none.
        suspect_probability: lowest probability of the model's class in a suspect.
    """

    requests: tuple[EvaluateRequest, ...]
    output: str | None
    overwrite: bool
    tracking_uri: str | None
    suspects: str | None = None
    suspect_probability: float = MIN_PROBABILITY


def parse_command(description: str, examples: str, argv: list[str] | None) -> EvaluateCommand:
    """Parses and checks the command line.

    Raises:
        ConfigError: an impossible value, or no model, shards or split.
    """
    options = _parse(description, examples, argv)
    overrides = [word for word in options.model if "=" in word and not word.startswith(("models:", "runs:"))]
    models = [word for word in options.model if word not in overrides]
    if overrides and not options.recipe:
        raise ConfigError(f"{overrides[0]}: overrides change a recipe; name it with --recipe")
    if not models:
        raise ConfigError(
            "no MODEL given; name one before the overrides, for instance models:/d2ls-loveda@champion"
        )
    recipe = load_recipe(options.recipe, overrides) if options.recipe else None
    shards_uri = options.shards or (recipe.shards.uri if recipe else None)
    split = options.split or (recipe.roles.test if recipe else None)
    if not shards_uri or not split:
        raise ConfigError("name --shards URI and --split NAME, or a --recipe that holds both")
    settings, cluster = _settings(options, recipe)
    tracking_uri = options.tracking_uri or (recipe.tracking.uri if recipe else None)
    class_map = ClassMap.read(options.map_classes) if options.map_classes else None
    if class_map and options.suspects:
        raise ConfigError("--suspects needs a model of the shards' own classes; leave out --map-classes")
    requests = tuple(
        EvaluateRequest(
            model,
            shards_uri,
            split,
            **settings.model_dump(),
            cluster=cluster if cluster.worker_range[1] > 1 else None,
            tracking_uri=tracking_uri,
            class_map=class_map,
        )
        for model in models
    )
    return EvaluateCommand(
        requests,
        options.output,
        options.overwrite,
        tracking_uri,
        options.suspects,
        _suspect_probability(options),
    )


def _suspect_probability(options: Namespace) -> float:
    value: float | None = options.suspect_probability
    if value is None:
        return MIN_PROBABILITY
    if not options.suspects:
        raise ConfigError(f"--suspect-probability {value:g} is about suspects; add --suspects FILE.gpkg")
    if not 0 < value < 1:
        raise ConfigError(f"--suspect-probability {value:g}: give a number between 0 and 1")
    return value


def _parse(description: str, examples: str, argv: list[str] | None) -> Namespace:
    arguments = parser("pipeline.evaluate", description, examples)
    add = arguments.add_argument
    add(
        "model", nargs="+", metavar="MODEL",
        help="models:/name@alias, models:/name/version, runs:/id/path, or a run, checkpoint or bundle folder; after "
        "--recipe also key.sub=value",
    )  # fmt: skip
    add("--shards", metavar="URI", help="shard set (default: the recipe's)")
    add("--split", help="split to score (default: the recipe's test split)")
    add("--recipe", help="recipe that names shards, split, evaluation settings and cluster")
    add("--workers", type=int, help="Ray workers (default: the recipe's, else 1: this process)")
    add("--tta", help="test-time augmentation: none, flips, flips_turns, flips_scales")
    add("--batch-size", type=int, help="samples per forward pass (default: 4)")
    add("--bootstrap", type=int, help="resamplings for the intervals, 0: none (default: 1000)")
    add(
        "--boundary-px",
        type=int,
        metavar="N",
        help="also boundary IoU and F1, within N pixels (default: none)",
    )
    add("--boundary-m", type=float, metavar="M", help="the same, within M metres")
    add_tracking_uri(arguments)
    add("--output", metavar="FOLDER", help="write report.md, report.json and pictures here")
    add(
        "--suspects", metavar="FILE.gpkg",
        help="write places where a confident model contradicts the labels, ranked, for QGIS",
    )  # fmt: skip
    add(
        "--suspect-probability",
        type=float,
        metavar="P",
        help=f"lowest probability of the model's class there (default: {MIN_PROBABILITY})",
    )
    add(
        "--map-classes", metavar="FILE.yaml",
        help="where model and shards have different classes: a common list, and what each class counts as",
    )  # fmt: skip
    add("--overwrite", action="store_true", help="replace an existing report or suspects file")
    options: Namespace = arguments.parse_args(argv)
    return options


def _settings(options: Namespace, recipe: Recipe | None) -> tuple[EvaluateConfig, ClusterConfig]:
    """Returns the recipe's evaluation settings and cluster, with the changes of the command line."""
    settings = (recipe.evaluate if recipe else EvaluateConfig()).model_dump(mode="json")
    settings |= {name: getattr(options, name) for name in settings if getattr(options, name) is not None}
    cluster = recipe.cluster if recipe else ClusterConfig()
    return EvaluateConfig.parse(settings, where="command line"), cluster.changed(options.workers)
