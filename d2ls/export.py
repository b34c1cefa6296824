"""A trained network as a file that runs without this project: a torch.export program or ONNX.

Batch, height and width stay free (64 pixels a side at least). What is written is read back and compared with the
network on images of random sizes before the file gets its name.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from d2ls import storage
from d2ls.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

SMALLEST = 64
"""Least height and width: below, the deepest map would be one pixel high, which needs another program."""

TOLERANCE = 1e-4
"""Largest difference of logits, relative to their spread, that rounding explains."""


class RawToLogits(nn.Module):
    """Normalisation and network in one: raw pixels in, logits out.

    Args:
        network: with a `.normalization` module; called with normalised images, returns an object with `.logits`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Takes raw values as float32, B bands H W; returns B K H W."""
        normalize = self.network.normalization
        assert isinstance(normalize, nn.Module)
        logits: Tensor = self.network(normalize(images)).logits
        return logits


def export_model(
    network: nn.Module, target: Path, *, bands: int, checks: int = 3, seed: int = 0, overwrite: bool = False
) -> float:
    """Writes a network as a program, `.pt2` (torch.export) or `.onnx`.

    Args:
        network: in evaluation mode, on the CPU.
        target: local file.
        bands: channels of the images.
        checks: number of random sizes that are compared.
        seed: of their draw.
        overwrite: replace a file that exists.

    Returns:
        The largest difference found, relative to the spread of the logits.

    Raises:
        ConfigError: another suffix, or ONNX without the packages it needs.
        StorageError: the file exists already.
        WeightsError: the program does not give what the network gives; nothing is written.
    """
    write = {".pt2": _write_pt2, ".onnx": _write_onnx}.get(target.suffix.lower())
    if write is None:
        raise ConfigError(f"{target}: programs are written as .pt2 or .onnx")
    if not overwrite:
        storage.check_free(target, "name another file, or replace it with overwrite=True")
    model = RawToLogits(network).eval()
    free = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    with torch.no_grad():
        program = torch.export.export(model, (torch.full((2, bands, 98, 135), 100.0),), dynamic_shapes=free)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        partial = Path(folder, target.name)
        run = write(program, partial)
        worst = max(_difference(model, run, size) for size in _sizes(bands, checks, seed))
        if not worst <= TOLERANCE:
            raise WeightsError(
                f"{target}: the program differs from the network by {worst:.2g} of the logits' spread"
            )
        partial.replace(target)
    return worst


def _write_pt2(program: "ExportedProgram", file: Path) -> Callable[[Tensor], Tensor]:
    torch.export.save(program, file)
    loaded = torch.export.load(file).module()
    return lambda images: loaded(images)


def _write_onnx(program: "ExportedProgram", file: Path) -> Callable[[Tensor], Tensor]:
    try:
        import onnx
        import onnxscript  # noqa: F401 (what torch translates with)
        from onnx.reference import ReferenceEvaluator
    except ImportError as error:
        raise ConfigError(f"{file.name}: ONNX needs the packages onnx and onnxscript ({error})") from error
    torch.onnx.export(program, (), file, dynamo=True, external_data=False, verbose=False)
    onnx.checker.check_model(str(file))
    evaluator = ReferenceEvaluator(str(file))
    name = str(evaluator.input_names[0])

    def run(images: Tensor) -> Tensor:
        outputs: Any = evaluator.run(None, {name: images.numpy()})
        return torch.from_numpy(np.asarray(outputs[0]))

    return run


def _sizes(bands: int, checks: int, seed: int) -> list[tuple[int, int, int, int]]:
    draw = np.random.default_rng(seed)
    return [
        (int(batch), bands, int(height), int(width))
        for batch, height, width in zip(
            draw.integers(1, 4, checks), draw.integers(SMALLEST, 160, checks), draw.integers(SMALLEST, 160, checks),
            strict=True,
        )
    ]  # fmt: skip


def _difference(model: nn.Module, run: Callable[[Tensor], Tensor], size: tuple[int, ...]) -> float:
    images = torch.from_numpy(np.random.default_rng(size).integers(0, 256, size).astype(np.float32))
    with torch.no_grad():
        wanted, found = model(images), run(images)
    if found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).abs().max() / wanted.std().clamp_min(1e-12))
