"""Every kind of network through a whole training with its MLflow log, and its checkpoint through an evaluation."""

import pytest

from d2ls.shards import ShardSet
from d2ls.training.process_group import ProcessGroup
from pipeline.evaluation.run import evaluate_recipe
from pipeline.tracking import Store
from pipeline.tracking.callback import TrackingCallback
from pipeline.training import build
from tests.tiny_recipes import tiny_recipe

PLAIN = {"loss__contrastive": "none"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("networks")


@pytest.mark.parametrize(
    "changes",
    [
        {"model__dictionary": "static", **PLAIN},
        {"model__dictionary": "none", **PLAIN},
        {"model__stages": 0},
        {"model__static_branch": False},
        {"model__aggregator": False},
        {"model__freeze_backbone": True},
        {"model__upsampling_init": "icnr"},
        {"model__backbone": "test_vit"},
        *({"model__architecture": name, **PLAIN} for name in ("unet", "fpn", "upernet", "segformer", "unetformer")),
    ],
    ids=lambda changes: "-".join(f"{key.partition('__')[2]}={value}" for key, value in changes.items()),
)  # fmt: skip
def test_it_trains_and_is_evaluated(folder, tmp_path, changes):
    recipe = tiny_recipe(folder, train__epochs=1, **changes)
    shards, group = ShardSet.open(recipe.shards.uri), ProcessGroup.current()
    store = Store.open(recipe.tracking)
    run = store.start_run(recipe, shards.card, tmp_path.name)
    loaders = build.loaders(recipe, shards, group)
    trainer = build.trainer(
        recipe,
        shards,
        group,
        loaders,
        checkpoints=str(tmp_path / "checkpoints"),
        callbacks=[TrackingCallback(store.uri, run, tmp_path / "spool", recipe, shards)],
    )
    state = trainer.run()
    loaders.close()
    metrics = store.run(run).metrics
    assert metrics["val/miou"] == pytest.approx(state.history[-1]["val/miou"])
    has_dictionary = recipe.model.architecture == "d2ls" and recipe.model.dictionary != "none"
    assert ("dictionary/intra/d0" in metrics) == has_dictionary
    (checkpoint,) = (tmp_path / "checkpoints").glob("step-*")
    assert 0 <= evaluate_recipe(recipe, str(checkpoint), bootstrap=0).scores.miou <= 1
