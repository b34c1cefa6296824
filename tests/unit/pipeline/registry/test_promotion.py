"""The decision on the champion, without a store."""

from types import SimpleNamespace

import pytest

from pipeline.registry import ModelVersion, promotion, versions
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


@pytest.mark.parametrize("before", [None, "1"])
def test_of_two_sweeps_that_promote_at_once_the_better_one_stays(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    """While a challenger with 0.8 is scored against the champion, another sweep promotes its version with 0.9."""
    scores = {"models:/m/1": 0.7, "models:/m/2": 0.9, "models:/m/3": 0.8}
    champion, notes = [before], []

    def evaluate(uri: str) -> dict[str, object]:
        if uri != "models:/m/3" or before is None:
            champion[0] = "2"
        return {"scores": {"miou": scores[uri]}}

    def promote(store: Store, name: str, number: str, reason: str) -> ModelVersion:
        champion[0] = number
        return ModelVersion(name, number)

    monkeypatch.setattr(
        versions, "champion", lambda store, name: ModelVersion(name, champion[0]) if champion[0] else None
    )
    monkeypatch.setattr(versions, "promote", promote)
    monkeypatch.setattr(versions, "note", lambda store, name, number, text: notes.append(text))
    monkeypatch.setattr(versions, "by_version", lambda store, name, number: ModelVersion(name, number))
    recipe = SimpleNamespace(roles=SimpleNamespace(test="test"))
    decision = promotion.promote_if_better(
        Store("sqlite:///m.db"),
        ModelVersion("m", "3"),
        None,
        recipe,
        evaluate,  # type: ignore[arg-type]
    )
    assert (decision.promoted, champion) == (False, ["2"])
    assert "0.8000 does not beat the champion's 0.9000" in notes[0]
