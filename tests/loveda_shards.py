"""Shards made from a few drawn scenes with `sharding` only, without a recipe."""

from sharding.index_writer import write_index
from sharding.plan import plan_shards
from sharding.scan import scan
from sharding.spec import ShardSpec
from sharding.write import write_shard


def spec_of(raw, uri="unused", **changes):
    """A spec over scenes in the layout of LoveDA; three to four of them fill a shard."""
    return ShardSpec(**{"name": "tiny", "uri": str(uri), "source": "loveda", "root": str(raw), **changes})


def plan_of(spec):
    """Returns the plan of a spec with valid raw data."""
    result = scan(spec)
    result.raise_problems()
    return plan_shards(spec, result)


def make(spec):
    """Writes and finishes all shards; returns the card."""
    plan = plan_of(spec)
    for task in plan.tasks:
        write_shard(task, spec.uri)
    return write_index(plan, spec)
