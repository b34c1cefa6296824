"""Drawing primitives of the procedural scenes: noise, parcels, crowns, curves, rectangles, shadow.

Lengths are in pixels, reflectance is float32 in 0..1, colours are red, green, blue.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

FloatImage = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass
class Canvas:
    """A scene being drawn.

    Attributes:
        color: H W 3, reflectance.
        labels: H W, uint8, class ids.
        height: H W, metres above ground, from which shadows are cast.
        rng: the only source of random numbers.
    """

    color: FloatImage
    labels: npt.NDArray[np.uint8]
    height: FloatImage
    rng: np.random.Generator

    @classmethod
    def blank(cls, size: int, rng: np.random.Generator) -> "Canvas":
        """Makes an empty square canvas."""
        flat = np.zeros((size, size), np.float32)
        return cls(np.zeros((size, size, 3), np.float32), np.zeros((size, size), np.uint8), flat, rng)

    @property
    def size(self) -> int:
        """Side in pixels."""
        return int(self.labels.shape[0])

    def paint(self, where: Mask, label: int, color: FloatImage, height: float | FloatImage = 0.0) -> None:
        """Sets label, colour (H W 3 or 3) and height where the mask is true."""
        self.labels[where] = label
        self.color[where] = color[where] if color.ndim == 3 else color
        self.height[where] = height[where] if isinstance(height, np.ndarray) else height


def noise(rng: np.random.Generator, size: int, cell: float, octaves: int = 3) -> FloatImage:
    """Makes fractal value noise, H W, scaled to 0..1; `cell` is the width of its largest bumps."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        step = max(cell / 2**octave, 1.0)
        count = int(np.ceil(size / step)) + 3
        grid = rng.random((count, count), dtype=np.float32)
        wide = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        total += wide[:size, :size] / 2**octave
    low, high = float(total.min()), float(total.max())
    return np.asarray((total - low) / max(high - low, 1e-6), np.float32)


def tinted(
    rng: np.random.Generator, size: int, low: tuple[float, ...], high: tuple[float, ...]
) -> FloatImage:
    """Makes a colour field, H W 3, that varies between two colours and has a fine grain."""
    mix = (0.65 * noise(rng, size, 40) + 0.35 * rng.random((size, size), dtype=np.float32))[..., None]
    return np.asarray(np.array(low, np.float32) * (1 - mix) + np.array(high, np.float32) * mix, np.float32)


def rotated(size: int, angle: float) -> tuple[FloatImage, FloatImage]:
    """Returns coordinates along and across a direction, each H W, in pixels, zero in the middle."""
    row, column = np.mgrid[:size, :size].astype(np.float32) - size / 2
    along = np.cos(angle) * column + np.sin(angle) * row
    across = -np.sin(angle) * column + np.cos(angle) * row
    return np.asarray(along, np.float32), np.asarray(across, np.float32)


def parcels(
    rng: np.random.Generator, size: int, angle: float, width: float
) -> tuple[npt.NDArray[np.int32], FloatImage]:
    """Divides the plane into field parcels.

    Returns:
        Parcel numbers from 0 (H W), and the distance to the parcel's border in pixels (H W).
    """
    along, across = rotated(size, angle)
    reach = size * 0.75
    cuts = np.cumsum(rng.uniform(0.7, 1.4, int(2 * reach / width) + 4) * width) - reach - width
    strip = np.searchsorted(cuts, across).astype(np.int32)
    shift = rng.uniform(0, 3 * width, strip.max() + 2).astype(np.float32)[strip]
    length = rng.uniform(1.2, 2.6, strip.max() + 2).astype(np.float32)[strip] * width
    cell = np.floor((along + shift + 4 * reach) / length).astype(np.int32)
    _, number = np.unique(strip * 1000 + cell, return_inverse=True)
    number = number.reshape(size, size).astype(np.int32)
    border = np.zeros((size, size), np.uint8)
    border[:, 1:] |= number[:, 1:] != number[:, :-1]
    border[1:] |= number[1:] != number[:-1]
    distance = cv2.distanceTransform(1 - border, cv2.DIST_L2, 3)
    return np.asarray(number, np.int32), np.asarray(distance, np.float32)


def crowns(rng: np.random.Generator, size: int, spacing: int) -> tuple[FloatImage, FloatImage]:
    """Fills the plane with tree crowns.

    Returns:
        Crown profile 0 (gap) .. 1 (top), H W, and a number 0..1 for each crown, H W.
    """
    count = size // spacing + 2
    base = np.indices((count, count)).reshape(2, -1).T * spacing
    points = (base + rng.integers(0, spacing, base.shape)).clip(0, size - 1)
    seeds = np.ones((size, size), np.uint8)
    seeds[points[:, 0], points[:, 1]] = 0
    distance, owner = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    profile = np.clip(1 - distance / (0.85 * spacing), 0, 1)
    tone = rng.random(int(owner.max()) + 1).astype(np.float32)[owner]
    return np.asarray(profile, np.float32), np.asarray(tone, np.float32)


def curve(rng: np.random.Generator, size: int, angle: float, sway: float) -> FloatImage:
    """Returns the signed distance to a winding line through the scene, H W, in pixels."""
    along, across = rotated(size, angle)
    phase, length = rng.uniform(0, 6.28), rng.uniform(0.7, 1.6) * size
    offset = rng.uniform(-0.25, 0.25) * size
    bend = sway * np.sin(6.28 * along / length + phase) + 0.4 * sway * np.sin(
        14.1 * along / length + 2 * phase
    )
    return np.asarray(across - offset - bend, np.float32)


def rectangle(size: int, center: tuple[float, float], sides: tuple[float, float], angle: float) -> Mask:
    """Returns the mask of a rectangle around (row, column), H W; `sides` are along and across the angle."""
    unit = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * np.array(sides) / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = (unit @ turn.T + np.array(center[::-1])).round().astype(np.int32)
    canvas = np.zeros((size, size), np.uint8)
    cv2.fillConvexPoly(canvas, corners, 1)
    return canvas.astype(bool)


def shadows(height: FloatImage, direction: tuple[float, float], steps: int = 16) -> FloatImage:
    """Returns the share of sunlight that each pixel loses to objects towards the sun, H W, 0..1."""
    dark = np.zeros_like(height)
    for step in range(1, steps + 1):
        matrix = np.array([[1, 0, direction[1] * step], [0, 1, direction[0] * step]], np.float32)
        moved = cv2.warpAffine(height, matrix, height.shape[::-1], flags=cv2.INTER_NEAREST)
        np.maximum(dark, (moved - 0.9 * step > height).astype(np.float32), out=dark)
    return np.asarray(cv2.GaussianBlur(dark, (0, 0), 0.7), np.float32)


def relief(profile: FloatImage, direction: tuple[float, float]) -> FloatImage:
    """Returns the shading of a bumpy surface lit against the shadow direction, H W, around 0."""
    down = cv2.Sobel(profile, cv2.CV_32F, 0, 1, ksize=3)
    right = cv2.Sobel(profile, cv2.CV_32F, 1, 0, ksize=3)
    return np.asarray(direction[0] * down + direction[1] * right, np.float32)
