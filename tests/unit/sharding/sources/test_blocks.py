"""Blocks of one orthomosaic: the grid, how they are dealt, and the buffer between splits."""

from itertools import pairwise, product

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ls.errors import ConfigError, DataError
from sharding.sources.blocks import (
    Gap,
    block_grid,
    deal_blocks,
    deal_folds,
    labelled_areas,
    require_fold,
    smallest_gaps,
)

FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
BOUNDS = (1000.0, 3000.0, 1400.0, 3300.0)


def town(seed, blocks=60, classes=5):
    """Returns labelled pixels of very different blocks; the last class occurs in a tenth of them."""
    random = np.random.default_rng(seed)
    pixels = (random.dirichlet([0.3] * classes, blocks) * 250_000).astype(np.int64)
    pixels[:, -1] *= random.random(blocks) < 0.1
    pixels[:3, -1] = 900, 600, 300
    return pixels


def shares(pixels, names, split):
    chosen = np.array([name == split for name in names])
    return pixels[chosen].sum(axis=0) / pixels.sum(axis=0)


def test_blocks_cover_the_ground_once():
    blocks = block_grid(BOUNDS, 100)
    assert [block.name for block in blocks[:5]] == ["r00_c00", "r00_c01", "r00_c02", "r00_c03", "r01_c00"]
    assert blocks[0].outline == (1000, 3200, 1100, 3300)
    assert shapely.area([block.box for block in blocks]).sum() == 400 * 300
    assert shapely.union_all([block.box for block in blocks]).equals(shapely.box(*BOUNDS))


def test_the_last_block_takes_the_rest():
    sides = lambda size: {b.outline[2] - b.outline[0] for b in block_grid(BOUNDS, size)}  # noqa: E731
    assert sides(150) == {150, 100}
    assert sides(180) == {180, 220}
    assert sides(1000) == {400}


@pytest.mark.parametrize("seed", range(4))
def test_every_split_gets_its_share_of_every_class(seed):
    pixels = town(seed)
    names = deal_blocks(pixels, FRACTIONS, seed)
    for split, fraction in FRACTIONS.items():
        np.testing.assert_allclose(shares(pixels, names, split)[:-1], fraction, atol=0.05)
        assert shares(pixels, names, split)[-1] > 0  # of the rare class too


def test_a_deal_is_settled_by_its_seed():
    pixels = np.full((30, 2), 100)
    assert deal_blocks(pixels, FRACTIONS, 3) == deal_blocks(pixels, FRACTIONS, 3)
    assert deal_blocks(pixels, FRACTIONS, 3) != deal_blocks(pixels, FRACTIONS, 4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), blocks=st.integers(3, 12), empty=st.integers(0, 3))
def test_no_split_is_empty_and_blocks_without_labels_are_in_none(seed, blocks, empty):
    pixels = np.random.default_rng(seed).integers(1, 1000, (blocks + empty, 3))
    pixels[blocks:] = 0
    names = deal_blocks(pixels, FRACTIONS, seed)
    assert set(names[:blocks]) == set(FRACTIONS)
    assert names[blocks:] == [""] * empty


def test_fewer_blocks_than_splits_are_refused():
    with pytest.raises(
        DataError, match=r"2 block\(s\) with labels cannot fill 3 splits \(train, val, test\)"
    ):
        deal_blocks(np.array([[1], [0], [5]]), FRACTIONS, 0)


def test_every_block_is_tested_in_one_fold():
    pixels = town(1, blocks=20)
    deals = [deal_folds(pixels, k, 5, seed=2) for k in range(1, 6)]
    tested = [[name == "test" for name in deal] for deal in deals]
    assert np.sum(tested, axis=0).tolist() == [1] * 20
    for first, second in pairwise([*deals, deals[0]]):  # the val fold is the next test fold
        assert [name == "val" for name in first] == [name == "test" for name in second]


@pytest.mark.parametrize(("k", "n"), [(1, 2), (0, 5), (6, 5)])
def test_folds_that_are_not_possible(k, n):
    with pytest.raises(ConfigError, match=r"data.custom.split.fold: .* is not possible"):
        require_fold(k, n)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), buffer=st.sampled_from([0.0, 7.0, 30.0]), none=st.booleans())
def test_points_of_two_splits_are_a_buffer_apart(seed, buffer, none):
    random = np.random.default_rng(seed)
    blocks = block_grid((0, 0, 40, 40), 10)
    splits = random.choice(["train", "val", *[""] * none], len(blocks)).tolist()
    areas = labelled_areas(blocks, splits, buffer)
    centres = [shapely.Point(x + 0.5, y + 0.5) for x, y in product(range(40), repeat=2)]
    inside = {
        split: shapely.get_coordinates([p for p in centres if any(
            area.contains(p) for area, name in zip(areas, splits, strict=True) if name == split
        )])
        for split in ("train", "val")
    }  # fmt: skip
    if all(len(points) for points in inside.values()):
        apart = np.linalg.norm(inside["train"][:, None] - inside["val"][None], axis=2).min()
        assert apart >= max(buffer, 1)
    for area, name, block in zip(areas, splits, blocks, strict=True):
        assert block.box.contains(area) or block.box.equals(area) or area.is_empty
        if all(other == name for other in splits):
            assert area.equals(block.box)


def test_blocks_of_one_split_keep_the_ground_between_them():
    blocks = block_grid((0, 0, 30, 10), 10)
    areas = labelled_areas(blocks, ["train", "train", "val"], 4)
    assert [area.bounds for area in areas] == [(0, 0, 10, 10), (10, 0, 18, 10), (22, 0, 30, 10)]


def test_the_smallest_distance_of_each_pair_of_splits():
    areas = [
        ("train", shapely.box(0, 0, 8, 10)),
        ("val", shapely.box(12, 0, 20, 10)),
        ("val", shapely.box(11, 50, 12, 60)),
    ]
    areas += [("test", shapely.box(20, 0, 30, 10)), ("test", shapely.Polygon())]
    assert smallest_gaps(areas, 20) == [
        Gap("test", "train", 12),
        Gap("test", "val", 0),
        Gap("train", "val", 4),
    ]
    assert smallest_gaps(areas, 5) == [Gap("test", "val", 0), Gap("train", "val", 4)]
