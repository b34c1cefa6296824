"""Digests of the content of a sample, a split, a set. They do not depend on names, order, codec or shards."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from d2ls.labels import ClassTable


def sample_digest(image: npt.NDArray[Any], ids: npt.NDArray[np.uint8]) -> str:
    """Returns BLAKE3 (hex) over the decoded pixels of a sample (H W C) and its class ids (H W)."""
    digest = blake3(f"{image.shape} {image.dtype} {ids.shape}\n".encode())
    little = image.astype(image.dtype.newbyteorder("<"), copy=False)
    digest.update(np.ascontiguousarray(little).view(np.uint8).data)
    digest.update(np.ascontiguousarray(ids).data)
    return digest.hexdigest()


def split_digest(
    samples: Iterable[str], classes: ClassTable, bands: Sequence[str], dtype: str, tiling: Mapping[str, Any]
) -> str:
    """Returns BLAKE3 (hex) over classes, channels, pixel type, tiling and the sorted digests of the samples."""
    header = {"classes": classes.to_json(), "bands": list(bands), "dtype": dtype, "tiling": dict(tiling)}
    digest = blake3(json.dumps(header, sort_keys=True).encode())
    for sample in sorted(samples):
        digest.update(bytes.fromhex(sample))
    return digest.hexdigest()


def set_digest(splits: Mapping[str, str]) -> str:
    """Returns BLAKE3 (hex) over the digests of the splits."""
    return blake3(json.dumps(dict(splits), sort_keys=True).encode()).hexdigest()
