"""The gradients of one optimizer step: micro-batches over all ranks, with one gradient exchange at the end.

The global batch is dealt to the R ranks in contiguous shares that may differ by one sample. Every rank cuts its share
into the same number M of parts. Micro-step m takes part m of all ranks. Its loss is computed over these samples as a
whole, and is weighted by their share of the global batch. The divisors of its sums over pixels and images are counted
over the global batch, so the total does not depend on M.
"""

import contextlib
import inspect
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from d2ls.data import Batch
from d2ls.distributed import known_sizes, sum_over_ranks
from d2ls.errors import TrainingError
from d2ls.losses import D2LSLoss
from d2ls.training.batch_norm import without_statistics
from d2ls.training.device import Device, Precision, Stopwatch
from d2ls.training.process_group import ProcessGroup


@dataclass(frozen=True)
class MicrobatchPlan:
    """How the global batch is cut.

    Attributes:
        parts: R M sample counts, ranks by micro-steps.
    """

    parts: tuple[tuple[int, ...], ...]

    @classmethod
    def create(cls, global_batch_size: int, world_size: int, micro_batch_size: int | None) -> Self:
        """Cuts the shares so that no part exceeds the micro-batch (None: one part a rank)."""
        shares = _even(global_batch_size, world_size)
        steps = -(-max(shares) // micro_batch_size) if micro_batch_size else 1
        return cls(tuple(_even(share, steps) for share in shares))

    @property
    def steps(self) -> int:
        """M, micro-steps per step."""
        return len(self.parts[0])

    @property
    def largest(self) -> int:
        """Most samples that a rank takes at once."""
        return max(map(max, self.parts))

    def share(self, rank: int) -> int:
        """Samples of a rank in a step."""
        return sum(self.parts[rank])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of each micro-step over all ranks."""
        return tuple(sum(column) for column in zip(*self.parts, strict=True))

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each micro-step in the step; they add up to 1."""
        total = sum(self.sizes)
        return tuple(size / total for size in self.sizes)

    def describe(self) -> str:
        """Describes in a sentence what accumulation does to the loss; empty where nothing is accumulated."""
        if self.steps == 1:
            return ""
        sizes = sorted(set(self.sizes), reverse=True)
        text = (
            f"{sum(self.sizes)} samples per step are accumulated in {self.steps} micro-steps of "
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


class GradientAccumulator:
    """Computes the gradients of one global batch.

    Args:
        network: takes raw pixels. Where there are several ranks, its batch norm layers are replaced by ones that
            normalise over all ranks, and it is called through DistributedDataParallel.
        loss: gives terms and total over all ranks.
        plan: how the batch is cut.
        group: the ranks that share the batch.
        device: where they compute.
        precision: of the forward pass; the loss is always float32.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: D2LSLoss,
        plan: MicrobatchPlan,
        group: ProcessGroup,
        device: Device,
        precision: Precision = "fp32",
    ) -> None:
        self._network, self._loss = network, loss
        self._parallel = _data_parallel(network, device) if group.world_size > 1 else network
        self.plan = plan
        self._group, self._device, self._precision = group, device, precision

    def __call__(self, batch: Batch, watch: Stopwatch) -> dict[str, Tensor]:
        """Adds the gradients of a batch to the parameters.

        Args:
            batch: this rank's share.
            watch: measures forward and backward.

        Returns:
            Loss terms and `total` of the step, scalars on the device, the same on every rank.

        Raises:
            TrainingError: the batch is not this rank's share.
        """
        rank, share = self._group.rank, self.plan.share(self._group.rank)
        if len(batch) != share:
            raise TrainingError(
                f"rank {rank} got {len(batch)} samples, its share of the global batch is {share}"
            )
        on_device = self._device.upload(batch)
        counts = sum_over_ranks(self._loss.label_counts(on_device.labels)) if self.plan.steps > 1 else None
        terms: dict[str, Tensor] = {}
        start = 0
        for index, count in enumerate(self.plan.parts[rank]):
            images, labels = (x[start : start + count] for x in (on_device.images, on_device.labels))
            filler = on_device.images[:1] if count == 0 else None
            last = index == self.plan.steps - 1
            with self._gradient_exchange(last), known_sizes([parts[index] for parts in self.plan.parts]):
                self._micro_step(images, labels, filler, self.plan.weights[index], counts, terms, watch)
            start += count
        return terms

    def _micro_step(
        self,
        images: Tensor,
        labels: Tensor,
        filler: Tensor | None,
        weight: float,
        counts: Tensor | None,
        terms: dict[str, Tensor],
        watch: Stopwatch,
    ) -> None:
        """Runs forward and backward on a part; adds its weighted loss terms to `terms`."""
        with watch.part("forward"):
            output = self._forward(images) if filler is None else self._forward_empty(filler)
            loss = self._loss(output, labels, None if counts is None else counts * weight)
        with watch.part("backward"):
            (loss.total * weight).backward()
        for name, value in {**loss.terms, "total": loss.total}.items():
            terms[name] = terms.get(name, 0.0) + value.detach() * weight

    def _forward(self, images: Tensor) -> Any:
        with self._device.autocast(self._precision):
            return self._parallel(images)

    def _forward_empty(self, filler: Tensor) -> Any:
        """Computes the output of a part without samples: that of one sample, cut to none.

        The rank has to take part in the collectives of this micro-step. The graph of the sample stays, so that
        DistributedDataParallel gets a (zero) gradient of every parameter; batch norm does not count the sample.
        """
        with without_statistics(self._network):
            output = self._forward(filler)
        return output._replace(**{name: _cut(name, value) for name, value in output._asdict().items()})

    def _gradient_exchange(self, last: bool) -> AbstractContextManager[Any]:
        """Exchanges gradients in the last micro-step only."""
        if isinstance(self._parallel, DistributedDataParallel) and not last:
            return self._parallel.no_sync()
        return contextlib.nullcontext()


def _cut(name: str, value: Any) -> Any:
    """Cuts a field of the output to no images; the static dictionary has no image axis."""
    if value is None or name == "static_dictionary":
        return value
    return tuple(tensor[:0] for tensor in value) if isinstance(value, tuple) else value[:0]


def _data_parallel(network: nn.Module, device: Device) -> DistributedDataParallel:
    network = device.normalize_over_ranks(network)
    names = inspect.signature(DistributedDataParallel).parameters
    # No buffer needs an exchange: all are equal at the start, and batch norm is computed over ranks.
    exchange: dict[str, Any] = {
        "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False
    }
    return DistributedDataParallel(
        network, device_ids=device.ddp_ids, gradient_as_bucket_view=True, **exchange
    )
