"""Runs a model on a split, in this process or in parts on Ray workers."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from d2ls.bundle import ModelInfo, read_info
from d2ls.data import Batch, EvaluationLoader, evaluation_window
from d2ls.errors import ConfigError, D2LSError, DataError
from d2ls.inference.class_mapping import ClassMapping
from d2ls.shards import DatasetCard, ShardSet
from pipeline.console import ProgressDisplay
from pipeline.evaluation.request import EvaluateRequest
from pipeline.models import fetch_model, load_predictor
from pipeline.models.workers import spread

PARTS_PER_WORKER = 8

OnProgress = Callable[[int, int], None]
"""Called with the number done and the total."""


@dataclass(frozen=True)
class SplitPart:
    """The part of a split that one rank of `world_size` looks at, with `mapping` for a model of other classes."""

    shards_uri: str
    split: str
    batch_size: int
    window: int | None
    decoders: int = 0
    rank: int = 0
    world_size: int = 1
    mapping: ClassMapping | None = None

    @contextlib.contextmanager
    def batches(self, on_progress: OnProgress | None = None) -> Iterator[Iterator[Batch]]:
        """Yields the batches of the part; `on_progress` is called before each one with batches done and in all."""
        with EvaluationLoader(
            ShardSet.open(self.shards_uri), self.split, batch_size=self.batch_size, rank=self.rank,
            world_size=self.world_size, workers=self.decoders, window=self.window,
        ) as loader:  # fmt: skip
            yield _watched(loader, on_progress or (lambda done, total: None))


def _watched(loader: EvaluationLoader, on_progress: OnProgress) -> Iterator[Batch]:
    for done, batch in enumerate(loader):
        on_progress(done, len(loader))
        yield batch


@dataclass(frozen=True)
class OpenSplit:
    """A model in a local folder, and a split of opened shards.

    Attributes:
        request: names the model and the split.
        folder: the model's files.
        info: its description.
        shards: the opened shards.
        part: the whole split.
    """

    request: EvaluateRequest
    folder: Path
    info: ModelInfo
    shards: ShardSet
    part: SplitPart

    def work(self, function: Callable[..., Any], title: str, *, show: bool, **settings: Any) -> list[Any]:
        """Calls a function with the model and each part of the split; returns its results in any order.

        Args:
            function: takes a `Predictor`, a `SplitPart` and, in this process, an `OnProgress`; importable by name.
            title: title of the progress display.
            show: show the progress on the error stream.
            **settings: further arguments of `pipeline.models.load_predictor`.

        Raises:
            D2LSError: raised for any part.
        """
        settings = {"batch_size": self.request.batch_size, **settings}
        cluster, where = self.request.cluster, self.request.model
        with ProgressDisplay(title, silent=not show) as display:
            if cluster is None:
                predictor = load_predictor(self.folder, where=where, **settings)
                return [function(predictor, self.part, display.advance)]
            # Several parts per worker: a slow or lost worker delays little, and progress shows early.
            count = cluster.worker_range[1] * PARTS_PER_WORKER
            parts = [replace(self.part, decoders=0, rank=rank, world_size=count) for rank in range(count)]
            results = []
            for _, result in spread(function, parts, self.folder, where, settings, cluster):
                if isinstance(result, D2LSError):
                    raise result
                results.append(result)
                display.advance(len(results), count)
            return results


@contextlib.contextmanager
def open_split(request: EvaluateRequest) -> Iterator[OpenSplit]:
    """Fetches a model and opens the shards of a request.

    Raises:
        ConfigError: the model was trained for other classes than those of the shards, and no class map fits both.
        DataError: the model takes other bands or pixel types.
        ShardError: no such shards or split.
    """
    with fetch_model(request.model, tracking_uri=request.tracking_uri) as folder:
        info = read_info(folder, where=request.model)
        shards = ShardSet.open(request.shards_uri)
        if request.class_map is None:
            check_fit(request.model, info, shards.card, request.shards_uri)
            mapping = None
        else:
            check_bands(request.model, info, shards.card, request.shards_uri)
            mapping = request.class_map.between(info.classes, shards.card.classes)
        window = evaluation_window(shards, request.split, info.window)
        part = SplitPart(
            request.shards_uri, request.split, request.batch_size, window, request.decoders, mapping=mapping
        )
        yield OpenSplit(request, folder, info, shards, part)


def check_fit(model: str, info: ModelInfo, card: DatasetCard, shards_uri: str) -> None:
    """Refuses a model for other classes, bands or pixel types than those of the shards.

    Raises:
        ConfigError: other classes.
        DataError: other bands or pixel types.
    """
    if info.classes.names != card.classes.names:
        raise ConfigError(
            f"{model} was trained for the classes {list(info.classes.names)}, {shards_uri} holds "
            f"{list(card.classes.names)}: scores would mean nothing. Evaluate it on shards of its own classes, or say "
            "in a file what the classes of both become: --map-classes FILE.yaml"
        )
    check_bands(model, info, card, shards_uri)


def check_bands(model: str, info: ModelInfo, card: DatasetCard, shards_uri: str) -> None:
    """Refuses a model for other bands or pixel types than those of the shards.

    Raises:
        DataError: other bands or pixel types.
    """
    if info.bands != card.bands or info.dtype != card.dtype:
        raise DataError(
            f"{model} takes bands {list(info.bands)} of {info.dtype}, {shards_uri} holds {list(card.bands)} of "
            f"{card.dtype}. Evaluate it on shards that were made with its bands (data.bands, data.custom.bands)"
        )
