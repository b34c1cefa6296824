"""Other loaders over the same PNG bytes, with the same augmentation: run by `benchmarks/loader.py --peers`.

    PYTHON -m benchmarks.loader_peers litdata|mosaicml|energon DATA COUNT MOSAIC

Converts the data first if needed; prints CPU seconds per sample. Its Python needs the dependencies of our loader
(albumentations, opencv, pyarrow, webdataset) and the peer.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import torch

from benchmarks.loader import Augment, by_opencv
from benchmarks.loader_soak import FULL


def pair(path):
    return {
        "image": Path(path).read_bytes(),
        "mask": (Path(path).parents[1] / "masks" / Path(path).name).read_bytes(),
    }


def paths(data):
    return sorted(str(path) for path in (data / "folder" / "images").iterdir())


def litdata(data):
    import litdata

    target = data / "litdata"
    if not target.exists():
        litdata.optimize(pair, paths(data), str(target), chunk_bytes="64MB", num_workers=1)
    return litdata.StreamingDataset(str(target), shuffle=True, drop_last=False)


def mosaicml(data):
    import streaming

    target = data / "mosaicml"
    if not target.exists():
        with streaming.MDSWriter(out=str(target), columns={"image": "bytes", "mask": "bytes"}) as writer:
            for path in paths(data):
                writer.write(pair(path))
    return streaming.StreamingDataset(local=str(target), shuffle=True, batch_size=8)


def energon(data):
    import shutil
    import subprocess

    from megatron import energon as library

    target = data / "energon"
    if not target.exists():
        shutil.copytree(data / "png" / "train", target)
        command = [
            str(Path(sys.executable).with_name("energon")),
            "prepare",
            "--non-interactive",
            "--force-overwrite",
        ]
        subprocess.run(
            [*command, "--split-ratio", "1,0,0", str(target)], check=True, stdout=sys.stderr, input=b""
        )
        text = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
        (target / ".nv-meta" / "dataset.yaml").write_text(text)

    @library.stateless
    def cook(sample):
        return {**library.basic_sample_keys(sample), "image": sample["image.png"], "mask": sample["mask.png"]}

    class Task(library.DefaultTaskEncoder):
        decoder = None
        cookers = [library.Cooker(cook)]

    config = library.WorkerConfig(rank=0, world_size=1, num_workers=0)
    dataset = library.get_train_dataset(
        str(target), batch_size=None, worker_config=config, shuffle_buffer_size=32, max_samples_per_sequence=None,
        task_encoder=Task(), repeat=True,
    )  # fmt: skip
    return library.get_loader(dataset)


def main():
    name, data, count, mosaic = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    dataset = {"litdata": litdata, "mosaicml": mosaicml, "energon": energon}[name](data)
    augment, done, start = Augment(replace(FULL, mosaic=mosaic)), 0, 0.0
    while done < 2 * count:
        for sample in dataset:
            if done == count:  # the first pass warms up
                start = time.process_time()
            augment(by_opencv("RGB", sample["image"]), by_opencv("L", sample["mask"]))
            done += 1
            if done == 2 * count:
                break
    print(json.dumps((time.process_time() - start) / count))


if __name__ == "__main__":
    main()
