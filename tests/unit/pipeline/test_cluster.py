import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from d2ls.errors import ResourceError, StorageError, TrackingError
from pipeline.cluster import Cluster, _forwarded, _keep_secrets, _reach, _start_local, check_resources
from tests.train_world import tiny_recipe


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "shards").mkdir()
    return tiny_recipe(tmp_path, cluster__workers=4, cluster__cpus_per_worker=2)


def cluster(**changes):
    return Cluster(
        **{"address": "10.0.0.1:6379", "nodes": 1, "cpus": 8.0, "gpus": 0.0, "started_here": False, **changes}
    )


def test_what_fits_is_let_through(recipe):
    check_resources(recipe, cluster())
    assert cluster().capacity(recipe.cluster) == 4


@pytest.mark.parametrize(
    ("have", "message"),
    [
        ({"cpus": 4.0}, r"workers=4 x 2 CPU = 8 CPU.* has 4.*workers=2"),
        ({"gpus": 3.0}, r"workers=4 x 1 GPU = 4 GPU.* has 3.*workers=3"),
        ({"cpus": 1.0}, r"Lower cluster.cpus_per_worker, or join a larger cluster"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_arithmetic(recipe, have, message):
    with pytest.raises(ResourceError, match=message):
        check_resources(recipe, cluster(**have))


def test_a_range_needs_its_lower_end(recipe):
    check_resources(
        recipe.with_values({"cluster.workers": None, "cluster.min_workers": 1, "cluster.max_workers": 4}),
        cluster(cpus=2.0),
    )


def test_gpus_are_used_where_they_are_unless_told_otherwise(recipe):
    assert cluster(gpus=4.0).per_worker(recipe.cluster) == {"CPU": 2.0, "GPU": 1.0}
    without = recipe.with_values({"cluster.gpus_per_worker": 0.0}).cluster
    assert cluster(gpus=4.0).per_worker(without) == {"CPU": 2.0}


def test_a_local_path_on_more_than_one_node_is_refused(recipe, monkeypatch):
    monkeypatch.delenv("D2LS_SHARED_PATHS", raising=False)
    with pytest.raises(
        StorageError, match=r"output_dir: .* is a local path, the cluster has 2 nodes. Use s3://"
    ):
        check_resources(recipe, cluster(nodes=2))
    remote = recipe.with_values({"output_dir": "s3://b/runs"})
    with pytest.raises(StorageError, match=r"shards\.uri: "):
        check_resources(remote, cluster(nodes=2))
    remote = remote.with_values({"shards.uri": "s3://b/shards"})
    with pytest.raises(TrackingError, match=r"tracking\.uri: sqlite:.* is a local file.*`mlflow server`"):
        check_resources(remote, cluster(nodes=2))
    check_resources(remote.with_values({"tracking.uri": "http://mlflow:5000"}), cluster(nodes=2))
    monkeypatch.setenv("D2LS_SHARED_PATHS", "1")
    check_resources(recipe, cluster(nodes=2))


def forget_addresses(monkeypatch):
    """Lets the test change them, and puts them back."""
    for name in ("RAY_ADDRESS", "RAY_GCS_SERVER_PORT"):
        monkeypatch.setenv(name, "")


def test_workers_elsewhere_get_settings_and_no_secret(monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("D2LS_STORAGE", "s3://bucket/d2ls")
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "GOOGLE_API_KEY"):
        monkeypatch.setenv(name, "secret")
    sent = _forwarded()
    assert (sent["NCCL_DEBUG"], sent["D2LS_STORAGE"]) == ("INFO", "s3://bucket/d2ls")
    assert "secret" not in sent.values()


def test_tune_copies_no_key_into_the_environment_of_trials(monkeypatch):
    from ray.tune.execution import class_cache

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    _keep_secrets()
    actor = class_cache._ActorClassCache().get(type("Trainable", (), {}))
    assert "secret" not in str(vars(actor))
    assert "PL_DISABLE_FORK" in str(
        vars(actor)
    )  # else Ray keeps these options elsewhere and nothing was tested


def test_a_local_ray_that_comes_too_late_is_started_once_more(monkeypatch, tmp_path):
    started = []

    def slow_start(**options):
        assert options["_temp_dir"] == str(tmp_path)
        assert os.environ["RAY_ADDRESS"] == f"127.0.0.1:{os.environ['RAY_GCS_SERVER_PORT']}"
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        if len(started) == 1:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", slow_start)
    forget_addresses(monkeypatch)
    _start_local(False, tmp_path)
    first, second = started
    assert first.wait(10) == -signal.SIGKILL  # what had started of it is gone
    assert second.poll() is None
    second.kill()
    second.wait()


def test_a_local_ray_that_never_starts_is_said_so(monkeypatch, tmp_path):
    def never(**_):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", never)
    forget_addresses(monkeypatch)
    with pytest.raises(ResourceError, match=r"did not start: .* timed out .* overloaded"):
        _start_local(False, tmp_path)


class Server:
    """A gRPC server that takes one token, as a Ray head with token authentication does."""

    def __init__(self, token):
        self.asked = []

        def answer(request, context):
            if dict(context.invocation_metadata()).get("authorization") != f"Bearer {token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        class Handler(grpc.GenericRpcHandler):
            def service(inner, details):  # noqa: N805
                self.asked.append(details.method)
                return grpc.unary_unary_rpc_method_handler(answer)

        self._server = grpc.server(ThreadPoolExecutor(1), handlers=[Handler()])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self):
        self._server.stop(0).wait()


@pytest.fixture
def server():
    started = Server("right")
    yield started
    started.close()


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize("token", [None, "wrong"])
def test_a_cluster_with_another_token_is_refused_at_once(server, monkeypatch, tmp_path, scheme, token):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    started = time.monotonic()
    with pytest.raises(ResourceError, match=r"wants a token.*RAY_AUTH_TOKEN of that cluster$"):
        _reach(scheme + server.address)
    assert time.monotonic() - started < 2


def test_the_right_token_and_whatever_else_answers_is_left_to_ray(server, monkeypatch, tmp_path):
    file = tmp_path / "token"
    file.write_text("right\n")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    _reach(server.address)
    assert server.asked == ["/ray.rpc.NodeInfoGcsService/GetClusterId"]
    _reach("auto")


def test_an_address_where_nobody_listens_is_refused_at_once():
    with pytest.raises(ResourceError, match=r"no Ray cluster answers at ray://127\.0\.0\.1:1: "):
        _reach("ray://127.0.0.1:1")
