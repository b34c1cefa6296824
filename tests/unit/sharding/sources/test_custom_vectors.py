"""From names in a recipe to vector labels, and folds over scenes."""

from collections import Counter

import pytest

from d2ls.errors import ConfigError
from d2ls.labels import IGNORE
from sharding.files import FileRef
from sharding.scan import scan
from sharding.sources.custom_spec import CustomBlocks, CustomFold
from sharding.sources.custom_vectors import CustomLayer, CustomVectors, vector_labels
from tests.custom_shards import build, custom_spec, spec

CLASSES = ("other", "building", "road")


def labels(*layers, suffix=".gpkg", **options):
    return vector_labels(
        CustomVectors(layers, **options),
        CLASSES,
        lambda globs, key: [FileRef(f"/d/{glob}{suffix}") for glob in globs],
    )


def test_names_become_ids():
    land = CustomLayer(
        ("land", "more"), attribute="kind", values={"building": ("house", "3")}, ignored=("null",)
    )
    made = labels(
        land, CustomLayer(("roads",), class_name="road", buffer_m=2.0), background="other", order=CLASSES[1:]
    )
    assert [layer.file.stem for layer in made.layers] == ["land", "more", "roads"]
    values = {"house": 1, "3": 1, "other": 0, "road": 2, "null": IGNORE}
    assert dict(made.layers[0].values) == values
    assert (made.layers[2].only, made.layers[2].buffer_m) == (2, 2.0)
    assert (made.background, made.order) == (0, (1, 2))
    assert labels(land).background == IGNORE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"values": {"bilding": ("house",)}},
            r"vectors\.values: no class 'bilding' .* Did you mean building",
        ),
        ({"values": {"road": ("a",), "building": ("a",)}}, "'a' has two meanings, 'road' and 'building'"),
        ({"values": {"road": ("a",)}, "ignored": ("a",)}, "'a' has two meanings, 'road' and 'ignored'"),
    ],
)
def test_impossible_values(options, message):
    with pytest.raises(ConfigError, match=message):
        labels(CustomLayer(("land",), attribute="kind", **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": "rest"}, r"vectors\.background: no class 'rest'"),
        ({"order": ("building",)}, r"vectors\.order: name each class once"),
        ({"order": ("road", "building", "other"), "order_by": "level"}, "give one of order and order_by"),
        ({"suffix": ".dxf"}, r"land\.dxf is no vector file that is read"),
    ],
)
def test_impossible_rules(options, message):
    with pytest.raises(ConfigError, match=message):
        labels(CustomLayer(("land",), attribute="kind"), **options)


def test_a_layer_has_an_attribute_or_a_class():
    for given in ({}, {"attribute": "kind", "class_name": "road"}):
        with pytest.raises(ConfigError, match="give either attribute"):
            CustomLayer(("land",), **given)


def test_scenes_are_folded(tmp_path):
    build(tmp_path)
    tested = []
    for k in (1, 2, 3, 4):
        result = scan(spec(tmp_path, "out", custom_spec({"fold": CustomFold(k, 4)})))
        groups = {item.scene.group: item.scene.split for item in result.scenes}
        assert Counter(groups.values()) == {"train": 2, "val": 1, "test": 1}
        tested += [group for group, split in groups.items() if split == "test"]
    assert sorted(tested) == ["a", "b", "c", "d"]


def test_blocks_have_fractions_or_a_fold():
    both = {"blocks": CustomBlocks(50.0, fractions={"train": 1.0}), "fold": CustomFold(1, 3)}
    for split in (both, {"blocks": CustomBlocks(50.0)}):
        with pytest.raises(ConfigError, match=r"blocks need one of blocks\.fractions and fold"):
            custom_spec(split)


def test_labels_and_areas_are_needed():
    with pytest.raises(ConfigError, match=r"give masks \(label images\), vectors, or both"):
        custom_spec(masks=())
    with pytest.raises(ConfigError, match=r"split\.areas: names an attribute of data\.custom\.area"):
        custom_spec({"areas": "part"})
