"""Polygons made by strips equal those of the whole raster, with pixels and probability."""

import numpy as np
import pytest
import rasterio.features
import shapely
from scipy.ndimage import gaussian_filter, label
from shapely.geometry import shape

from pipeline.prediction import polygonize as module
from pipeline.prediction.polygonize import Nodes, Polygons, polygonize, simplified


def noise(height, width, classes=3):
    return np.random.default_rng(0).integers(0, classes, (height, width)).astype(np.uint8)


def regions(height, width, classes=4):
    rng = np.random.default_rng(1)
    fields = [gaussian_filter(rng.standard_normal((height, width)), 3) for _ in range(classes)]
    return np.stack(fields).argmax(0).astype(np.uint8)


def spiral():
    """One region that winds through every strip, around another one."""
    labels = np.zeros((41, 41), np.uint8)
    row, column, step, length = 20, 20, 0, 2
    directions = ((0, 1), (1, 0), (0, -1), (-1, 0))
    while length <= 40:
        for _ in range(2):
            for _ in range(length):
                labels[row, column] = 1
                row, column = row + directions[step % 4][0], column + directions[step % 4][1]
                if not (0 <= row < 41 and 0 <= column < 41):
                    return labels
            step += 1
        length += 2
    return labels


def with_hole(labels):
    labels[5:20, 3:9] = 255
    return labels


def outlined(labels, steps, height, classes):
    strips = (
        (labels[top : top + height], steps[top : top + height]) for top in range(0, len(labels), height)
    )
    batches = list(polygonize(strips, classes))
    names = ("geometries", "class_ids", "pixels", "steps")
    return Polygons(*(np.concatenate([getattr(batch, name) for batch in batches]) for name in names))


def normal(geometries):
    return sorted(shapely.to_wkt(shapely.normalize(geometry)) for geometry in geometries)


@pytest.mark.parametrize("height", [1, 7, 50, 1000])
@pytest.mark.parametrize(
    "labels", [with_hole(noise(53, 41)), with_hole(regions(151, 97)), spiral(), np.zeros((30, 20), np.uint8)]
)
def test_strips_give_the_outlines_of_the_whole(labels, height) -> None:
    steps = np.random.default_rng(2).integers(0, 251, labels.shape).astype(np.uint8)
    result = outlined(labels, steps, height, range(4))
    whole = rasterio.features.shapes(labels, mask=labels != 255, connectivity=4)
    assert normal(result.geometries) == normal(shape(outline) for outline, _ in whole)
    assert shapely.is_valid(result.geometries).all()
    np.testing.assert_array_equal(shapely.area(result.geometries), result.pixels)
    assert result.steps.sum() == steps[labels != 255].sum()


def test_every_region_keeps_its_own_sum() -> None:
    labels, steps = regions(60, 50), noise(60, 50, 251)
    result = outlined(labels, steps, 11, [2])
    regions_of_two, count = label(labels == 2)
    assert len(result.geometries) == count
    assert set(result.class_ids) == {2}
    expected = sorted(steps[regions_of_two == number].sum() for number in range(1, count + 1))
    assert sorted(result.steps) == expected


def test_no_pixel_of_a_chosen_class_gives_no_polygon() -> None:
    assert not len(outlined(np.full((9, 5), 255, np.uint8), np.zeros((9, 5), np.uint8), 4, [0, 1]).geometries)


@pytest.mark.parametrize("height", [13, 200])
def test_simplified_neighbours_share_their_edges(height) -> None:
    labels = with_hole(regions(151, 97))
    nodes = Nodes(*labels.shape)
    strips = [(labels[top : top + height],) * 2 for top in range(0, 151, height)]
    result = simplified(polygonize(nodes.watch(strips), range(4)), nodes, 2.0, "map.tif")
    rough = outlined(labels, labels, height, range(4))
    assert shapely.coverage_is_valid(result.geometries)
    before, after = (shapely.get_num_coordinates(p.geometries).sum() for p in (rough, result))
    assert after < before / 2
    assert abs(shapely.area(result.geometries).sum() - (labels != 255).sum()) < 10


def test_too_much_to_simplify_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_SIMPLIFIED_VERTICES", 100)
    labels = noise(50, 50)
    nodes = Nodes(50, 50)
    with pytest.raises(module.DataError, match=r"map\.tif: more than 100 vertices .* --min-area-m2"):
        simplified(polygonize(nodes.watch([(labels, labels)]), range(3)), nodes, 2.0, "map.tif")
