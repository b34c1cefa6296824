"""Maps an image of any size window by window: memory for one row of windows' overlap, never for the whole image.

Windows are predicted in rows. Their probabilities are blended; what no later window reaches is final and handed on
at once, the rest is carried to the next row. Reading runs one step ahead and writing one step behind, in threads, and
blending stays on the device that predicted.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from d2ls.inference.windows import Floats, Grid, Span, blend
from d2ls.labels import IGNORE

Mask = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.generic]


class Source(Protocol):
    """Reads a window of an image."""

    def __call__(self, rows: Span, columns: Span) -> tuple[Pixels, Mask | None]:
        """Returns pixels (H W bands) and which of them are valid (H W; None: all)."""


@dataclass(frozen=True)
class Band:
    """Finished rows of the map.

    Attributes:
        index: number of the band, top down.
        rows: which rows of the image.
        labels: h W uint8, class ids; 255 where the image has no data.
        probabilities: K h W float32, zero where the image has no data; None unless asked for.
    """

    index: int
    rows: Span
    labels: npt.NDArray[np.uint8]
    probabilities: Floats | None


class Progress(NamedTuple):
    """How far a map is: windows done and to do, those passed over for want of data included."""

    done: int
    total: int


@dataclass
class _Window:
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
    progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Predicts every window of a grid and hands on the blended map, band by band, top down.

    Args:
        read: source of pixels; called from one other thread, in order.
        predict: B h w bands to probabilities B K h w float32, on any device.
        write: takes finished bands; called from one other thread, in order. What it raises is raised here.
        grid: where the windows lie.
        num_classes: K.
        batch_size: windows predicted at once.
        first_band: where to begin; what the band needs from windows above it is predicted again, so that a
            map that was interrupted ends up the same as one that was not.
        keep_probabilities: whether bands carry them.
        progress: told after every batch.
    """
    begin = grid.first_row_reaching(first_band)
    # Batches are the same ones wherever a map is taken up again: a network's rounding differs by batch size.
    first = begin * len(grid.columns) // batch_size * batch_size
    done, total = 0, len(grid) - first
    rows = _Rows(grid, num_classes, keep_probabilities)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        pending: Future[None] | None = None
        for batch in _ahead(reader, _batches(read, grid, first, batch_size)):
            for window, block in zip(batch, _predict(predict, batch), strict=True):
                if window.row < begin:
                    continue
                band = rows.add(window, block)
                if band is not None and band.index >= first_band:
                    if pending is not None:
                        pending.result()
                    pending = writer.submit(write, band)
            done += len(batch)
            progress(Progress(done, total))
        if pending is not None:
            pending.result()


def _batches(read: Source, grid: Grid, first: int, size: int) -> Iterator[list[_Window]]:
    """Reads windows row by row from number `first` on; all are of one shape."""
    for start in range(first, len(grid), size):
        places = (divmod(number, len(grid.columns)) for number in range(start, min(start + size, len(grid))))
        yield [_Window(row, column, *read(grid.rows[row], grid.columns[column])) for row, column in places]


def _ahead(reader: ThreadPoolExecutor, batches: Iterator[list[_Window]]) -> Iterator[list[_Window]]:
    """Reads the next batch while the current one is predicted."""
    following = reader.submit(next, batches, None)
    while (batch := following.result()) is not None:
        following = reader.submit(next, batches, None)
        yield batch


def _predict(predict: Callable[[Pixels], Tensor], batch: list[_Window]) -> list[Tensor | None]:
    """Predicts the windows that hold any data; None stands for the others."""
    chosen = [window.pixels for window in batch if not window.empty]
    found = iter(predict(np.stack(chosen)) if chosen else ())
    return [None if window.empty else next(found) for window in batch]


class _Rows:
    """Blends windows that come row by row, left to right.

    `carry` holds, over the whole width, what rows of windows above contributed to rows that are not final yet;
    `strip` holds the current row of windows where the next window to the right still has a say.
    """

    def __init__(self, grid: Grid, num_classes: int, keep_probabilities: bool) -> None:
        self.grid, self.classes, self.keep = grid, num_classes, keep_probabilities
        self.down = [torch.from_numpy(weights) for weights in blend(grid.rows)]
        self.across = [torch.from_numpy(weights) for weights in blend(grid.columns)]
        self.device = torch.device("cpu")
        self.carry = torch.zeros(num_classes, 0, grid.width)
        self.row = -1

    def add(self, window: _Window, block: Tensor | None) -> Band | None:
        """Adds a window's probabilities (K h w, None for nothing); returns the band where it was the last one."""
        if block is not None and block.device != self.device:
            self._move(block.device)
        if window.row != self.row:
            self._begin(window.row)
        start, stop = self.grid.columns[window.column]
        self.valid[:, start:stop] = True if window.valid is None else window.valid[: self.final]
        if block is not None:
            weights = self.down[window.row][:, None] * self.across[window.column]
            self.strip[:, :, : stop - start].addcmul_(block, weights)
        self._flush(start, self._settled(window.column))
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

    def _move(self, device: torch.device) -> None:
        """Follows the predictions to their device; what was gathered before holds no window with data."""
        self.device = device
        self.down = [weights.to(device) for weights in self.down]
        self.across = [weights.to(device) for weights in self.across]
        self.carry = self.carry.to(device)
        if self.row >= 0:
            self.strip, self.next_carry = self.strip.to(device), self.next_carry.to(device)
            self.labels, self.kept = self.labels.to(device), self.kept.to(device)

    def _settled(self, column: int) -> int:
        """First pixel that the next window to the right still reaches."""
        last = column + 1 == len(self.grid.columns)
        return self.grid.width if last else self.grid.columns[column + 1][0]

    def _flush(self, start: int, settled: int) -> None:
        """Finishes the columns from the window's own first one up to where the next window begins."""
        done = settled - start
        part = self.strip[:, :, :done]
        above = self.carry[:, :, start:settled]
        part[:, : above.shape[1]] += above
        self.labels[:, start:settled] = _highest(part[:, : self.final])
        self.next_carry[:, :, start:settled] = part[:, self.final :]
        if self.keep:
            self.kept[:, :, start:settled] = part[:, : self.final]
        remaining = self.strip.shape[2] - done
        self.strip[:, :, :remaining] = self.strip[:, :, done:].clone()
        self.strip[:, :, remaining:] = 0

    def _finish(self) -> Band:
        self.carry = self.next_carry
        labels = self.labels.cpu().numpy()
        labels[~self.valid] = IGNORE
        kept: Floats | None = None
        if self.keep:
            kept = self.kept.cpu().numpy()
            kept[:, ~self.valid] = 0
        return Band(self.row, self.grid.band(self.row), labels, kept)


def _highest(probabilities: Tensor) -> Tensor:
    """Class of the highest probability, K h w to h w; the first of equals. Far quicker on a CPU than `argmax`."""
    best = probabilities[0].clone()
    labels = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
    for index in range(1, len(probabilities)):
        labels.masked_fill_(probabilities[index] > best, index)
        torch.maximum(best, probabilities[index], out=best)
    return labels
