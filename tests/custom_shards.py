"""A small custom data set, its shard specification, and all steps of sharding in this process."""

from sharding.index_writer import write_index
from sharding.plan import plan_shards
from sharding.scan import scan
from sharding.sources.custom_spec import CustomClass, CustomSpec, CustomSplit
from sharding.spec import ShardSpec
from sharding.write import write_shard
from tests.trees import blocks, save, texture

RED, BLUE, GREY = (255, 0, 0), (0, 0, 255), (9, 9, 9)
CLASSES = (CustomClass("roof", RED), CustomClass("water", BLUE))


def build(root, scenes=("a", "b", "c", "d"), codes=(RED, BLUE, GREY), size=(40, 50)):
    """Writes `<scene>/img/part<n>.png` and `<scene>/lab/part<n>_label.png`, two per scene."""
    for number, scene in enumerate(scenes):
        for part in (1, 2):
            save(root / scene / "img" / f"part{part}.png", texture(10 * number + part, *size))
            save(root / scene / "lab" / f"part{part}_label.png", blocks(10 * number + part, *size, codes))


def custom_spec(split=None, **changes):
    """Describes what `build` writes."""
    split = split or {"scenes": {"train": ["a", "b"], "val": ["c"], "test": ["d"]}}
    values = {
        "images": ("*/img/*.png",), "masks": ("*/lab/*_label.png",), "classes": CLASSES, "ignored": (GREY,),
        "scene": "folder", **changes,
    }  # fmt: skip
    return CustomSpec(split=CustomSplit(**split), **values)


def spec(root, uri, data=None, **values):
    """Returns the spec of a custom shard set below a root."""
    return ShardSpec(
        "custom", str(uri), "custom", str(root), options={"spec": data or custom_spec()}, **values
    )


def make(spec):
    """Makes the shards; returns the card."""
    result = scan(spec)
    result.raise_problems()
    plan = plan_shards(spec, result)
    for task in plan.tasks:
        write_shard(task, spec.uri)
    return write_index(plan, spec)
