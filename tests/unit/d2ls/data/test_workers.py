"""The private parts of torch that the loader uses: these tests show what a new torch broke."""

import torch
from torch.utils.data import DataLoader

from d2ls.data.workers import end_workers


def numbers():
    return DataLoader(range(8), batch_size=None, num_workers=1, persistent_workers=True)


def test_a_dataloader_that_has_not_started_has_no_workers_to_end():
    loader = numbers()
    end_workers(loader)


def test_workers_end_at_once_though_a_paused_iterator_refers_to_them():
    loader = numbers()
    paused = iter(loader)
    assert next(paused) == 0
    (worker,) = loader._iterator._workers
    assert worker.is_alive()
    end_workers(loader)
    assert not worker.is_alive(), (
        f"torch {torch.__version__} no longer ends its workers in DataLoader._iterator._shutdown_workers"
    )
