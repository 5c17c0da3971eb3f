"""The fields of a recipe: everything that decides a training run.

The default of each field is what the Ladder-DenseNet paper does on full Cityscapes (Sec. 6.1 unless another
place is named); "chosen" marks what the paper leaves open. The recipes of other papers say which sections
they are from. Not fields, and chosen too: images are normalized with ImageNet's mean and deviation on every
data set; rescaling is bilinear with antialiasing for images and takes the nearest pixel ("nearest-exact") for
labels; crops are padded with ImageNet's mean pixel and ignored labels; unless drop_last, the rest of an epoch
that does not fill a batch is filled up from the epoch's beginning, so that each image is seen at least once;
the auxiliary loss leaves out windows of which half or more is ignored; new convolutions start from Kaiming's
normal distribution, those that predict classes from Xavier's (RegSeg's all from PyTorch's default, its Sec.
4.2); batch norm has an epsilon of 1e-5; its exact averages are taken over one more epoch of augmented crops.
"""

# ruff: noqa: RUF009  (each default is made by a function that keeps the reason for it)

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from segkit.data.augment import OPERATIONS
from segkit.evaluation.inference import MULTI_SCALE
from segkit.evaluation.windows import COMBINE


def _because(default: Any, reason: str) -> Any:
    """A field with its default and the reason for it, which ``--help`` prints."""
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata={"reason": reason})
    return dataclasses.field(default=default, metadata={"reason": reason})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train on what, and how. ``recipe("ldn_cityscapes", epochs=10)`` makes one with changes."""

    name: str = _because("custom", "first part of the run folder's name")

    # The model
    model: str = _because(
        "ldn121-64-4", "a name of segkit.models; Fig. 2 and Table 4: the paper's main model"
    )
    model_options: dict[str, Any] = _because({}, "further keywords of segkit.models.build")
    weights: str = _because(
        "imagenet",
        "initial weights: imagenet (the backbone's), none, or the final.pt of a run, of which a classifier "
        "for other classes is left out; Sec. 4.1",
    )
    bn_momentum: float = _because(
        0.05,
        "of the running averages; chosen: the paper is silent (its release: 0.05). Not for your own model",
    )

    # The memory it takes. Neither changes what is learned, so a run may be resumed with others: see MEMORY
    recompute: str = _because(
        "", "segments to checkpoint, such as unit,stem,td,tu; slower; Sec. 5. Not for your own model"
    )
    chunked_loss: bool = _because(
        False,
        "the main loss an image at a time, where the model can leave its logits small; slower; chosen: it is "
        "not in the paper",
    )

    # The data
    dataset: str = _because("cityscapes", "a name of segkit.data; Sec. 6.2")
    dataset_options: dict[str, Any] = _because({}, "further keywords of segkit.data.load")
    resolution: float = _because(
        1.0, "factor on images and labels, in training and evaluation; Table 4: full size"
    )
    image_size: tuple[int, int] = _because(
        (0, 0),
        "height, width that images and labels are resized to instead, in training and evaluation, as in the "
        "DenseASPP report's Sec. 3: figures are then of that size. 0,0: resolution",
    )
    train_split: str = _because("train", "Sec. 6.2")
    val_split: str = _because(
        "val", "measured while training; Sec. 6.2. Empty: nothing is measured on the way"
    )
    val_every: int = _because(
        10, "epochs between two measurements on val_split; chosen: it changes no weight"
    )
    final_split: str = _because("val", "measured once, after the last epoch; Sec. 6.2")

    # A batch, in the order of Sec. 6.1: flip, rescale, crop; with short_side in that of RegSeg's release:
    # rescale, crop, flip, RandAugment; or in that of FastFCN's: flip, rescale, pad, crop, blur
    batch_size: int = _because(16, "crops in a step, over all processes; Sec. 6.1")
    augmentation: str = _because(
        "",
        "fastfcn: in the order of FastFCN's release, its Sec. 4.1; chosen: that of RegSeg's where there is a "
        "short_side, else Sec. 6.1's",
    )
    flip: float = _because(0.5, "probability of a mirror image; Sec. 6.1 says random, one half is chosen")
    scale: tuple[float, float] = _because((0.5, 2.0), "range of the random rescaling; Sec. 6.1")
    short_side: tuple[int, int] = _because(
        (0, 0),
        "range of a random length of the shorter side in pixels, as in RegSeg's Sec. 4.2. 0,0: scale instead",
    )
    crop: tuple[int, int] = _because((768, 768), "height, width in pixels; Sec. 6.2: full Cityscapes")
    rand_augment: int = _because(
        0, "random operations on an image's colors and angle, as in RegSeg's Sec. 4.2; chosen: none"
    )
    rand_magnitude: float = _because(0.2, "of these operations, from 0 to 1; RegSeg's Sec. 4.2")
    blur: float = _because(
        0.0,
        "probability of a Gaussian blur of up to 1 pixel, as in FastFCN's release; chosen: none, it is in no "
        "paper",
    )
    class_uniform: float = _because(
        0.0, "share of an epoch's images drawn class by class, as in RegSeg's Sec. 4.2; chosen: none"
    )
    class_uniform_without: str = _because(
        "", "classes that are not drawn for, such as train,rider; chosen: all are"
    )
    drop_last: bool = _because(
        False,
        "leave out the rest of an epoch that does not fill a batch, as RegSeg's release does; chosen: it is "
        "filled up",
    )
    cache_features: bool = _because(
        False,
        "compute what a frozen backbone makes of each image once and keep it on disk: nothing random may "
        "touch the images then; chosen: no, it takes room",
    )

    # The loss
    loss: str = _because(
        "cross_entropy",
        "the main one: cross_entropy, Sec. 6.1, or ohem, of the hardest pixels, RegSeg's Sec. 4.2",
    )
    ohem_threshold: float = _because(
        0.3, "in nats; of ohem: pixels with a larger loss are hard; RegSeg's Sec. 4.2"
    )
    ohem_share: float = _because(
        1 / 16, "of ohem: at least this share of the pixels counts as hard; RegSeg's Sec. 4.2"
    )
    aux_weight: float = _because(
        0.4, "of the mean auxiliary loss, the main one has the rest; Sec. 6.1. 0: none"
    )
    aux_loss: str = _because(
        "soft",
        "soft: shares of the classes in windows, Sec. 6.1; plain: a cross-entropy of the logits brought to "
        "the labels' size, which is added, so that the main loss keeps its weight of 1, FastFCN's release",
    )
    presence_weight: float = _because(
        0.0,
        "of a loss on which classes a crop holds, for models that predict it, as FastFCN's with an Encoding "
        "head; chosen: none",
    )

    # The optimizer
    optimizer: str = _because("amsgrad", "amsgrad, adam or sgd; Sec. 6.1")
    epochs: int = _because(300, "passes over the training set; Sec. 6.1")
    learning_rate: float = _because(4e-4, "initial rate; Sec. 6.1")
    lr_batch: int = _because(
        0,
        "batch_size that learning_rate is for; with another one it grows or falls in proportion, as in "
        "FastFCN's release. 0: learning_rate as it stands; chosen: that",
    )
    schedule: str = _because(
        "cosine", "how the rate falls: cosine, after each epoch, or poly, after each step; Sec. 6.1"
    )
    poly_power: float = _because(0.9, "of poly: (1 - step / steps) ** power; chosen: as VNet's paper has it")
    min_learning_rate: float = _because(0.0, "what the rate falls to; chosen: the paper is silent")
    warmup_steps: int = _because(
        0, "steps over which a factor rises to 1 by which the rate is multiplied; chosen: no warm-up"
    )
    warmup_factor: float = _because(0.1, "what that factor begins with; RegSeg's Sec. 4.2")
    pretrained_lr_divisor: float = _because(4.0, "pre-trained parameters learn slower by this; Sec. 6.1")
    head_lr_multiplier: float = _because(
        1.0,
        "all but the backbone learns faster by this, pre-trained or not, as in FastFCN's release; chosen: it "
        "does not",
    )
    betas: tuple[float, float] = _because((0.9, 0.999), "of Adam; chosen: the paper is silent, Adam's own")
    eps: float = _because(1e-8, "of Adam; chosen: the paper is silent, Adam's own")
    momentum: float = _because(0.9, "of SGD, not Nesterov's; RegSeg's Sec. 4.2")
    weight_decay: float = _because(1e-4, "L2 on all parameters; chosen: the paper is silent")
    decay_batchnorm: bool = _because(
        True,
        "weight decay on the parameters of normalization layers too; chosen: the paper is silent, RegSeg's "
        "Sec. 4.2 says no",
    )

    # After the last epoch
    exact_batchnorm: bool = _because(True, "batch-norm averages over the training set, exactly; Sec. 6.1")
    multi_scale: bool = _because(
        False, "also evaluate on several scales and their mirror images; Sec. 6.1, MS in the tables"
    )
    eval_scales: str = _because(
        ",".join(f"{scale:g}" for scale in MULTI_SCALE), "these scales; Sec. 6.1: five, chosen: which"
    )
    windows: int = _because(
        0,
        "side in pixels of square windows that evaluation slides over the image, as in FastFCN's release; "
        "chosen: 0, whole images",
    )
    base_size: int = _because(
        520,
        "what the long side is resized to before windows slide, times the scale; chosen: as in FastFCN's "
        "release. 0: the image's own size",
    )
    combine: str = _because(
        "exp",
        "with windows, how scores become one: exp, as in FastFCN's release, or the mean probability; chosen: "
        "as there",
    )
    instances: bool = _because(False, "also measure iIoU where instances are labelled; Sec. 6.1")

    # The run
    seed: int = _because(0, "of initial weights, order and augmentation; chosen: the paper is silent")
    data_seed: int = _because(
        -1,
        "of order and augmentation alone, so that runs with other seeds see the same batches, as in RegSeg's "
        "Sec. 4.3. -1: that of the run",
    )
    mixed_precision: bool = _because(True, "bfloat16 where it is safe, on a GPU; chosen: the paper is silent")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field.name, getattr(self, field.name)))
        _check_values(self)

    def settings(self) -> dict[str, Any]:
        """All fields as JSON would give them back (lists for tuples)."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @property
    def weights_file(self) -> bool:
        """Whether ``weights`` is the path of a checkpoint."""
        return self.weights not in ("imagenet", "none", "")

    @property
    def initial_rate(self) -> float:
        """``learning_rate``, in proportion to the batch where it is for one of ``lr_batch`` images."""
        return self.learning_rate * (self.batch_size / self.lr_batch if self.lr_batch else 1.0)

    @property
    def scales(self) -> tuple[float, ...]:
        """``eval_scales`` as numbers."""
        return tuple(float(scale) for scale in self.eval_scales.split(","))


MEMORY = ("recompute", "chunked_loss")  # fields that trade time for memory and nothing else
LATER = (
    *("image_size", "augmentation", "blur", "cache_features", "aux_loss", "presence_weight", "lr_batch"),
    *("head_lr_multiplier", "eval_scales", "windows", "base_size", "combine"),
)
"""Fields that are newer than runs that exist. At their default they do not count in the name of a run's
folder, so that those runs keep theirs."""
_CHOICES = {
    "augmentation": ("", "fastfcn"),
    "loss": ("cross_entropy", "ohem"),
    "aux_loss": ("soft", "plain"),
    "combine": COMBINE,
    "optimizer": ("amsgrad", "adam", "sgd"),
    "schedule": ("cosine", "poly"),
}
KINDS = typing.get_type_hints(Recipe)
_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "True or False"}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def describe(name: str) -> str:
    """The type of a field in words."""
    kind = KINDS[name]
    if typing.get_origin(kind) is tuple:
        return f"a pair ({', '.join(_WORDS[part].removeprefix('a ') for part in typing.get_args(kind))})"
    return _WORDS.get(kind, "a dict from option to value")


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _typed(name: str, value: Any) -> Any:
    """The value as the field's type: whole numbers pass for numbers, lists for pairs."""
    kind = KINDS[name]
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        pairs = list(zip(value, parts, strict=False)) if isinstance(value, (list, tuple)) else []
        if len(pairs) == len(parts) == len(value) and all(_fits(item, part) for item, part in pairs):
            return tuple(part(item) for item, part in pairs)
    elif typing.get_origin(kind) is dict:
        if isinstance(value, dict):
            return dict(value)
    elif _fits(value, kind):
        return kind(value)
    raise ValueError(f"{name} is {describe(name)}, not {value!r}")


def _check_values(recipe: Recipe) -> None:
    rules = {
        "at least 1": ("epochs", "batch_size", "val_every"),
        "above 0": ("learning_rate", "pretrained_lr_divisor", "head_lr_multiplier", "eps", "resolution"),
        "0 or more": (
            *("min_learning_rate", "poly_power", "weight_decay", "warmup_steps", "ohem_threshold", "seed"),
            *("lr_batch", "presence_weight", "windows", "base_size"),
        ),
        "between 0 and 1": (
            *("flip", "aux_weight", "bn_momentum", "rand_magnitude", "class_uniform", "warmup_factor"),
            "blur",
        ),
    }
    holds = {
        "at least 1": lambda v: v >= 1,
        "above 0": lambda v: v > 0,
        "0 or more": lambda v: v >= 0,
        "between 0 and 1": lambda v: 0 <= v <= 1,
    }
    for rule, names in rules.items():
        for name in names:
            if not holds[rule](getattr(recipe, name)):
                raise ValueError(f"{name} must be {rule}, not {getattr(recipe, name)!r}")
    if min(recipe.crop) < 1:
        raise ValueError(f"crop is height and width in pixels, both at least 1, not {recipe.crop!r}")
    if not 0 < recipe.scale[0] <= recipe.scale[1]:
        raise ValueError(f"scale is a range such as (0.5, 2.0), not {recipe.scale!r}")
    low, high = recipe.short_side
    if recipe.short_side != (0, 0) and not 1 <= low <= high:
        raise ValueError(
            "short_side is a range of pixels such as (400, 1600), or (0, 0) to rescale by scale instead, "
            f"not {recipe.short_side!r}"
        )
    if not 0 <= recipe.rand_augment <= len(OPERATIONS):
        raise ValueError(
            f"rand_augment is a number of different operations, from 0 to {len(OPERATIONS)} (all there are), "
            f"not {recipe.rand_augment!r}"
        )
    if not 0 < recipe.ohem_share <= 1:
        raise ValueError(
            f"ohem_share is above 0 and at most 1, such as 0.0625 for a sixteenth, not {recipe.ohem_share!r}"
        )
    if not 0 <= recipe.momentum < 1:
        raise ValueError(f"momentum lies between 0 and 1 (1 excluded), not {recipe.momentum!r}")
    if recipe.data_seed < -1:
        raise ValueError(f"data_seed is 0 or more, or -1 for the run's seed, not {recipe.data_seed!r}")
    if not all(0 <= beta < 1 for beta in recipe.betas):
        raise ValueError(f"betas lie between 0 and 1 (1 excluded), not {recipe.betas!r}")
    for name, choices in _CHOICES.items():
        if getattr(recipe, name) not in choices:
            raise ValueError(f"{name} is {' or '.join(map(repr, choices))}, not {getattr(recipe, name)!r}")
    if recipe.weights_file and not recipe.weights.endswith(".pt"):
        raise ValueError(
            "weights is 'imagenet', 'none' or the path of a checkpoint such as runs/RUN/final.pt, "
            f"not {recipe.weights!r}"
        )
    if recipe.loss == "ohem" and recipe.chunked_loss:
        raise ValueError(
            "loss='ohem' ranks the pixels of the whole batch, which chunked_loss=True never has at once: "
            "leave out one of them"
        )
    _check_sizes(recipe)
    _check_augmentation(recipe)
    if recipe.cache_features:
        _check_cached(recipe)
    if recipe.recompute and "recompute" in recipe.model_options:
        raise ValueError(
            f"recompute is {recipe.recompute!r}, and {recipe.model_options['recompute']!r} in model_options: "
            "leave out the second"
        )


def _check_sizes(recipe: Recipe) -> None:
    if recipe.image_size != (0, 0):
        if min(recipe.image_size) < 1:
            raise ValueError(
                "image_size is height and width in pixels, both at least 1, or (0, 0) to leave images at "
                f"their size times resolution, not {recipe.image_size!r}"
            )
        if recipe.resolution != 1:
            raise ValueError(
                f"image_size={recipe.image_size!r} is a size of its own, which resolution="
                f"{recipe.resolution!r} has no part in: leave out one of them"
            )
    try:
        scales = recipe.scales
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale < float("inf") for scale in scales):
        raise ValueError(f"eval_scales are numbers above 0 such as 0.5,0.75,1, not {recipe.eval_scales!r}")


def _check_augmentation(recipe: Recipe) -> None:
    if recipe.augmentation != "fastfcn":
        if recipe.blur:
            raise ValueError(
                f"blur={recipe.blur!r} belongs to FastFCN's augmentation: give augmentation='fastfcn' and a "
                "range such as short_side=(260, 1040), or blur=0"
            )
        return
    if recipe.short_side == (0, 0):
        raise ValueError(
            "augmentation='fastfcn' resizes the short side: give a range such as short_side=(260, 1040)"
        )
    for name in ("rand_augment", "class_uniform"):
        if value := getattr(recipe, name):
            raise ValueError(
                f"{name}={value!r} belongs to RegSeg's augmentation: leave out augmentation='fastfcn' or it"
            )


def _check_cached(recipe: Recipe) -> None:
    """Features are those of the images as they are read: each time the same, and whole."""
    still = {"flip": 0.0, "scale": (1.0, 1.0), "short_side": (0, 0), "rand_augment": 0, "blur": 0.0}
    still |= {"class_uniform": 0.0}  # its crops begin elsewhere each time
    if moving := [name for name, value in still.items() if getattr(recipe, name) != value]:
        found = ", ".join(f"{name}={getattr(recipe, name)!r}" for name in moving)
        cure = ", ".join(f"{name}={still[name]!r}" for name in moving)
        raise ValueError(
            f"cache_features=True keeps the features of an image, but {found} changes it at random each "
            f"time: give {cure}, or leave out cache_features"
        )
    if recipe.image_size != (0, 0) and recipe.crop != recipe.image_size:
        raise ValueError(
            f"cache_features=True keeps the features of whole images, but crop={recipe.crop!r} is not their "
            f"image_size={recipe.image_size!r}: give crop={recipe.image_size!r}, or leave out cache_features"
        )
    if recipe.exact_batchnorm:
        raise ValueError(
            "exact_batchnorm=True passes images through the whole model, which cache_features=True spares "
            "them: give exact_batchnorm=False, or leave out cache_features"
        )
