"""What the network sees, as one picture: augmented images above their labels."""

from collections.abc import Iterable

import cv2
import numpy as np
import numpy.typing as npt

from d2ls.display import displayable
from d2ls.labels import IGNORE_COLOR, ClassTable
from d2ls.loader.batches import Batch

_GAP, _LINE = 4, 18  # pixels between pictures; height of a line of text
_BACK = 245

Picture = npt.NDArray[np.uint8]


def batch_sheet(batches: Iterable[Batch], classes: ClassTable, *, side: int = 192) -> Picture:
    """Draws a contact sheet: two rows a batch (images, labels), a column a sample, the classes at the foot.

    Args:
        batches: batches to show; images of more than 8 bits or of other than three bands are stretched and shown by
            their first three bands (one band: grey).
        classes: names and colours.
        side: longest side of a picture on the sheet, in pixels.

    Returns:
        H W 3, uint8, RGB.
    """
    rows = []
    for batch in batches:
        images = batch.images.cpu().permute(0, 2, 3, 1).numpy()
        labels = batch.labels.cpu().numpy()
        rows.append(_row([_fitted(displayable(image), side) for image in images], list(batch.keys)))
        rows.append(_row([_fitted(classes.colorize(label), side) for label in labels], []))
    width = max([row.shape[1] for row in rows], default=side)
    rows.append(_legend(classes, max(width, 2 * side)))
    width = max(row.shape[1] for row in rows)
    return np.concatenate([_widened(row, width) for row in rows])


def _fitted(picture: Picture, side: int) -> Picture:
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(picture, size, interpolation=method), np.uint8)


def _row(pictures: list[Picture], titles: list[str]) -> Picture:
    head = _LINE if titles else 0
    height = max(picture.shape[0] for picture in pictures) + head + _GAP
    row = np.full((height, sum(picture.shape[1] + _GAP for picture in pictures), 3), _BACK, np.uint8)
    left = 0
    for index, picture in enumerate(pictures):
        row[head : head + picture.shape[0], left : left + picture.shape[1]] = picture
        if titles:
            _write(row[:head, left : left + picture.shape[1]], titles[index][-(picture.shape[1] // 8) :], 0)
        left += picture.shape[1] + _GAP
    return row


def _legend(classes: ClassTable, width: int) -> Picture:
    column = 150
    columns = max(1, width // column)
    names, colors = (*classes.names, "ignored"), (*classes.palette, IGNORE_COLOR)
    lines = -(-len(names) // columns)
    legend = np.full((lines * _LINE + _GAP, width, 3), _BACK, np.uint8)
    for index, (name, color) in enumerate(zip(names, colors, strict=True)):
        top, left = index // columns * _LINE, index % columns * column
        legend[top + 3 : top + 15, left + 2 : left + 14] = color
        _write(legend[top : top + _LINE, left : left + column], name[:15], 18)
    return legend


def _write(area: Picture, text: str, left: int) -> None:
    canvas = np.ascontiguousarray(area)
    cv2.putText(canvas, text, (left, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (30, 30, 30), 1, cv2.LINE_AA)
    area[:] = canvas


def _widened(row: Picture, width: int) -> Picture:
    return np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=_BACK)
