"""Recipes: everything that decides a training run, as plain literals.

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
import difflib
import inspect
import typing
from dataclasses import dataclass
from typing import Any

from segkit.data import DATASETS
from segkit.data.augment import OPERATIONS


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
    train_split: str = _because("train", "Sec. 6.2")
    val_split: str = _because(
        "val", "measured while training; Sec. 6.2. Empty: nothing is measured on the way"
    )
    val_every: int = _because(
        10, "epochs between two measurements on val_split; chosen: it changes no weight"
    )
    final_split: str = _because("val", "measured once, after the last epoch; Sec. 6.2")

    # A batch, in the order of Sec. 6.1: flip, rescale, crop; with short_side in that of RegSeg's release:
    # rescale, crop, flip, RandAugment
    batch_size: int = _because(16, "crops in a step, over all processes; Sec. 6.1")
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

    # The optimizer
    optimizer: str = _because("amsgrad", "amsgrad, adam or sgd; Sec. 6.1")
    epochs: int = _because(300, "passes over the training set; Sec. 6.1")
    learning_rate: float = _because(4e-4, "initial rate; Sec. 6.1")
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
        False, "also evaluate on 5 scales and their mirror images; Sec. 6.1, MS in the tables"
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


MEMORY = ("recompute", "chunked_loss")  # fields that trade time for memory and nothing else
_CHOICES = {
    "loss": ("cross_entropy", "ohem"),
    "optimizer": ("amsgrad", "adam", "sgd"),
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
        "0 or more": (
            *("min_learning_rate", "poly_power", "weight_decay", "warmup_steps", "ohem_threshold", "seed"),
        ),
        "between 0 and 1": (
            *("flip", "aux_weight", "bn_momentum", "rand_magnitude", "class_uniform", "warmup_factor"),
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

# The RegSeg paper, Sec. 4.2 and 4.3. Where its text is silent, or differs from its authors' code and logs:
# - Weight decay. The text spares batch norm; the code spares each parameter with "bn" in its name: the same
#   on RegSeg (128 tensors, 26,832 numbers), but not in every decoder of Table 5. Here the layer's type
#   decides.
# - The warm-up multiplies poly in the code, step by step: from 0.1 lr, but never quite to lr.
# - An epoch has floor(2975 / 8) = 371 steps in the code: what does not fill a batch is left out.
# - "Scaling of [400, 1600]": a random whole number of pixels for the short side, each as likely.
# - Order in the code: rescale, crop (to the image at most), mirror, RandAug, pad to the crop.
# - RandAug in the code: two different operations, always done, of fixed strength; only its sign is random.
# - Class-uniform sampling in the code: int(2975 * 0.5 / 19) = 78 crops around each class, 1493 of any images.
#   It looks in tiles of 1024 pixels, finds none in files of half size, and then silently does without.
# - Seeds. Text and code set the seed to 0 before the weights are made, and to the epoch before each epoch.
#   Here order and augmentation come from (data_seed, epoch, position): the same idea, other random numbers.
#   In the logs of Table 10 the seeds are 1, 2, 3 for RegSeg and 0, 2, 3 for DDRNet: --seed; the data stay the
#   same.
# - Which weights count. The text is silent; by the logs the last ones in Tables 3 and 10, and in Tables 4 to
#   8 the best of up to 69 measurements on the very set that is reported. Here always the last.
# - Mixed precision was float16 with loss scaling, on a T4. Here it is bfloat16, which needs no scaling.
# - Reduced mIoU leaves out truck, bus and train; the logs' own column of that name leaves out train alone.
_REGSEG = Recipe(
    name="regseg_cityscapes",
    model="regseg",
    weights="none",  # "randomly initialized"
    bn_momentum=0.1,  # PyTorch's own, as in the code
    val_every=25,  # as in the code, which also measures each of the last 30 epochs; it changes no weight
    batch_size=8,
    short_side=(400, 1600),
    crop=(768, 768),
    rand_augment=2,
    rand_magnitude=0.2,
    class_uniform=0.5,
    drop_last=True,
    aux_weight=0.0,  # RegSeg has no auxiliary outputs
    optimizer="sgd",
    epochs=1000,
    learning_rate=0.05,
    schedule="poly",
    poly_power=0.9,
    warmup_steps=3000,
    warmup_factor=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    decay_batchnorm=False,
    exact_batchnorm=False,  # not in the paper
    seed=0,
    data_seed=0,
)

# CamVid, Sec. 4.2: no RandAug and no class-uniform sampling; trainval -> test, Sec. 4.1.
_REGSEG_CAMVID = dataclasses.replace(
    _REGSEG,
    name="regseg_camvid_finetune",
    # To be given: the final.pt of a Cityscapes run. The authors' was made on trainval, with crops of 1024 and
    # OHEM: regseg_cityscapes_submission. Only the classifier, for 11 classes instead of 19, starts afresh.
    weights="",
    # Images of 720x960: see ldn_camvid above. The release pads small images before it crops, at random.
    dataset="camvid",
    train_split="trainval",
    val_split="",
    final_split="test",  # the logs give Table 8 by the best epoch on test; here the last weights, once
    batch_size=12,
    short_side=(288, 1152),
    crop=(720, 960),
    rand_augment=0,
    class_uniform=0.0,
    epochs=200,
    learning_rate=0.005,  # of the code; the text says "similar to that in Cityscapes"
    warmup_steps=1000,  # of the code too: 1000 of 7800 steps
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
        dataclasses.replace(
            _VNET,
            name="vnet_camvid",  # not in the paper, which is on Cityscapes alone; its settings, on CamVid
            dataset="camvid",
            train_split="trainval",  # as Ladder-DenseNet's paper: val is too small and too easy to choose by
            val_split="",
            final_split="test",  # measured once, with the last weights
            crop=(360, 480),  # whole images here too
        ),
        _REGSEG,
        dataclasses.replace(
            _REGSEG,
            # Tables 3 to 6, which by the text have the settings above for half as many epochs. By the logs:
            # - no RandAug but ColorJitter (brightness 0.3, contrast 0.4, saturation 0.5);
            # - short side [256, 1792] in Tables 3 to 5; Table 6 varies it, and the crop;
            # - files of half size, as the text says, resized from there to the drawn size at once. Here files
            #   of full size;
            # - Tables 3 and 6 are on backbone row 5 of Table 4 (--model regseg-row5), Table 5 is on row 2
            #   (regseg-row2, regseg-sum1x1 and so on), and neither on RegSeg's own.
            # As it stands this is the second line of Table 7, which has RandAug, [400, 1600] and full size;
            # with --loss ohem its third.
            name="regseg_cityscapes_ablation",
            epochs=500,
        ),
        dataclasses.replace(
            _REGSEG,
            # "When submitting to the test server": the 78.3 of Table 9. The settings that were released for
            # it still have crops of 768 and plain cross-entropy. The labels of test are not public, so that
            # val is measured, which this run was trained on: its figures say little.
            name="regseg_cityscapes_submission",
            train_split="trainval",
            val_split="",
            crop=(1024, 1024),
            loss="ohem",
            ohem_threshold=0.3,
            ohem_share=1 / 16,
        ),
        dataclasses.replace(
            _REGSEG_CAMVID,
            # Not in the paper, which has CamVid at 720x960 alone and from Cityscapes weights: here random
            # initial weights, on images of 360x480, as the set is often passed on. Sizes are half of those.
            # Chosen: the rate and epochs of Cityscapes, which starts from random weights too (the rate is not
            # raised for 12 images instead of 8), and CamVid's warm-up, since an epoch has 39 steps, not 371.
            name="regseg_camvid",
            weights="none",
            short_side=(144, 576),
            crop=(360, 480),
            epochs=1000,
            learning_rate=0.05,
        ),
        _REGSEG_CAMVID,
        dataclasses.replace(
            _REGSEG,
            # Table 10: "the exact same training setting", which was tuned for RegSeg. DDRNet-23 has here, as
            # in the authors' code, neither its auxiliary head nor its ImageNet weights.
            name="ddrnet_cityscapes",
            model="ddrnet23",
        ),
        dataclasses.replace(
            _REGSEG,
            name="regseg_streets",  # not in the paper: learns something in a minute or two on a laptop
            dataset="streets",
            # 80 images: ten batches, half of which have room for two of each of the 19 classes (all occur)
            dataset_options={"size": (128, 256), "train": 80, "val": 16},
            short_side=(64, 192),  # about the paper's share of the height
            crop=(128, 128),  # square, as the paper's
            epochs=5,  # 50 steps
            val_every=1,
            warmup_steps=8,
            bn_momentum=0.2,  # so few steps that slower averages would still hold the initial 0 and 1
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
