"""How fast is the loader? CPU time a sample, one core, 1024x1024 samples, 512 crops, the full published augmentation.

    python -m benchmarks.loader_data SOURCE DATA
    python -m benchmarks.loader DATA [--peers PYTHON] [--rounds 3]

    limit     only decodes the windows that our crops need (the same windows, the same order)
    ours      TrainingLoader, batches of 8, no worker processes
    folder    PNG files, Pillow, the published order: decode all, scale all, crop; one time in four a mosaic
    stock     webdataset.WebDataset over the same tars, decoded by Pillow as it does, then our augmentation
    stock-cv  the same, decoded by OpenCV
    litdata, mosaicml, energon: `benchmarks/loader_peers.py`, with the Python given by --peers

`stock` and the peers take the partners of a mosaic from the samples decoded last, so a mosaic costs them no decoding.
Ours draws them from the shuffle window and decodes their visible parts. `--mosaic 0` compares without mosaics. CPU
time is measured, because wall time depends on what else the machine does. Rounds alternate between the ways; the
median is shown.
"""

import argparse
import json
import random
import statistics
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
import webdataset
from PIL import Image

from benchmarks.loader_soak import FULL
from d2ls.data import TrainingLoader, dataset, reader
from d2ls.data.collate import BatchBuilder
from d2ls.data.mosaic import Mosaic
from d2ls.data.transforms import Transforms, cut, draw_crop, import_albumentations
from d2ls.shards import ShardSet
from d2ls.shards.codecs import decode_mask, read_image
from d2ls.window import Window

BATCH, SAMPLES = 8, 96  # samples of a set: whole epochs are timed


class Whole:
    """A decoded sample, for those that decode all of it."""

    def __init__(self, image, mask):
        self.pixels, self.labels = image, mask
        self.height, self.width = mask.shape

    def image(self, window):
        return self.pixels[window.slices]

    def mask(self, window):
        return self.labels[window.slices]


class Augment:
    """Our augmentation on decoded samples; mosaics from the last ones seen."""

    def __init__(self, augmentation):
        self.augmentation, self.transforms = augmentation, Transforms(augmentation, 255.0)
        self.generator, self.recent, self.batch = np.random.default_rng(0), [], []

    def __call__(self, image, mask):
        picture = Whole(image, mask)
        self.recent = [*self.recent[-15:], picture]
        if len(self.recent) > 3 and self.generator.random() < self.augmentation.mosaic:
            picture = Mosaic([picture, *random.sample(self.recent[:-1], 3)], self.generator)
        crop = draw_crop(picture, self.augmentation, self.generator)
        made = cut(picture, crop, self.augmentation.crop_size, np.dtype(np.uint8))
        self.collect(*self.transforms(*made, self.generator))

    def collect(self, image, mask):
        self.batch.append((torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(mask.copy())))
        if len(self.batch) == BATCH:
            torch.stack([image for image, _ in self.batch]), torch.stack([mask for _, mask in self.batch])
            self.batch = []


def ours(data, augmentation, codec, count):
    loader = TrainingLoader(
        ShardSet.open(str(data / codec)), "train", global_batch_size=BATCH, augmentation=augmentation, seed=0
    )
    list(loader.epoch(0))  # checksums are compared on the first reading
    while True:
        start, done, epoch = time.process_time(), 0, 1
        while done < count:
            done += sum(len(batch) for batch in loader.epoch(epoch))
            epoch += 1
        yield (time.process_time() - start) / done


class Recorder:
    """Notes what a loader decodes, to decode just this again: bytes come from memory."""

    def __init__(self):
        self.calls = []

    def image(self, function, read, length, suffix, *, expected, window):
        content = {}

        def from_memory(offset, count):
            if (offset, count) not in content:
                content[offset, count] = read(offset, count)
            return content[offset, count]

        self.calls.append(partial(function, from_memory, length, suffix, expected=expected, window=window))
        return self.calls[-1]()

    def mask(self, function, content, size):
        self.calls.append(partial(function, content, size))
        return self.calls[-1]()


def limit(data, augmentation, codec, count):
    recorder = Recorder()
    loader = TrainingLoader(
        ShardSet.open(str(data / codec)),
        "train",
        global_batch_size=BATCH,
        augmentation=augmentation,
        seed=0,
        verify="never",
    )
    image, mask = partial(recorder.image, read_image), partial(recorder.mask, decode_mask)
    done, epoch = 0, 1
    with mock.patch.multiple(reader, read_image=image, decode_mask=mask):
        while done < count:
            done += sum(len(batch) for batch in loader.epoch(epoch))
            epoch += 1
    while True:
        start = time.process_time()
        for call in recorder.calls:
            call()
        yield (time.process_time() - start) / done


def folder(data, augmentation, count):
    """The published way (GeoSeg's order of work), in Pillow and albumentations."""
    library = import_albumentations()
    stages = [
        library.HorizontalFlip(p=augmentation.horizontal_flip),
        library.VerticalFlip(p=augmentation.vertical_flip),
        library.RandomRotate90(p=augmentation.quarter_turns),
        library.RandomBrightnessContrast(0.25, 0.25, p=augmentation.brightness_contrast),
        library.Sharpen(p=augmentation.sharpen),
    ]
    compose, collect = library.Compose(stages), Augment(augmentation).collect
    paths = sorted((data / "folder" / "images").iterdir())
    while True:
        order = [random.choice(paths) for _ in range(count)]
        start = time.process_time()
        for path in order:
            image, mask = open_pair(path)
            if random.random() < augmentation.mosaic:
                image, mask = whole_mosaic(
                    [(image, mask), *(open_pair(random.choice(paths)) for _ in range(3))]
                )
            scale = random.choice(augmentation.scale)
            size = (int(image.width * scale), int(image.height * scale))
            image, mask = (
                image.resize(size, Image.Resampling.BILINEAR),
                mask.resize(size, Image.Resampling.NEAREST),
            )
            made = compose(
                **dict(zip(("image", "mask"), published_crop(image, mask, augmentation), strict=True))
            )
            collect(made["image"], made["mask"])
        yield (time.process_time() - start) / count


def open_pair(path):
    image = Image.open(path).convert("RGB")
    return image, Image.open(path.parents[1] / "masks" / path.name).convert("L")


def whole_mosaic(pairs):
    arrays = [(np.array(image), np.array(mask)) for image, mask in pairs]
    mosaic = Mosaic([Whole(*pair) for pair in arrays], np.random.default_rng(random.getrandbits(32)))
    window = Window(0, 0, mosaic.height, mosaic.width)
    return Image.fromarray(mosaic.image(window)), Image.fromarray(mosaic.mask(window))


def published_crop(image, mask, augmentation):
    size = augmentation.crop_size
    for _ in range(10):
        left, top = random.randint(0, image.width - size), random.randint(0, image.height - size)
        box = (left, top, left + size, top + size)
        labels, counts = np.unique(np.array(mask.crop(box)), return_counts=True)
        counts = counts[labels != 255]
        if len(counts) > 1 and counts.max() / counts.sum() < augmentation.max_class_fraction:
            break
    return np.array(image.crop(box)), np.array(mask.crop(box))


def stock(data, augmentation, count, decoder):
    augment = Augment(augmentation)
    urls = sorted(str(path) for path in (data / "png").rglob("*.tar"))
    stages = webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False).shuffle(32)
    handlers = [webdataset.handle_extension("mask.png", partial(decoder, "L"))]
    handlers += [webdataset.handle_extension("image.png", partial(decoder, "RGB"))]
    stages = stages.decode(*handlers).to_tuple("image.png", "mask.png")
    while True:
        start, done = time.process_time(), 0
        while done < count:
            for image, mask in stages:
                augment(image, mask)
                done += 1
        yield (time.process_time() - start) / done


def by_pillow(mode, content):
    import io

    return np.array(Image.open(io.BytesIO(content)).convert(mode))


def by_opencv(mode, content):
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    return pixels if mode == "L" else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def stages(data, augmentation, codec, count):
    """Returns CPU milliseconds per sample in each stage of our loader."""
    spent: dict[str, float] = {}

    def timed(name, function):
        def run(*arguments, **options):
            start = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                spent[name] = spent.get(name, 0) + time.process_time() - start

        return run

    places = {
        "decode image": (reader, "read_image"),
        "decode labels": (reader, "decode_mask"),
        "crop place, with labels": (dataset, "draw_crop"),
        "cut and scale, with image": (dataset, "cut"),
        "flips and colours": (Transforms, "__call__"),
        "write into batch": (BatchBuilder, "put"),
        "read bytes of labels": (reader, "open_sample"),
    }
    real = {name: getattr(*place) for name, place in places.items()}
    for name, (home, attribute) in places.items():
        setattr(home, attribute, timed(name, real[name]))
    clock = ours(data, augmentation, codec, count)
    next(clock)
    spent.clear()
    total = next(clock)
    for name, (home, attribute) in places.items():
        setattr(home, attribute, real[name])
    done = -(-count // SAMPLES) * SAMPLES
    result = {name: 1000 * value / done for name, value in spent.items()}
    return {**result, "all": 1000 * total}


def ways(data, augmentation, count, codecs):
    table = {}
    for codec in codecs:
        table[f"limit {codec}"] = limit(data, augmentation, codec, count)
        table[f"ours {codec}"] = ours(data, augmentation, codec, count)
    table["folder"] = folder(data, augmentation, count)
    table["stock"] = stock(data, augmentation, count, by_pillow)
    table["stock-cv"] = stock(data, augmentation, count, by_opencv)
    return table


def peers(python, data, augmentation, count):
    results = {}
    for name in ("litdata", "mosaicml", "energon"):
        command = [
            python,
            "-m",
            "benchmarks.loader_peers",
            name,
            str(data),
            str(count),
            str(augmentation.mosaic),
        ]
        made = subprocess.run(command, capture_output=True, text=True)
        try:
            results[name] = json.loads(made.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            print(f"{name}: did not run: {made.stderr.strip().splitlines()[-1:]}")
    return results


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--codecs", nargs="+", default=["png", "webp", "tif", "tif-zstd"])
    parser.add_argument("--mosaic", type=float, default=FULL.mosaic)
    parser.add_argument("--peers", help="Python with litdata, mosaicml-streaming and megatron-energon")
    options = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    augmentation = replace(FULL, mosaic=options.mosaic)
    table = ways(options.data, augmentation, options.samples, options.codecs)
    results = {name: [] for name in table}
    for _ in range(options.rounds):
        for name, way in table.items():
            results[name].append(next(way))
        for name, value in (
            peers(options.peers, options.data, augmentation, options.samples).items() if options.peers else ()
        ):
            results.setdefault(name, []).append(value)
    median = {name: 1000 * statistics.median(values) for name, values in results.items()}
    print(f"mosaic {options.mosaic}: CPU ms a sample, samples/s a core, times as fast as folder")
    for name, value in median.items():
        print(f"{name:16} {value:7.2f} {1000 / value:7.1f} {median['folder'] / value:6.2f}")
    for codec in options.codecs:
        print(f"{codec}: {median[f'limit {codec}'] / median[f'ours {codec}']:.2f} of the limit")
        for name, value in stages(options.data, augmentation, codec, options.samples).items():
            print(f"    {name:28} {value:6.2f} ms")


if __name__ == "__main__":
    main()
