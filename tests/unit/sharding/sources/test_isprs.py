"""The downloads of ISPRS Potsdam and Vaihingen as their publisher offers them, with 64 x 64 pixels."""

import zipfile
from collections import Counter

import numpy as np
import pytest
import yaml

from d2ls.errors import ConfigError, DataError
from sharding.scan import scan
from sharding.sources import open_source
from sharding.spec import ShardSpec
from sharding.validate import LabelCounts, validate
from tests.loveda_shards import plan_of
from tests.trees import ISPRS_COLORS, blocks, save, texture

COMPLETE = "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE"
ERODED = "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE"
ERODED_PARTICIPANTS = "ISPRS_semantic_labeing_Vaihingen_ground_truth_eroded_for_participants"


def potsdam(root, tiles, folder="5_Labels_all", labels=None):
    for number, tile in enumerate(tiles):
        save(root / "2_Ortho_RGB" / f"top_potsdam_{tile}_RGB.tif", texture(number, 64, 64))
        raw = blocks(number, 64, 64, ISPRS_COLORS) if labels is None else labels
        save(root / folder / f"top_potsdam_{tile}_label.tif", raw)


def vaihingen(root, folder, areas, ending=""):
    for area in areas:
        name = f"top_mosaic_09cm_area{area}"
        save(root / "top" / f"{name}.tif", texture(area, 64, 64))
        save(root / folder / f"{name}{ending}.tif", blocks(area, 64, 64, ISPRS_COLORS))


def pack(folder, archive, *, inside=""):
    """Moves the files of a folder into a zip archive, flat or below a folder of its own."""
    with zipfile.ZipFile(archive, "w") as target:
        for file in sorted(folder.iterdir()):
            target.write(file, f"{inside}{file.name}")
            file.unlink()
    folder.rmdir()


def checked(root, drop):
    return validate(scan(ShardSpec("t", "out", "potsdam", str(root), options={"drop": [drop]})))


@pytest.mark.parametrize("tile", ["4_12", "6_7"])
def test_potsdam_tiles_whose_labels_lost_colours_are_rounded(tile, tmp_path):
    raw = np.array(ISPRS_COLORS, np.uint8)[np.arange(64 * 64).reshape(64, 64) % 7]
    lossy = np.clip(raw.astype(int) + np.where(raw == 0, 9, -28), 0, 255).astype(np.uint8)
    lossy[:, 32:] = raw[:, 32:]
    lossy[(raw == (255, 255, 0)).all(-1)] = (252, 255, 0)
    potsdam(tmp_path, [tile], labels=lossy)
    result = checked(tmp_path, "7_10")
    assert result.scan.problems == ()
    *classes, ignored = np.bincount(np.arange(64 * 64) % 7).tolist()
    assert result.counts["train"] == LabelCounts(tuple(classes), ignored)
    assert any(f"{tile}_label.tif: unknown colours near" in note for note in result.scan.notes)


@pytest.mark.parametrize(
    ("tile", "other", "color"),
    [("2_10", "4_12", (252, 255, 0)), ("4_12", "2_10", (128, 255, 0)), ("4_12", "2_10", (255, 0, 250))],
)
def test_colours_of_other_potsdam_tiles_and_far_colours_stay_errors(tile, other, color, tmp_path):
    potsdam(tmp_path, [tile], labels=np.full((64, 64, 3), color, np.uint8))
    (problem,) = checked(tmp_path, other).scan.problems
    assert f"{tile}_label.tif: unknown label colour {color} in 4096 pixels" in problem


def test_a_whole_download_of_potsdam_holds_the_labels_twice(tmp_path):
    potsdam(tmp_path, ["2_10", "2_12", "2_13"])
    potsdam(tmp_path, ["2_10", "2_12"], "5_Labels_for_participants/5_Labels_for_participants")
    for folder, tiles in (
        ("5_Labels_all_noBoundary", ("2_10", "2_12", "2_13")),
        ("5_Labels_for_participants_no_Boundary", ("2_10", "2_12")),
    ):
        for tile in tiles:
            raw = np.zeros((64, 64, 3), np.uint8)
            save(tmp_path / folder / f"top_potsdam_{tile}_label_noBoundary.tif", raw)
    scenes = list(open_source("potsdam", tmp_path).scenes())
    assert [str(scene.mask.path).split("/")[-2] for scene in scenes] == [
        "5_Labels_all",
        "5_Labels_all_noBoundary",
        "5_Labels_all_noBoundary",
    ]


def test_the_zips_of_potsdam_may_lie_side_by_side(tmp_path):
    potsdam(tmp_path, ["2_10", "2_12", "2_13"])
    potsdam(tmp_path, ["2_10", "2_12"], "5_Labels_for_participants")
    inside = "5_Labels_for_participants/"
    pack(tmp_path / "5_Labels_for_participants", tmp_path / "5_Labels_for_participants.zip", inside=inside)
    pack(tmp_path / "5_Labels_all", tmp_path / "5_Labels_all.zip")
    pack(tmp_path / "2_Ortho_RGB", tmp_path / "2_Ortho_RGB.zip", inside="2_Ortho_RGB/")
    source = open_source("potsdam", tmp_path)
    scenes = list(source.scenes())
    assert {scene.mask.path.rsplit("/", 1)[1] for scene in scenes} == {"5_Labels_all.zip"}
    assert source.missing == []
    pack(tmp_path, tmp_path.parent / "Potsdam.zip")
    tmp_path.mkdir()
    with pytest.raises(DataError, match=r"Potsdam\.zip!2_Ortho_RGB\.zip is an archive in an archive"):
        list(open_source("potsdam", tmp_path.parent / "Potsdam.zip").scenes())


def test_a_whole_download_of_vaihingen_holds_the_labels_twice(tmp_path):
    vaihingen(tmp_path, "gts_for_participants", (1, 11))
    vaihingen(tmp_path, COMPLETE, (1, 11, 2))
    vaihingen(tmp_path, ERODED, (1, 11, 2), "_noBoundary")
    vaihingen(tmp_path, ERODED_PARTICIPANTS, (1, 11), "_noBoundary")
    scenes = list(open_source("vaihingen", tmp_path).scenes())
    assert [scene.mask.path.split("/")[-2] for scene in scenes] == [COMPLETE, ERODED, ERODED]


def test_eroded_labels_of_the_training_areas_do_not_hide_the_test_areas(tmp_path):
    vaihingen(tmp_path, COMPLETE, (1, 11, 2))
    vaihingen(tmp_path, ERODED_PARTICIPANTS, (1, 11), "_noBoundary")
    source = open_source("vaihingen", tmp_path)
    assert Counter(scene.split for scene in source.scenes() if scene.mask) == {
        "train": 1,
        "val": 1,
        "test": 1,
    }
    assert source.extra["labels"] == {"train": "full", "val": "eroded", "test": "full"}


def test_the_paper_cuts_training_tiles_of_vaihingen_with_overlap(tmp_path):
    for area in (1, 2):
        save(tmp_path / "top" / f"top_mosaic_09cm_area{area}.tif", texture(area, 1500, 1100))
        save(tmp_path / COMPLETE / f"top_mosaic_09cm_area{area}.tif", np.full((1500, 1100, 3), 255, np.uint8))
    starts = {}
    for protocol in ("clean", "paper"):
        plan = plan_of(ShardSpec("t", "out", "vaihingen", str(tmp_path), protocol, {"val": []}))
        tiles = [
            (task.split, tile.window) for task in plan.tasks for cut in task.cuts for _, tile in cut.tiles
        ]
        starts[protocol] = Counter((split, window.row, window.column) for split, window in tiles)
    released = [("train", row, column) for row in (0, 512) for column in (0, 512)]
    assert starts["paper"] == Counter(
        released + [("test", row, column) for row in (0, 1024) for column in (0, 1024)]
    )
    assert len(starts["clean"]) == 8


def test_tiles_may_be_named_without_quotes(tmp_path):
    potsdam(tmp_path, ["2_10", "2_12", "3_10", "7_10"])
    options = yaml.safe_load("{val: [2_12], drop: [7_10, 2_10]}")
    scenes = open_source("potsdam", tmp_path, **options).scenes()
    assert [(scene.split, scene.id) for scene in scenes] == [("train", "3_10"), ("val", "2_12")]
    with pytest.raises(ConfigError, match="no scene '999'"):
        open_source("potsdam", tmp_path, drop=[79, 999])
