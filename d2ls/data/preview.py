"""What the network sees, as one picture: augmented images above their labels."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from d2ls.data.collate import Batch
from d2ls.display import GAP, LINE, PAPER, displayable, draw_legend, fitted, legend_height, write
from d2ls.labels import IGNORE_COLOR, ClassTable


def batch_sheet(batches: Iterable[Batch], classes: ClassTable, *, side: int = 192) -> npt.NDArray[np.uint8]:
    """Draws a contact sheet: two rows per batch (images, labels), a column per sample, the classes below.

    Args:
        batches: batches to show; images of more than 8 bits or of other than three bands are stretched and shown by
            their first three bands (one band: grey).
        classes: names and colours.
        side: longest side of a picture on the sheet, in pixels.

    Returns:
        H W 3, uint8, RGB.
    """
    shown, cell = list(batches), side + GAP
    width = max([2 * side, *(len(batch) * cell for batch in shown)])
    foot = len(shown) * (LINE + 2 * cell)
    sheet = Image.new("RGB", (width, foot + legend_height(classes, width) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, batch in enumerate(shown):
        top = number * (LINE + 2 * cell)
        images = batch.images.cpu().permute(0, 2, 3, 1).numpy()
        for column, (image, labels) in enumerate(zip(images, batch.labels.cpu().numpy(), strict=True)):
            write(draw, (column * cell, top), batch.keys[column][-(side // 8) :])
            sheet.paste(fitted(displayable(image), side), (column * cell, top + LINE))
            sheet.paste(
                fitted(classes.colorize(labels), side, labels=True), (column * cell, top + LINE + cell)
            )
    draw_legend(draw, classes, foot, width, IGNORE_COLOR)
    return np.asarray(sheet)
