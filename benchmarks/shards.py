"""How fast is sharding, and which image codec should be the default?

    python benchmarks/shards.py speed  [--scenes 48] [--size 1024] [--workers 2]
    python benchmarks/shards.py codecs [--images FOLDER]

`speed` shards a LoveDA-like tree of procedural scenes and compares with (a) only decoding the same images and labels,
(b) one process, (c) webdataset's own ShardWriter fed with the same tiles. `codecs` measures size, encoding, whole
decoding and decoding of a 512-pixel crop, on procedural scenes or on the images of a folder.
"""

import argparse
import multiprocessing
import shutil
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from d2ls.shards.codecs import decode_image
from d2ls.window import Window
from pipeline.config.recipe import parse_recipe
from pipeline.demo.scenery import make_scene, write_scenery
from pipeline.sharding.run import ensure_shards, shard_spec
from sharding.codecs import Codec
from sharding.plan import plan_shards
from sharding.raster import open_raster
from sharding.scan import scan
from sharding.write import write_shard


def recipe(raw, uri, **data):
    values = {"source": "loveda", "root": str(raw), **data}
    return parse_recipe({"name": "bench", "data": values, "shards": {"uri": str(uri), "target_mb": 16}})


def decode_only(scenes):
    for item in scenes:
        with open_raster(item.scene.image) as image, open_raster(item.scene.mask) as mask:
            image.pixels()
            mask.indices()


def shard_all(tasks, uri):
    for task in tasks:
        write_shard(task, uri)


def shard_writer(scenes, codes, folder):
    """Writes shards directly with webdataset: same labels, same files, tars of the same size."""
    import webdataset

    folder.mkdir(parents=True)
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxsize=16e6, verbose=0) as writer:
        for item in scenes:
            with open_raster(item.scene.mask) as mask:
                ids = codes.encode(mask.indices(), where="")
                sample = {
                    "image.png": item.scene.image.read(),
                    "mask.png": ids,
                    "json": {"scene": item.scene.id},
                }
                writer.write({"__key__": item.scene.id.replace("/", "_"), **sample})


def shard_writer_decoding(scenes, codes, folder):
    """The same from pixels, as most scripts do: decode the image, let ShardWriter encode it."""
    import webdataset

    folder.mkdir(parents=True)
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxsize=16e6, verbose=0) as writer:
        for item in scenes:
            with open_raster(item.scene.image) as image, open_raster(item.scene.mask) as mask:
                ids = codes.encode(mask.indices(), where="")
                sample = {"image.png": image.pixels(), "mask.png": ids, "json": {"scene": item.scene.id}}
                writer.write({"__key__": item.scene.id.replace("/", "_"), **sample})


def worker(function, work, uri, ready, go, used):
    cv2.setNumThreads(1)
    import webdataset  # noqa: F401  (import outside the clock, as in a warm worker)

    ready.release()
    go.wait()
    started = time.process_time()
    function(work, uri)
    used.put(time.process_time() - started)


def in_processes(function, shares, uri):
    """Wall seconds of `function` over shares of the work, a process a share, and CPU seconds of the busiest."""
    context = multiprocessing.get_context("spawn")
    ready, go, used = context.Semaphore(0), context.Event(), context.Queue()
    processes = [
        context.Process(target=worker, args=(function, share, uri, ready, go, used)) for share in shares
    ]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    started = time.perf_counter()
    go.set()
    for process in processes:
        process.join()
    assert all(process.exitcode == 0 for process in processes)
    return time.perf_counter() - started, max(used.get() for _ in processes)


def decode_job(work, uri):
    decode_only(work)


def speed(options):
    folder = Path(tempfile.mkdtemp(prefix="bench-sharding-"))
    try:
        raw = Path(options.raw or folder / "raw")
        if options.raw is None:
            write_scenery(raw, scenes={"Train": options.scenes}, size=options.size)
        spec = shard_spec(recipe(raw, folder / "out", codec={"name": "png"}))
        scanned = scan(spec)
        tasks = plan_shards(spec, scanned).tasks
        encoded = plan_shards(shard_spec(recipe(raw, folder / "out")), scanned).tasks
        print(f"{len(scanned.scenes)} scenes, {len(tasks)} shards, PNG kept as it is")
        import webdataset  # noqa: F401

        cv2.setNumThreads(1)
        runs = {
            "(a) decode images and labels, 1 process": lambda n: timed(decode_only, scanned.scenes),
            "shards, 1 process (b)": lambda n: timed(shard_all, tasks, str(folder / f"one{n}")),
            "shards as TIFF (the default codec), 1 process": lambda n: timed(
                shard_all, encoded, str(folder / f"tif{n}")
            ),
            "(c) ShardWriter, PNG bytes copied, image not decoded": lambda n: timed(
                shard_writer, scanned.scenes, scanned.codes, folder / f"writer{n}"
            ),
            "(c) ShardWriter, images decoded and encoded": lambda n: timed(
                shard_writer_decoding, scanned.scenes, scanned.codes, folder / f"full{n}"
            ),
            "(a) with 2 processes": lambda n: in_processes(
                decode_job, [scanned.scenes[0::2], scanned.scenes[1::2]], ""
            ),
            "shards, 2 processes": lambda n: in_processes(
                shard_all, [tasks[0::2], tasks[1::2]], str(folder / f"two{n}")
            ),
        }
        times = {name: [] for name in runs}
        for _ in range(options.repeat):  # in turn, so that other work on the machine affects all alike
            for name, job in runs.items():
                times[name].append(job(len(times[name])))
        wall = {name: min(pair[0] for pair in pairs) for name, pairs in times.items()}
        cpu_seconds = {name: min(pair[1] for pair in pairs) for name, pairs in times.items()}
        print(f"{'':55s} {'wall s':>8s} {'CPU s':>8s}   (best of {options.repeat})")
        for name in runs:
            print(f"{name:55s} {wall[name]:8.2f} {cpu_seconds[name]:8.2f}")
        for kind, best in (("wall", wall), ("CPU", cpu_seconds)):
            one, two = best["shards, 1 process (b)"], best["shards, 2 processes"]
            print(
                f"{kind:4s}: {best['(a) decode images and labels, 1 process'] / one:.2f} of the speed of (a), "
                f"{best['(c) ShardWriter, images decoded and encoded'] / one:.2f} times (c) decoding, "
                f"{best['(c) ShardWriter, PNG bytes copied, image not decoded'] / one:.2f} times (c) blind"
            )
            both = best["(a) with 2 processes"]
            print(
                f"      1 to 2 processes {one / two:.2f} times; with 2: {both / two:.2f} of the speed of (a)"
            )
        if options.ray:
            for number in range(2):
                started = time.perf_counter()
                ensure_shards(recipe(raw, folder / f"ray{number}", codec={"name": "png"}))
                print(
                    f"python -m pipeline.shard on Ray, whole command: {time.perf_counter() - started:.1f} s"
                )
    finally:
        shutil.rmtree(folder)


def timed(function, *arguments):
    started, used = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - started, time.process_time() - used


CODECS = {
    "png level 1": Codec("png", level=1),
    "png level 3": Codec("png", level=3),
    "png level 6": Codec("png", level=6),
    "webp method 0": Codec("webp", level=0),
    "webp method 2": Codec("webp", level=2),
    "webp method 4": Codec("webp", level=4),
    "jpg 95": Codec("jpg", quality=95),
    "tif none": Codec("tif", compression="none"),
    "tif zstd 1": Codec("tif", compression="zstd", level=1),
    "tif zstd 3": Codec("tif", compression="zstd", level=3),
    "tif zstd 9": Codec("tif", compression="zstd", level=9),
}


def pictures(options):
    if options.images is None:
        return [make_scene(seed, 1024)[0] for seed in range(options.count)]
    files = sorted(
        path
        for path in Path(options.images).rglob("*")
        if path.suffix in (".jpg", ".png") and "mask" not in str(path)
    )
    images = [cv2.imread(str(file), cv2.IMREAD_COLOR_RGB) for file in files]
    return [np.ascontiguousarray(image[:1024, :1024]) for image in images if min(image.shape[:2]) >= 1024][
        : options.count
    ]


def codecs(options):
    cv2.setNumThreads(1)
    images = pictures(options)
    side = images[0].shape[0]
    print(f"{len(images)} images of {side}x{side}; CPU milliseconds an image, median")
    print(f"{'codec':15s} {'bytes/byte':>10s} {'encode':>8s} {'decode':>8s} {'crop 512':>8s}")
    for name, codec in CODECS.items():
        encode, decode, crop, share = [], [], [], []
        for image in images:
            started = time.process_time()
            content = codec.encode(image)
            encode.append(time.process_time() - started)
            share.append(len(content) / image.nbytes)
            decode.append(min(cpu(decode_image, content, codec.name) for _ in range(3)))
            part = partial(decode_image, content, codec.name, window=Window(130, 210, 512, 512))
            crop.append(min(cpu(part) for _ in range(3)))
        row = [1000 * statistics.median(values) for values in (encode, decode, crop)]
        print(f"{name:15s} {statistics.mean(share):10.2f} {row[0]:8.1f} {row[1]:8.1f} {row[2]:8.1f}")


def cpu(function, *arguments):
    started = time.process_time()
    function(*arguments)
    return time.process_time() - started


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("question", choices=["speed", "codecs"])
    parser.add_argument("--scenes", type=int, default=32)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--raw", help="folder in LoveDA's layout to use instead of procedural scenes")
    parser.add_argument("--ray", action="store_true", help="also time the whole command on Ray")
    parser.add_argument("--images", help="folder of images for `codecs`; procedural scenes without")
    parser.add_argument("--count", type=int, default=6)
    options = parser.parse_args()
    {"speed": speed, "codecs": codecs}[options.question](options)


if __name__ == "__main__":
    main()
