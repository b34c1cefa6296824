import numpy as np
import yaml

from pipeline.shard import main
from pipeline.sharding.report import progress_of
from sharding.make import Progress
from tests.custom_shards import build
from tests.trees import save, texture

RECIPE = {
    "name": "own",
    "data": {
        "source": "custom",
        "custom": {
            "images": "*/img/*.png", "masks": "*/lab/*_label.png", "scene": "folder", "ignored": [[9, 9, 9]],
            "classes": [{"name": "roof", "color": [255, 0, 0]}, {"name": "water", "color": [0, 0, 255]}],
            "split": {"scenes": {"train": ["a", "b"], "val": ["c"], "test": ["d"], "unused": ["e"]}},
        },
    },
}  # fmt: skip


def run_check(folder, capsys):
    values = {**RECIPE, "shards": {"uri": str(folder / "out")}}
    values["data"] = {**RECIPE["data"], "root": str(folder / "raw")}
    (folder / "own.yaml").write_text(yaml.safe_dump(values))
    status = main([str(folder / "own.yaml"), "--check", "--no-ray"])
    return status, capsys.readouterr().out


def test_the_check_ends_with_a_table_on_100_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    build(tmp_path / "raw", scenes="abcde")
    save(tmp_path / "raw" / "x.jpg", texture(1, 40, 50))
    for part, width in ((1, 60), (2, 70)):
        save(tmp_path / "raw" / "a" / "img" / f"part{part}.png", texture(1, 40, width))
        save(tmp_path / "raw" / "a" / "lab" / f"part{part}_label.png",
             np.full((40, width, 3), (255, 0, 0), np.uint8))  # fmt: skip
    status, shown = run_check(tmp_path, capsys)
    assert status == 0
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for line in shown.splitlines()
        if len(cells := line.replace("┃", "│").split("│")) == 6
    }
    assert rows["with labels"] == ["4", "2", "2"]
    assert rows["scenes"] == ["2", "1", "1"]
    assert rows["size (height x width)"] == ["40x50", "40x50", "40x50"]
    assert rows["labels"] == ["3 x uint8"] * 3
    assert rows["CRS"] == ["none"] * 3
    assert all(float(rows["roof"][k][:-1]) + float(rows["water"][k][:-1]) == 100 for k in range(3))
    assert max(map(len, shown.split("left out")[0].splitlines())) <= 100
    assert (
        "- 1: .jpg files that fit neither data.custom.images nor data.custom.masks, for instance x.jpg"
        in shown
    )
    assert "- 2: data.custom.split puts them into 'unused', for instance e/img/part1.png" in shown
    assert "no problems found" in shown


def test_problems_stand_below_the_table(tmp_path, capsys):
    build(tmp_path / "raw", scenes="abcd")
    (tmp_path / "raw" / "a" / "lab" / "part1_label.png").unlink()
    status, shown = run_check(tmp_path, capsys)
    assert status == 1
    assert shown.index("with labels") < shown.index("- a/img/part1.png: no label image for it")
    assert shown.rstrip().endswith("nothing was written")


def test_a_problem_of_many_files_is_reported_once_with_paths_below_the_root(tmp_path, capsys, monkeypatch):
    build(tmp_path / "raw", scenes="abcd")
    for number, path in enumerate(sorted((tmp_path / "raw").glob("?/lab/*.png"))):
        labels = np.full((40, 50, 3), (1, 2, 3), np.uint8)
        labels[:number] = (255, 0, 0)
        save(path, labels)
    monkeypatch.chdir(tmp_path)
    status, shown = run_check(tmp_path.relative_to(tmp_path), capsys)
    assert status == 1
    lines = [line for line in shown.splitlines() if line.startswith("- ")]
    assert len(lines) == 1
    assert lines[0].startswith("- a/lab/part1_label.png: unknown label colour (1, 2, 3) in 2000 pixels")
    assert lines[0].endswith("(and 7 more with the same text)")
    assert "8 problem(s)" in shown


def test_sharding_warns_before_it_writes_and_shows_warnings_of_the_card(tmp_path, capsys, caplog):
    build(tmp_path / "raw", scenes="abcde")
    for part in (1, 2):
        save(tmp_path / "raw" / "c" / "lab" / f"part{part}_label.png",
             np.full((40, 50, 3), (255, 0, 0), np.uint8))  # fmt: skip
    run_check(tmp_path, capsys)
    split = "data.custom.split={scenes: {train: [a, b], val: [c], unused: [d, e]}}"
    assert main([str(tmp_path / "own.yaml"), split, "--no-ray"]) == 0
    assert "warning: roles.test names the split 'test', which does not exist" in caplog.text
    assert "warning: class 'water' has no pixel in the split 'val'" in capsys.readouterr().out


def test_progress_counts_shards_samples_and_the_rate_of_this_run():
    shown = []

    class Display:
        def advance(self, *state):
            shown.append(state)

    progress_of(Display())(Progress(3, 4, 30, 40, bytes=20_000_000, seconds=4.0))
    assert shown == [(3, 4, "30/40 samples, 5.0 MB/s")]
