"""Do the tests notice faults? `python -m tests.mutations` inserts 40 faults, one at a time, and runs the tests.

Each fault is one changed line in a copy of the tracked files. First come the tests that belong to the changed module,
then all of the default tier, then the slow ones. The result is `tests/mutations.md`.
"""

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tests" / "mutations.md"
QUICK = "not slow and not faults and not cluster and not gpu"
SLOW = "slow and not faults and not cluster and not gpu"


class Mutation(NamedTuple):
    """A fault: its description, the file, a text that occurs once in the file, and its replacement."""

    what: str
    file: str
    old: str
    new: str
    tests: str

    def applied(self, text: str) -> str:
        """Returns the text with the fault; fails unless the place is found exactly once."""
        count = text.count(self.old)
        assert count == 1, f"{self.file}: {self.old!r} occurs {count} times; change the text of the mutation"
        return text.replace(self.old, self.new)


MUTATIONS = [
    Mutation("ignored pixels count in the loss", "d2ls/losses/loss.py",
             "labelled, weights = labels != IGNORE,", "labelled, weights = labels >= 0,",
             "tests/unit/d2ls/test_losses.py tests/numerics/test_golden_losses.py"),
    Mutation("Dice takes absent classes in", "d2ls/losses/regions.py",
             "((1 - score) * (present > 0)).mean()", "(1 - score).mean()",
             "tests/unit/d2ls/test_losses.py tests/numerics/test_golden_losses.py"),
    Mutation("half the distance between classes", "d2ls/losses/contrastive.py",
             "between = 2 * (means", "between = (means",
             "tests/unit/d2ls/test_losses.py tests/numerics/test_golden_losses.py"),
    Mutation("a sum over ranks is left out", "d2ls/losses/contrastive.py",
             "within = sum_over_ranks((vectors - means).pow(2).sum())", "within = (vectors - means).pow(2).sum()",
             "tests/distributed/test_losses_over_ranks.py"),
    Mutation("rows and columns of the confusion matrix are swapped", "d2ls/metrics.py",
             "table.diagonal(), table.sum(axis=1), table.sum(axis=0)",
             "table.diagonal(), table.sum(axis=0), table.sum(axis=1)", "tests/unit/d2ls/test_metrics.py"),
    Mutation("classes that are not scored are in the mean", "d2ls/metrics.py",
             "if flag and not math.isnan(value)", "if not math.isnan(value)", "tests/unit/d2ls/test_metrics.py"),
    Mutation("ranks overlap where the batch is uneven", "d2ls/data/sampler.py",
             "first = rank * share + min(rank, extra)", "first = rank * share", "tests/unit/d2ls/data"),
    Mutation("the last step of an epoch is lost", "d2ls/data/sampler.py",
             "return -(-samples // global_batch_size)", "return samples // global_batch_size", "tests/unit/d2ls/data"),
    Mutation("mosaic where there should be none", "d2ls/data/sampler.py",
             "if generator.random() >= probability:", "if generator.random() < probability:",
             "tests/unit/d2ls/data"),
    Mutation("the unbalanced crop is taken", "d2ls/data/transforms.py",
             "counts.max() < limit * counts.sum()", "counts.max() > limit * counts.sum()", "tests/unit/d2ls/data"),
    Mutation("a sample repeats for its commonest class", "d2ls/data/weighting.py",
             "factors, 1.0).max(axis=1)", "factors, 1.0).min(axis=1)", "tests/unit/d2ls/data"),
    Mutation("the cache evicts what was used last", "d2ls/data/cache.py",
             "key=lambda entry: entry[1].st_mtime_ns)", "key=lambda entry: -entry[1].st_mtime_ns)",
             "tests/unit/d2ls/data/test_cache.py"),
    Mutation("a packed TIFF block is read from its first row on", "d2ls/shards/tiff.py",
             "[first * stride : last * stride]", "[: (last - first) * stride]", "tests/unit/d2ls/shards/test_tiff.py"),
    Mutation("two classes are swapped", "d2ls/labels.py",
             "values = np.array([mapping[int(code)] for code in codes]",
             "values = np.array(sorted(mapping.values())",
             "tests/unit/d2ls/test_labels.py tests/integration/test_shard_sources.py"),
    Mutation("a file is written in place, without a rename", "d2ls/storage.py",
             "            with atomic_write(local_path(uri), sync=sync) as partial:\n",
             "            with contextlib.nullcontext(local_path(uri)) as partial:\n"
             "                partial.parent.mkdir(parents=True, exist_ok=True)\n", "tests/unit/d2ls/test_storage.py"),
    Mutation("windows above are forgotten", "d2ls/inference/sliding_window.py",
             "self.carry = self.next_carry", "self.carry = torch.zeros_like(self.next_carry)",
             "tests/unit/d2ls/inference/test_sliding_window.py"),
    Mutation("weights of windows do not sum to one", "d2ls/inference/sliding_window.py",
             "(weights / total[start:stop]).astype(np.float32)", "weights.astype(np.float32)",
             "tests/unit/d2ls/inference/test_grid.py tests/unit/d2ls/inference/test_sliding_window.py"),
    Mutation("a view is turned on instead of back", "d2ls/inference/tta.py",
             "torch.rot90(maps, -self.turns", "torch.rot90(maps, self.turns",
             "tests/unit/d2ls/inference/test_predictor.py"),
    Mutation("warm-up is a step late", "d2ls/training/schedule.py",
             "return self.lr * (step + 1) / warm", "return self.lr * step / warm",
             "tests/unit/d2ls/training/test_schedule.py"),
    Mutation("averaged weights forget their start too slowly", "d2ls/training/ema.py",
             "(1 + self.updates) / (10 + self.updates)", "(10 + self.updates) / (11 + self.updates)",
             "tests/unit/d2ls/training/test_ema.py"),
    Mutation("the best checkpoint is deleted", "d2ls/training/checkpoint.py",
             "{checkpoint_name(state.step), checkpoint_name(state.best_step)}", "{checkpoint_name(state.step)}",
             "tests/unit/d2ls/training/test_checkpoint.py tests/unit/d2ls/training/test_trainer.py"),
    Mutation("a checkpoint of another run is taken", "d2ls/training/checkpoint.py",
             "if theirs.get(key) != ours.get(key)]", "if key not in theirs]",
             "tests/unit/d2ls/training/test_checkpoint.py"),
    Mutation("the later of two equal epochs is the best", "d2ls/training/trainer.py",
             "scores.miou > before", "scores.miou >= before",
             "tests/unit/d2ls/training/test_checkpoint.py tests/unit/d2ls/training/test_trainer.py"),
    Mutation("each rank evaluates its own share", "d2ls/training/evaluator.py",
             "self.group.all_reduce_sum(counts).cpu()", "counts.cpu()",
             "tests/distributed/test_training_ranks.py"),
    Mutation("batch norm over ranks keeps the biased variance", "d2ls/training/batch_norm.py",
             "variance * count / (count - 1).clamp_min(1)", "variance",
             "tests/distributed/test_losses_over_ranks.py"),
    Mutation("one rank decides for all", "d2ls/training/process_group.py",
             "return min(self.all_gather(value))", "return max(self.all_gather(value))",
             "tests/unit/d2ls/training tests/distributed/test_training_agreed.py"),
    Mutation("the static branch answers", "d2ls/models/d2ls.py",
             "logits=logits[:, 0],", "logits=logits[:, -1],",
             "tests/numerics tests/unit/d2ls/models/test_build.py"),
    Mutation("pixels read the dictionary without its start", "d2ls/models/interactor.py",
             "dictionary + initial, dictionary)", "dictionary, dictionary)", "tests/numerics"),
    Mutation("statistics from validation images too", "sharding/plan.py",
             "statistics=split == spec.train_split or", "statistics=True or",
             "tests/unit/sharding"),
    Mutation("a shard of another plan counts as done", "sharding/shard_manifest.py",
             "manifest.fingerprint == task.fingerprint and size", "size",
             "tests/unit/sharding"),
    Mutation("overlapping labels count twice", "sharding/tiling.py",
             "first = max(start, covered) if tiling.once else start", "first = start",
             "tests/unit/sharding/test_tiling.py"),
    Mutation("labels are placed in the wrong column", "sharding/tiling.py",
             "row, column = labelled.row - window.row, labelled.column - window.column",
             "row, column = labelled.row - window.row, labelled.column - window.column + 1",
             "tests/unit/sharding/test_tiling.py"),
    Mutation("a scene in two splits is not seen", "sharding/verify.py",
             "for scene, names in splits.items() if len(names) > 1]",
             "for scene, names in splits.items() if len(names) > 2]",
             "tests/unit/sharding"),
    Mutation("a set that is being changed can be opened", "sharding/index_writer.py",
             "for name in (CARD_FILE, INDEX_FILE):", "for name in (INDEX_FILE,):",
             "tests/unit/sharding"),
    Mutation("images of a scene are torn apart by a split", "sharding/sources/splitting.py",
             "units = list(dict.fromkeys(unit(scene) for scene in scenes if scene.split == \"train\"))",
             "units, unit = [scene.id for scene in scenes if scene.split == \"train\"], lambda scene: scene.id",
             "tests/unit/sharding tests/integration/test_shard_sources.py"),
    Mutation("an equal challenger becomes champion", "pipeline/registry/promotion.py",
             "if challenger > champion or", "if challenger >= champion or",
             "tests/integration/test_registry.py::test_only_the_better_one_is_promoted"),
    Mutation("the final training has the length of a trial", "pipeline/tuning/space.py",
             "{**recipe.sweep.overrides, **values}, where=f\"final",
             "{**recipe.sweep.overrides, **recipe.sweep.trial_overrides, **values}, where=f\"final",
             "tests/unit/pipeline/tuning"),
    Mutation("a resumed search starts its budget again", "pipeline/tuning/tpe.py",
             "self.left = trials - len(finished)", "self.left = trials", "tests/unit/pipeline/tuning"),
    Mutation("an epoch that is done again stands there twice", "pipeline/training/run_folder.py",
             "if row[\"epoch\"] < metrics[\"epoch\"]]", "if row[\"epoch\"] <= metrics[\"epoch\"]]",
             "tests/unit/pipeline/training"),
    Mutation("the local store is let through on two nodes", "pipeline/cluster/resources.py",
             "if cluster.nodes < 2 or os.environ", "if cluster.nodes < 3 or os.environ",
             "tests/unit/pipeline/cluster/test_resources.py"),
]  # fmt: skip


def main() -> int:
    """Inserts the faults, or those whose text or file contains a word, and writes the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument(
        "word", nargs="?", default="", help="only mutations whose description or file has it"
    )
    arguments.add_argument("--near", action="store_true", help="only the tests that belong to the module")
    given = arguments.parse_args()
    chosen = [item for item in MUTATIONS if given.word in item.what or given.word in item.file]
    with tempfile.TemporaryDirectory(prefix="d2ls-mutations-") as folder:
        tree = copy_of_tree(Path(folder))
        near = sorted({path for item in chosen for path in item.tests.split()})
        if failing := first_failure(tree, QUICK, *near, show=True):
            print(f"without any fault {failing} fails")
            return 2
        rows = [(item, *caught(tree, item, near_only=given.near)) for item in chosen]
    missed = [item.what for item, tier, _ in rows if tier == "-"]
    if not given.word:
        TABLE.write_text(page(rows), encoding="utf-8")
    print(
        f"{len(rows) - len(missed)} of {len(rows)} noticed" + "".join(f"\nmissed: {what}" for what in missed)
    )
    return 1 if missed else 0


def copy_of_tree(folder: Path) -> Path:
    """Copies the files that git tracks, and new ones that it does not ignore."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\0"
    ):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def caught(tree: Path, mutation: Mutation, *, near_only: bool) -> tuple[str, str]:
    """Returns the tier and the first test that fails with the fault; `-` if none does."""
    file = tree / mutation.file
    sound = file.read_text(encoding="utf-8")
    file.write_text(mutation.applied(sound), encoding="utf-8")
    steps = [("default", QUICK, mutation.tests.split()), ("default", QUICK, []), ("slow", SLOW, [])]
    try:
        for tier, marks, tests in steps[: 1 if near_only else None]:
            if name := first_failure(tree, marks, *tests):
                print(f"{mutation.what}: {name}", flush=True)
                return tier, name
    finally:
        file.write_text(sound, encoding="utf-8")
    print(f"{mutation.what}: MISSED", flush=True)
    return "-", "-"


def first_failure(tree: Path, marks: str, *tests: str, show: bool = False) -> str | None:
    """Runs tests of a tree and returns the first that fails, None if all pass."""
    # No bytecode: Python compares it with the source only by size and second.
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", marks, *tests]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    if show:
        print(done.stdout)
    result = re.search(r"^(?:FAILED|ERROR) (\S+?)(?:\[.*?\])?(?: - .*)?$", done.stdout, flags=re.MULTILINE)
    return (
        result[1]
        if result
        else f"pytest ended with {done.returncode}: {done.stdout[-300:]}{done.stderr[-300:]}"
    )


def page(rows: list[tuple[Mutation, str, str]]) -> str:
    """Returns the table as Markdown."""
    default = sum(tier == "default" for _, tier, _ in rows)
    slow = sum(tier == "slow" for _, tier, _ in rows)
    lines = [
        "# Faults that the tests notice",
        "",
        "`python -m tests.mutations` puts one fault at a time into a copy of the code and writes this page.",
        f"{datetime.datetime.now(datetime.UTC).date()}: of {len(rows)} faults the default tier notices {default}, "
        f"the slow tier {slow} more.",
        "",
        "| file | fault | tier | noticed by |",
        "|---|---|---|---|",
        *(
            f"| {item.file} | {item.what} | {tier} | {name.removeprefix('tests/')} |"
            for item, tier, name in rows
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
