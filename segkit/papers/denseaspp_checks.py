"""Computations behind the claims of the DenseASPP report, beside the general ones of `segkit.papers.checks`.

Its five models are built with the classes that they were trained on: 20, and 19 in #5.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import shlex
from collections.abc import Callable, Sequence

import torch
import torchvision
from torch import Tensor, nn

from segkit import models
from segkit.data.labels import CITYSCAPES_LABELS
from segkit.measure import cost
from segkit.measure.meta import FastMeta
from segkit.measure.receptive_field import compose, largest_path
from segkit.models.densenet import CONFIGURATIONS, DenseNet
from segkit.training.recipes import Recipe, recipe

RECIPE = "denseaspp_cityscapes"
IMAGE_SIZE = (512, 1024)  # Section 3: what most models are fed
CLASSIFIERS_SIZE = (224, 224)  # what ImageNet classifiers are compared on
ORIGINALS = tuple(f"denseaspp{depth}" for depth in (121, 161, 169, 201))  # Yang et al., as released
FIELD = 3  # taps of an atrous convolution along an axis


def student(model: str, *, quantity: str, run: str = "", dilations: Sequence[int] = ()) -> float:
    """A cell of Table 1: of the model as the kit builds it, or of the run that the row's command starts.

    Args:
        model: a name of `segkit.models.MODELS`.
        quantity: ``layers``, how many of the head's have exactly these dilations, in this order; ``field``,
            the largest of the head, in cells of its input; ``growth`` and ``squeeze``, maps that a layer and
            its 1x1 convolution, if there is one, put out; ``trainable`` parameters; ``epochs`` and ``pixels``
            of an image.
        run: the command's options, after the recipe and ``--model``.
        dilations: as the report prints them.

    Raises:
        ValueError: if the quantity is none of those, or the layers differ in it.
    """
    if quantity in ("epochs", "pixels"):
        chosen = _run_of(model, run)
        return chosen.epochs if quantity == "epochs" else math.prod(chosen.image_size)
    network = _student(model)
    layers = list(network.head.layers)
    if quantity == "layers":
        pairs = itertools.zip_longest(dilations, (layer.conv.dilation for layer in layers))
        return sum((printed, printed) == built for printed, built in pairs)
    if quantity == "field":
        return compose(largest_path(network.head, channels=network.channels)).size
    if quantity == "trainable":
        return sum(p.numel() for p in network.parameters() if p.requires_grad)
    if quantity not in ("growth", "squeeze"):
        raise ValueError(f"no quantity {quantity!r} of a student's model")
    convolutions = [layer.conv if quantity == "growth" else layer.reduce for layer in layers]
    found = {0 if convolution is None else convolution.out_channels for convolution in convolutions}
    if len(found) > 1:
        raise ValueError(f"{quantity} differs from layer to layer in {model}: {sorted(found)}")
    return found.pop()


def field_by_formula(dilations: Sequence[int]) -> float:
    """The field of atrous 3x3 convolutions one after the other, by the two formulas of Section 4.1."""
    fields = [(d - 1) * (FIELD - 1) + FIELD for d in dilations]
    return functools.reduce(lambda one, other: one + other - 1, fields)


def features(model: str, *, quantity: str) -> float:
    """Of the maps that enter a student's head: how many ``channels``, their ``stride`` in pixels, or by which
    factor they were upsampled before (``upsampled``)."""
    maps = _features(model)
    if quantity == "upsampled":
        before = _student(model).backbone(torch.empty(1, 3, *IMAGE_SIZE, device="meta"))
        return maps.shape[2] / before.shape[2]
    return {"channels": maps.shape[1], "stride": IMAGE_SIZE[0] / maps.shape[2]}[quantity]


def reduction(model: str, *, quantity: str) -> float:
    """How many times fewer maps an atrous layer's convolution puts out than the head reads, c0 (Section 4.2).

    Args:
        model: one of the report's, or of the original's, ``denseaspp121``, ....
        quantity: ``squeeze``, of the 1x1 convolution, or ``growth``, n, of the dilated one.
    """
    if model.startswith("denseaspp-student"):
        return _student(model).channels / student(model, quantity=quantity)
    first = _original(model).head.layers[0]  # reads c0 and nothing else
    convolution = {"squeeze": first.conv1, "growth": first.conv2}[quantity]
    return first.conv1.in_channels / convolution.out_channels


def originals_following(*, quantity: str, share: float) -> float:
    """How many of the original's four released networks make c0 that many times smaller, see `reduction`.

    Args:
        quantity: ``squeeze`` or ``growth``.
        share: 2 for c0/2; nothing but the exact number of maps counts.
    """
    return sum(reduction(name, quantity=quantity) == share for name in ORIGINALS)


def dilation_of_block(network: str, block: int) -> float:
    """The dilation of all 3x3 convolutions in a dense block, 1 to 4.

    Args:
        network: ``densenet121``, ... as it is pre-trained, or a student's model, whose backbone it is.
        block: which.

    Raises:
        ValueError: if they differ.
    """
    units = getattr(_backbone(network), f"denseblock{block}").modules()
    found = {m.dilation[0] for m in units if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)}
    if len(found) != 1:
        raise ValueError(f"dilations {sorted(found)} in dense block {block} of {network}")
    return found.pop()


def blocks_left_out(model: str, *, than: str | None = None) -> float:
    """How many of DenseNet's dense blocks a student's backbone goes without, or fewer than another's does."""
    missing = 4 - sum(name.startswith("denseblock") for name, _ in _backbone(model).named_children())
    return missing if than is None else blocks_left_out(than) - missing


def stride_of_classifier(name: str) -> float:
    """The stride of the last maps of torchvision's ImageNet classifier, in pixels."""
    return _stride(name)


def upsampling_needed(name: str, *, model: str) -> float:
    """By which factor a classifier's maps must be upsampled to have the stride of a student's."""
    return _stride(name) / features(model, quantity="stride")


def halvings_removed(name: str, *, model: str) -> float:
    """How many times fewer the maps are halved in a student's backbone than in a classifier."""
    return math.log2(upsampling_needed(name, model=model))


def classifier_of_student(model: str, *, quantity: str) -> float:
    """Of a student's last convolution: its ``kernel`` (taps along an axis), how many ``filters`` it has, and
    the factor of the ``upsampling`` after it."""
    network = _student(model)
    if quantity == "upsampling":
        return IMAGE_SIZE[0] / network(None, features=_features(model), full_size=False)["out"].shape[2]
    return {"kernel": network.classifier.kernel_size[0], "filters": network.classifier.out_channels}[quantity]


def dilation_added(model: str, *, to: str) -> float:
    """The dilation that one student's head has and another one's has not.

    Raises:
        ValueError: if it is not just one.
    """
    added = set(_student(model).head.dilations) - set(_student(to).head.dilations)
    if len(added) != 1:
        raise ValueError(f"{model} has {len(added)} dilations that {to} has not")
    return added.pop()


def heavier(networks: Sequence[str], *, than: str) -> float:
    """How many of torchvision's classifiers take more multiply-adds on a 224x224 image than another one."""
    return sum(_work(name) > _work(than) for name in networks)


def labels_of_cityscapes() -> float:
    """Labels that Cityscapes defines, the license plate among them."""
    return len(CITYSCAPES_LABELS)


def classes_trained(run: str = "") -> float:
    """Classes that the recipe's data set gives to train on.

    Args:
        run: options of a command, as in `student`.
    """
    return _run_of("denseaspp-student4", run).dataset_options["num_classes"]


FUNCTIONS: dict[str, Callable[..., float]] = {
    function.__name__: function
    for function in (
        student,
        field_by_formula,
        features,
        reduction,
        originals_following,
        dilation_of_block,
        blocks_left_out,
        stride_of_classifier,
        upsampling_needed,
        halvings_removed,
        classifier_of_student,
        dilation_added,
        heavier,
        labels_of_cityscapes,
        classes_trained,
    )
}


def forget() -> None:
    """Drop what was built, as `segkit.papers.checks.forget`."""
    for kept in (_student, _original, _features, _classifier, _stride, _work):
        kept.cache_clear()


@functools.cache
def _student(model: str) -> nn.Module:
    classes = models.MODELS[model].keywords["num_classes"]
    return models.build(model, num_classes=classes, device="meta").eval()


@functools.cache
def _original(model: str) -> nn.Module:
    return models.build(model, device="meta")


@functools.cache
def _features(model: str) -> Tensor:
    """What a student's head reads of one image."""
    with FastMeta():
        return _student(model).features(torch.empty(1, 3, *IMAGE_SIZE, device="meta"))


@functools.cache
def _classifier(name: str) -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.get_model(name).eval()


@functools.cache
def _stride(name: str) -> float:
    with torch.no_grad(), FastMeta():
        maps = _classifier(name).features(torch.empty(1, 3, *IMAGE_SIZE, device="meta"))
    return IMAGE_SIZE[0] / maps.shape[2]


@functools.cache
def _work(name: str) -> int:
    return cost(_classifier(name), CLASSIFIERS_SIZE).macs


def _backbone(network: str) -> nn.Module:
    """A DenseNet as it is pre-trained, or a student's."""
    depth = network.removeprefix("densenet")
    if depth.isdigit() and int(depth) in CONFIGURATIONS:
        with torch.device("meta"):
            return DenseNet(int(depth))
    return _student(network).backbone


def _run_of(model: str, options: str) -> Recipe:
    """The recipe that the command of a row follows; options as on the command line."""
    changes: dict[str, object] = {"model": model}
    for word in shlex.split(options):
        if word.startswith("--"):
            field = word.removeprefix("--").replace("-", "_")
        elif "=" in word:
            key, _, value = word.partition("=")
            given = changes.setdefault(field, dict(getattr(recipe(RECIPE), field)))
            given[key] = int(value) if value.isdigit() else value
        else:
            numbers = tuple(map(int, re.split("[x,]", word)))
            changes[field] = numbers if len(numbers) > 1 else numbers[0]
    return recipe(RECIPE, **changes)
