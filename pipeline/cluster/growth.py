"""Size that an autoscaled cluster can grow to. Ray does not count nodes that are not running yet."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2ls.errors import ConfigError

GROWS_TO = "D2LS_GROWS_TO"
BOOTSTRAP_FILE = "~/ray_bootstrap_config.yaml"


def grows_to(now: Mapping[str, float]) -> dict[str, float]:
    """Returns the resources of a cluster when all its nodes run.

    On the head of a cluster made by `ray up` they come from its copy of the cluster file. Elsewhere (Kubernetes), set
    the variable D2LS_GROWS_TO, e.g. `CPU=68,GPU=8`.

    Args:
        now: resources that Ray counts at this moment.

    Raises:
        ConfigError: the variable cannot be read.
    """
    text = os.environ.get(GROWS_TO)
    if text:
        later = _parse(text)
    else:
        file = Path(BOOTSTRAP_FILE).expanduser()
        later = of_cluster_file(json.loads(file.read_text())) if file.is_file() else {}
    return {kind: max(now.get(kind, 0.0), later.get(kind, 0.0)) for kind in {*now, *later}}


def of_cluster_file(config: Mapping[str, Any]) -> dict[str, float]:
    """Adds up head and workers of a cluster file, the types with most GPUs first, up to its `max_workers`."""
    types = dict(config.get("available_node_types", {}))
    head = types.pop(config.get("head_node_type", ""), {})
    total = {kind: float(amount) for kind, amount in head.get("resources", {}).items()}
    left = int(config.get("max_workers", 2))
    for node in sorted(types.values(), key=lambda one: -float(one.get("resources", {}).get("GPU", 0))):
        count = min(left, int(node.get("max_workers", left)))
        left -= count
        for kind, amount in node.get("resources", {}).items():
            total[kind] = total.get(kind, 0.0) + count * float(amount)
    return total


def _parse(text: str) -> dict[str, float]:
    try:
        pairs = [part.split("=") for part in text.split(",")]
        return {kind.strip(): float(amount) for kind, amount in pairs}
    except ValueError as error:
        raise ConfigError(f"{GROWS_TO}={text!r}: write for instance CPU=68,GPU=8") from error
