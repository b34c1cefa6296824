"""Shared by the rows: a recipe for a folder of images and label images."""

from d2ls.errors import D2LSError
from pipeline.config.recipe import parse_recipe
from pipeline.sharding.run import check_raw_data, ensure_shards
from tests.geodata.tiffs import ids, pixels, tif


def pair(root, name="a", image=None, mask=None, **profile):
    """Writes `images/<name>.tif` and `labels/<name>.tif`; `profile` goes to the image."""
    tif(root / "images" / f"{name}.tif", pixels() if image is None else image, **profile)
    tif(root / "labels" / f"{name}.tif", ids() if mask is None else mask)


def recipe(root, *, data=None, **custom):
    """A recipe over `images/*.tif`, `labels/*.tif`: ids 0, 1, 2, ignored 255, every scene in `train`."""
    own = {
        "images": "images/*.tif", "masks": "labels/*.tif",
        "classes": [
            {"name": name, "color": (60 * index, 90, 9), "label_values": [index]} for index, name in enumerate("abc")
        ],
        "ignored": [255], "scene": "file", "split": {"scenes": {"train": ["*"]}}, **custom,
    }  # fmt: skip
    values = {"source": "custom", "root": str(root), "custom": own, **(data or {})}
    if "split" not in custom:
        values.setdefault("splits", ["train"])  # no split selects, because the role would name a missing one
    return parse_recipe({"name": "geo", "data": values, "shards": {"uri": str(root / "shards")}})


def shard(root, **custom):
    """Makes the shards of `recipe`; returns its card."""
    return ensure_shards(recipe(root, **custom), no_ray=True)


def problems(root, **custom):
    """All that `pipeline.shard --check` lists, in one text; a refused recipe counts as well."""
    try:
        return "\n".join(check_raw_data(recipe(root, **custom), no_ray=True).scan.problems)
    except D2LSError as error:
        return str(error)


def notes(root, **custom):
    """The notes of `pipeline.shard --check`, in one text."""
    return "\n".join(check_raw_data(recipe(root, **custom), no_ray=True).scan.notes)


def samples(root):
    """Decoded samples of the shards by key: image (H W C), class ids (H W), the JSON member."""
    import io
    import json
    import tarfile

    from d2ls.shards.codecs import decode_image, decode_mask

    result = {}
    for tar_file in sorted((root / "shards").rglob("*.tar")):
        with tarfile.open(fileobj=io.BytesIO(tar_file.read_bytes())) as tar:
            parts = {member.name: tar.extractfile(member).read() for member in tar}
        for key in {name.split(".")[0] for name in parts}:
            image = next(name for name in parts if name.startswith(f"{key}.image."))
            result[key] = (
                decode_image(parts[image], image.rsplit(".", 1)[1]),
                decode_mask(parts[f"{key}.mask.png"]),
                json.loads(parts[f"{key}.json"]),
            )
    return result
