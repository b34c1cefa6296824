"""What MLflow's user interface reads and documents nowhere: the columns of the run list, the names of pictures.

MLflow keeps views of the run list as tags of an experiment; an address names one by its key.
"""

import base64
import json
import zlib

VIEW = "d2ls"
PICTURES = "images"
"""Artifact folder of the pictures that move with the step."""
NAME_WIDTH = 245
METRICS = {"best/miou": 95, "epoch": 75}
TAGS = {
    "dataset": 95, "protocol": 90, "architecture": 105, "stages": 70, "temperature": 110, "contrastive": 105,
    "dictionary": 100, "backbone": 110, "seed": 65,
}  # fmt: skip
"""Columns in their order, with widths in pixels: all of them fit on a screen that is 1600 pixels wide."""


def experiment_tags() -> dict[str, str]:
    """Tags of a new experiment: its kind, what ranks its runs, and the shared view of the run list."""
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": "val/miou",
        "mlflow.experiment.primaryMetric.greaterIsBetter": "true",
        f"mlflow.sharedViewState.{VIEW}": _packed(_state()),
    }


def run_list(root: str, experiment_id: str) -> str:
    """Returns the address of an experiment's run list with these columns."""
    query = f"viewStateShareKey={VIEW}&workflowType=machine_learning"
    return f"{root}/#/experiments/{experiment_id}/runs?{query}"


def picture_of(path: str) -> tuple[str, int]:
    """Returns key and step of a picture from the name of its small copy, which is written last; else nothing."""
    parts = path.rsplit("/", 1)[-1].split("+")
    if len(parts) < 3 or parts[1] != "step" or not path.endswith("+compressed.webp"):
        return "", -1
    return parts[0].replace("~", "/"), int(parts[2])


def _state() -> dict[str, object]:
    shown = {
        **{f"metrics.`{name}`": width for name, width in METRICS.items()},
        **{f"tags.`{name}`": width for name, width in TAGS.items()},
        "attributes.`Models`": 120,
    }
    widths = {"attributes.`Run Name`": NAME_WIDTH, **shown}
    return {
        "searchFilter": "", "orderByKey": "attributes.start_time", "orderByAsc": False, "startTime": "ALL",
        "lifecycleFilter": "Active", "datasetsFilter": [], "modelVersionFilter": "All Runs",
        "selectedColumns": list(shown), "columnOrder": list(widths), "columnWidths": widths,
        "runsExpanded": {}, "runsPinned": [], "runsHidden": [], "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_10_RUNS", "viewMaximized": False,
        "runListHidden": False, "groupBy": None, "groupsExpanded": {}, "autoRefreshEnabled": True,
        "useGroupedValuesInCharts": True, "hideEmptyCharts": True,
    }  # fmt: skip


def _packed(state: dict[str, object]) -> str:
    content = zlib.compress(json.dumps(state, separators=(",", ":")).encode())
    return f"deflate;{base64.b64encode(content).decode()}"
