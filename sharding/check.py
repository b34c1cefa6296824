"""`--check`: every image decoded, every label looked up, all problems in one list, nothing written."""

from collections.abc import Sequence

from d2ls.errors import DataError
from d2ls.labels import LabelCodes
from sharding.raster import Raster, WholeRaster, open_raster, read_labels
from sharding.sources.base import Scene
from sharding.survey import Survey, SurveyedScene
from sharding.tiling import Tiling, tiles

BLOCK = 2048
"""Side of the windows in which large TIFFs are read."""

GROUP = 16
"""Scenes looked at in one piece of work."""


def scene_groups(survey: Survey) -> list[tuple[SurveyedScene, ...]]:
    """Divides the scenes of a survey into pieces of work."""
    scenes = survey.scenes
    return [scenes[start : start + GROUP] for start in range(0, len(scenes), GROUP)]


def check_scenes(scenes: Sequence[SurveyedScene], codes: LabelCodes) -> list[str]:
    """Reads images and label images whole and lists what is wrong with them."""
    return [problem for item in scenes for problem in _check_scene(item.scene, codes)]


def _check_scene(scene: Scene, codes: LabelCodes) -> list[str]:
    problems = []
    assert scene.mask is not None
    for ref, look in ((scene.image, _read_all), (scene.mask, _encode_all)):
        try:
            with open_raster(ref) as raster:
                look(raster, codes)
        except DataError as error:
            problems.append(str(error))
    return problems


def _read_all(raster: Raster, codes: LabelCodes) -> None:
    """Decodes every pixel of an image."""
    del codes
    if isinstance(raster, WholeRaster):
        raster.pixels()
        return
    for tile in tiles(raster.info.height, raster.info.width, Tiling(BLOCK)):
        raster.pixels(tile.inside)


def _encode_all(raster: Raster, codes: LabelCodes) -> None:
    """Looks every label up; of a large TIFF the first block with an unknown one is named."""
    colors = not codes.ids
    if isinstance(raster, WholeRaster):
        codes.encode(read_labels(raster, None, colors=colors), where=str(raster.ref))
        return
    for tile in tiles(raster.info.height, raster.info.width, Tiling(BLOCK)):
        area = tile.inside
        raw = read_labels(raster, area, colors=colors)
        codes.encode(raw, where=str(raster.ref), origin=(area.row, area.column))
