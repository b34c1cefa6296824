"""The process of a trial, as Ray Tune runs it: an epoch is a step, and the process is reused for the next trial.

A trial with one worker trains here, in the process that holds the worker's resources. A trial with several workers
waits here for its worker group. In both cases the training is an iterator over epochs. Nothing is computed in this
process between two steps, and closing the iterator frees the resources of the trial.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from ray import tune

from d2ls.errors import D2LSError
from pipeline.config import Recipe, parse_recipe
from pipeline.tuning.report import METRIC
from pipeline.tuning.space import trial_recipe

Training = Generator[dict[str, float], None, Any]
"""Yields the metrics of each epoch; returns None, or an object with a `history` of them."""

TrainTrial = Callable[[Recipe, str, str | None, "TrialContext"], Training]


@dataclass(frozen=True)
class TrialContext:
    """Plain values that all trials of a sweep share; they are sent to the trial's process.

    Attributes:
        recipe: the sweep's recipe.
        parent_run_id: MLflow run of the sweep.
        train: starts or continues the training of a trial; tests pass their own.
    """

    recipe: Mapping[str, Any]
    parent_run_id: str
    train: TrainTrial


def train_trial(recipe: Recipe, name: str, run_id: str | None, context: TrialContext) -> Training:
    """Trains a trial; one with a single worker in this process, which is then restored to its state before.

    Args:
        recipe: of the trial.
        name: of its run.
        run_id: its MLflow run; None opens a new one.
        context: what the trials share.
    """
    # Not at the top: a trial process starts without torch, and loads it only if it trains.
    from pipeline.training.process_state import unchanged_after
    from pipeline.training.run import TrainRequest, train_epochs

    here = recipe.cluster.worker_range == (1, 1)
    request = TrainRequest(
        recipe,
        resume="auto",
        parent_run_id=context.parent_run_id,
        run_is_open=run_id is not None,
        in_process=here,
    )
    training = train_epochs(request, name=name)
    return unchanged_after(training) if here else training


class TrialProcess(tune.Trainable):
    """Reports each evaluated epoch: `epoch` and its score (`METRIC`).

    The last report has `status`, `finished` or `failed`, with `error`. Tune sees an error only if the process dies; it
    then starts the trial again.
    """

    def setup(self, config: dict[str, Any], context: TrialContext) -> None:  # type: ignore[override]
        """Begins the first trial of this process."""
        self._context = context
        self._begin(config)

    def step(self) -> dict[str, Any]:
        """Trains to the next evaluation; the last step goes to the end of the training."""
        report: dict[str, Any] = {}
        try:
            while True:
                metrics = next(self._training)
                report = {key: metrics[key] for key in ("epoch", METRIC) if key in metrics}
                if METRIC in metrics and not self._is_complete(metrics):
                    return report
        except StopIteration as end:
            history = end.value.history if end.value else []
            curve = {f"{row['epoch']:.0f}": row[METRIC] for row in history if METRIC in row}
            return {**report, "curve": curve, "status": "finished", "done": True}
        except Exception as error:  # any error is reported with the trial, and the sweep continues
            words = str(error) if isinstance(error, D2LSError) else f"{type(error).__name__}: {error}"
            return {**report, "status": "failed", "error": words, "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Ends the trial, which may have been pruned, and begins the next one in this process."""
        self._training.close()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """Ends the trial."""
        self._training.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Does nothing: the run folder has the checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Does nothing: a trial continues from its run folder."""

    def _is_complete(self, metrics: Mapping[str, float]) -> bool:
        """Returns whether the training has its full length; it may also end before."""
        if self._length.epochs is None:
            return metrics["step"] >= (self._length.steps or 0)
        return metrics["epoch"] >= self._length.epochs

    def _begin(self, config: Mapping[str, Any]) -> None:
        recipe = trial_recipe(parse_recipe(self._context.recipe), config["values"])
        self._length = recipe.train
        self._training = self._context.train(recipe, config["name"], config["run_id"], self._context)
