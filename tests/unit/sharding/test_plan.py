"""The plan: which tile goes into which shard."""

import os
import shutil

import pytest

from d2ls.errors import DataError
from sharding.codecs import Codec
from sharding.tiling import Tiling
from tests.loveda_shards import plan_of, spec_of

SMALL = 20_000


def keys(plan):
    """Sample keys of each shard, by path."""
    return {task.path: [key for cut in task.cuts for key, _ in cut.tiles] for task in plan.tasks}


def test_every_scene_stands_once_and_shards_have_about_the_size_asked_for(raw):
    few, many = plan_of(spec_of(raw)), plan_of(spec_of(raw, target_bytes=SMALL))
    assert few.splits == ("train", "val")
    assert [len(result) for result in keys(few).values()] == [6, 3]
    assert len(many.tasks) > 4
    for plan in (few, many):
        result = [key for shard in keys(plan).values() for key in shard]
        assert len(result) == len(set(result)) == plan.samples == 9
    sizes = [task.samples for task in many.tasks if task.split == "train"]
    assert max(sizes) - min(sizes) <= 1


def test_the_seed_orders_the_scenes_and_the_plan_is_a_function_of_the_spec(raw):
    first, again, other = (plan_of(spec_of(raw, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first.fingerprint == again.fingerprint != other.fingerprint
    ours, theirs = keys(first)["train/train-00000.tar"], keys(other)["train/train-00000.tar"]
    assert sorted(ours) == sorted(theirs)
    assert ours not in (theirs, sorted(ours))


def test_tiles_of_a_scene_stay_together_and_carry_their_place(raw):
    plan = plan_of(spec_of(raw, tiling={"default": Tiling(size=32)}, target_bytes=SMALL))
    assert plan.samples == 9 * 4
    shard = keys(plan)["train/train-00000.tar"]
    scenes = [key.rsplit("_r", 1)[0] for key in shard]
    assert [scene for scene, before in zip(scenes, [None, *scenes], strict=False) if scene != before] == list(
        dict.fromkeys(scenes)
    )
    assert any(key.endswith("_r00032_c00032") for key in shard)


def test_only_training_pixels_make_the_statistics(raw):
    plan = plan_of(spec_of(raw))
    assert {task.split: task.recording.statistics for task in plan.tasks} == {"train": True, "val": False}
    alone = plan_of(spec_of(raw, splits=("val",)))
    assert [task.recording.statistics for task in alone.tasks] == [True]


def test_a_fingerprint_changes_with_what_changes_the_bytes(raw, tmp_path):
    before = plan_of(spec_of(raw))
    png = plan_of(spec_of(raw, codec=Codec("png")))
    assert not {task.fingerprint for task in before.tasks} & {task.fingerprint for task in png.tasks}

    shutil.copytree(raw, tmp_path / "moved")
    moved = plan_of(spec_of(tmp_path / "moved"))
    assert moved.fingerprint == before.fingerprint, "the place of the files is no content"
    image = next((tmp_path / "moved" / "Val").rglob("images_png/*.png"))
    os.utime(image, (1, 1))
    touched = plan_of(spec_of(tmp_path / "moved"))
    changed = {
        new.split
        for new, old in zip(touched.tasks, moved.tasks, strict=True)
        if new.fingerprint != old.fingerprint
    }
    assert changed == {"val"}


def test_a_tiling_that_leaves_nothing_is_refused(raw):
    spec = spec_of(raw, tiling={"val": Tiling(size=128, edge="drop")})
    with pytest.raises(DataError, match=r"split 'val': no tile left of 3 scene\(s\)"):
        plan_of(spec)
