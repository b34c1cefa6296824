"""Speed and memory of mapping large scenes.

    python benchmarks/prediction.py rate                 whole `predict` against the bare network on ready tensors
    python benchmarks/prediction.py memory               peak memory by side of the scene, up to 30000 (minutes)

`rate` maps a synthetic, textured GeoTIFF with a real D2LS network. `memory` uses a network of one convolution, so that
it measures only the code around the network; the scene is a sparse tiled TIFF with a few textured tiles. `--curve
FILE.png` draws the resident memory of the largest one over time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import rasterio
import torch
from rasterio.windows import Window

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d2ls.bundle import ModelInfo
from d2ls.inference import Predictor
from d2ls.labels import ClassTable
from pipeline.prediction.map_scene import map_scene
from pipeline.prediction.request import MapOptions

CLASSES = ClassTable.create([f"class {i}" for i in range(7)], [(30 * i, 255 - 30 * i, 99) for i in range(7)])


def make_scene(path: Path, side: int, *, every: int = 1) -> None:
    """A tiled three-band GeoTIFF; one in `every` tiles holds texture, the others are left out of the file."""
    generator = np.random.default_rng(0)
    tile = generator.integers(0, 256, (3, 512, 512), dtype=np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8", tiled=True, blockxsize=512,
        blockysize=512, compress="deflate", zlevel=1, SPARSE_OK=True, BIGTIFF="YES", crs="EPSG:32632",
        transform=rasterio.Affine(0.3, 0, 5e5, 0, -0.3, 5e6),
    ) as file:  # fmt: skip
        for number, (row, column) in enumerate(
            (r, c) for r in range(0, side, 512) for c in range(0, side, 512)
        ):
            if number % every == 0:
                height, width = min(512, side - row), min(512, side - column)
                file.write(tile[:, :height, :width], window=Window(column, row, width, height))


def info(window: int) -> ModelInfo:
    return ModelInfo({}, {}, CLASSES, ("red", "green", "blue"), "uint8", window)


def true_network(backbone: str) -> torch.nn.Module:
    from d2ls.models import build_model

    torch.manual_seed(0)
    return build_model(backbone=backbone, num_classes=7, stages=3).eval()


def stub_network() -> torch.nn.Module:
    from tests.inference_stubs import LocalStub

    return LocalStub(classes=7)


def bare_rate(predictor: Predictor, window: int, batch: int, seconds: float) -> tuple[float, float]:
    """Returns pixels per second, and per second of processor time, of the network alone on a tensor in memory."""
    images = torch.randn(batch, 3, window, window, device=predictor.device)
    synchronize = torch.cuda.synchronize if predictor.device.type == "cuda" else lambda: None
    with torch.inference_mode():
        predictor.network(images)
        synchronize()
        started, work, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - started < seconds:
            predictor.network(images)
            synchronize()
            count += batch
    pixels = count * window**2
    return pixels / (time.perf_counter() - started), pixels / (time.process_time() - work)


def rate(values: argparse.Namespace) -> None:
    """Alternates the bare network and the whole mapping, and compares windows per second."""
    predictor = Predictor(
        true_network(values.backbone), info(values.window), batch_size=values.batch, overlap=0.25
    )
    torch.set_num_threads(values.threads or torch.get_num_threads())
    inside: list[float] = []
    predictor.network.register_forward_pre_hook(lambda *_: inside.append(-time.thread_time()))
    predictor.network.register_forward_hook(lambda *_: inside.append(time.thread_time()))
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder, "scene.tif")
        make_scene(scene, values.side)
        grid = predictor.grid(values.side, values.side)
        ratios = []
        for _ in range(values.repeats):
            bare, bare_work = bare_rate(predictor, grid.window, values.batch, values.seconds)
            inside.clear()
            started, work = time.perf_counter(), time.process_time()
            map_scene(
                predictor, str(scene), str(Path(folder, "map.tif")), MapOptions(overwrite=True), digest="x"
            )
            elapsed, work = time.perf_counter() - started, time.process_time() - work
            pixels = len(grid) * grid.window**2
            ratios.append((pixels / elapsed / bare, pixels / work / bare_work, sum(inside) / work))
            print(
                f"{values.backbone}, {values.side} x {values.side}, {len(grid)} windows of {grid.window}, batch "
                f"{values.batch}, {predictor.device}: network {bare / 1e6:.3f} Mpx/s, mapping "
                f"{pixels / elapsed / 1e6:.3f} Mpx/s of windows ({values.side**2 / elapsed / 1e6:.3f} of scene), ratio "
                f"{ratios[-1][0]:.3f}; by processor time {ratios[-1][1]:.3f}; {ratios[-1][2]:.3f} of it in the network",
                flush=True,
            )
    wall, work, share = np.median(ratios, axis=0)
    print(f"median ratio {wall:.3f}; by processor time, which a busy machine disturbs less, {work:.3f}")
    if torch.get_num_threads() == 1:
        print(
            f"of the mapping's own processor time {share:.3f} is the network's; other work does not disturb this"
        )


def memory(values: argparse.Namespace) -> None:
    """Maps scenes of rising size, each in a fresh process, and reports its peak resident memory."""
    print("| side | peak memory, MiB | over a scene of one window, MiB | seconds |")
    print("|---|---|---|---|")
    base, result = 0.0, {"curve": []}
    for side in values.sides:
        command = [sys.executable, __file__, "one", "--side", str(side), "--window", str(values.window)]
        result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        base = base or result["peak"]
        print(
            f"| {side} | {result['peak']:.0f} | {result['peak'] - base:.0f} | {result['seconds']:.0f} |",
            flush=True,
        )
        if values.curve:
            values.curve.with_suffix(".json").write_text(json.dumps(result))
            draw(values.curve, side, result)


def draw(path: Path, side: int, result: dict) -> None:
    """Draws resident memory over time, and where the last window was done."""
    from matplotlib.figure import Figure

    seconds, resident, done = np.array(result["curve"] or [[0, 0, 0]]).T
    minutes = seconds / 60
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(minutes, resident)
    mapped = minutes[np.argmax(done >= 1)] if (done >= 1).any() else minutes[-1]
    axes.axvline(mapped, color="grey", linestyle=":")
    axes.text(mapped, 50, "all windows done ", ha="right", color="grey", fontsize=8)
    axes.set(xlabel="minutes", ylabel="resident memory, MiB", ylim=(0, 2100), title=f"{side} x {side} pixels")
    axes.axhline(2000 / 1.048576, color="firebrick", linewidth=0.8)
    axes.text(0, 2000 / 1.048576 + 30, "2 GB", color="firebrick", fontsize=8)
    figure.savefig(path, dpi=90)


def one(values: argparse.Namespace) -> None:
    """Maps one scene of `memory` in this process."""
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder, "scene.tif")
        maker = [sys.executable, __file__, "make", "--side", str(values.side), "--path", str(scene)]
        subprocess.run(maker, check=True)
        predictor = Predictor(stub_network(), info(values.window))
        started, share, process = time.perf_counter(), [0.0], psutil.Process()
        curve: list[tuple[float, float, float]] = []
        stopped = threading.Event()

        def watch() -> None:
            while not stopped.wait(2.0):
                resident = process.memory_info().rss / 2**20
                curve.append((time.perf_counter() - started, resident, share[0]))

        watcher = threading.Thread(target=watch)
        watcher.start()
        map_scene(
            predictor, str(scene), str(Path(folder, "map.tif")), MapOptions(), digest="x",
            progress=lambda state: share.__setitem__(0, state.done / state.total),
        )  # fmt: skip
        seconds = time.perf_counter() - started
        stopped.set()
        watcher.join()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak": peak, "seconds": seconds, "curve": curve}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("rate")
    command.add_argument("--backbone", default="convnext_tiny")
    command.add_argument("--side", type=int, default=2048)
    command.add_argument("--window", type=int, default=512)
    command.add_argument("--batch", type=int, default=4)
    command.add_argument("--repeats", type=int, default=3)
    command.add_argument("--seconds", type=float, default=20.0)
    command.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    command.set_defaults(run=rate)
    command = commands.add_parser("memory")
    command.add_argument("--sides", type=int, nargs="+", default=[512, 4000, 8000, 16000, 30000])
    command.add_argument("--window", type=int, default=512)
    command.add_argument("--curve", type=Path)
    command.set_defaults(run=memory)
    command = commands.add_parser("one")
    command.add_argument("--side", type=int, required=True)
    command.add_argument("--window", type=int, default=512)
    command.set_defaults(run=one)
    command = commands.add_parser("make")
    command.add_argument("--side", type=int, required=True)
    command.add_argument("--path", type=Path, required=True)
    command.set_defaults(run=lambda values: make_scene(values.path, values.side, every=16))
    values = parser.parse_args()
    values.run(values)


if __name__ == "__main__":
    main()
