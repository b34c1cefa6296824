import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from d2ls.errors import ResourceError
from pipeline.cluster.connection import _forwarded, _reach, _start_local


def forget_addresses(monkeypatch):
    """Lets the test change the addresses, and restores them."""
    for name in ("RAY_ADDRESS", "RAY_GCS_SERVER_PORT"):
        monkeypatch.setenv(name, "")


def test_workers_elsewhere_get_settings_and_no_secret(monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("D2LS_STORAGE", "s3://bucket/d2ls")
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "GOOGLE_API_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv(
        "PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"
    )  # as PyTorch advises without memory
    sent = _forwarded()
    assert (sent["NCCL_DEBUG"], sent["D2LS_STORAGE"]) == ("INFO", "s3://bucket/d2ls")
    assert sent["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert "secret" not in sent.values()


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
