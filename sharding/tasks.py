"""Runs pieces of work: in this process, or by the caller's `TaskRunner` (Ray, in the pipeline)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Extra = TypeVar("Extra")
Result = TypeVar("Result")


class TaskRunner(Protocol):
    """Calls a function for many items, in any order and perhaps in other processes."""

    def __call__(
        self, function: Callable[[Item, Extra], Result], items: Sequence[Item], extra: Extra
    ) -> Iterator[Result]:
        """Yields `function(item, extra)` for each item as it finishes; the first error stops the others."""
        ...


def run_here(
    function: Callable[[Item, Extra], Result], items: Sequence[Item], extra: Extra
) -> Iterator[Result]:
    """A `TaskRunner` that works in this process, in order."""
    return (function(item, extra) for item in items)
