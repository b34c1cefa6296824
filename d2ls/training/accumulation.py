"""One optimizer step's gradients: micro-steps over all ranks, with one gradient exchange at the end.

The global batch G is dealt to the ranks in contiguous shares that may differ by one. Every rank cuts its share into
the same number M of parts. Micro-step m is part m of all ranks: the loss is taken over it as a whole, and weighs as
much as its share of the G samples.
"""

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from d2ls.distributed import known_sizes
from d2ls.errors import TrainingError
from d2ls.loader import Batch
from d2ls.training.batch_norm import without_statistics
from d2ls.training.device import Device, Precision, Stopwatch
from d2ls.training.process_group import ProcessGroup


@dataclass(frozen=True)
class MicrobatchPlan:
    """How the global batch is cut.

    Attributes:
        parts: R x M sample counts, ranks by micro-steps.
    """

    parts: tuple[tuple[int, ...], ...]

    @classmethod
    def plan(cls, global_batch: int, world_size: int, micro_batch: int | None) -> "MicrobatchPlan":
        """Cuts the shares so that no part exceeds the micro-batch (None: one part a rank)."""
        shares = _even(global_batch, world_size)
        steps = -(-max(shares) // micro_batch) if micro_batch else 1
        return cls(tuple(_even(share, steps) for share in shares))

    @property
    def steps(self) -> int:
        """M, micro-steps a step."""
        return len(self.parts[0])

    def share(self, rank: int) -> int:
        """Samples of a rank in a step."""
        return sum(self.parts[rank])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each micro-step over all ranks."""
        return tuple(sum(column) for column in zip(*self.parts, strict=True))

    @property
    def weights(self) -> tuple[float, ...]:
        """What each micro-step weighs in the step; they add up to 1."""
        total = sum(self.sizes)
        return tuple(size / total for size in self.sizes)

    def describe(self) -> str:
        """Says in a sentence what accumulation does to the loss; empty where nothing is accumulated."""
        if self.steps == 1:
            return ""
        sizes = sorted(set(self.sizes), reverse=True)
        text = (
            f"{sum(self.sizes)} samples a step are accumulated in {self.steps} micro-steps of "
            f"{' or '.join(map(str, sizes))} samples over all workers: Dice and the contrastive term compare the "
            "samples of one micro-step, not of the whole step"
        )
        if sizes[-1] == 1:
            text += "; with one sample the contrastive ratio is zero"
        if any(0 in rank for rank in self.parts):
            text += "; where a worker has no sample left it computes one that does not count"
        return text


def _even(total: int, parts: int) -> tuple[int, ...]:
    share, extra = divmod(total, parts)
    return tuple(share + (index < extra) for index in range(parts))


@dataclass
class GradientAccumulator:
    """Computes the gradients of one global batch.

    Attributes:
        network: unwrapped; takes raw pixels.
        wrapped: the same network as it is called, in DistributedDataParallel where there are several ranks.
        loss: takes (output, labels), returns terms and total over all ranks.
        micro: how the batch is cut.
        group: the ranks that share the batch.
        device: where they compute.
        precision: of the forward pass; the loss is always float32.
    """

    network: nn.Module
    wrapped: nn.Module
    loss: nn.Module
    micro: MicrobatchPlan
    group: ProcessGroup
    device: Device
    precision: Precision = "fp32"

    def __call__(self, batch: Batch, watch: Stopwatch) -> dict[str, Tensor]:
        """Adds the gradients of a batch to the parameters.

        Args:
            batch: this rank's share.
            watch: takes the time of forward and backward.

        Returns:
            Loss terms and `total` of the step, scalars on the device, the same on every rank.
        """
        share = self.micro.share(self.group.rank)
        if len(batch) != share:
            raise TrainingError(
                f"rank {self.group.rank} got {len(batch)} samples, its share of the global batch is {share}"
            )
        moved = self.device.upload(batch)
        terms: dict[str, Tensor] = {}
        start = 0
        for index, count in enumerate(self.micro.parts[self.group.rank]):
            sizes = [parts[index] for parts in self.micro.parts]
            with self._exchange(last=index == self.micro.steps - 1), known_sizes(sizes):
                part = slice(start, start + count)
                self._micro_step(moved.images, moved.labels, part, self.micro.weights[index], terms, watch)
            start += count
        return terms

    def _micro_step(
        self,
        images: Tensor,
        labels: Tensor,
        part: slice,
        weight: float,
        terms: dict[str, Tensor],
        watch: Stopwatch,
    ) -> None:
        with watch.part("forward"):
            found = self.loss(*self._output(images, labels, part))
        with watch.part("backward"):
            (found.total * weight).backward()
        for name, value in {**found.terms, "total": found.total}.items():
            terms[name] = terms.get(name, 0.0) + value.detach() * weight

    def _output(self, images: Tensor, labels: Tensor, part: slice) -> tuple[Any, Tensor]:
        """Computes network output and labels of a part; an empty part computes a sample and drops it again."""
        empty = part.start == part.stop
        chosen = slice(0, 1) if empty else part
        dropped = without_statistics(self.network) if empty else contextlib.nullcontext()
        with self.device.autocast(self.precision), dropped:
            output = self.wrapped(images[chosen])
        return (_without_samples(output), labels[:0]) if empty else (output, labels[chosen])

    def _exchange(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged in the last micro-step alone."""
        if isinstance(self.wrapped, DistributedDataParallel) and not last:
            return self.wrapped.no_sync()
        return contextlib.nullcontext()


def _without_samples(output: Any) -> Any:
    """Cuts every per-image tensor of the output to zero samples; the graph stays, so DDP gets its (zero) gradients."""
    kept = {name: value for name, value in output._asdict().items() if name == "static_dictionary"}
    cut = {
        name: tuple(each[:0] for each in value)
        if isinstance(value, tuple)
        else value
        if value is None
        else value[:0]
        for name, value in output._asdict().items()
        if name not in kept
    }
    return output._replace(**cut)
