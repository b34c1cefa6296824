"""A trained network as one file that runs without this project: a torch.export program (.pt2) or ONNX.

The program takes raw pixels. It is read back, by onnxruntime or by `torch.export.load`, and compared with the network
at random sizes before the file gets its name.
"""

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from d2ls import storage
from d2ls.errors import ConfigError, StorageError, WeightsError
from d2ls.scratch import atomic_write

if TYPE_CHECKING:
    from d2ls.bundle import ModelInfo

SMALLEST = 64
"""Smallest height and width; below it the deepest map is one pixel high, which would need another program."""

LARGEST_CHECKED = 320
"""Limit to the sides of the random images of a check. With sides up to it a UNetFormer has one window or several,
and a pyramid has all its levels."""

TOLERANCE = 1e-4
"""Largest difference of probabilities, relative to their standard deviation, that rounding can explain."""

ONE_SIZE = {".onnx": ("upernet",), ".pt2": ()}
"""Architectures that need a fixed size in ONNX: UPerNet's pyramid is adaptive pooling, which ONNX lacks."""

ONNX_OPSET, ONNX_IR = 18, 8
"""Operator set and format version of ONNX files. onnxruntime from 1.14 on reads them; Deepness installs 1.17."""

PACKAGES = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": ()}
"""Packages that each suffix needs beside torch."""

Run = Callable[[Tensor], Tensor]


class PixelsToProbabilities(nn.Module):
    """The exported module: from raw pixels to class probabilities.

    Args:
        network: takes raw pixels, returns an object with `.logits`.
        temperature: of the probabilities.
    """

    def __init__(self, network: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, images: Tensor) -> Tensor:
        """Takes raw values as float32, B bands H W; returns B K H W."""
        logits: Tensor = self.network(images).logits
        return (logits / self.temperature).softmax(dim=1)


def check_target(target: Path, *, overwrite: bool = False) -> None:
    """Refuses a target that could not be written, before any work is done.

    Raises:
        ConfigError: another suffix, or a package that the suffix needs is missing.
        StorageError: the file exists and may not be replaced.
    """
    if target.is_dir():
        raise StorageError(f"{target}: is a folder; name a file, for instance {target / 'model.onnx'}")
    if not overwrite:
        storage.check_free(target, "name another file, or replace it with --overwrite (overwrite=True)")
    if target.suffix not in PACKAGES:
        raise ConfigError(f"{target}: models are exported as {' or '.join(PACKAGES)}; name the file so")
    os.environ.setdefault(
        "ORT_DISABLE_TELEMETRY", "1"
    )  # without it onnxruntime sends events from its import on
    for package in PACKAGES[target.suffix]:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"{target}: ONNX needs the package {package} ({error}). Install the extra `export`: "
                "pip install 'd2ls-pipeline[export]', or '.[export]' in a checkout; or write a .pt2"
            ) from error


def export_model(
    network: nn.Module,
    info: "ModelInfo",
    target: Path,
    *,
    size: int | None = None,
    overwrite: bool = False,
    checks: int = 3,
) -> float:
    """Writes a network and its description as a program: `.onnx` or, for torch.export, `.pt2`.

    The number of images is free, and so are height and width, from 64 pixels on, unless `size` is given.

    Args:
        network: on the CPU; it is put into evaluation mode.
        info: its description. ONNX gets it as metadata (`onnx_metadata`), a `.pt2` as the extra file `model.json`.
        target: local file.
        size: height and width of all images; None leaves them free.
        overwrite: replace a file that exists.
        checks: number of random batches that are compared.

    Returns:
        The largest difference of probabilities found, relative to their standard deviation.

    Raises:
        ConfigError: another suffix, a missing package, a size below 64, or no size where the architecture needs one.
        StorageError: the file exists already.
        WeightsError: the program does not compute what the network computes; nothing is written.
    """
    check_target(target, overwrite=overwrite)
    if size is not None and size < SMALLEST:
        raise ConfigError(f"size is {size}; an exported program takes {SMALLEST} pixels per side at least")
    config: Any = getattr(network, "config", {})
    if size is None and config.get("architecture") in ONE_SIZE[target.suffix]:
        raise ConfigError(
            f"{target}: {config['architecture']} is exported as {target.suffix} for images of one size; name it, e.g. "
            f"--size {info.window}"
        )
    model, bands = PixelsToProbabilities(network, info.temperature or 1.0).eval(), len(info.bands)
    axes = {0: Dim.AUTO} if size else {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    example = torch.full((2, bands, size or 98, size or 135), 100.0)
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=(axes,))
    with atomic_write(target, scratch="export", sync=False) as partial:
        if target.suffix == ".onnx":
            run = _write_onnx(program, onnx_metadata(info, size), partial)
        else:
            run = _write_pt2(program, info, partial)
        worst = max(_difference(model, run, shape, target) for shape in _shapes(bands, size, checks))
        if not worst <= TOLERANCE:
            raise WeightsError(
                f"{target}: the program differs from the network by {worst:.2g} of the probabilities' standard "
                f"deviation, {TOLERANCE:g} is allowed; nothing is written"
            )
    return worst


def onnx_metadata(info: "ModelInfo", size: int | None = None) -> dict[str, str]:
    """Returns the metadata of an ONNX file for images of a size (None: free), each value as JSON.

    `d2ls` is the whole description. The others are those that the QGIS plugin Deepness reads. It divides pixels by 255
    before it standardises them, so a standard deviation of 1/255 gives the raw values back. Its documentation says
    `tiles_size`, its code reads `tile_size`.
    """
    values: dict[str, Any] = {
        "model_type": "Segmentor",
        "class_names": dict(enumerate(info.classes.names)),
        "tile_size": size or info.window,
        "tiles_size": size or info.window,
        "tiles_overlap": 25,
        "seg_thresh": 0.0,
        "seg_small_segment": 0,
        "standardization_mean": [0.0] * len(info.bands),
        "standardization_std": [1 / 255] * len(info.bands),
    }
    if info.ground_sampling_distance is not None:
        values["resolution"] = info.ground_sampling_distance * 100
    return {name: json.dumps(value) for name, value in values.items()} | {"d2ls": info.to_json()}


def _write_pt2(program: ExportedProgram, info: "ModelInfo", file: Path) -> Run:
    torch.export.save(program, file, extra_files={"model.json": info.to_json()})
    loaded = torch.export.load(file).module()
    return lambda images: loaded(images)


def _write_onnx(program: ExportedProgram, metadata: dict[str, str], file: Path) -> Run:
    import onnx
    import onnxruntime

    exported = torch.onnx.export(
        program, (), dynamo=True, verbose=False, output_names=["probabilities"], opset_version=ONNX_OPSET
    )
    assert exported is not None
    model = exported.model_proto
    model.ir_version = ONNX_IR
    _name_axes(model.graph)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _name_axes(graph: Any) -> None:
    """Names the free axes of input and output `batch`, `height`, `width`; torch.export numbers them."""
    del graph.value_info[:]  # the shapes in between would still have the old names
    for value in (graph.input[0], graph.output[0]):
        for name, axis in zip(
            ("batch", "", "height", "width"), value.type.tensor_type.shape.dim, strict=True
        ):
            if axis.dim_param:
                axis.dim_param = name


def _shapes(bands: int, size: int | None, checks: int) -> list[tuple[int, int, int, int]]:
    draw = np.random.default_rng(0)
    sides = np.full((checks, 2), size) if size else draw.integers(SMALLEST, LARGEST_CHECKED, (checks, 2))
    return [(int(draw.integers(1, 4)), bands, height, width) for height, width in sides.tolist()]


def _difference(model: nn.Module, run: Run, shape: tuple[int, ...], target: Path) -> float:
    images = torch.from_numpy(np.random.default_rng(shape).integers(0, 256, shape).astype(np.float32))
    with torch.no_grad():
        expected = model(images)
        try:
            exported = run(images)
        except Exception as error:  # of onnxruntime, or a guard of torch.export
            reason = str(error).splitlines()[0]
            raise WeightsError(
                f"{target}: the program does not take images of shape {list(shape)} ({reason}); nothing is written. "
                "Export it for one size with --size (size=)"
            ) from error
    if exported.shape != expected.shape or not (exported.isfinite().all() and expected.isfinite().all()):
        return float("inf")
    return float((exported - expected).abs().max() / expected.std().clamp_min(1e-12))
