"""The decision on the champion, without a store."""

from types import SimpleNamespace

import pytest

from pipeline.registry import ModelVersion, promotion
from pipeline.tracking import Store, connection


def test_a_sweep_registers_when_the_server_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([connection.UnreachableError("http://mlflow:5000 does not answer")] * 2)

    def register(store: Store, run_id: str, *values: object, **options: object) -> ModelVersion:
        if error := next(errors, None):
            raise error
        return ModelVersion("d2ls-blobs", "1", run_id)

    monkeypatch.setattr(connection.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(promotion, "register_checkpoint", register)
    recipe = SimpleNamespace(model_name="d2ls-blobs", registry=SimpleNamespace(promote="never"))
    decision = promotion.register_and_promote(
        Store("http://mlflow:5000"),
        "the-run",
        "runs/a/checkpoints/step-3",
        recipe,
        None,
        {},
        dict,  # type: ignore[arg-type]
    )
    assert (decision.version.run_id, decision.promoted) == ("the-run", False)
