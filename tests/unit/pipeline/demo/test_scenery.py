import numpy as np
import pytest

from pipeline.demo.scenery import AGRICULTURE, BUILDING, make_scene, write_scenery
from sharding.sources import open_source


def test_a_seed_names_a_scene():
    image, labels = make_scene(7, 128)
    again, same = make_scene(7, 128)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(labels, same)
    other, _ = make_scene(9, 128)
    assert (image != other).mean() > 0.5
    assert image.shape == (128, 128, 3)
    assert image.dtype == labels.dtype == np.uint8
    assert set(np.unique(labels)) <= {*range(7), 255}


def test_all_classes_occur_unevenly_and_area_matters():
    scenes = [make_scene(seed, 128) for seed in range(12)]
    counts = sum(np.bincount(labels.ravel(), minlength=256)[:7] for _, labels in scenes)
    share = counts / counts.sum()
    assert (share > 0.01).all()
    assert share.max() > 3 * share.min()
    assert all(image.std() > 20 for image, _ in scenes)
    towns = sum((make_scene(seed, 128, "Urban")[1] == BUILDING).mean() for seed in range(4))
    farms = sum((make_scene(seed, 128, "Rural")[1] == AGRICULTURE).mean() for seed in range(4))
    assert towns > 4 * 0.05
    assert farms > 4 * 0.2


@pytest.mark.parametrize("size", [64, 200])
def test_written_as_loveda_with_labels_in_every_part(tmp_path, size):
    write_scenery(tmp_path, scenes={"Train": 3, "Val": 2, "Test": 2}, size=size, seed=1)
    scenes = list(open_source("loveda", tmp_path).scenes())
    assert [scene.split for scene in scenes] == ["train"] * 3 + ["val"] * 2 + ["test"] * 2
    assert all(scene.mask for scene in scenes)
    contents = {scene.image.read() for scene in scenes}
    assert len(contents) == 7
