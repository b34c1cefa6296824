"""Builds the objects of a training run from a recipe. Configuration stops here: modules get plain arguments."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from d2ls.bundle import ModelInfo
from d2ls.class_weights import class_weights
from d2ls.data import Augmentation, CacheConfig, EvaluationLoader, TrainingLoader, evaluation_window
from d2ls.losses import D2LSLoss
from d2ls.models import D2LS, Baseline, Normalization, build_model
from d2ls.models.backbone import rgb_places
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
from pipeline.models.initialize import load_initial


@dataclass
class Loaders:
    """Both loaders of a rank. They own processes: close them at the end."""

    training: TrainingLoader
    validation: EvaluationLoader

    def close(self) -> None:
        """Ends the processes of both loaders."""
        self.training.close()
        self.validation.close()


def network(recipe: Recipe, card: DatasetCard, store: str = "") -> D2LS | Baseline:
    """Builds the network with its initial weights.

    Pretrained weights keep the normalisation they were trained with if the images are of the same kind (three bands of
    8 bit). Otherwise, and from scratch, the network normalises by the statistics of the data set.

    Args:
        recipe: the resolved recipe.
        card: card of the shards; gives the number of classes and bands.
        store: MLflow store in which `model.init` is looked up; empty: the recipe's.
    """
    model = recipe.model
    seed_everything(recipe.seed)
    own_statistics = not (model.pretrained or model.weights) or not _is_like_photographs(card)
    built = build_model(
        architecture=model.architecture,
        backbone=model.backbone,
        num_classes=card.classes.num_classes,
        stages=model.stages,
        pretrained=model.pretrained,
        weights=model.weights,
        weights_by_order=model.weights_by_order,
        bands=len(card.bands),
        rgb=rgb_places(card.bands),
        dictionary=model.dictionary,
        aggregator=model.aggregator,
        static_branch=model.static_branch,
        freeze_backbone=model.freeze_backbone,
        drop_path=model.drop_path,
        upsampling_init=model.upsampling_init,
        normalization=Normalization(card.mean, card.std, card.max_value, card.scale).to_json()
        if own_statistics
        else None,
    )
    if model.init:
        load_initial(built, model.init, card.bands, tracking_uri=store or recipe.tracking.uri)
    return built


def _is_like_photographs(card: DatasetCard) -> bool:
    """Returns whether pixel values have the range and bands of the images that backbones were pretrained on."""
    return (len(card.bands), card.dtype, card.max_value) == (3, "uint8", 255.0)


def loss(recipe: Recipe, card: DatasetCard) -> D2LSLoss:
    """Builds the loss; the card gives the classes and their pixels in the training split."""
    values = recipe.loss.model_dump()
    beta, pixels = values.pop("effective_beta"), card.splits[recipe.roles.train].class_pixels
    values["class_weights"] = class_weights(values["class_weights"], card.classes.names, pixels, beta=beta)
    return D2LSLoss(**values)


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
        global_batch_size=recipe.train.global_batch_size,
        augmentation=augmentation(recipe),
        seed=recipe.seed,
        rank=group.rank,
        world_size=group.world_size,
        workers=values.workers,
        shuffle_window=values.shuffle_window,
        fraction=recipe.data.fraction,
        class_weighting=values.class_weighting,
        bad_samples=values.bad_samples,
        skip_limit=values.skip_limit,
        cache=cache,
        pin_memory=group.device.type == "cuda",
    )
    validation = EvaluationLoader(
        shards,
        recipe.roles.val,
        batch_size=recipe.evaluate.batch_size,
        rank=group.rank,
        world_size=group.world_size,
        workers=values.workers,
        window=evaluation_window(shards, recipe.roles.val, recipe.loader.augmentation.crop_size),
        bad_samples=values.bad_samples,
        skip_limit=values.skip_limit,
        cache=cache,
        pin_memory=group.device.type == "cuda",
    )
    return Loaders(training, validation)


def schedule(recipe: Recipe, steps_per_epoch: int) -> Schedule:
    """Builds the learning-rate schedule."""
    train = recipe.train
    total_steps = train.steps or steps_per_epoch * (train.epochs or 0)
    return Schedule(train.optimizer.lr, steps_per_epoch, total_steps, **train.schedule.model_dump())


def settings(recipe: Recipe, card: DatasetCard) -> TrainerSettings:
    """Builds the settings of the training loop."""
    train, crop = recipe.train, recipe.loader.augmentation.crop_size
    return TrainerSettings(
        global_batch_size=train.global_batch_size,
        seed=recipe.seed,
        micro_batch_size=train.micro_batch_size,
        clip_norm=train.clip_norm,
        precision=train.precision,
        compile=train.compile,
        channels_last=train.channels_last,
        skip_non_finite=train.non_finite_limit if train.non_finite == "skip" else 0,
        evaluate_every=train.evaluate_every,
        patience=train.patience,
        min_delta=train.min_delta,
        time_budget=train.time_budget_seconds,
        checkpoint_every_epochs=train.checkpoint.every_epochs,
        checkpoint_every_steps=train.checkpoint.every_steps,
        sample_shape=(len(card.bands), crop, crop),
    )


def trainer(
    recipe: Recipe,
    shards: ShardSet,
    group: ProcessGroup,
    loaders: Loaders,
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
        loaders: see `loaders`.
        checkpoints: folder of the checkpoints.
        callbacks: called by the trainer.
        run: name of the run, written into the model's description.
        store: MLflow store in which `model.init` is looked up; empty: the recipe's.
    """
    net = network(recipe, shards.card, store).to(group.device)
    options = recipe.train.optimizer.model_dump()
    steps = loaders.training.steps_per_epoch
    window = recipe.loader.augmentation.crop_size

    def describe(state: TrainingState) -> ModelInfo:
        origin = {
            "run": run,
            "step": state.step,
            "epoch": len(state.history),
            "recipe_digest": recipe.digest(),
        }
        scores = {
            name: value for name, value in (state.history or [{}])[-1].items() if name.startswith("val/")
        }
        return ModelInfo.from_card(net, shards.card, window=window, **origin, scores=scores)

    return Trainer(
        network=net,
        loss=loss(recipe, shards.card).to(group.device),
        optimizer=build_optimizer(net, **options),
        schedule=schedule(recipe, steps),
        batches=loaders.training.epoch,
        evaluator=Evaluator(
            split=recipe.roles.val,
            classes=shards.card.classes,
            batches=lambda: loaders.validation,
            group=group,
            precision=recipe.train.precision,
        ),
        settings=settings(recipe, shards.card),
        group=group,
        callbacks=callbacks,
        checkpointer=Checkpointer(checkpoints, group, describe, identity(recipe, shards.card, steps)),
        ema=ExponentialMovingAverage(net, recipe.train.ema_decay) if recipe.train.ema_decay else None,
    )


def identity(recipe: Recipe, card: DatasetCard, steps_per_epoch: int) -> dict[str, str | float | None]:
    """Returns the values in which a checkpoint and the run that resumes from it must agree."""
    return {
        "seed": recipe.seed,
        "train.global_batch_size": recipe.train.global_batch_size,
        "train.epochs": recipe.train.epochs,
        "train.steps": recipe.train.steps,
        "steps_per_epoch": steps_per_epoch,
        "data digest": card.digest,
        "data.fraction": recipe.data.fraction,
        "model.backbone": recipe.model.backbone,
    }


def use_threads(cpus: float) -> None:
    """Sets the number of threads of PyTorch to the CPUs of the worker, and keeps freed memory for reuse."""
    keep_freed_memory()
    torch.set_num_threads(max(1, int(cpus)))
