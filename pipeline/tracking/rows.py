"""Runs as rows of a table, and shards as a data set of MLflow."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import Run

    from d2ls.shards import DatasetCard

NAME_TAG = "d2ls.name"


@dataclass(frozen=True)
class RunRow:
    """A run as a row of a table.

    Attributes:
        run_id: MLflow's id.
        name: the name given at its start.
        status: RUNNING, FINISHED, FAILED or KILLED.
        params: flattened recipe, as text.
        metrics: last value of each metric.
        tags: all tags.
        start: seconds since the epoch.
        seconds: how long it ran, None while it runs.
    """

    run_id: str
    name: str
    status: str
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    start: float = 0.0
    seconds: float | None = None


def dataset_input(card: "DatasetCard", uri: str) -> Any:
    """Describes the shards as a data set of MLflow, which takes 36 characters of a digest."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = {
        name: {"samples": split.samples, "digest": split.digest} for name, split in card.splits.items()
    }
    schema = {"classes": list(card.classes.names), "bands": list(card.bands), "dtype": card.dtype}
    dataset = Dataset(
        name=card.name,
        digest=card.digest[:36],
        source_type="s3" if uri.startswith("s3:") else "local",
        source=json.dumps({"uri": uri}),
        schema=json.dumps(schema),
        profile=json.dumps({"protocol": card.protocol, "digest": card.digest, "splits": profile}),
    )
    return DatasetInput(dataset, tags=[InputTag("mlflow.data.context", "training")])


def row_of(run: "Run") -> RunRow:
    """Takes what a table needs from MLflow's run."""
    info, data = run.info, run.data
    end = info.end_time
    return RunRow(
        run_id=info.run_id,
        name=data.tags.get(NAME_TAG) or info.run_name or info.run_id,
        status=info.status,
        params=dict(data.params),
        metrics=dict(data.metrics),
        tags=dict(data.tags),
        start=info.start_time / 1000,
        seconds=(end - info.start_time) / 1000 if end else None,
    )


def table(rows: Iterable[RunRow], keys: Iterable[str], metric: str) -> str:
    """Writes runs as a Markdown table, best first: name, swept keys, metric, status, minutes."""
    keys = list(keys)
    ranked = sorted(rows, key=lambda row: -row.metrics.get(metric, float("-inf")))
    lines = ["| " + " | ".join(["run", *keys, metric, "state", "minutes"]) + " |"]
    lines.append("|" + "---|" * (len(keys) + 4))
    for row in ranked:
        score = f"{row.metrics[metric]:.4f}" if metric in row.metrics else "-"
        minutes = f"{row.seconds / 60:.1f}" if row.seconds is not None else "-"
        cells = [row.name, *(row.params.get(key, "-") for key in keys), score, row.status.lower(), minutes]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
