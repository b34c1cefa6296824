"""The scripts in examples/ run."""

import runpy
from pathlib import Path

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
