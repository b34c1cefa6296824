"""Procedural aerial scenes with labels, written in LoveDA's folder layout and label codes.

They replace a real data set in the demo, in tests and in benchmarks. They show fields with furrows, forest of single
crowns, rivers and lakes, roads with markings and cars, buildings with gabled roofs, and bare soil. Light comes from
one side and casts shadows; haze and tint change from scene to scene. Class shares are as uneven as in real scenes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from d2ls.labels import IGNORE
from pipeline.demo.drawing import (
    Canvas,
    crowns,
    curve,
    noise,
    parcels,
    rectangle,
    relief,
    rotated,
    shadows,
    tinted,
)

BACKGROUND, BUILDING, ROAD, WATER, BARREN, FOREST, AGRICULTURE = range(7)
"""Class ids, in LoveDA's order."""

Area = Literal["Urban", "Rural"]

CROPS = ((0.24, 0.42, 0.13), (0.36, 0.50, 0.20), (0.62, 0.58, 0.28), (0.42, 0.33, 0.20), (0.30, 0.46, 0.22))
ROOFS = ((0.55, 0.24, 0.17), (0.62, 0.34, 0.24), (0.42, 0.40, 0.40), (0.72, 0.71, 0.68), (0.28, 0.30, 0.34))
CARS = ((0.85, 0.85, 0.85), (0.15, 0.15, 0.18), (0.65, 0.12, 0.12), (0.2, 0.3, 0.6))


def make_scene(
    seed: int, size: int = 256, area: Area | None = None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draws one scene.

    Args:
        seed: the same seed gives the same scene.
        size: side in pixels, 64 or more; one pixel is about 0.6 m.
        area: `Urban` or `Rural`; by default even seeds are urban.

    Returns:
        The image (size size 3, uint8, RGB) and its class ids (size size, uint8, 0..6, 255 where no data).
    """
    rng = np.random.default_rng((seed, size))
    canvas = Canvas.blank(size, rng)
    angle = float(rng.uniform(0, np.pi / 2))
    sun = float(rng.uniform(0, 2 * np.pi))
    direction = (float(np.sin(sun)), float(np.cos(sun)))
    canvas.paint(
        np.ones((size, size), bool), BACKGROUND, tinted(rng, size, (0.3, 0.36, 0.2), (0.5, 0.5, 0.33))
    )
    if (area or ("Urban" if seed % 2 == 0 else "Rural")) == "Urban":
        _town(canvas, angle, direction)
    else:
        _country(canvas, angle, direction)
    return _photograph(canvas, direction), canvas.labels


def write_scenery(
    root: str | Path,
    *,
    scenes: Mapping[str, int] | None = None,
    size: int = 256,
    seed: int = 0,
) -> Path:
    """Writes a data set of scenes as LoveDA does, with label images in every part.

    Unlike the official one, the Test part has labels, so train, val and test each have their own scenes. Scenes of
    different parts come from different seeds.

    Args:
        root: folder to write into.
        scenes: number of scenes of each part; by default 32 for Train, 8 for Val, 8 for Test. Every second is rural.
        size: side of a scene in pixels.
        seed: another seed, another data set.

    Returns:
        The root folder.
    """
    number = 0
    for part, count in (scenes or {"Train": 32, "Val": 8, "Test": 8}).items():
        for index in range(count):
            area: Area = "Rural" if index % 2 else "Urban"
            image, labels = make_scene(seed * 1_000_003 + number, size, area)
            _write_pair(Path(root) / part / area, f"{number}.png", image, labels)
            number += 1
    return Path(root)


def _write_pair(folder: Path, name: str, image: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> None:
    raw = np.where(labels == IGNORE, 0, labels + 1).astype(np.uint8)  # LoveDA: 0 is no data, classes from 1
    for part, pixels in (("images_png", image[..., ::-1]), ("masks_png", raw)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / part / name), pixels)


def _town(canvas: Canvas, angle: float, direction: tuple[float, float]) -> None:
    """A street grid with blocks of houses, gardens, a park, waste land, sometimes a canal or a pond."""
    rng = canvas.rng
    _woods(canvas, direction, share=float(rng.uniform(0.05, 0.2)), cell=70)
    _bare(canvas, share=float(rng.uniform(0.03, 0.16)))
    if rng.random() < 0.65:
        _water(canvas, angle + float(rng.uniform(-0.4, 0.4)), width=float(rng.uniform(18, 42)))
    along, across = rotated(canvas.size, angle)
    pitch = rng.uniform(68, 120, 2)
    origin = rng.uniform(0, pitch)
    width = float(rng.uniform(8, 13))
    _houses(canvas, angle, (float(pitch[0]), float(pitch[1])), (float(origin[0]), float(origin[1])), width)
    for line, step, start in ((along, pitch[0], origin[0]), (across, pitch[1], origin[1])):
        other = across if line is along else along
        _road(canvas, np.asarray((line - start + step / 2) % step - step / 2, np.float32), other, width)
    _single_trees(canvas, direction, count=canvas.size**2 // 2600)


def _country(canvas: Canvas, angle: float, direction: tuple[float, float]) -> None:
    """Fields, a wood, a river or lake, a road with a few farms, bare soil."""
    rng = canvas.rng
    _fields(canvas, angle)
    _woods(canvas, direction, share=float(rng.uniform(0.08, 0.3)), cell=110)
    _bare(canvas, share=float(rng.uniform(0.02, 0.14)))
    if rng.random() < 0.75:
        _water(canvas, float(rng.uniform(0, np.pi)), width=float(rng.uniform(24, 70)))
    heading = angle + float(rng.choice([0, np.pi / 2]))
    line = curve(rng, canvas.size, heading, sway=0.06 * canvas.size)
    _farms(canvas, line, heading, count=max(2, canvas.size // 70))
    _road(canvas, line, rotated(canvas.size, heading)[0], float(rng.uniform(6, 10)))
    _single_trees(canvas, direction, count=canvas.size**2 // 8000)


def _fields(canvas: Canvas, angle: float) -> None:
    rng, size = canvas.rng, canvas.size
    number, border = parcels(rng, size, angle, width=float(rng.uniform(45, 85)))
    count = int(number.max()) + 1
    crop = np.array(CROPS, np.float32)[rng.integers(0, len(CROPS), count)]
    crop = crop * rng.uniform(0.85, 1.15, (count, 1)).astype(np.float32)
    along, across = rotated(size, angle)
    turned = rng.random(count)[number] < 0.3
    period = rng.uniform(4, 9, count).astype(np.float32)[number]
    furrow = np.sin(6.28 * np.where(turned, along, across) / period) * rng.uniform(0.02, 0.16, count)[number]
    grain = 0.86 + 0.16 * noise(rng, size, 30) + 0.12 * rng.random((size, size), dtype=np.float32)
    color = crop[number] * (grain * (1 + furrow)).astype(np.float32)[..., None]
    fallow = (rng.random(count) < 0.15)[number]
    canvas.paint((border > 1.5) & ~fallow, AGRICULTURE, np.asarray(color, np.float32))


def _woods(canvas: Canvas, direction: tuple[float, float], share: float, cell: float) -> None:
    rng, size = canvas.rng, canvas.size
    field = noise(rng, size, cell) + 0.06 * noise(rng, size, 8, 1)
    where = field > np.quantile(field, 1 - share)
    color, height = _foliage(canvas, direction)
    canvas.paint(where, FOREST, color, height)


def _foliage(
    canvas: Canvas, direction: tuple[float, float]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    rng, size = canvas.rng, canvas.size
    profile, tone = crowns(rng, size, spacing=int(rng.integers(6, 10)))
    light = 0.55 + 0.55 * profile - 0.28 * relief(profile, direction)
    leaf = np.stack([0.13 + 0.12 * tone, 0.25 + 0.09 * tone, 0.10 + 0.05 * tone], -1)
    grain = 0.9 + 0.2 * rng.random((size, size, 1), dtype=np.float32)
    color = leaf * light[..., None] * grain
    return np.asarray(color, np.float32), np.asarray(3 + 4 * profile, np.float32)


def _single_trees(canvas: Canvas, direction: tuple[float, float], count: int) -> None:
    rng, size = canvas.rng, canvas.size
    stamp = np.zeros((size, size), np.uint8)
    for row, column in rng.integers(0, size, (count, 2)):
        if canvas.labels[row, column] in (BACKGROUND, AGRICULTURE):
            cv2.circle(stamp, (int(column), int(row)), int(rng.integers(3, 7)), 1, -1)
    color, height = _foliage(canvas, direction)
    canvas.paint((stamp > 0) & (canvas.labels != ROAD) & (canvas.labels != BUILDING), FOREST, color, height)


def _bare(canvas: Canvas, share: float) -> None:
    rng, size = canvas.rng, canvas.size
    field = noise(rng, size, 90)
    color = tinted(rng, size, (0.48, 0.38, 0.27), (0.72, 0.61, 0.46))
    track = np.abs(curve(rng, size, float(rng.uniform(0, np.pi)), sway=12) % 23 - 6) < 1.2
    color[track] *= 0.86
    canvas.paint(field > np.quantile(field, 1 - share), BARREN, color)


def _water(canvas: Canvas, angle: float, width: float) -> None:
    rng, size = canvas.rng, canvas.size
    if rng.random() < 0.6:
        ragged = (noise(rng, size, 45) - 0.5) * width * 0.8
        depth = width / 2 + ragged - np.abs(curve(rng, size, angle, sway=0.12 * size))
    else:
        field = noise(rng, size, 120, 4)
        depth = (field - np.quantile(field, 0.82)) * 160
    deep = np.clip(depth / 14, 0, 1)[..., None]
    ripple = 0.93 + 0.1 * noise(rng, size, 5, 1)[..., None]
    shallow, bottom = np.array([0.27, 0.33, 0.28], np.float32), np.array([0.09, 0.17, 0.22], np.float32)
    canvas.paint(
        (depth > -2.5) & (depth <= 0), BARREN, tinted(rng, size, (0.5, 0.44, 0.33), (0.62, 0.55, 0.42))
    )
    color = (shallow * (1 - deep) + bottom * deep) * ripple
    canvas.paint(depth > 0, WATER, np.asarray(color, np.float32), 0.0)


def _road(
    canvas: Canvas, across: npt.NDArray[np.float32], along: npt.NDArray[np.float32], width: float
) -> None:
    rng, size = canvas.rng, canvas.size
    tone = float(rng.uniform(0.3, 0.46))
    color = tinted(rng, size, (tone, tone, tone + 0.01), (tone + 0.1, tone + 0.09, tone + 0.08))
    dashed = (np.abs(across) < 0.7) & (along % 16 < 8)
    color[dashed | (np.abs(np.abs(across) - width / 2 + 1.2) < 0.4)] = 0.72
    lane = np.abs(np.abs(across) - width / 4)
    spot = np.floor(along / 11).astype(np.int64) * 2 + (across > 0)
    full = rng.random(int(spot.max() - spot.min()) + 1)[spot - spot.min()] < 0.14
    paint = np.array(CARS, np.float32)[rng.integers(0, len(CARS), int(spot.max() - spot.min()) + 1)]
    car = full & (lane < 1.6) & (along % 11 > 3) & (along % 11 < 9)
    color[car] = paint[spot - spot.min()][car]
    where = np.abs(across) < width / 2
    verge = (np.abs(across) < width / 2 + 2.5) & ~where & (canvas.labels != BUILDING)
    canvas.paint(verge, BACKGROUND, tinted(rng, size, (0.5, 0.49, 0.46), (0.6, 0.58, 0.54)))
    canvas.paint(where, ROAD, color)


def _houses(
    canvas: Canvas, angle: float, pitch: tuple[float, float], origin: tuple[float, float], width: float
) -> None:
    """Fills the blocks of a street grid with rows of houses."""
    rng, size = canvas.rng, canvas.size
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    reach = int(size / min(pitch)) + 1
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            rows = 1 if rng.random() < 0.25 else 2
            cells = int(rng.integers(2, 5))
            room = ((pitch[0] - width - 8) / cells, (pitch[1] - width - 8) / rows)
            for a in range(cells):
                for b in range(rows):
                    corner = np.array([i * pitch[0] + origin[0], j * pitch[1] + origin[1]]) + width / 2 + 4
                    middle = corner + np.array([(a + 0.5) * room[0], (b + 0.5) * room[1]])
                    column, row = turn @ middle + size / 2
                    sides = (room[0] * float(rng.uniform(0.5, 0.85)), room[1] * float(rng.uniform(0.45, 0.8)))
                    if rng.random() < 0.82:
                        _house(canvas, (float(row), float(column)), sides, angle)


def _farms(canvas: Canvas, line: npt.NDArray[np.float32], heading: float, count: int) -> None:
    rng = canvas.rng
    beside = np.argwhere((np.abs(line) > 16) & (np.abs(line) < 42))
    for _ in range(count if len(beside) else 0):
        row, column = beside[rng.integers(len(beside))]
        sides = (float(rng.uniform(16, 36)), float(rng.uniform(12, 20)))
        _house(canvas, (float(row), float(column)), sides, heading + float(rng.choice([0, np.pi / 2])))


def _house(canvas: Canvas, center: tuple[float, float], sides: tuple[float, float], angle: float) -> None:
    """One building: ridge along its longer side or a flat roof; never in water."""
    rng, size = canvas.rng, canvas.size
    reach = max(sides)
    inside = all(-reach < part < size + reach for part in center)
    where = rectangle(size, center, sides, angle) if inside else np.zeros((size, size), bool)
    if not where.any() or (canvas.labels[where] == WATER).any():
        return
    roof = np.array(ROOFS[rng.integers(len(ROOFS))], np.float32) * float(rng.uniform(0.85, 1.12))
    values = roof * (0.93 + 0.14 * rng.random((int(where.sum()), 1), dtype=np.float32))
    if rng.random() < 0.7:
        ridge = angle if sides[0] >= sides[1] else angle + np.pi / 2
        offset = np.array([np.cos(ridge + np.pi / 2), np.sin(ridge + np.pi / 2)]) * min(sides) / 4
        half = rectangle(size, (center[0] + offset[1], center[1] + offset[0]), sides, angle)
        values[half[where]] *= float(rng.uniform(0.66, 0.85))
    else:
        inner = rectangle(size, center, (sides[0] - 4, sides[1] - 4), angle)
        values[~inner[where]] *= 1.18
        unit = rectangle(size, (center[0] + 2, center[1] - 2), (4, 4), angle)
        values[unit[where]] *= 0.7
    canvas.labels[where], canvas.color[where] = BUILDING, values
    canvas.height[where] = float(rng.uniform(4, 13))


def _photograph(canvas: Canvas, direction: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Lights the scene, adds haze, blur and sensor noise; sometimes a corner lies outside the flight strip."""
    rng, size = canvas.rng, canvas.size
    lit = canvas.color * (1 - 0.55 * shadows(canvas.height, direction))[..., None]
    lit = lit * (0.9 + 0.2 * noise(rng, size, size / 1.5, 2))[..., None]
    tint = rng.uniform(0.93, 1.07, 3) * rng.uniform(0.85, 1.25)
    haze = rng.uniform(0, 0.09)
    exposed = np.clip(lit * tint * (1 - haze) + haze * np.array([0.9, 0.95, 1.0]), 0, 1) ** rng.uniform(
        0.75, 1.05
    )
    soft = cv2.GaussianBlur(exposed.astype(np.float32), (0, 0), float(rng.uniform(0.45, 0.75)))
    image = np.clip(soft * 255 + rng.normal(0, 2.5, soft.shape), 0, 255).astype(np.uint8)
    if rng.random() < 0.08:
        outside = rotated(size, float(rng.uniform(0, 6.28)))[0] > 0.52 * size
        image[outside], canvas.labels[outside] = 0, IGNORE
    return image
