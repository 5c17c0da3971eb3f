"""What stands ready before the first step: settings, measured sets, model, optimizer."""

import dataclasses
import functools
import inspect
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from segkit import models
from segkit.data.sampling import first
from segkit.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from segkit.evaluation.inference import read_checkpoint
from segkit.evaluation.metrics import CITYSCAPES_MEAN_SIZES
from segkit.evaluation.windows import Windows
from segkit.models.fastfcn import FastFCN
from segkit.models.fastfcn_heads import EncodingHead
from segkit.training import inputs
from segkit.training.distributed import World, synchronize_batchnorm
from segkit.training.losses import ohem_cross_entropy
from segkit.training.recipes import Recipe
from segkit.training.schedules import cosine, poly, warmup

_log = logging.getLogger("segkit")

NORMALIZATION = (
    nn.modules.batchnorm._NormBase,  # batch norm, synchronized or not, and instance norm
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
"""Layers whose parameters a recipe may spare weight decay."""


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
    full = recipe.resolution == 1 and not any(recipe.image_size)
    return CITYSCAPES_MEAN_SIZES if recipe.dataset == "cityscapes" and full else None


def windows(recipe: Recipe) -> Windows | None:
    """The windows that evaluation slides over the images; None where it takes them whole."""
    if not recipe.windows:
        return None
    return Windows(side=recipe.windows, base_size=recipe.base_size, combine=recipe.combine)


def check_weights(recipe: Recipe, model: nn.Module | None, *, needed: bool = True) -> None:
    """Makes sure that the weights a recipe starts from are named, there and of use, before data is opened.

    Args:
        recipe: its ``weights`` may be the path of a run's final.pt.
        model: a model of your own, or None for the recipe's.
        needed: False where a run goes on and has its weights from its own folder.

    Raises:
        ValueError: if the recipe leaves open which weights it starts from, a frozen backbone would have
            random ones for good, or a model of your own is given.
        FileNotFoundError: if there is no such file.
    """
    if model is None and not recipe.weights:
        raise ValueError(
            f"{recipe.name} starts from a {recipe.model} trained on other data, and weights names none: "
            f"python -m segkit.train {recipe.name} --weights runs/RUN/final.pt, with the folder of its run "
            "(or --weights none for random ones)"
        )
    if model is None and recipe.weights == "none" and _frozen(recipe):
        raise ValueError(
            f"the backbone of {recipe.model} is frozen, and with weights='none' it would stay random: give "
            "weights='imagenet', weights='runs/RUN/final.pt', or model_options={'frozen': False} to train it"
        )
    if not recipe.weights_file:
        return
    if model is not None:
        raise ValueError(
            f"weights={recipe.weights!r} is for the recipe's model, not for one of your own: leave it out, "
            "and load what your model starts from yourself"
        )
    if needed and not Path(recipe.weights).is_file():
        raise FileNotFoundError(
            f"weights: there is no file {recipe.weights}; give the final.pt of a run of {recipe.model}, or "
            "none for random ones"
        )


def _frozen(recipe: Recipe) -> bool:
    """Whether the recipe's model has a backbone that is not trained: an option of the models that can."""
    known = inspect.signature(models.MODELS[recipe.model]).parameters if recipe.model in models.MODELS else {}
    return "frozen" in known and bool(recipe.model_options.get("frozen", known["frozen"].default))


def prepare_model(
    recipe: Recipe, model: nn.Module | None, num_classes: int, world: World, *, restored: bool = False
) -> nn.Module:
    """The recipe's model, or the given one as it is, on this process's device and ready to train.

    Args:
        recipe: says which model and which initial weights.
        model: a model of your own; None for the recipe's.
        num_classes: of the data.
        world: this process among all.
        restored: whether a checkpoint of the run itself will replace the weights; those of another run are
            then not read again.

    Raises:
        ValueError: if there is no such model or option, presence has a weight and the model does not predict
            it, segments of the given model shall be checkpointed, or another run's weights do not fit.
        RuntimeError: if ImageNet weights are asked for and cannot be had.
    """
    if model is None:
        weights = None if recipe.weights == "none" or recipe.weights_file else recipe.weights
        recompute = {"recompute": recipe.recompute} if recipe.recompute else {}
        options = {**recompute, **recipe.model_options}
        model = models.build(recipe.model, num_classes=num_classes, weights=weights, **options)
        check_presence(model, recipe)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = recipe.bn_momentum
        if recipe.weights_file and not restored:
            left_out = load_trained(model, recipe, num_classes)
            if left_out and world.main:
                _log.warning(
                    "%s gives the model all its weights but %s, which is for other classes and starts afresh",
                    recipe.weights,
                    ", ".join(left_out),
                )
    elif recipe.recompute:
        raise ValueError(
            f"recompute={recipe.recompute!r} is for the recipe's model, not for one of your own: leave "
            "it out; yours must checkpoint its parts itself (segkit.models.build has recompute= too)"
        )
    gpu = world.device.type == "cuda"  # where convolutions are faster with channels last
    model = model.to(world.device, memory_format=torch.channels_last if gpu else torch.preserve_format)
    return synchronize_batchnorm(model, world)


def check_presence(model: nn.Module, recipe: Recipe) -> None:
    """Makes sure that a recipe's model predicts presence if that has a weight.

    Raises:
        ValueError: if it does not.
    """
    if recipe.presence_weight and not any(isinstance(part, EncodingHead) for part in model.modules()):
        raise ValueError(
            f"presence_weight={recipe.presence_weight!r} is of a loss on which classes a crop holds, but "
            f"{recipe.model} does not predict that: give presence_weight=0, or a model with an Encoding head "
            "such as fastfcn-r50-enc-jpu"
        )


def load_trained(model: nn.Module, recipe: Recipe, num_classes: int) -> list[str]:
    """Loads the weights of another run of the same model, all but a classifier for other classes.

    A tensor belongs to a classifier if its shapes there and here differ in the first number alone, and that
    is the number of classes there and here.

    Args:
        model: the recipe's, for the classes of its own data.
        recipe: its ``weights`` is the path of a checkpoint.
        num_classes: of the model.

    Returns:
        The names of the tensors that were left as they are.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no checkpoint, is of another model, or anything else in it does not fit.
    """
    saved = read_checkpoint(recipe.weights)

    def told(options: dict[str, Any]) -> dict[str, Any]:
        """What decides the network: not how its memory is spared."""
        return {key: value for key, value in json.loads(json.dumps(options)).items() if key != "recompute"}

    mine, theirs = told(recipe.model_options), told(saved["model_options"])
    if (saved["model_name"], theirs) != (recipe.model, mine):
        raise ValueError(
            f"weights: {recipe.weights} is of the model {saved['model_name']!r} with options {theirs}, and "
            f"this run's is {recipe.model!r} with {mine}: give a checkpoint of the same model, or train that"
        )
    here, there = model.state_dict(), saved["model"]
    if unpaired := sorted(here.keys() ^ there.keys()):
        raise ValueError(
            f"weights: of {recipe.weights} and the model {recipe.model!r} only one has {unpaired[0]}; was "
            "the file written by another version?"
        )
    other = [name for name, tensor in here.items() if tensor.shape != there[name].shape]
    for name in other:
        wanted, found = list(here[name].shape), list(there[name].shape)
        if [num_classes, *wanted[1:]] != wanted or [saved["num_classes"], *wanted[1:]] != found:
            raise ValueError(
                f"weights: {name} is {found} in {recipe.weights} and {wanted} here, and it is no classifier; "
                "give a checkpoint of the same model"
            )
    model.load_state_dict({name: here[name] if name in other else there[name] for name in here})
    return other


def forward_options(model: nn.Module, recipe: Recipe) -> dict[str, bool]:
    """Keywords of the model's forward in training.

    They spare it the auxiliary heads where no loss of theirs has a weight (a model of your own need not know
    that keyword), and the upsampling of the logits where the loss does it, an image at a time.

    Raises:
        ValueError: if the loss is to be chunked and the model cannot leave its logits small, or would bring
            them to the image's size in another way than the chunked loss.
    """
    known = inspect.signature(model.forward).parameters
    idle = recipe.aux_weight == 0 and recipe.presence_weight == 0
    options = {"auxiliary": False} if "auxiliary" in known and idle else {}
    if not recipe.chunked_loss:
        return options
    if "full_size" not in known:
        raise ValueError(
            f"chunked_loss=True, but {type(model).__name__}.forward has no keyword full_size, so that its "
            "logits come upsampled: leave out chunked_loss"
        )
    if isinstance(model, FastFCN):
        raise ValueError(
            "chunked_loss=True upsamples logits without aligning their corners, which "
            f"{type(model).__name__} does, so that its loss would be another: leave out chunked_loss"
        )
    return {**options, "full_size": False}


def check_all_used(output: dict[str, Any], recipe: Recipe) -> None:
    """Makes sure that a loss reaches each output: several processes wait for the gradients of all.

    Raises:
        ValueError: if an output that the model has computed counts for nothing.
    """
    for output_name, field in (("aux", "aux_weight"), ("presence", "presence_weight")):
        if output.get(output_name) is not None and getattr(recipe, field) == 0:
            raise ValueError(
                f"{field}=0, but the model gives {output_name!r} too, and on several processes each output "
                f"needs a loss: give {field} a value, aux_weight=0 with presence_weight=0, or train on one"
            )


def main_loss(recipe: Recipe) -> Callable[..., Tensor] | None:
    """The main loss as `segmentation_loss` takes it: None for the mean cross-entropy."""
    if recipe.loss == "cross_entropy":
        return None
    return functools.partial(ohem_cross_entropy, threshold=recipe.ohem_threshold, share=recipe.ohem_share)


def warn_of_long_warmup(recipe: Recipe, batches: int) -> None:
    """Warns through the ``segkit`` logger where the run ends before its rate has risen.

    Args:
        recipe: the run's.
        batches: steps of an epoch.
    """
    steps = recipe.epochs * batches
    if recipe.warmup_steps >= steps:
        _log.warning(
            "the rate rises over %d steps, and the run ends after %d; give fewer warmup_steps or more epochs",
            *(recipe.warmup_steps, steps),
        )


def warn_of_large_crop(recipe: Recipe, train_set: Any) -> None:
    """Warns through the ``segkit`` logger where an image is smaller than the crop in both directions."""
    height, width = train_set[0]["labels"].shape
    if height < recipe.crop[0] and width < recipe.crop[1]:
        cure = "choose a smaller crop"
        if recipe.dataset == "camvid":
            fitting = "regseg_camvid" if recipe.model == "regseg" else "ldn_camvid_half_ri"
            cure = f"the recipe {fitting} is for CamVid at 360x480"
        _log.warning(
            "the crop of %dx%d is larger than the images (%dx%d): much of it will be padding; %s",
            *(*recipe.crop, height, width, cure),
        )


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Adam, AMSGrad or SGD, with each parameter that is trained in one group of several.

    Pre-trained parameters have groups of their own, whose rate is divided (Ladder-DenseNet, Sec. 6.1); so
    have those outside the backbone where they learn faster (FastFCN), and those of normalization layers where
    they are not decayed (RegSeg, Sec. 4.2). Frozen parameters are in none.

    Raises:
        ValueError: if no parameter is to be trained, or all but a backbone shall learn faster and the model
            does not say which part that is.
    """
    pretrained = (
        {id(p) for p in model.pretrained_parameters()} if hasattr(model, "pretrained_parameters") else set()
    )
    spared = set() if recipe.decay_batchnorm else {id(p) for p in normalization_parameters(model)}
    slow = _backbone_parameters(model, recipe) if recipe.head_lr_multiplier != 1 else None
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"all parameters of {type(model).__name__} are frozen: there is nothing to train")
    groups: dict[tuple[bool, bool, bool], dict[str, Any]] = {}
    for p in trained:
        among, undecayed = id(p) in pretrained, id(p) in spared
        fast = slow is not None and id(p) not in slow
        divisor = recipe.pretrained_lr_divisor if among else 1.0
        group = {
            "params": [],
            "divisor": divisor / recipe.head_lr_multiplier if fast else divisor,
            "weight_decay": 0.0 if undecayed else recipe.weight_decay,
        }
        groups.setdefault((fast, among, undecayed), group)["params"].append(p)
    ordered = [groups[key] for key in sorted(groups)]
    if recipe.optimizer == "sgd":
        return SGD(
            ordered,
            lr=recipe.initial_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
    return Adam(
        ordered,
        lr=recipe.initial_rate,
        betas=recipe.betas,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        amsgrad=recipe.optimizer == "amsgrad",
    )


def _backbone_parameters(model: nn.Module, recipe: Recipe) -> set[int]:
    """Identities of the backbone's parameters, whether or not they are pre-trained."""
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise ValueError(
            f"head_lr_multiplier={recipe.head_lr_multiplier!r} is the rate of all but the backbone, but "
            f"{type(model).__name__} has no part called backbone: give head_lr_multiplier=1"
        )
    return {id(p) for p in backbone.parameters()}


def normalization_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Scales and shifts of the normalization layers, found by the layers' types.

    (The authors of RegSeg go by "bn" in a parameter's name, which misses layers that are called otherwise.)
    """
    layers = [module for module in model.modules() if isinstance(module, NORMALIZATION)]
    return [parameter for layer in layers for parameter in layer.parameters(recurse=False)]


def set_rate(optimizer: Optimizer, recipe: Recipe, epoch: int, batch: int = 0, batches: int = 1) -> float:
    """Sets the learning rate of a step and returns it.

    It is that of parameters which neither were pre-trained nor learn faster than the backbone.

    Args:
        optimizer: made by :func:`make_optimizer`.
        recipe: says by which schedule, and over how many steps it warms up.
        epoch: the step's epoch.
        batch: the step's batch in the epoch.
        batches: how many an epoch has.
    """
    step = epoch * batches + batch
    if recipe.schedule == "poly":
        factor = poly(step, recipe.epochs * batches, power=recipe.poly_power)
    else:
        factor = cosine(epoch, recipe.epochs)
    span = recipe.initial_rate - recipe.min_learning_rate
    rate = recipe.min_learning_rate + span * factor
    rate *= warmup(step, recipe.warmup_steps, factor=recipe.warmup_factor)
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
        "image_size": list(recipe.image_size),
        "settings": settings,
    }
