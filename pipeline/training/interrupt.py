"""Ctrl-C during training on Ray: an interrupt like any other, so that runs end as killed and not as failed."""

import contextlib
from typing import Any

ABORT_SECONDS = 30.0


def interruptible_trainer() -> Any:
    """Returns Ray's TorchTrainer with Python's own handling of Ctrl-C.

    Ray's handler ends the controller, and what then comes out of `fit` looks like a failure of an actor.
    """
    import ray
    from ray.train.torch import TorchTrainer

    class InterruptibleTrainer(TorchTrainer):
        """TorchTrainer that leaves Ctrl-C to Python; `abort` ends the workers afterwards."""

        _controller: Any = None

        def _register_sigint_handler(self, controller: Any) -> None:
            self._controller = controller

        def abort(self) -> None:
            """Ends controller and workers, also on a cluster that goes on without this process."""
            if self._controller is not None:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.get(self._controller.abort.remote(), timeout=ABORT_SECONDS)

    return InterruptibleTrainer
