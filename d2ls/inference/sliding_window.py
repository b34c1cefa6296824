"""Predicts an image of any size window by window and blends the results.

Needs memory for one row of windows, never for the whole image. Windows are predicted row by row. Rows of the image
that no later window reaches are final and passed on at once. The other rows are carried to the next row of windows.
One thread reads a batch ahead, another writes the finished band; blending runs on the device that predicts.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from d2ls.errors import ConfigError, NonFiniteOutputError
from d2ls.labels import IGNORE
from d2ls.window import Window

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.generic]
Span = tuple[int, int]
"""First pixel and one past the last pixel along one axis."""

ALIGNMENT = 32
"""Deepest stride of the encoders, in pixels."""

MARGIN = 0.25
"""Fraction of an overlap, on either side, in which the window that ends there has weight zero."""


def overlap_pixels(window: int, overlap: float) -> int:
    """Converts an overlap as a fraction of the window (0 to below 1) into whole pixels.

    Raises:
        ConfigError: a window below 1 pixel or an impossible overlap.
    """
    if window < 1:
        raise ConfigError(f"window {window}: a window needs at least 1 pixel")
    if not 0 <= overlap < 1:
        raise ConfigError(
            f"overlap {overlap}: give a share of the window, from 0 to below 1, for instance 0.25"
        )
    return min(round(window * overlap), window - 1)


def spans(length: int, window: int, overlap: int) -> list[Span]:
    """Covers 0..length with windows of one size and at least this overlap (pixels).

    Windows begin at multiples of `ALIGNMENT`, so that the strides of a network fall on the same pixels in
    neighbouring windows. The last one is an exception: it ends at the edge of the image. A length up to the window
    gets one span.
    """
    if length <= window:
        return [(0, length)]
    starts = [*range(0, length - window, _stride(window, overlap)), length - window]
    return [(start, start + window) for start in starts]


def span_count(length: int, window: int, overlap: int) -> int:
    """Returns the number of spans that `spans` returns."""
    return 1 if length <= window else -(-(length - window) // _stride(window, overlap)) + 1


def _stride(window: int, overlap: int) -> int:
    return (window - overlap) // ALIGNMENT * ALIGNMENT or window - overlap


def blend(along: list[Span], margin: float = MARGIN) -> list[Floats]:
    """Returns the weights of the windows along one axis; at every pixel they sum to one.

    Where two windows overlap, one fades out and the other in along a squared cosine. Over the outer `margin` of the
    overlap a window has weight zero, since predictions are least reliable next to the edge of a window. Windows do
    not fade out at the edges of the image itself.

    Args:
        along: spans in ascending order; each overlaps the next, or ends where it begins.
        margin: fraction of the overlap with weight zero, 0 to below 0.5.

    Returns:
        For each span, one weight per pixel.
    """
    raw = [_fade(along, index, margin) for index in range(len(along))]
    total = np.zeros(along[-1][1], dtype=np.float64)
    for (start, stop), weights in zip(along, raw, strict=True):
        total[start:stop] += weights
    pairs = zip(along, raw, strict=True)
    return [(weights / total[start:stop]).astype(np.float32) for (start, stop), weights in pairs]


def _fade(along: list[Span], index: int, margin: float) -> npt.NDArray[np.float64]:
    start, stop = along[index]
    weights = np.ones(stop - start)
    if index > 0:
        shared = along[index - 1][1] - start
        weights[:shared] *= _ramp(shared, margin)
    if index + 1 < len(along):
        shared = stop - along[index + 1][0]
        weights[len(weights) - shared :] *= _ramp(shared, margin)[::-1]
    return weights


def _ramp(length: int, margin: float) -> npt.NDArray[np.float64]:
    """Returns weights that rise from 0 to 1 in the middle of `length` pixels; with their mirror image they sum to 1."""
    position = (np.arange(length) + 0.5) / max(length, 1)
    share = np.clip((position - margin) / (1 - 2 * margin), 0, 1)
    return np.sin(share * np.pi / 2) ** 2


@dataclass(frozen=True)
class Grid:
    """Windows over an image: every span of rows combined with every span of columns.

    Attributes:
        height: H of the image in pixels.
        width: W of the image.
        window: side of a window; smaller images are one window.
        overlap: minimum overlap of neighbours in pixels, below `window`.
    """

    height: int
    width: int
    window: int
    overlap: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ConfigError(f"an image of {self.height} x {self.width} pixels has no pixels")
        if not 0 <= self.overlap < self.window:
            raise ConfigError(
                f"overlap {self.overlap} must lie between 0 and the window, {self.window} pixels"
            )

    @cached_property
    def rows(self) -> list[Span]:
        """Spans of rows, top down."""
        return spans(self.height, self.window, self.overlap)

    @cached_property
    def columns(self) -> list[Span]:
        """Spans of columns, left to right."""
        return spans(self.width, self.window, self.overlap)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.rows) * len(self.columns)

    def window_at(self, row: int, column: int) -> Window:
        """Returns the window at a position of the grid."""
        (top, bottom), (left, right) = self.rows[row], self.columns[column]
        return Window(top, left, bottom - top, right - left)

    def band(self, index: int) -> Span:
        """Rows of the image that are final once the windows of row `index` and those above it are done."""
        start = self.rows[index][0]
        return start, self.rows[index + 1][0] if index + 1 < len(self.rows) else self.height

    def first_row_reaching(self, index: int) -> int:
        """First row of windows that contributes to the band of row `index`."""
        top = self.rows[index][0]
        return next(i for i, (_, stop) in enumerate(self.rows) if stop > top or i == index)


class Source(Protocol):
    """Reads a window of an image."""

    def __call__(self, window: Window) -> tuple[Pixels, Mask | None]:
        """Returns pixels (h w bands) and which of them hold data (h w; None: all)."""


@dataclass(frozen=True)
class Band:
    """Finished rows of the map.

    Attributes:
        index: number of the band, top down.
        rows: which rows of the image.
        labels: h W uint8, class ids; 255 where the image has no data.
        probabilities: K h W float32, at the temperature, zero where the image has no data; None unless asked for.
    """

    index: int
    rows: Span
    labels: npt.NDArray[np.uint8]
    probabilities: Floats | None


class Progress(NamedTuple):
    """Progress of a map: windows done and in total, including windows skipped because they hold no data."""

    done: int
    total: int


@dataclass
class _Patch:
    """The pixels of one window, and its position in the grid."""

    row: int
    column: int
    pixels: Pixels
    valid: Mask | None

    @property
    def empty(self) -> bool:
        return self.valid is not None and not self.valid.any()


def stitch(
    read: Source,
    predict: Callable[[Pixels], Tensor],
    write: Callable[[Band], None],
    grid: Grid,
    num_classes: int,
    *,
    batch_size: int = 4,
    first_band: int = 0,
    keep_probabilities: bool = False,
    temperature: float = 1.0,
    progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Predicts every window of a grid and passes on the blended map, band by band from the top.

    Args:
        read: reads windows; called in order, from one other thread.
        predict: B h w bands to probabilities B K h w float32, on any device.
        write: receives finished bands in order, from one other thread. What it raises is raised here.
        grid: where the windows lie.
        num_classes: K.
        batch_size: windows predicted at once.
        first_band: band to start with. The windows above that contribute to it are predicted again, so that a
            resumed map equals an uninterrupted one.
        keep_probabilities: whether bands include the probabilities.
        temperature: of these probabilities; applied after blending, so that it cannot change a label.
        progress: called after every batch.

    Raises:
        NonFiniteOutputError: a probability is not a number.
    """
    begin = grid.first_row_reaching(first_band)
    # A resumed map uses the same batches: the rounding of a network depends on the batch size.
    first = begin * len(grid.columns) // batch_size * batch_size
    done, total = 0, len(grid) - first
    rows = _Rows(grid, num_classes, keep_probabilities, temperature)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        pending: Future[None] | None = None
        for batch in _ahead(reader, _batches(read, grid, first, batch_size)):
            for patch, block in zip(batch, _predict(predict, batch), strict=True):
                if patch.row < begin:
                    continue
                band = rows.add(patch, block)
                if band is not None and band.index >= first_band:
                    if pending is not None:
                        pending.result()
                    pending = writer.submit(write, band)
            done += len(batch)
            progress(Progress(done, total))
        if pending is not None:
            pending.result()


def _batches(read: Source, grid: Grid, first: int, size: int) -> Iterator[list[_Patch]]:
    """Reads windows row by row, starting with number `first`; all have the same shape."""
    for start in range(first, len(grid), size):
        places = (divmod(number, len(grid.columns)) for number in range(start, min(start + size, len(grid))))
        yield [_Patch(row, column, *read(grid.window_at(row, column))) for row, column in places]


def _ahead(reader: ThreadPoolExecutor, batches: Iterator[list[_Patch]]) -> Iterator[list[_Patch]]:
    """Reads the next batch while the current one is predicted."""
    following = reader.submit(next, batches, None)
    while (batch := following.result()) is not None:
        following = reader.submit(next, batches, None)
        yield batch


def _predict(predict: Callable[[Pixels], Tensor], batch: list[_Patch]) -> list[Tensor | None]:
    """Predicts the windows that hold data; returns None for the others."""
    pixels = [patch.pixels for patch in batch if not patch.empty]
    blocks = iter(predict(np.stack(pixels)) if pixels else ())
    return [None if patch.empty else next(blocks) for patch in batch]


class _Rows:
    """Blends windows that come row by row, left to right.

    `carry` holds, over the whole width, what the rows of windows above contribute to rows that are not final yet.
    `strip` holds the part of the current row of windows that the next window to the right overlaps.
    """

    def __init__(self, grid: Grid, num_classes: int, keep_probabilities: bool, temperature: float) -> None:
        self.grid, self.classes, self.keep = grid, num_classes, keep_probabilities
        self.temperature = temperature
        self.down = [torch.from_numpy(weights) for weights in blend(grid.rows)]
        self.across = [torch.from_numpy(weights) for weights in blend(grid.columns)]
        self.device = torch.device("cpu")
        self.carry = torch.zeros(num_classes, 0, grid.width)
        self.row = -1

    def add(self, patch: _Patch, block: Tensor | None) -> Band | None:
        """Adds the probabilities of a window (K h w, or None); returns the band if it was the last window of a row."""
        if block is not None and block.device != self.device:
            self._move(block.device)
        if patch.row != self.row:
            self._begin(patch.row)
        start, stop = self.grid.columns[patch.column]
        self.valid[:, start:stop] = True if patch.valid is None else patch.valid[: self.final]
        if block is not None:
            weights = self.down[patch.row][:, None] * self.across[patch.column]
            self.strip[:, :, : stop - start].addcmul_(block, weights)
        self._flush(start, self._settled(patch.column))
        return self._finish() if stop == self.grid.width else None

    def _begin(self, row: int) -> None:
        grid = self.grid
        (top, bottom), (first, last) = grid.rows[row], grid.band(row)
        self.row, self.final = row, last - first
        self.strip = torch.zeros(self.classes, bottom - top, grid.columns[0][1], device=self.device)
        self.next_carry = torch.zeros(self.classes, bottom - last, grid.width, device=self.device)
        self.labels = torch.empty(self.final, grid.width, dtype=torch.uint8, device=self.device)
        self.valid: Mask = np.ones((self.final, grid.width), bool)
        shape = (self.classes, self.final, grid.width) if self.keep else (0,)
        self.kept = torch.empty(shape, device=self.device)
        self.broken = torch.zeros((), dtype=torch.bool, device=self.device)

    def _move(self, device: torch.device) -> None:
        """Moves the state to the device of the predictions; only windows without data came before."""
        self.device = device
        self.down = [weights.to(device) for weights in self.down]
        self.across = [weights.to(device) for weights in self.across]
        self.carry = self.carry.to(device)
        if self.row >= 0:
            self.strip, self.next_carry = self.strip.to(device), self.next_carry.to(device)
            self.labels, self.kept = self.labels.to(device), self.kept.to(device)
            self.broken = self.broken.to(device)

    def _settled(self, column: int) -> int:
        """Returns the first column that the next window to the right covers."""
        last = column + 1 == len(self.grid.columns)
        return self.grid.width if last else self.grid.columns[column + 1][0]

    def _flush(self, start: int, settled: int) -> None:
        """Finishes the columns from the first one of this window to the first one of the next window."""
        done = settled - start
        part = self.strip[:, :, :done]
        above = self.carry[:, :, start:settled]
        part[:, : above.shape[1]] += above
        self.labels[:, start:settled], highest = _highest(part[:, : self.final])
        self.broken |= highest.isnan().any()
        self.next_carry[:, :, start:settled] = part[:, self.final :]
        if self.keep:
            self.kept[:, :, start:settled] = part[:, : self.final]
        remaining = self.strip.shape[2] - done
        self.strip[:, :, :remaining] = self.strip[:, :, done:].clone()
        self.strip[:, :, remaining:] = 0

    def _finish(self) -> Band:
        self.carry = self.next_carry
        labels = self.labels.cpu().numpy()
        if self.broken:
            first, last = self.grid.band(self.row)
            raise NonFiniteOutputError(
                f"rows {first} to {last}: the network's output is not finite, so its pixels have no class. "
                "Pixel values are far from those of the training, or the weights are damaged: evaluate the model on "
                "its shards"
            )
        labels[~self.valid] = IGNORE
        kept: Floats | None = None
        if self.keep:
            kept = apply_temperature(self.kept, self.temperature).cpu().numpy()
            kept[:, ~self.valid] = 0
        return Band(self.row, self.grid.band(self.row), labels, kept)


def _highest(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Returns class and value (h w) of the highest probability (K h w), the first on ties; NaN if one of them is NaN.

    Faster on a CPU than `max`.
    """
    best = probabilities[0].clone()
    labels = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
    for index in range(1, len(probabilities)):
        labels.masked_fill_(probabilities[index] > best, index)
        torch.maximum(best, probabilities[index], out=best)
    return labels, best


def apply_temperature(probabilities: Tensor, temperature: float) -> Tensor:
    """Turns probabilities into those of a temperature, in place: softmax(log(p) / T), which keeps their order.

    Args:
        probabilities: K H W, sum one over K, or all zero where there is no data.
        temperature: 1 changes nothing.
    """
    if temperature == 1.0:
        return probabilities
    tiny = torch.finfo(torch.float32).tiny
    probabilities.div_(probabilities.amax(dim=0).clamp_min_(tiny)).pow_(
        1 / temperature
    )  # the highest stays 1
    return probabilities.div_(probabilities.sum(dim=0).clamp_min_(tiny))
