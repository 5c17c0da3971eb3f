"""The recipes: one or more a paper, as plain literals. What each field means: `segkit.training.fields`."""

import dataclasses
import difflib
import inspect
from collections.abc import Iterable
from typing import Any

from segkit.data import DATASETS
from segkit.training.fields import KINDS, MEMORY, Recipe

__all__ = ["MEMORY", "RECIPES", "Recipe", "near", "recipe"]

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

# The DenseASPP report, Sec. 3, 4.3 and Table 1, model #4. Where its text is silent:
# - Loss: chosen, a plain cross-entropy over the 20 classes, background among them (no pixel is ignored).
# - Schedule: it gives an "initial" rate, which is to fall, but not how. Chosen: poly 0.9, step by step.
#   --poly-power 0 keeps it as it is.
# - Augmentation: none is mentioned, so none is here.
# - Backbone: frozen, by the parameter counts of Table 1; its batch norm is in eval mode (chosen), so that it
#   computes the same features each time, and --cache-features keeps them: 1024 x 64 x 128 numbers an image,
#   100 GB for the training set (50 GB with --mixed-precision on a GPU). That is why it is off.
# - Batch norm of the head: PyTorch's own momentum (chosen).
# - Size of evaluation: taken to be that of training, 512x1024. Figures at 1024x2048 do not compare with it.
# - Which mIoU: probably that of the 20 classes; `segkit.evaluation.metrics` has the other two.
_DENSEASPP = Recipe(
    name="denseaspp_cityscapes",
    model="denseaspp-student4",
    weights="imagenet",
    bn_momentum=0.1,
    dataset_options={"num_classes": 20},
    image_size=(512, 1024),
    batch_size=8,
    flip=0.0,
    scale=(1.0, 1.0),
    crop=(512, 1024),  # not cropped: the whole image
    aux_weight=0.0,  # there are no auxiliary outputs
    optimizer="adam",
    epochs=60,
    learning_rate=3e-4,
    schedule="poly",
    poly_power=0.9,
    pretrained_lr_divisor=1.0,  # what is pre-trained is frozen
    weight_decay=1e-5,
    exact_batchnorm=False,  # chosen: not mentioned
    mixed_precision=False,  # chosen: the report's P100 has no bfloat16
)

# The FastFCN paper, Sec. 4.1 and 4.3, and its authors' code at v1.0.0, which made its results. The code alone
# has: the blur; ten times the rate for all but the backbone; the auxiliary head and its weight; the loss on
# which classes a crop holds, and its weight; windows at evaluation. Where text and code disagree, or both
# leave something open:
# - Scale. "From 0.5 to 2.0" in the text; in the code the short side is a whole number of pixels from 260 to
#   1040, that is 520 times these, whatever the image's size.
# - "Single scale" in Table 1: the code resizes the long side to 520 and slides windows of 480 over it.
# - The rate is for 16 images and falls with fewer, in the code; the text has one batch size.
# - The loss of PSP and ASPP: 0.2 for the auxiliary head at v1.0.0, 0.4 in later scripts. They predict no
#   presence: --presence-weight 0 with --model fastfcn-r50-psp-jpu.
# - A batch of 16 is on 4 GPUs, batch norm over all 16. On one device it is over 16 as well; a smaller batch
#   has other statistics.
# - Weights. The authors' network has three 3x3 convolutions in its stem, and ImageNet weights for it that
#   can no longer be had. Here torchvision's stem with torchvision's weights; --model-options stem=deep and
#   --weights none give theirs, from random weights, which will not reach their figures.
# - Which weights count. The code keeps the best by (pixel accuracy + mIoU) / 2 on crops of 480; here the
#   last.
# - mIoU is over 59 classes, without background. The 60-class figures of Table 3 are 59/60 of it.
_FASTFCN = Recipe(
    name="fastfcn_pcontext",
    model="fastfcn-r50-enc-jpu",
    model_options={"stem": "torchvision"},
    weights="imagenet",
    bn_momentum=0.1,  # PyTorch's own, as in the code
    dataset="pascal_context",
    batch_size=16,
    augmentation="fastfcn",
    flip=0.5,
    short_side=(260, 1040),
    crop=(480, 480),
    blur=0.5,
    drop_last=True,
    aux_weight=0.2,
    aux_loss="plain",
    presence_weight=0.2,
    optimizer="sgd",
    epochs=80,
    learning_rate=0.001,
    lr_batch=16,
    head_lr_multiplier=10.0,
    pretrained_lr_divisor=1.0,  # the backbone has the rate as it stands
    schedule="poly",
    poly_power=0.9,
    momentum=0.9,
    weight_decay=1e-4,
    decay_batchnorm=True,
    exact_batchnorm=False,  # not in the paper
    eval_scales="0.5,0.75,1,1.25,1.5,1.75",  # of the code; --multi-scale measures on them too: Table 3
    windows=480,
    base_size=520,
    combine="exp",
    seed=1,  # of the code
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
        _DENSEASPP,
        dataclasses.replace(
            _DENSEASPP,
            # Not in the report: learns something in a minute or two on a laptop. Its small backbone has no
            # ImageNet weights, so that it is trained too; a frozen one would be random.
            name="denseaspp_streets",
            model_options={"backbone": "small", "frozen": False, "growth": 16, "squeeze": 64},
            weights="none",
            dataset="streets",
            dataset_options={"size": (128, 256), "train": 64, "val": 16, "num_classes": 20},
            image_size=(0, 0),  # as they are painted
            batch_size=4,  # more steps from few images
            crop=(128, 256),  # whole images here too
            epochs=5,
            learning_rate=3e-3,  # ten times the report's: 80 steps are few
            val_every=1,
            bn_momentum=0.2,  # so few steps that slower averages would still hold the initial 0 and 1
        ),
        _FASTFCN,
        dataclasses.replace(
            _FASTFCN,
            name="fastfcn_ade20k",  # Sec. 4.3; the batch is that of the code, the text has none for this set
            dataset="ade20k",
            epochs=120,
            learning_rate=0.01,
        ),
        dataclasses.replace(
            _FASTFCN,
            # Sec. 4.3, before the predictions on test were sent in: Table 5. To be given: the final.pt of a
            # run of fastfcn_ade20k; its optimizer's state is left behind, as in the code. The labels of test
            # are not public, so that val is measured, which this run was trained on: its figures say little.
            name="fastfcn_ade20k_trainval",
            weights="",
            dataset="ade20k",
            train_split="trainval",
            val_split="",
            epochs=20,
            learning_rate=0.001,
        ),
        dataclasses.replace(
            _FASTFCN,
            # Not in the paper: learns something in a minute or two on a laptop, all layers a quarter as wide.
            name="fastfcn_streets",
            model_options={"width": 16},
            weights="none",
            dataset="streets",
            dataset_options={"size": (128, 256), "train": 64, "val": 16},
            batch_size=4,  # more steps from few images
            lr_batch=0,  # the rate below is for these 4
            short_side=(64, 192),  # half of the images' height to one and a half
            crop=(128, 128),  # square, as the paper's
            epochs=5,
            learning_rate=0.01,
            val_every=1,
            bn_momentum=0.2,  # so few steps that slower averages would still hold the initial 0 and 1
            windows=0,  # whole images
        ),
    )
}


def near(word: str, words: Iterable[str]) -> str:
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
        if field not in KINDS:
            raise ValueError(f"a recipe has no field {field!r}: {near(field, KINDS)}")
    dataset = changes.get("dataset", RECIPES[name].dataset)
    if dataset != RECIPES[name].dataset:
        labelled = dataset in DATASETS and "instances" in inspect.signature(DATASETS[dataset]).parameters
        changes = {"dataset_options": {}, "instances": RECIPES[name].instances and labelled, **changes}
    return dataclasses.replace(RECIPES[name], **changes)
