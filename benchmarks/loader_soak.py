"""Does the memory of the loader grow? Runs epochs with workers and writes a line on memory from time to time.

    nice python benchmarks/loader_soak.py SHARDS CURVE.csv --minutes 21

Columns: minutes, epochs, samples, unique set size (MB) of the training process, of the workers (sum), open files of
all, bytes in /dev/shm (MB).
"""

import argparse
import csv
import shutil
import time
from pathlib import Path

import psutil

from d2ls.data import Augmentation, TrainingLoader
from d2ls.shards import ShardSet

FULL = Augmentation(
    crop_size=512,
    scale=(0.75, 1.0, 1.25, 1.5),
    scale_mode="choice",
    max_class_fraction=0.75,
    horizontal_flip=0.5,
    vertical_flip=0.5,
    quarter_turns=0.5,
    brightness_contrast=0.25,
    sharpen=0.25,
    mosaic=0.25,
)


def memory():
    main = psutil.Process()
    workers = [child for child in main.children(recursive=True) if child.num_threads()]
    unique = [process.memory_full_info().uss / 1e6 for process in workers]
    files = main.num_fds() + sum(process.num_fds() for process in workers)
    return main.memory_full_info().uss / 1e6, sum(unique), files, shutil.disk_usage("/dev/shm").used / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards")
    parser.add_argument("curve", type=Path)
    parser.add_argument("--minutes", type=float, default=21)
    parser.add_argument("--every", type=float, default=15, help="seconds between lines")
    options = parser.parse_args()
    start, last, samples, epoch = time.monotonic(), 0.0, 0, 0
    loader = TrainingLoader(
        ShardSet.open(options.shards), "train", global_batch_size=8, augmentation=FULL, seed=0, workers=2
    )
    with loader, options.curve.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["minutes", "epochs", "samples", "main_mb", "workers_mb", "open_files", "shm_mb"])
        while time.monotonic() - start < options.minutes * 60:
            for batch in loader.epoch(epoch):
                samples += len(batch)
                if time.monotonic() - last > options.every:
                    last = time.monotonic()
                    values = [(last - start) / 60, epoch, samples, *memory()]
                    writer.writerow([f"{value:.2f}" for value in values])
                    file.flush()
            epoch += 1
    print(f"{samples} samples in {epoch} epochs")


if __name__ == "__main__":
    main()
