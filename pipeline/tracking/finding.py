"""Finding runs: by name or id, the trials of a sweep, those whose driver is gone."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from d2ls.errors import TrackingError
from pipeline import driver
from pipeline.tracking.rows import NAME_TAG, RunRow, row_of

if TYPE_CHECKING:
    from pipeline.tracking.store import Store

DRIVER_TAG = "d2ls.driver"
PARENT_TAG = "mlflow.parentRunId"


def find(store: "Store", run: str, experiment: str | None = None) -> RunRow:
    """Returns the newest run with a name or an id; see `Store.find`."""
    if len(run) == 32 and all(letter in "0123456789abcdef" for letter in run):
        return store.run(run)
    rows = by_name(store, run, experiments(store, experiment))
    if not rows:
        every = search(store, "", experiment)
        newest = ", ".join(row.name for row, _ in zip(every, range(5), strict=False))
        raise TrackingError(
            f"no run {run!r} in {store.uri}{f', experiment {experiment}' if experiment else ''}. "
            f"Newest runs: {newest or 'none at all'}"
        )
    return rows[0]


def by_name(store: "Store", name: str, chosen: Sequence[str]) -> list[RunRow]:
    """Returns the runs with a name in some experiments (ids), newest first."""
    return list(_pages(store, chosen, f"tags.`{NAME_TAG}` = '{quoted(name)}'"))


def children(store: "Store", parent_id: str) -> list[RunRow]:
    """Returns the trials of a sweep, oldest first."""
    experiment = store.client.get_run(parent_id).info.experiment_id
    wanted = f"tags.`{PARENT_TAG}` = '{parent_id}'"
    return list(_pages(store, [experiment], wanted, "attributes.start_time ASC"))


def orphans(store: "Store") -> list[RunRow]:
    """Returns the runs that are open although the driver, a process of this machine, is gone."""
    running = search(store, "attributes.status = 'RUNNING'")
    return [row for row in running if driver.is_gone(row.tags.get(DRIVER_TAG, ""))]


def search(store: "Store", filter_string: str, experiment: str | None = None) -> Iterator[RunRow]:
    """Yields runs by MLflow's filter, newest first, of one experiment or of all."""
    yield from _pages(store, experiments(store, experiment), filter_string)


def experiments(store: "Store", name: str | None = None) -> list[str]:
    """Returns the ids of the experiment with this name, or of all."""
    return [each.experiment_id for each in store.client.search_experiments() if name in (None, each.name)]


def quoted(text: str) -> str:
    """Makes a text harmless inside the quotes of a filter."""
    return text.replace("'", "")


def _pages(
    store: "Store", chosen: Sequence[str], filter_string: str, order: str = "attributes.start_time DESC"
) -> Iterator[RunRow]:
    token = None
    while chosen:
        page = store.client.search_runs(
            list(chosen), filter_string, max_results=1000, order_by=[order], page_token=token
        )
        yield from map(row_of, page)
        token = page.token
        if not token:
            return
