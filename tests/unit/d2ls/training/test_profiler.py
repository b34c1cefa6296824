import gzip
import json

from d2ls.training.profiler import ProfileCallback
from tests.tiny_trainer import make_trainer, tiny_shards


def test_a_trace_of_some_steps_is_written(tmp_path):
    target = tmp_path / "below" / "profile.json.gz"
    shards = tiny_shards(tmp_path / "shards")
    make_trainer(shards, callbacks=[ProfileCallback(str(target), first=1, steps=2)]).run()
    names = {event.get("name") for event in json.loads(gzip.decompress(target.read_bytes()))["traceEvents"]}
    assert "Optimizer.step#GuardedAdamW.step" in names
