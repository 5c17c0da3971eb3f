"""What stands ready before the first step: settings, measured sets, model, optimizer."""

import dataclasses
import inspect
import json
import logging
from typing import Any

import torch
from torch import nn
from torch.optim import Adam, Optimizer

from segkit import models
from segkit.data.sampling import first
from segkit.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from segkit.evaluation.metrics import CITYSCAPES_MEAN_SIZES
from segkit.training import inputs
from segkit.training.distributed import World, synchronize_batchnorm
from segkit.training.recipes import Recipe
from segkit.training.schedules import cosine, poly

_log = logging.getLogger("segkit")


def run_settings(
    recipe: Recipe, model: nn.Module | None, train_set: Any, limits: dict[str, int | None], processes: int = 1
) -> dict:
    """What a run's losses depend on, as JSON would give it back; equal settings share a folder.

    The contents of files, and of your own model and sets, are not looked at: nor is the folder that data lies
    in, so that a run goes on where the data has moved. With another number of processes an image meets other
    random numbers and other batch-norm statistics.
    """
    settings = {"recipe": recipe.settings(), **{name: limit or 0 for name, limit in limits.items()}}
    settings |= {"own_model": _class(model), "own_train_set": _class(train_set), "processes": processes}
    if recipe.dataset == "streets":
        from segkit.data.streets import VERSION  # only here: the other sets need no renderer

        settings["streets_version"] = VERSION
    return settings


def _class(thing: Any) -> str | None:
    return None if thing is None else type(thing).__qualname__


def measured_sets(recipe: Recipe, val_set: Any, data_dir: Any, limit: int | None) -> tuple[Any, Any]:
    """The set measured while training (None for none) and the one measured at the end."""
    if val_set is not None:
        val_set = first(val_set, limit)
        return val_set, val_set
    on_the_way = None
    if recipe.val_split:
        on_the_way = first(inputs.open_split(recipe, recipe.val_split, data_dir=data_dir), limit)
    if on_the_way is not None and recipe.final_split == recipe.val_split and not recipe.instances:
        return on_the_way, on_the_way
    at_the_end = inputs.open_split(recipe, recipe.final_split, data_dir=data_dir, instances=recipe.instances)
    return on_the_way, first(at_the_end, limit)


def instance_sizes(recipe: Recipe) -> dict[str, float] | None:
    """What iIoU weighs instances with: the benchmark's mean sizes on Cityscapes, else the set's own."""
    return CITYSCAPES_MEAN_SIZES if recipe.dataset == "cityscapes" and recipe.resolution == 1 else None


def prepare_model(recipe: Recipe, model: nn.Module | None, num_classes: int, world: World) -> nn.Module:
    """The recipe's model, or the given one as it is, on this process's device and ready to train.

    Raises:
        ValueError: if there is no such model or option, or segments of the given model shall be checkpointed.
        RuntimeError: if ImageNet weights are asked for and cannot be had.
    """
    if model is None:
        weights = None if recipe.weights == "none" else recipe.weights
        recompute = {"recompute": recipe.recompute} if recipe.recompute else {}
        options = {**recompute, **recipe.model_options}
        model = models.build(recipe.model, num_classes=num_classes, weights=weights, **options)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = recipe.bn_momentum
    elif recipe.recompute:
        raise ValueError(
            f"recompute={recipe.recompute!r} is for the recipe's model, not for one of your own: leave "
            "it out; yours must checkpoint its parts itself (segkit.models.build has recompute= too)"
        )
    gpu = world.device.type == "cuda"  # where convolutions are faster with channels last
    model = model.to(world.device, memory_format=torch.channels_last if gpu else torch.preserve_format)
    return synchronize_batchnorm(model, world)


def forward_options(model: nn.Module, recipe: Recipe) -> dict[str, bool]:
    """Keywords of the model's forward in training.

    They spare it the auxiliary heads where their loss has no weight (a model of your own need not know that
    keyword), and the upsampling of the logits where the loss does it, an image at a time.

    Raises:
        ValueError: if the loss is to be chunked and the model cannot leave its logits small.
    """
    known = inspect.signature(model.forward).parameters
    options = {"auxiliary": False} if "auxiliary" in known and recipe.aux_weight == 0 else {}
    if not recipe.chunked_loss:
        return options
    if "full_size" not in known:
        raise ValueError(
            f"chunked_loss=True, but {type(model).__name__}.forward has no keyword full_size, so that its "
            "logits come upsampled: leave out chunked_loss"
        )
    return {**options, "full_size": False}


def warn_of_large_crop(recipe: Recipe, train_set: Any) -> None:
    """Warns through the ``segkit`` logger where an image is smaller than the crop in both directions."""
    height, width = train_set[0]["labels"].shape
    if height < recipe.crop[0] and width < recipe.crop[1]:
        cure = "choose a smaller crop"
        if recipe.dataset == "camvid":
            cure = "the recipe ldn_camvid_half_ri is for CamVid at 360x480"
        _log.warning(
            "the crop of %dx%d is larger than the images (%dx%d): much of it will be padding; %s",
            *(*recipe.crop, height, width, cure),
        )


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Adam or AMSGrad; pre-trained parameters in a group of their own, whose rate is divided (Sec. 6.1)."""
    pretrained = (
        {id(p) for p in model.pretrained_parameters()} if hasattr(model, "pretrained_parameters") else set()
    )
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in pretrained], "divisor": 1.0},
        {
            "params": [p for p in model.parameters() if id(p) in pretrained],
            "divisor": recipe.pretrained_lr_divisor,
        },
    ]
    return Adam(
        [group for group in groups if group["params"]],
        lr=recipe.learning_rate,
        betas=recipe.betas,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        amsgrad=recipe.optimizer == "amsgrad",
    )


def set_rate(optimizer: Optimizer, recipe: Recipe, epoch: int, batch: int = 0, batches: int = 1) -> float:
    """Sets the learning rate of a step and returns it (that of parameters that were not pre-trained).

    Args:
        optimizer: made by :func:`make_optimizer`.
        recipe: says by which schedule.
        epoch: the step's epoch.
        batch: the step's batch in the epoch.
        batches: how many an epoch has.
    """
    if recipe.schedule == "poly":
        factor = poly(epoch * batches + batch, recipe.epochs * batches, power=recipe.poly_power)
    else:
        factor = cosine(epoch, recipe.epochs)
    span = recipe.learning_rate - recipe.min_learning_rate
    rate = recipe.min_learning_rate + span * factor
    for group in optimizer.param_groups:
        group["lr"] = rate / group["divisor"]
    return rate


def description(recipe: Recipe, dataset: Any, settings: dict) -> dict[str, Any]:
    """The part of a checkpoint that says how to build the model and how to feed it."""
    own = settings["own_model"]
    return {
        "model_name": own or recipe.model,
        "model_options": {} if own else recipe.model_options,
        "num_classes": dataset.space.num_classes,
        "space": json.loads(json.dumps(dataclasses.asdict(dataset.space))),
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "resolution": recipe.resolution,
        "settings": settings,
    }
