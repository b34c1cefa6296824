"""The ranks of a run as one value; a single process is one rank without any communication."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from d2ls import errors

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """Which rank this process is, of how many, and on which device it computes.

    The methods are collectives: all ranks call them, in the same order.

    Attributes:
        rank: 0..world_size-1.
        world_size: number of ranks.
        device: where this rank computes.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def current(cls, device: torch.device | str = "cpu") -> Self:
        """Returns the default process group of `torch.distributed`; a single rank where there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), torch.device(device))
        return cls(device=torch.device(device))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes."""
        return self.rank == 0

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Returns the sum of a tensor over all ranks; in place where there are several."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def all_reduce_min(self, value: int) -> int:
        """Returns the smallest value of all ranks."""
        return min(self.all_gather(value))

    def all_gather(self, value: Any) -> list[Any]:
        """Returns the picklable values of all ranks, in order of rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Returns rank 0's picklable value."""
        if self.world_size == 1:
            return value
        holder = [pickle.dumps(value) if self.is_main else None]
        dist.broadcast_object_list(holder, src=0, device=self.device)
        return pickle.loads(holder[0])  # type: ignore[arg-type]  # noqa: S301 (sent by our own rank 0)

    def run_together(self, action: Callable[[], T]) -> T:
        """Runs an action on every rank. Where it fails on one, all ranks raise, so that none waits for ever.

        Args:
            action: must not communicate with other ranks.

        Returns:
            What the action returned on this rank.

        Raises:
            D2LSError: of the same class, naming the rank, where another rank raised one.
            TrainingError: another rank raised any other error.
        """
        if self.world_size == 1:
            return action()
        result: list[T] = []
        own_error: Exception | None = None
        try:
            result.append(action())
        except Exception as error:  # sent to the other ranks, and raised below
            own_error = error
        descriptions = self.all_gather(own_error and (type(own_error).__name__, str(own_error)))
        if own_error is not None:
            raise own_error
        for rank, description in enumerate(descriptions):
            if description:
                name, message = description
                kind = getattr(errors, name, errors.TrainingError)
                shown = message if kind.__name__ == name else f"{name}: {message}"
                raise kind(f"rank {rank}: {shown}")
        return result[0]
