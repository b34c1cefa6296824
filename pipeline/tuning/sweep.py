"""A running sweep: its folder, its MLflow run, and how both end."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from rich.console import Console

from d2ls import storage
from d2ls.errors import D2LSError
from d2ls.shards import ShardSet
from pipeline.cluster import Cluster
from pipeline.config import Recipe
from pipeline.console import heading
from pipeline.tracking import Store
from pipeline.tracking.connection import UnreachableError, shown
from pipeline.tracking.runs import shareable
from pipeline.training import run_folder, tracked_run
from pipeline.training.run_folder import RunFolder
from pipeline.tuning.records import TrialRecords
from pipeline.tuning.report import Trial
from pipeline.tuning.state import SweepState, resume_command

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweep:
    """A running sweep.

    Attributes:
        name: name of the sweep.
        recipe: its recipe; all locations are absolute.
        seeds: number of seeds with which the best configuration is trained, including the seed of the search.
        store: MLflow store.
        run_id: MLflow run of the sweep.
        shards: the shard set.
        cluster: what the sweep runs on.
        console: where to print.
    """

    name: str
    recipe: Recipe
    seeds: int
    store: Store
    run_id: str
    shards: ShardSet
    cluster: Cluster
    console: Console

    @property
    def folder(self) -> RunFolder:
        """Folder of the sweep below `output_dir`."""
        return RunFolder.of(self.recipe.output_dir, self.name)

    @property
    def trials_uri(self) -> str:
        """Folder of the trial files."""
        return storage.join(self.folder.uri, "trials")

    def folder_of(self, trial: Trial) -> RunFolder:
        """Returns the run folder of a trial."""
        return RunFolder.of(self.recipe.output_dir, trial.name)


@contextmanager
def open_sweep(
    name: str, recipe: Recipe, seeds: int, shards: ShardSet, cluster: Cluster, console: Console
) -> Iterator[Sweep]:
    """Opens the MLflow run of a sweep and saves the state for `--resume`; ends the run with the sweep."""
    heading(console, f"MLflow store and parent run {name}")
    store = Store.open(recipe.tracking)
    SweepState(name, shareable(recipe).to_dict(), seeds, shown(store.uri)).save()
    recipe = recipe.with_values({"tracking.uri": store.uri})
    folder = RunFolder.of(recipe.output_dir, name)
    folder.update(name=name, kind="sweep")
    folder.claim()
    run_id = tracked_run.open_run(store, recipe, shards.card, folder, "sweep")
    sweep = Sweep(name, recipe, seeds, store, run_id, shards, cluster, console)
    try:
        with tracked_run.ended(folder, last=True):
            yield sweep
    except KeyboardInterrupt:
        again = resume_command(recipe.output_dir, name)
        console.print(f"Interrupted. Go on with: {again}", soft_wrap=True, markup=False)
        raise
    finally:
        _settle(sweep)


def _settle(sweep: Sweep) -> None:
    """Sends MLflow the waiting log entries of the sweep and its trials; it keeps those that MLflow does not take."""
    folders = [sweep.folder]
    with suppress(D2LSError):  # a damaged record has ended the sweep with its own error
        trials = TrialRecords.load(sweep.trials_uri).trials.values()
        folders = [*map(sweep.folder_of, trials), sweep.folder]
    for folder in folders:
        try:
            if folder.metadata().get("state") == run_folder.RUNNING:  # its process ended together with Tune
                folder.end(run_folder.KILLED)
            tracked_run.settle(sweep.store, folder)
        except D2LSError as error:  # must not hide the error that ended the sweep
            _log.warning("%s. `python -m pipeline.doctor` sends what waits and closes the runs", error)
            if isinstance(error, UnreachableError):
                return
