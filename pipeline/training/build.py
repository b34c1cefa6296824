"""From a recipe to the objects of a training run. Configuration stops here: modules get plain arguments."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from d2ls.bundle import ModelInfo
from d2ls.data import Augmentation, Batch, CacheConfig, EvaluationLoader, TrainingLoader
from d2ls.losses import D2LSLoss
from d2ls.models import Normalization, build_model
from d2ls.shards import DatasetCard, ShardSet
from d2ls.training.callbacks import Callback
from d2ls.training.checkpoint import Checkpointer
from d2ls.training.ema import ExponentialMovingAverage
from d2ls.training.evaluator import Evaluator
from d2ls.training.optimizer import build_optimizer
from d2ls.training.process_group import ProcessGroup
from d2ls.training.schedule import Schedule
from d2ls.training.train_state import TrainingState, seed_everything
from d2ls.training.trainer import Trainer, TrainerSettings
from pipeline.compute import keep_freed_memory
from pipeline.config import Recipe

if TYPE_CHECKING:
    from d2ls.data import EvaluationLoader
    from d2ls.models import D2LS, Baseline


@dataclass
class Loaders:
    """Both loaders of a rank; close them at the end, they have processes."""

    training: TrainingLoader
    selection: "EvaluationLoader"

    def batches(self, epoch: int, start_step: int) -> Iterable[Batch]:
        """Batches of an epoch from a step on."""
        return self.training.epoch(epoch, start_step)

    def close(self) -> None:
        """Ends the processes of both."""
        self.training.close()
        self.selection.close()


def _like_photographs(card: DatasetCard) -> bool:
    """Whether the values of pixels mean what they mean in the images that backbones were pretrained on."""
    return (len(card.bands), card.dtype, card.max_value) == (3, "uint8", 255.0)


def network(recipe: Recipe, card: DatasetCard, store: str = "") -> "D2LS | Baseline":
    """Builds the network with its first weights.

    Pretrained weights keep the normalisation they were trained with where images are alike (three bands of 8 bit);
    else, and from scratch, the network takes the data set's.

    Args:
        recipe: the resolved recipe.
        card: card of the shards; says how many classes and bands there are.
        store: MLflow store that `model.init` is looked up in, if not the recipe's.
    """
    model = recipe.model
    seed_everything(recipe.seed)
    fresh = not (model.pretrained or model.weights) or not _like_photographs(card)
    built = build_model(
        architecture=model.architecture,
        backbone=model.backbone,
        num_classes=card.classes.num_classes,
        stages=model.stages,
        pretrained=model.pretrained,
        weights=model.weights,
        bands=len(card.bands),
        dictionary=model.dictionary,
        aggregator=model.aggregator,
        static_branch=model.static_branch,
        freeze_backbone=model.freeze_backbone,
        drop_path=model.drop_path,
        normalization=Normalization(card.mean, card.std, card.max_value, card.scale).to_json()
        if fresh
        else None,
    )
    if model.init:
        from pipeline.models.initialize import load_initial

        load_initial(built, model.init, tracking_uri=store or recipe.tracking.uri)
    return built


def loss(recipe: Recipe) -> D2LSLoss:
    """Builds the loss."""
    values = recipe.loss
    return D2LSLoss(
        label_smoothing=values.label_smoothing,
        dice_weight=values.dice_weight,
        dice_smooth=values.dice_smooth,
        static_weight=values.static_weight,
        contrastive=values.contrastive,
        contrastive_weight=values.contrastive_weight,
        temperature=values.temperature,
        ignored_pixels=values.ignored_pixels,
    )


def augmentation(recipe: Recipe) -> Augmentation:
    """Builds the training augmentation."""
    values = recipe.loader.augmentation.model_dump()
    if values["scale"] is None:
        values["scale"] = (1.0, 1.0)
    return Augmentation(**values)


def loaders(recipe: Recipe, shards: ShardSet, group: ProcessGroup) -> Loaders:
    """Builds the loaders of a rank."""
    values = recipe.loader
    cache = CacheConfig(values.cache_dir or "", int(values.cache_gb * 1e9))
    training = TrainingLoader(
        shards,
        recipe.roles.train,
        global_batch=recipe.train.global_batch_size,
        augmentation=augmentation(recipe),
        seed=recipe.seed,
        rank=group.rank,
        world_size=group.world_size,
        workers=values.workers,
        shuffle_window=values.shuffle_window,
        class_weighting=values.class_weighting,
        bad_samples=values.bad_samples,
        skip_limit=values.skip_limit,
        cache=cache,
        pin_memory=group.device.type == "cuda",
    )
    selection = EvaluationLoader(
        shards,
        recipe.roles.val,
        batch_size=recipe.evaluate.batch_size,
        rank=group.rank,
        world_size=group.world_size,
        workers=values.workers,
        window=selection_window(recipe, shards),
        bad_samples=values.bad_samples,
        skip_limit=values.skip_limit,
        cache=cache,
        pin_memory=group.device.type == "cuda",
    )
    return Loaders(training, selection)


def selection_window(recipe: Recipe, shards: ShardSet) -> int | None:
    """Side of the windows that large samples are evaluated in, that of training; None where samples are no larger."""
    rows = shards.rows(recipe.roles.val)
    sides = [*rows["height"].to_pylist(), *rows["width"].to_pylist()]
    crop = recipe.loader.augmentation.crop_size
    return crop if max(sides, default=0) > crop else None


def schedule(recipe: Recipe, steps_per_epoch: int) -> Schedule:
    """Builds the learning-rate schedule."""
    values = recipe.train.schedule
    return Schedule(
        lr=recipe.train.optimizer.lr,
        steps_per_epoch=steps_per_epoch,
        epochs=recipe.train.epochs,
        name=values.name,
        warmup=values.warmup,
        final_lr=values.final_lr,
        per=values.per,
    )


def settings(recipe: Recipe, card: DatasetCard) -> TrainerSettings:
    """Takes the loop's settings from the recipe."""
    train, crop = recipe.train, recipe.loader.augmentation.crop_size
    return TrainerSettings(
        global_batch=train.global_batch_size,
        seed=recipe.seed,
        micro_batch=train.micro_batch_size,
        clip_norm=train.clip_norm,
        precision=train.precision,
        compile=train.compile,
        channels_last=train.channels_last,
        skip_non_finite=train.non_finite_limit if train.non_finite == "skip" else 0,
        evaluate_every=train.evaluate_every,
        checkpoint_every_epochs=train.checkpoint.every_epochs,
        checkpoint_every_steps=train.checkpoint.every_steps,
        sample_shape=(len(card.bands), crop, crop),
    )


def trainer(
    recipe: Recipe,
    shards: ShardSet,
    group: ProcessGroup,
    built: Loaders,
    *,
    checkpoints: str,
    callbacks: Sequence[Callback] = (),
    run: str = "",
    store: str = "",
) -> Trainer:
    """Builds everything a rank needs to train.

    Args:
        recipe: the resolved recipe.
        shards: the shard set.
        group: the ranks of the run.
        built: the loaders.
        checkpoints: folder of the checkpoints.
        callbacks: told what happens.
        run: name of the run, kept in the model's description.
        store: MLflow store that `model.init` is looked up in, if not the recipe's.
    """
    net = network(recipe, shards.card, store).to(group.device)
    options = recipe.train.optimizer.model_dump()
    steps = built.training.steps_per_epoch
    window = recipe.loader.augmentation.crop_size

    def describe(state: TrainingState) -> ModelInfo:
        facts = {
            "run": run,
            "step": state.step,
            "epoch": state.step // steps,
            "recipe_digest": recipe.digest(),
        }
        scores = {
            name: value for name, value in (state.history or [{}])[-1].items() if name.startswith("val/")
        }
        return ModelInfo.from_card(net, shards.card, window=window, **facts, scores=scores)

    return Trainer(
        network=net,
        loss=loss(recipe),
        optimizer=build_optimizer(net, **options),
        schedule=schedule(recipe, steps),
        batches=built.batches,
        evaluator=Evaluator(
            split=recipe.roles.val,
            classes=shards.card.classes,
            batches=lambda: built.selection,
            group=group,
            precision=recipe.train.precision,
        ),
        settings=settings(recipe, shards.card),
        group=group,
        callbacks=callbacks,
        checkpointer=Checkpointer(checkpoints, group, describe, identity(recipe, shards.card, steps)),
        ema=ExponentialMovingAverage(net, recipe.train.ema_decay) if recipe.train.ema_decay else None,
    )


def identity(recipe: Recipe, card: DatasetCard, steps_per_epoch: int) -> dict[str, str | int]:
    """What a checkpoint and the run that goes on from it must share."""
    return {
        "seed": recipe.seed,
        "train.global_batch_size": recipe.train.global_batch_size,
        "train.epochs": recipe.train.epochs,
        "steps_per_epoch": steps_per_epoch,
        "data digest": card.digest,
        "model.backbone": recipe.model.backbone,
    }


def use_threads(cpus: float) -> None:
    """Lets PyTorch compute with as many threads as the worker has CPUs."""
    keep_freed_memory()
    torch.set_num_threads(max(1, int(cpus)))
