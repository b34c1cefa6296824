"""The weight update of a step, which happens as a whole or, where a value is not finite, not at all."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from d2ls.training.batch_norm import RunningStatistics
from d2ls.training.ema import ExponentialMovingAverage
from d2ls.training.optimizer import GuardedAdamW
from d2ls.training.process_group import ProcessGroup


class WeightUpdate:
    """Clips the gradients and updates weights, optimizer state and averaged weights.

    Whether all loss terms and the gradient norm are finite is decided on the device, over all ranks. Where they are
    not, everything keeps the value it had before the step, the running statistics of batch norm too. Nothing here
    waits for the device: the host reads the returned values later, and calls `uncount` for a step that was left out.

    Args:
        network: with the layers that are trained; none may be replaced afterwards.
        optimizer: over its parameters.
        group: the ranks of the run.
        clip_norm: largest gradient norm; None: not clipped.
        ema: averaged weights, where they are used.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: GuardedAdamW,
        group: ProcessGroup,
        *,
        clip_norm: float | None,
        ema: ExponentialMovingAverage | None,
    ) -> None:
        self._network, self._optimizer, self._group = network, optimizer, group
        self._clip_norm, self._ema = clip_norm, ema
        self._parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._statistics = RunningStatistics(network)

    def before_forward(self) -> None:
        """Saves the running statistics, which the forward pass changes."""
        self._statistics.save()

    def apply(self, terms: Mapping[str, Tensor], *, stop: bool = False) -> Tensor:
        """Updates everything from the gradients of the parameters, and clears these.

        Args:
            terms: loss terms of the step, scalars on the device, equal on all ranks.
            stop: whether this rank asks that the training ends; travels with the verdict, without a wait of its own.

        Returns:
            float64, on the device: the terms; the gradient norm before clipping; 1 if the step was left out, else 0;
            1 if a rank asked for the end, else 0.
        """
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        values = torch.stack([value.detach().double() for value in (*terms.values(), norm)])
        flags = self._flags(values, stop)
        found_inf = flags[0]
        if self._clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._clip_norm, norm)
        self._optimizer.found_inf = found_inf
        self._optimizer.step()
        self._statistics.restore_where(found_inf)
        if self._ema:
            self._ema.update(self._network, found_inf)
        self._optimizer.zero_grad()
        return torch.cat([values, flags.double()])

    def uncount(self) -> None:
        """Takes the latest step out of the counts of the host: it was left out."""
        self._optimizer.uncount_step()
        if self._ema:
            self._ema.uncount_update()

    def _flags(self, values: Tensor, stop: bool) -> Tensor:
        """Returns whether a value is not finite on any rank, and whether any rank asks to stop; float32, 1 or 0."""
        infinite = (~values.isfinite()).any().float()
        own = torch.stack([infinite, torch.full_like(infinite, float(stop))])
        return self._group.all_reduce_sum(own).clamp(max=1.0)
