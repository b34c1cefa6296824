"""Work on Ray actors, with a stand-in for Ray: what is done again when a node is lost."""

from types import SimpleNamespace

import pytest
from ray import exceptions

from pipeline.models.workers import _work


class FakeRay:
    """Answers at once; raises the given errors instead of the first results."""

    exceptions = exceptions

    def __init__(self, *errors):
        self.errors, self.started = list(errors), 0

    def start(self):
        self.started += 1
        return SimpleNamespace(work=SimpleNamespace(remote=lambda function, piece: (function, piece)))

    def wait(self, references):
        return references[:1], references[1:]

    def get(self, reference):
        if self.errors:
            raise self.errors.pop(0)
        function, piece = reference
        return function(piece)

    def kill(self, worker):
        pass


LOST = [
    exceptions.ActorDiedError(),
    exceptions.ObjectLostError("00" * 28, "127.0.0.1:1", ""),
    exceptions.OwnerDiedError("00" * 28, "127.0.0.1:1", ""),
]


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_a_node_that_is_lost_before_or_after_its_work_was_done(error):
    ray = FakeRay(error)
    results = dict(_work(ray, ray.start, lambda piece: 2 * piece, [1, 2, 3], 2, failures=1))
    assert (results, ray.started) == ({0: 2, 1: 4, 2: 6}, 3)
    ray = FakeRay(error, error)
    with pytest.raises(type(error)):
        list(_work(ray, ray.start, lambda piece: 2 * piece, [1, 2, 3], 2, failures=1))
