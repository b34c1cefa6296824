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

    def relative_to(self, other: "Window") -> "Window":
        """Returns this rectangle as it lies in another one."""
        return Window(self.row - other.row, self.column - other.column, self.height, self.width)


def window_around(part: Window, size: int, height: int, width: int) -> Window:
    """Returns the square of `size` pixels that starts where a part of an image starts, moved back into the image.

    It is smaller where the image (height x width) is.
    """
    row, column = max(0, min(part.row, height - size)), max(0, min(part.column, width - size))
    return Window(row, column, min(size, height), min(size, width))
