"""How MLflow's run list looks when it is opened: the columns by which segmentation runs are told apart.

MLflow keeps such views as tags of an experiment; an address names one by its key.
"""

import base64
import json
import zlib

VIEW = "d2ls"
TAGS = (
    "dataset", "protocol", "architecture", "stages", "temperature", "contrastive", "dictionary", "backbone"
)  # fmt: skip
METRICS = ("select/miou", "best/miou", "epoch")
ATTRIBUTES = ("Models",)


def experiment_tags() -> dict[str, str]:
    """Tags of a new experiment: its kind, what ranks its runs, and the shared view of the run list."""
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": "select/miou",
        "mlflow.experiment.primaryMetric.greaterIsBetter": "true",
        f"mlflow.sharedViewState.{VIEW}": _packed(_state()),
    }


def run_list(root: str, experiment_id: str) -> str:
    """Returns the address of an experiment's run list with these columns."""
    query = f"viewStateShareKey={VIEW}&workflowType=machine_learning"
    return f"{root}/#/experiments/{experiment_id}/runs?{query}"


def _state() -> dict[str, object]:
    columns = [
        *(f"attributes.`{name}`" for name in ATTRIBUTES),
        *(f"metrics.`{name}`" for name in METRICS),
        *(f"tags.`{name}`" for name in TAGS),
    ]
    return {
        "searchFilter": "", "orderByKey": "attributes.start_time", "orderByAsc": False, "startTime": "ALL",
        "lifecycleFilter": "Active", "datasetsFilter": [], "modelVersionFilter": "All Runs",
        "selectedColumns": columns, "columnOrder": [], "columnWidths": {}, "runsExpanded": {}, "runsPinned": [],
        "runsHidden": [], "runsVisibilityMap": {}, "runsHiddenMode": "FIRST_10_RUNS", "viewMaximized": False,
        "runListHidden": False, "groupBy": None, "groupsExpanded": {}, "autoRefreshEnabled": True,
        "useGroupedValuesInCharts": True, "hideEmptyCharts": True,
    }  # fmt: skip


def _packed(state: dict[str, object]) -> str:
    content = zlib.compress(json.dumps(state, separators=(",", ":")).encode())
    return f"deflate;{base64.b64encode(content).decode()}"
