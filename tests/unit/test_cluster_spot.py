"""The instances that Ray requests with ray_cluster.yaml: its autoscaler against a simulated cloud without spot."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.instance_manager import InstanceManager
from ray.autoscaler.v2.instance_manager.instance_storage import InstanceStorage
from ray.autoscaler.v2.instance_manager.node_provider import (
    CloudInstance,
    ICloudInstanceProvider,
    LaunchNodeError,
)
from ray.autoscaler.v2.instance_manager.reconciler import Reconciler
from ray.autoscaler.v2.instance_manager.storage import InMemoryStorage
from ray.autoscaler.v2.instance_manager.subscribers.cloud_instance_updater import CloudInstanceUpdater
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated import autoscaler_pb2, instance_manager_pb2

FILE = Path(__file__).resolve().parents[2] / "ray_cluster.yaml"


class Cloud(ICloudInstanceProvider):
    """A cloud with a head. It records requests, and refuses spot instances as AWS does without capacity."""

    def __init__(self) -> None:
        self.asked: list[dict[str, int]] = []
        self.errors: list[LaunchNodeError] = []

    def get_non_terminated(self) -> dict[str, CloudInstance]:
        head = CloudInstance("i-head", "head", instance_manager_pb2.NodeKind.HEAD, is_running=True)
        return {"i-head": head}

    def launch(self, shape: dict[str, int], request_id: str) -> None:
        self.asked.append(dict(shape))
        for kind, count in shape.items():
            if kind == "gpu_spot":
                self.errors.append(LaunchNodeError(kind, count, request_id, time.time_ns()))

    def terminate(self, ids: list[str], request_id: str) -> None:
        raise AssertionError(f"nothing is to end: {ids}")

    def poll_errors(self) -> list[LaunchNodeError]:
        errors, self.errors = self.errors, []
        return errors


class Autoscaler:
    """Ray's own decisions, round by round, with a number of workers that wait for a GPU each."""

    def __init__(self, waiting: int) -> None:
        self.cloud, self.monitor = Cloud(), CloudResourceMonitor()
        self.scheduler = ResourceDemandScheduler(None)
        subscribers = [CloudInstanceUpdater(cloud_provider=self.cloud), self.monitor]
        self.manager = InstanceManager(
            InstanceStorage(cluster_id="d2ls", storage=InMemoryStorage()), subscribers
        )
        self.state = autoscaler_pb2.ClusterResourceState(cluster_resource_state_version=1)
        self.config: dict[str, Any] = yaml.safe_load(FILE.read_text())
        self.round()  # finds the head
        head = {"CPU": 4.0}
        self.state.node_states.append(
            autoscaler_pb2.NodeState(
                node_id=b"h" * 28, instance_id="i-head", ray_node_type_name="head", total_resources=head,
                available_resources=head, status=autoscaler_pb2.NodeStatus.RUNNING,
            )
        )  # fmt: skip
        worker = ResourceRequestUtil.make({"GPU": 1, "CPU": 8})
        self.state.pending_resource_requests.append(
            autoscaler_pb2.ResourceRequestByCount(request=worker, count=waiting)
        )

    def round(self) -> None:
        config = AutoscalingConfig(prepare_config(self.config), skip_content_hash=True)
        Reconciler.reconcile(
            self.manager, self.scheduler, self.cloud, self.monitor, self.state, self.cloud.get_non_terminated(), config,
            self.cloud.poll_errors(),
        )  # fmt: skip


def test_spot_is_asked_for_first_and_again_where_it_was_refused():
    """As documented in docs/cluster/failures.md. If a new Ray falls back to on-demand instances, simplify that page."""
    autoscaler = Autoscaler(waiting=1)
    for _ in range(5):
        autoscaler.round()
    assert autoscaler.cloud.asked == [{"gpu_spot": 1}] * 5


def test_with_spot_switched_off_on_demand_comes():
    autoscaler = Autoscaler(waiting=2)
    autoscaler.round()
    assert autoscaler.cloud.asked == [{"gpu_spot": 2}]
    autoscaler.config["available_node_types"]["gpu_spot"]["max_workers"] = 0
    autoscaler.round()
    assert autoscaler.cloud.asked[1:] == [{"gpu_on_demand": 2}]


@pytest.mark.parametrize(
    ("waiting", "asked"), [(8, {"gpu_spot": 8}), (10, {"gpu_spot": 8, "gpu_on_demand": 2})]
)
def test_on_demand_is_for_what_is_wanted_beyond_spot(waiting, asked):
    autoscaler = Autoscaler(waiting)
    autoscaler.round()
    assert autoscaler.cloud.asked == [asked]
