"""Recipes: everything that decides a training run, as plain literals.

The default of each field is what the Ladder-DenseNet paper does on full Cityscapes (Sec. 6.1 unless another
place is named); "chosen" marks what the paper leaves open. The recipes of other papers say which sections
they are from. Not fields, and chosen too: images are normalized with ImageNet's mean and deviation on every
data set; rescaling is bilinear with antialiasing for images and takes the nearest pixel ("nearest-exact") for
labels; crops are padded with ImageNet's mean pixel and ignored labels; the rest of an epoch that does not
fill a batch is filled up from the epoch's beginning, so that each image is seen at least once; the auxiliary
loss leaves out windows of which half or more is ignored; no warm-up; new convolutions start from Kaiming's
normal distribution, those that predict classes from Xavier's; batch norm has an epsilon of 1e-5; its exact
averages are taken over one more epoch of augmented crops.
"""

# ruff: noqa: RUF009  (each default is made by a function that keeps the reason for it)

import dataclasses
import difflib
import inspect
import typing
from dataclasses import dataclass
from typing import Any

from segkit.data import DATASETS


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
    weights: str = _because("imagenet", "backbone's initial weights: imagenet or none; Sec. 4.1")
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
    train_split: str = _because("train", "Sec. 6.2")
    val_split: str = _because(
        "val", "measured while training; Sec. 6.2. Empty: nothing is measured on the way"
    )
    val_every: int = _because(
        10, "epochs between two measurements on val_split; chosen: it changes no weight"
    )
    final_split: str = _because("val", "measured once, after the last epoch; Sec. 6.2")

    # A batch, in the order of Sec. 6.1: flip, rescale, crop
    batch_size: int = _because(16, "crops in a step, over all processes; Sec. 6.1")
    flip: float = _because(0.5, "probability of a mirror image; Sec. 6.1 says random, one half is chosen")
    scale: tuple[float, float] = _because((0.5, 2.0), "range of the random rescaling; Sec. 6.1")
    crop: tuple[int, int] = _because((768, 768), "height, width in pixels; Sec. 6.2: full Cityscapes")

    # The loss
    aux_weight: float = _because(
        0.4, "of the mean auxiliary loss, the main one has the rest; Sec. 6.1. 0: none"
    )

    # The optimizer
    optimizer: str = _because("amsgrad", "amsgrad or adam; Sec. 6.1")
    epochs: int = _because(300, "passes over the training set; Sec. 6.1")
    learning_rate: float = _because(4e-4, "initial rate; Sec. 6.1")
    schedule: str = _because(
        "cosine", "how the rate falls: cosine, after each epoch, or poly, after each step; Sec. 6.1"
    )
    poly_power: float = _because(0.9, "of poly: (1 - step / steps) ** power; chosen: as VNet's paper has it")
    min_learning_rate: float = _because(0.0, "what the rate falls to; chosen: the paper is silent")
    pretrained_lr_divisor: float = _because(4.0, "pre-trained parameters learn slower by this; Sec. 6.1")
    betas: tuple[float, float] = _because((0.9, 0.999), "of Adam; chosen: the paper is silent, Adam's own")
    eps: float = _because(1e-8, "of Adam; chosen: the paper is silent, Adam's own")
    weight_decay: float = _because(1e-4, "L2 on all parameters; chosen: the paper is silent")

    # After the last epoch
    exact_batchnorm: bool = _because(True, "batch-norm averages over the training set, exactly; Sec. 6.1")
    multi_scale: bool = _because(
        False, "also evaluate on 5 scales and their mirror images; Sec. 6.1, MS in the tables"
    )
    instances: bool = _because(False, "also measure iIoU where instances are labelled; Sec. 6.1")

    # The run
    seed: int = _because(0, "of initial weights, order and augmentation; chosen: the paper is silent")
    mixed_precision: bool = _because(True, "bfloat16 where it is safe, on a GPU; chosen: the paper is silent")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _typed(field.name, getattr(self, field.name)))
        _check_values(self)

    def settings(self) -> dict[str, Any]:
        """All fields as JSON would give them back (lists for tuples)."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


MEMORY = ("recompute", "chunked_loss")  # fields that trade time for memory and nothing else
_CHOICES = {
    "weights": ("imagenet", "none"),
    "optimizer": ("amsgrad", "adam"),
    "schedule": ("cosine", "poly"),
}
_KINDS = typing.get_type_hints(Recipe)
_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "True or False"}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def describe(name: str) -> str:
    """The type of a field in words."""
    kind = _KINDS[name]
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
    kind = _KINDS[name]
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
        "above 0": ("learning_rate", "pretrained_lr_divisor", "eps", "resolution"),
        "0 or more": ("min_learning_rate", "poly_power", "weight_decay", "seed"),
        "between 0 and 1": ("flip", "aux_weight", "bn_momentum"),
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
    if not all(0 <= beta < 1 for beta in recipe.betas):
        raise ValueError(f"betas lie between 0 and 1 (1 excluded), not {recipe.betas!r}")
    for name, choices in _CHOICES.items():
        if getattr(recipe, name) not in choices:
            raise ValueError(f"{name} is {' or '.join(map(repr, choices))}, not {getattr(recipe, name)!r}")
    if recipe.recompute and "recompute" in recipe.model_options:
        raise ValueError(
            f"recompute is {recipe.recompute!r}, and {recipe.model_options['recompute']!r} in model_options: "
            "leave out the second"
        )


_CITYSCAPES = Recipe(name="ldn_cityscapes", instances=True)

_CAMVID = Recipe(
    name="ldn_camvid",
    model="ldn121-32-4",  # Table 6: the best of them
    # Images of 720x960, as the paper has them: put them into DIR/camvid in the layout of the 360x480 ones
    # (train.txt, train/, trainannot/ …, label files of 720x960 too) and give --data-dir DIR.
    dataset="camvid",
    train_split="trainval",  # Sec. 6.3: val is "too small and too easy" to choose by
    val_split="",
    final_split="test",  # measured once, with the last weights
    crop=(512, 512),  # Sec. 6.3
    epochs=400,  # Sec. 6.3, with pre-training
)

# The VNet paper, Section IV-A, and Section I: images are neither cropped nor resized. It says nothing of the
# rest. Chosen: mirror images as the only augmentation, a plain cross-entropy without class weights, and batch
# norm as PyTorch has it. Its Table 2 is on the test split, whose labels are not public; here the validation
# split is measured.
_VNET = Recipe(
    name="vnet_cityscapes",
    model="vnet",
    weights="none",  # no pre-training is mentioned
    bn_momentum=0.1,  # chosen: PyTorch's own
    batch_size=4,
    scale=(1.0, 1.0),  # not resized
    crop=(1024, 2048),  # not cropped: the whole image
    aux_weight=0.0,  # VNet has no auxiliary outputs
    optimizer="adam",
    epochs=300,
    learning_rate=5e-4,
    schedule="poly",  # of iterations, "iter / maxiter"
    poly_power=0.9,
    betas=(0.9, 0.999),
    weight_decay=1e-4,
    exact_batchnorm=False,  # chosen: not mentioned
    mixed_precision=False,  # chosen: the paper's TITAN Xp has no bfloat16
)

RECIPES: dict[str, Recipe] = {
    made.name: made
    for made in (
        _CITYSCAPES,
        dataclasses.replace(
            _CITYSCAPES,
            name="ldn_cityscapes_half",
            resolution=0.5,
            crop=(448, 448),  # Sec. 6.2, Table 2
        ),
        _CAMVID,
        dataclasses.replace(
            _CAMVID,
            name="ldn_camvid_ri",
            weights="none",
            epochs=800,  # Sec. 6.3, random initialization
        ),
        dataclasses.replace(
            _CAMVID,
            name="ldn_camvid_half_ri",  # images of 360x480, as the set is often passed on
            model="ldn121-16-2",  # Table 7: half resolution
            weights="none",
            epochs=800,
            # Chosen: the paper gives no crop at this size. The largest multiple of 32 inside 360x480, so that
            # pooling grids see about what they see in a test image. (448, as for half-size Cityscapes, is
            # higher than the images: a fifth of each crop would be padding even before rescaling.)
            crop=(352, 480),
        ),
        Recipe(
            name="ldn_streets",  # not in the paper: learns something in a minute on a laptop
            model="ldn121-32-4",
            model_options={"spp_grids": (4, 2, 1)},  # 8 rows do not fit the 4 rows that 128 / 32 leaves
            weights="none",  # no download
            dataset="streets",
            dataset_options={"size": (128, 256), "train": 64, "val": 16},
            crop=(128, 128),  # square, as the paper's
            batch_size=4,  # more steps from few images
            epochs=3,
            val_every=1,
            bn_momentum=0.2,  # so few steps that slower averages would still hold the initial 0 and 1
        ),
        _VNET,
        dataclasses.replace(
            _VNET,
            name="vnet_streets",  # not in the paper: learns something in a minute on a laptop
            dataset="streets",
            dataset_options={"size": (128, 256), "train": 64, "val": 16},
            crop=(128, 256),  # whole images here too
            epochs=5,
            learning_rate=5e-3,  # ten times the paper's: 80 steps are few
            val_every=1,
        ),
    )
}


def near(word: str, words: typing.Iterable[str]) -> str:
    """A half-sentence that names what was probably meant, or all there is."""
    words = sorted(words)
    close = difflib.get_close_matches(word, words, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there is {', '.join(words)}"


def recipe(name: str, **changes: Any) -> Recipe:
    """A recipe by name, with changes.

    With another ``dataset`` the recipe's ``dataset_options`` are dropped: they are about its own. So are
    ``instances``, unless given, where the other set has none.

    Args:
        name: one of :data:`RECIPES`.
        **changes: fields of :class:`Recipe` and their new values.

    Raises:
        ValueError: if there is no such recipe or field, or a value has the wrong type or range.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe named {name!r}: {near(name, RECIPES)}")
    for field in changes:
        if field not in _KINDS:
            raise ValueError(f"a recipe has no field {field!r}: {near(field, _KINDS)}")
    dataset = changes.get("dataset", RECIPES[name].dataset)
    if dataset != RECIPES[name].dataset:
        labelled = dataset in DATASETS and "instances" in inspect.signature(DATASETS[dataset]).parameters
        changes = {"dataset_options": {}, "instances": RECIPES[name].instances and labelled, **changes}
    return dataclasses.replace(RECIPES[name], **changes)
