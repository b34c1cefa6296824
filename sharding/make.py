"""From raw files to a finished shard set: scan, validate, plan, write, index."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from d2ls.shards import DatasetCard
from sharding.index_writer import delete_index, finished_card, write_index
from sharding.plan import plan_shards
from sharding.scan import scan
from sharding.shard_io import delete_leftovers, only_writer, require_ours
from sharding.shard_manifest import finished_manifest
from sharding.spec import ShardSpec
from sharding.split_map import write_split_map
from sharding.tasks import TaskRunner, run_here
from sharding.validate import require_labels
from sharding.write import write_shard

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Progress of sharding.

    Attributes:
        shards: finished shards, those of earlier runs included.
        total_shards: of the plan.
        samples: finished samples, those of earlier runs included.
        total_samples: of the plan.
        bytes: written by this run.
        seconds: since this run began to write.
    """

    shards: int
    total_shards: int
    samples: int
    total_samples: int
    bytes: int
    seconds: float


def make_shards(
    spec: ShardSpec, run: TaskRunner = run_here, on_progress: Callable[[Progress], None] | None = None
) -> DatasetCard:
    """Makes a shard set, or the missing part of it.

    Args:
        spec: the set.
        run: runs the tasks, one per shard.
        on_progress: called after each shard.

    Returns:
        The card of the finished set.

    Raises:
        DataError: the raw data has problems: in headers, a class without a training pixel, or a split without labelled
            pixels. Lists all of them; nothing is written.
        LabelError: a label image holds an unknown colour or id.
        StorageError: the target cannot be written, or holds files of the user or another data set.
    """
    scanned = scan(spec)
    scanned.raise_problems()
    plan = plan_shards(spec, scanned)
    if (card := finished_card(plan, spec)) is not None:
        return card
    for warning in scanned.warnings:
        _log.warning("warning: %s", warning)
    require_labels(scanned)
    require_ours(spec.uri, spec.name, plan.splits)
    with only_writer(spec.uri):
        if (card := finished_card(plan, spec)) is not None:  # made by the command this one waited for
            return card
        delete_leftovers(spec.uri)
        todo = [task for task in plan.tasks if finished_manifest(task, spec.uri) is None]
        if todo:
            delete_index(spec.uri)
        shards, samples, written = len(plan.tasks) - len(todo), plan.samples - sum(t.samples for t in todo), 0
        started = time.monotonic()
        for manifest in run(write_shard, todo, spec.uri):
            shards, samples, written = (
                shards + 1,
                samples + manifest.shard.samples,
                written + manifest.shard.bytes,
            )
            if on_progress:
                seconds = time.monotonic() - started
                on_progress(Progress(shards, len(plan.tasks), samples, plan.samples, written, seconds))
        card = write_index(plan, spec)
        write_split_map([item.scene for item in scanned.scenes], scanned.reading, scanned.max_value, spec.uri)
        return card
