"""A local Ray reveals no secret and leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
from pathlib import Path
from pipeline import cluster
from pipeline.config.train import ClusterConfig

with cluster.connect(ClusterConfig(workers=1)):
    import ray
    from ray import tune

    def trial(config):
        key = os.environ["AWS_SECRET_ACCESS_KEY"]
        tune.report({"key": key == "can" + "ary", "address": os.environ["RAY_ADDRESS"]})

    run = tune.RunConfig(storage_path=sys.argv[1], verbose=0)
    (result,) = tune.Tuner(trial, run_config=run).fit()
    assert result.metrics["key"]
    assert result.metrics["address"] == ray.get_runtime_context().gcs_address
    folder = Path(ray.get_runtime_context().get_temp_dir())
    held = [file for file in folder.rglob("*") if file.is_file() and b"canary" in file.read_bytes()]
    assert not held, held
    assert folder.parent.stat().st_mode & 0o077 == 0
    print(folder.parent)
"""


@pytest.mark.slow
def test_keys_reach_a_trial_and_no_log_and_ray_leaves_no_file(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env={**os.environ, "AWS_SECRET_ACCESS_KEY": "canary"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip().splitlines()[-1]).exists()
