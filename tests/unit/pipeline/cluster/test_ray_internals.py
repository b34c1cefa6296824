"""Undocumented parts of Ray that this project uses: each test shows what a new Ray version broke."""

import importlib
import importlib.util
import inspect
from pathlib import Path

import ray

from pipeline.cluster import ray_internals


def test_tune_copies_no_key_into_the_environment_of_trials(monkeypatch):
    from ray.tune.execution import class_cache

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    ray_internals.keep_secrets()
    actor = class_cache._ActorClassCache().get(type("Trainable", (), {}))
    assert "secret" not in str(vars(actor))
    assert "PL_DISABLE_FORK" in str(
        vars(actor)
    )  # else Ray keeps these options elsewhere and nothing was tested


def test_ray_still_takes_the_address_and_the_folder_of_a_local_start(tmp_path: Path) -> None:
    options = ray_internals.start_options("127.0.0.1", tmp_path)
    source = inspect.getsource(ray.init)
    assert all(
        f'kwargs.pop("{name}"' in source or name in inspect.signature(ray.init).parameters for name in options
    )


def test_the_calls_without_an_effect_exist() -> None:
    gcs = importlib.import_module("ray.core.generated.gcs_service_pb2_grpc")
    client = importlib.import_module("ray.core.generated.ray_client_pb2_grpc")
    assert ray_internals.HEAD_CALL in inspect.getsource(gcs)
    assert ray_internals.CLIENT_CALL in inspect.getsource(client)


def test_the_remark_on_tokens_has_a_logger_of_its_own() -> None:
    assert importlib.util.find_spec("ray._private.authentication") is not None
