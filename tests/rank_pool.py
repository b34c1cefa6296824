"""Rank processes that are started once and run one function after another, in groups of any size."""

import contextlib
import os
import pickle
import tempfile
import time
import traceback
from multiprocessing.connection import wait

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


class RankPool:
    """Starts the process of a rank when a group first needs it, and ends all when it is closed."""

    def __init__(self):
        self.members = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for _, connection in self.members:
            connection.close()  # a rank that waits ends by itself
        for process, _ in self.members:
            process.join(0 if any(error) else 10)
            process.kill()
            process.join()
        self.members.clear()

    def run(self, world_size, function, *arguments, timeout=240, backend="gloo"):
        """Runs `function(*arguments)` on ranks that form the default group; returns what each returns, in order.

        An error of a rank ends the pool, because the others may wait for it; the next call starts new processes.
        """
        while len(self.members) < world_size:
            self.members.append(_start(len(self.members)))
        waiting = {connection: rank for rank, (_, connection) in enumerate(self.members[:world_size])}
        results, deadline = {}, time.monotonic() + timeout
        try:
            with tempfile.TemporaryDirectory() as folder:
                for connection in waiting:
                    connection.send((backend, world_size, f"file://{folder}/group", function, arguments))
                while waiting:
                    answered = wait(waiting, max(0.0, deadline - time.monotonic()))
                    assert answered, f"no answer of ranks {sorted(waiting.values())} in {timeout} s"
                    for connection in answered:
                        failure, value = pickle.loads(connection.recv_bytes())
                        assert not failure, failure
                        results[waiting.pop(connection)] = value
        except BaseException as error:
            self.__exit__(error)
            raise
        return [results[rank] for rank in range(world_size)]


def _start(rank):
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    # not a daemon, because loaders start workers
    process = context.Process(target=_serve, args=(rank, theirs))
    process.start()
    theirs.close()
    return process, ours


def _serve(rank, connection):
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with contextlib.suppress(EOFError):  # the pool was closed, or its process has ended
        while True:
            backend, world_size, meeting, function, arguments = connection.recv()
            try:
                dist.init_process_group(backend, meeting, rank=rank, world_size=world_size)
                answer = None, function(*arguments)
                dist.barrier()  # no rank leaves while another one still talks to it
            except BaseException:
                answer = traceback.format_exc(), None
            if dist.is_initialized():
                dist.destroy_process_group()
            connection.send_bytes(pickle.dumps(answer))  # `send` would share the memory of tensors
