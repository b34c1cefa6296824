"""Pictures of a shard set: a contact sheet per split and a histogram of the classes, as PNG under `preview/`."""

import io
from typing import Any

from PIL import Image, ImageDraw

from d2ls import storage
from d2ls.display import GAP, INK, LINE, PAPER, displayable, draw_legend, fitted, legend_height, write
from d2ls.shards import ShardSet
from d2ls.shards.codecs import decode_image, decode_mask

CELL = 192
"""Side of a sample on the sheet, in pixels."""

COLUMNS, ROWS = 4, 4
IGNORED = (110, 110, 110)


def write_previews(shards: ShardSet) -> list[str]:
    """Draws and writes all previews of a set; returns their locations."""
    sheets = {split: contact_sheet(shards, split) for split in shards.splits}
    written = [write_picture(shards.uri, f"samples-{split}", sheet) for split, sheet in sheets.items()]
    written.append(write_picture(shards.uri, "classes", class_histogram(shards)))
    return written


def contact_sheet(shards: ShardSet, split: str) -> Image.Image:
    """Draws up to 16 samples of a split, spread evenly over it: image left, label right, legend below."""
    table = shards.rows(split)
    count = min(COLUMNS * ROWS, table.num_rows)
    chosen = [table.slice(i * table.num_rows // count, 1).to_pylist()[0] for i in range(count)]
    rows = -(-count // COLUMNS)
    columns = min(COLUMNS, count)
    width = max(columns * (2 * CELL + 2 * GAP) + GAP, 560)
    legend = legend_height(shards.card.classes, width)
    sheet = Image.new("RGB", (width, rows * (CELL + LINE + GAP) + legend + 2 * LINE), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, row in enumerate(chosen):
        left = GAP + (place % COLUMNS) * (2 * CELL + 2 * GAP)
        top = GAP + (place // COLUMNS) * (CELL + LINE + GAP)
        image, label = _sample_pictures(shards, row)
        sheet.paste(image, (left, top))
        sheet.paste(label, (left + CELL, top))
        write(draw, (left, top + CELL + 1), row["key"][:52])
    card = shards.card.splits[split]
    title = f"{shards.card.name} / {split}: {card.samples} samples of {card.scenes} scenes"
    top = rows * (CELL + LINE + GAP) + GAP
    write(draw, (GAP, top), title, 14)
    draw_legend(draw, shards.card.classes, top + LINE + 4, width, IGNORED)
    return sheet


def class_histogram(shards: ShardSet) -> Image.Image:
    """Draws the share of each class among the labelled pixels, a bar per split."""
    card = shards.card
    splits = list(card.splits.items())
    height = 26 + card.classes.num_classes * (len(splits) * 14 + 10)
    picture = Image.new("RGB", (760, height + 8), PAPER)
    draw = ImageDraw.Draw(picture)
    write(draw, (GAP, 4), f"{card.name}: share of the labelled pixels", 14)
    top = 28
    for index, name in enumerate(card.classes.names):
        draw.rectangle((GAP, top + 2, GAP + 12, top + 14), card.classes.palette[index], INK)
        write(draw, (GAP + 18, top), name[:22])
        for split, split_card in splits:
            share = split_card.class_pixels[index] / max(sum(split_card.class_pixels), 1)
            draw.rectangle((230, top + 2, 230 + int(400 * share), top + 12), card.classes.palette[index], INK)
            write(draw, (238 + int(400 * share), top), f"{100 * share:.2f} % {split}", 11)
            top += 14
        top += 10
    return picture


def write_picture(uri: str, name: str, picture: Image.Image) -> str:
    """Writes a picture into `preview/` of a shard set; returns its location."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    location = storage.join(uri, "preview", f"{name}.png")
    storage.write_bytes(location, stream.getvalue())
    return location


def _sample_pictures(shards: ShardSet, row: dict[str, Any]) -> tuple[Image.Image, Image.Image]:
    tar = shards.shard_uri(row["shard"])
    image = decode_image(
        storage.read_range(tar, row["image_offset"], row["image_length"]), row["image_suffix"]
    )
    ids = decode_mask(
        storage.read_range(tar, row["mask_offset"], row["mask_length"]), (row["height"], row["width"])
    )
    label = shards.card.classes.colorize(ids, ignore_color=IGNORED)
    return fitted(displayable(image, shards.card.max_value), CELL), fitted(label, CELL, labels=True)
