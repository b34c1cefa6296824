"""Evaluation and prediction on real Ray workers equal those of one process."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import rasterio

from d2ls.errors import D2LSError
from pipeline.config.train import ClusterConfig
from pipeline.evaluation.request import EvaluateRequest
from pipeline.evaluation.run import evaluate
from pipeline.models.workers import spread
from pipeline.prediction.inputs import list_jobs
from pipeline.prediction.request import PredictRequest
from pipeline.prediction.run import map_scenes
from tests.inference_stubs import tiny_bundle
from tests.shards import CLASSES, make_shards

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

TWO = ClusterConfig(address="local", workers=2)


def die_once(predictor, piece):
    """Kills its worker when a certain piece comes the first time."""
    number, marker = piece
    if number == 1 and not os.path.exists(marker):  # noqa: PTH110
        open(marker, "w").close()  # noqa: PTH123
        os.kill(os.getpid(), signal.SIGKILL)
    return number, predictor.num_classes


def test_two_workers_count_what_one_process_counts(tmp_path, ray_cluster) -> None:
    make_shards(tmp_path / "shards", [3, 4, 2], split="test")
    model = str(tiny_bundle(tmp_path / "model", CLASSES))
    request = EvaluateRequest(model, str(tmp_path / "shards"), "test", batch_size=2, bootstrap=50)
    alone = evaluate(request)
    spread_out = evaluate(replace(request, cluster=TWO))
    np.testing.assert_array_equal(alone.confusion, spread_out.confusion)
    assert [s.key for s in alone.samples] == [s.key for s in spread_out.samples]
    assert alone.scores == spread_out.scores
    assert alone.intervals == spread_out.intervals
    with pytest.raises(D2LSError):
        evaluate(replace(request, split="none", cluster=TWO))


def test_two_workers_map_what_one_process_maps(tmp_path, ray_cluster) -> None:
    model = str(tiny_bundle(tmp_path / "model", CLASSES))
    (tmp_path / "in").mkdir()
    for number in range(3):
        array = np.random.default_rng(number).integers(0, 256, (3, 70, 90 + number)).astype(np.uint8)
        with rasterio.open(
            tmp_path / "in" / f"{number}.tif",
            "w",
            driver="GTiff",
            height=70,
            width=90 + number,
            count=3,
            dtype="uint8",
        ) as file:
            file.write(array)
    (tmp_path / "in" / "bad.tif").write_bytes(b"II*\0")
    for name, cluster in (("one", ClusterConfig()), ("two", TWO)):
        request = PredictRequest(model, str(tmp_path / "in"), str(tmp_path / name), cluster=cluster)
        results = dict(map_scenes(request, list_jobs(request.source, request.target)))
        assert len(results) == 4
        assert sum(isinstance(result, D2LSError) for result in results.values()) == 1
    for number in range(3):
        one, two = ((tmp_path / name / f"{number}.tif").read_bytes() for name in ("one", "two"))
        assert one == two


def test_a_killed_worker_is_replaced_and_its_piece_done_again(tmp_path, ray_cluster) -> None:
    folder = tiny_bundle(tmp_path / "model", CLASSES)
    pieces = [(number, str(tmp_path / "marker")) for number in range(4)]
    actual = dict(spread(die_once, pieces, folder, "model", {}, TWO))
    assert actual == {number: (number, 4) for number in range(4)}
    assert (tmp_path / "marker").exists()
