"""The rectangle used for tiles, crops and prediction windows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A rectangle of an image, in pixels. The window of a tile may reach over the edge of its scene.

    Attributes:
        row: first row.
        column: first column.
        height: number of rows.
        width: number of columns.
    """

    row: int
    column: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Slices of rows and columns: `image[window.slices]` is this part of an image."""
        return slice(self.row, self.row + self.height), slice(self.column, self.column + self.width)
