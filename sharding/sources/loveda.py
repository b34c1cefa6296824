"""LoveDA: urban and rural scenes of three Chinese cities, 0.3 m (Zenodo 5706578).

    {Train,Val,Test}/{Urban,Rural}/{images_png,masks_png}/<n>.png

Raw labels: 0 no data, then the seven classes from 1. The official Test part has no labels and is left out; a Test part
with labels becomes the split `test`. The images are cut from larger scenes, but their names do not say which. So it
is unknown whether two splits share a scene.
"""

from d2ls.labels import IGNORE, ClassTable, LabelCodes
from sharding.files import FileRef
from sharding.sources.base import Scene
from sharding.sources.official import OfficialParts


class LoveDA(OfficialParts):
    """Reader of LoveDA; option `select`: `{fraction: 0.1, seed: 42}`."""

    name = "loveda"
    classes = ClassTable.create(
        ("background", "building", "road", "water", "barren", "forest", "agriculture"),
        (
            (255, 255, 255),
            (255, 0, 0),
            (255, 255, 0),
            (0, 0, 255),
            (159, 129, 183),
            (0, 255, 0),
            (255, 195, 128),
        ),
    )
    codes = LabelCodes.from_ids({0: IGNORE, **{raw: raw - 1 for raw in range(1, 8)}})
    ground_sampling_distance = 0.3
    license = "CC BY-NC-SA 4.0"
    md5 = {
        "Train.zip": "de2b196043ed9b4af1690b3f9a7d558f",
        "Val.zip": "84cae2577468ff0b5386758bb386d31d",
        "Test.zip": "a489be0090465e01fb067795d24e6b47",
    }

    parts = ("Train", "Val", "Test")
    kinds = ("images", "masks")
    pattern = r"{part}/(Urban|Rural)/{kind}_png/([^/]+)\.png"
    expected = "Train/Urban/images_png/*.png and masks_png beside it, or Train.zip and Val.zip"

    def scene(self, key: str, split: str, image: FileRef, mask: FileRef | None) -> Scene:
        """Makes a scene with its area, `Urban` or `Rural`."""
        return Scene(key, split, image, mask, tags={"area": key.split("/")[0]})
