"""Rows about images: grids, orientation, bands, pixels without data, pixel types."""

import numpy as np

from tests.geodata import case
from tests.geodata.world import ids, pair, pixels, samples, shard


@case("image and label image on one grid", "taken as they are")
def _(tmp_path):
    pair(tmp_path)
    shard(tmp_path)
    image, labels, meta = samples(tmp_path)["train_a"]
    np.testing.assert_array_equal(image, pixels().transpose(1, 2, 0))
    np.testing.assert_array_equal(labels, ids())
    assert meta["crs"] == "EPSG:26914"
