"""The scripts and the notebook in examples/ run."""

import json
import re
import runpy
from pathlib import Path

import nbformat
import pytest

from tests.shards import make_shards

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_webdataset_pipeline_gives_an_epoch_and_goes_on_in_it(tmp_path, capsys):
    make_shards(tmp_path / "set", [5, 3], suffix="tif")
    main = runpy.run_path(str(EXAMPLES / "webdataset_pipeline.py"))["main"]
    main([str(tmp_path / "set"), "train", "--epoch", "2"])
    epoch = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in epoch] == ["step 0", "step 1"]
    assert all("images (4, 32, 32, 3), labels (4, 32, 32)" in line for line in epoch)
    keys = [key for line in epoch for key in line.split(", ")[-1].split()[-4:]]
    assert len(set(keys)) == 8
    main([str(tmp_path / "set"), "train", "--epoch", "2", "--start-step", "1"])
    assert capsys.readouterr().out.splitlines() == epoch[1:]


def test_the_notebook_is_committed_as_it_ran():
    file = EXAMPLES / "own_images.ipynb"
    cells = [cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert sum("image/jpeg" in output.get("data", {}) for cell in cells for output in cell.outputs) == 3
    assert file.stat().st_size < 1_500_000
    assert not re.search(r"/(work|home|root)/", file.read_text())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_runs_and_its_model_is_far_better_than_chance(tmp_path, monkeypatch):
    for name in ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    run = runpy.run_path(str(EXAMPLES.parent / "docs" / "run_notebook.py"))["run"]
    cells = [cell for cell in run(tmp_path).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    (report,) = tmp_path.glob("d2ls-*/report/report.json")
    (evaluation,) = json.loads(report.read_text())
    assert evaluation["scores"]["miou"] > 0.4  # the most frequent class alone: 0.08
