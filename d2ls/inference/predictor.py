"""A trained network ready for use: raw pixels in, class ids or probabilities out."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from d2ls.errors import ConfigError, DataError
from d2ls.inference.sliding_window import Band, Floats, Grid, overlap_pixels, stitch
from d2ls.inference.threads import SlicedForward
from d2ls.inference.tta import TTATransform, average_predictions, tta_transforms
from d2ls.window import Window

if TYPE_CHECKING:
    from d2ls.bundle import ModelInfo

OVERLAP = 0.25
"""Default overlap of neighbouring windows, as a share of the window."""


class Predictor:
    """Segments images of any size with a trained network.

    Args:
        network: takes raw pixels, returns an object with `.logits`.
        info: what the network was trained for.
        device: where to compute; None takes a CUDA device where there is one.
        tta: preset of test-time augmentation: none, flips, flips_turns or flips_scales.
        batch_size: windows predicted together.
        window: side of the windows in pixels; None takes the one of the training.
        overlap: overlap of windows as a share of their side.
        temperature: of the probabilities; None takes the model's own, 1 where it has none. Labels do not depend on it.

    Raises:
        ConfigError: an unknown device or preset, an impossible window or overlap.
    """

    def __init__(
        self,
        network: nn.Module,
        info: "ModelInfo",
        *,
        device: str | torch.device | None = None,
        tta: str = "none",
        batch_size: int = 4,
        window: int | None = None,
        overlap: float = OVERLAP,
        temperature: float | None = None,
    ) -> None:
        self.device = _usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network, self.info = network.to(self.device).to(memory_format=torch.channels_last).eval(), info
        self._forward = SlicedForward(self.device)
        self.views = tta_transforms(tta)
        self.batch_size = batch_size
        self.temperature = (info.temperature or 1.0) if temperature is None else temperature
        self.window = info.window if window is None else window
        self.overlap = overlap
        overlap_pixels(self.window, overlap)

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return self.info.classes.num_classes

    def predict(self, image: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
        """Segments an image.

        Args:
            image: H W bands, of the type the model was trained on (`info.dtype`), or a batch B H W bands.

        Returns:
            H W (or B H W) class ids.

        Raises:
            DataError: wrong band count, type or shape.
        """
        if image.ndim == 4:
            return np.stack([self.predict(one) for one in image])
        return self._map(image, keep_probabilities=False)[0]

    def probabilities(self, image: npt.NDArray[np.generic]) -> Floats:
        """Computes class probabilities of an image, H W bands (or B H W bands): K H W (B K H W), sum one over K.

        The model's temperature is applied.
        """
        if image.ndim == 4:
            return np.stack([self.probabilities(one) for one in image])
        maps = self._map(image, keep_probabilities=True)[1]
        assert maps is not None
        return maps

    def window_probabilities(self, pixels: npt.NDArray[np.generic]) -> Tensor:
        """Computes probabilities of whole windows in one pass: B H W bands to B K H W float32 on the device.

        The temperature is not applied yet: `stitch` applies it after blending.
        """
        raw = torch.from_numpy(np.ascontiguousarray(_plain(pixels)))
        return self.tensor_probabilities(raw.permute(0, 3, 1, 2))

    @torch.inference_mode()
    def tensor_probabilities(self, raw: Tensor) -> Tensor:
        """Computes probabilities of raw images, B C H W, any number type: B K H W float32 on the device.

        The temperature is not applied.
        """
        images = self._on_device(raw)
        if images.is_floating_point() and any(view.scale != 1.0 for view in self.views):
            images = self.network.normalization.fill_missing(images)  # type: ignore[operator, union-attr]
        return average_predictions(self._softmax, images, self.views)

    @torch.inference_mode()
    def tensor_logits(self, raw: Tensor) -> Tensor:
        """Computes class scores of raw images, B C H W: B K H W; softmax(scores / temperature) are the probabilities.

        Without test-time augmentation the scores are the logits, as in the training loop. With it, they are the
        logarithms of the mean probabilities.
        """
        if self.views != (TTATransform(),):
            probabilities = self.tensor_probabilities(raw)
            return probabilities.clamp_min_(torch.finfo(torch.float32).tiny).log_()
        return self._forward(self.network, self._on_device(raw))

    def check(self, bands: int, dtype: str, *, where: str = "image") -> None:
        """Refuses pixels that the network was not trained for.

        Raises:
            DataError: names what is there and what the model takes.
        """
        if bands != len(self.info.bands):
            raise DataError(
                f"{where}: {bands} bands, the model takes {len(self.info.bands)} ({', '.join(self.info.bands)}); "
                "select them, for instance image[..., [0, 1, 2]]"
            )
        if dtype != self.info.dtype:
            raise DataError(
                f"{where}: pixels are {dtype}, the model was trained on {self.info.dtype}; scale and convert them"
            )

    def _map(
        self, image: npt.NDArray[np.generic], *, keep_probabilities: bool
    ) -> tuple[npt.NDArray[np.uint8], Floats | None]:
        if image.ndim != 3 or 0 in image.shape:
            raise DataError(f"image: shape {image.shape}; give H W bands with at least one pixel")
        self.check(image.shape[2], str(image.dtype))
        height, width = image.shape[:2]
        labels = np.empty((height, width), np.uint8)
        shape = (self.num_classes, height, width)
        kept = np.empty(shape, np.float32) if keep_probabilities else None

        def read(window: Window) -> tuple[npt.NDArray[np.generic], None]:
            return image[window.slices], None

        def write(band: Band) -> None:
            labels[slice(*band.rows)] = band.labels
            if kept is not None and band.probabilities is not None:
                kept[:, slice(*band.rows)] = band.probabilities

        stitch(
            read, self.window_probabilities, write, self.grid(height, width), self.num_classes,
            batch_size=self.batch_size, keep_probabilities=keep_probabilities, temperature=self.temperature,
        )  # fmt: skip
        return labels, kept

    def grid(self, height: int, width: int) -> Grid:
        """Windows over an image of this size."""
        return Grid(height, width, self.window, overlap_pixels(self.window, self.overlap))

    def _on_device(self, raw: Tensor) -> Tensor:
        """Copies raw pixels; to a GPU from page-locked memory, else the copy would wait for all earlier work."""
        if self.device.type == "cuda" and raw.device.type == "cpu":
            raw = raw.pin_memory()
        return raw.to(self.device, non_blocking=True)

    def _softmax(self, images: Tensor) -> Tensor:
        return self._forward(self.network, images).float().softmax(1)


def _usable(name: str | torch.device) -> torch.device:
    """Returns the device with a name.

    Raises:
        ConfigError: no such device, or none that computes on this machine.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device {name}: cannot compute here ({reason}). Name cpu, cuda or cuda:N"
        ) from error
    return device


def _plain(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Converts uint16 to float32, which is exact: torch has few operations on uint16."""
    return pixels.astype(np.float32) if pixels.dtype == np.uint16 else pixels
