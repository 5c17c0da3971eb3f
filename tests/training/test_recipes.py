"""Recipes say what the paper says, explain each default, and refuse what makes no sense."""

import dataclasses
import json

import pytest

from segkit import models
from segkit.evaluation.windows import FASTFCN_SCALES
from segkit.training.fields import LATER
from segkit.training.recipes import RECIPES, Recipe, recipe

REGSEG = [name for name in RECIPES if name.startswith("regseg_") or name == "ddrnet_cityscapes"]
NEWER = [name for name in RECIPES if name.startswith(("denseaspp_", "fastfcn_"))]


def test_section_6_1_on_full_cityscapes():
    made = recipe("ldn_cityscapes")
    assert (made.learning_rate, made.pretrained_lr_divisor, made.batch_size) == (4e-4, 4, 16)
    assert (made.epochs, made.crop, made.scale, made.aux_weight) == (300, (768, 768), (0.5, 2.0), 0.4)
    assert (made.weights, made.exact_batchnorm, made.instances) == ("imagenet", True, True)


def test_camvid_as_in_section_6_3():
    pretrained, random = recipe("ldn_camvid"), recipe("ldn_camvid_ri")
    assert (pretrained.epochs, random.epochs) == (400, 800)
    assert (pretrained.weights, random.weights) == ("imagenet", "none")
    for made in (pretrained, random, recipe("ldn_camvid_half_ri")):
        assert (made.train_split, made.val_split, made.final_split) == ("trainval", "", "test")
    assert pretrained.crop == (512, 512)
    assert recipe("ldn_cityscapes_half").crop == (448, 448)


def test_vnet_as_in_section_4_a():
    made = recipe("vnet_cityscapes")
    assert (made.model, made.dataset, made.batch_size, made.epochs) == ("vnet", "cityscapes", 4, 300)
    assert (made.optimizer, made.learning_rate, made.betas) == ("adam", 5e-4, (0.9, 0.999))
    assert (made.schedule, made.poly_power, made.weight_decay) == ("poly", 0.9, 1e-4)
    assert (made.crop, made.scale, made.resolution) == ((1024, 2048), (1.0, 1.0), 1.0)  # whole images
    assert (made.weights, made.aux_weight) == ("none", 0.0)
    streets = recipe("vnet_streets")
    assert streets.crop == streets.dataset_options["size"] == (128, 256)
    assert (streets.optimizer, streets.schedule, streets.batch_size) == ("adam", "poly", 4)


def changed(name, base="regseg_cityscapes"):
    """The fields in which a recipe differs from another."""
    mine, theirs = RECIPES[name].settings(), RECIPES[base].settings()
    return {key for key in mine if mine[key] != theirs[key]} - {"name"}


def test_regseg_as_in_section_4_2_and_4_3():
    made = recipe("regseg_cityscapes")
    assert (made.model, made.weights, made.batch_size, made.epochs) == ("regseg", "none", 8, 1000)
    assert (made.optimizer, made.learning_rate, made.momentum) == ("sgd", 0.05, 0.9)
    assert (made.weight_decay, made.decay_batchnorm) == (1e-4, False)
    assert (made.schedule, made.poly_power, made.warmup_steps, made.warmup_factor) == ("poly", 0.9, 3000, 0.1)
    assert (made.short_side, made.crop, made.flip) == ((400, 1600), (768, 768), 0.5)
    assert (made.rand_augment, made.rand_magnitude, made.class_uniform) == (2, 0.2, 0.5)
    assert (made.loss, made.aux_weight, made.exact_batchnorm, made.bn_momentum) == (
        *("cross_entropy", 0.0),
        *(False, 0.1),
    )
    assert (made.seed, made.data_seed, made.drop_last, made.mixed_precision) == (0, 0, True, True)
    assert (made.train_split, made.final_split) == ("train", "val")


def test_what_other_cityscapes_recipes_of_regseg_change():
    assert changed("regseg_cityscapes_ablation") == {"epochs"}
    assert recipe("regseg_cityscapes_ablation").epochs == 500
    made = recipe("regseg_cityscapes_submission")
    assert changed(made.name) == {"train_split", "val_split", "crop", "loss"}
    assert (made.train_split, made.crop, made.loss) == ("trainval", (1024, 1024), "ohem")
    assert (made.ohem_threshold, made.ohem_share) == (0.3, 1 / 16)
    assert changed("ddrnet_cityscapes") == {"model"}


def test_regseg_on_camvid():
    fine, half = recipe("regseg_camvid_finetune"), recipe("regseg_camvid")
    for made in (fine, half):
        assert (made.train_split, made.val_split, made.final_split) == ("trainval", "", "test")
        assert (made.batch_size, made.rand_augment, made.class_uniform) == (12, 0, 0.0)
        assert (made.optimizer, made.decay_batchnorm, made.warmup_steps) == ("sgd", False, 1000)
    assert (fine.epochs, fine.learning_rate, fine.weights) == (200, 0.005, "")  # to be given
    assert (fine.short_side, fine.crop) == ((288, 1152), (720, 960))
    assert changed("regseg_camvid", "regseg_camvid_finetune") == {
        *("weights", "short_side", "crop", "epochs", "learning_rate"),
    }
    assert half.short_side == tuple(side // 2 for side in fine.short_side)
    assert half.crop == tuple(side // 2 for side in fine.crop)
    assert (half.weights, half.learning_rate) == ("none", recipe("regseg_cityscapes").learning_rate)


def test_older_recipes_do_nothing_of_regsegs():
    plain = Recipe()
    fields = ("short_side", "rand_augment", "class_uniform", "loss", "drop_last", "warmup_steps", "data_seed")
    for name in set(RECIPES) - {*REGSEG, *NEWER}:
        made = RECIPES[name]
        assert [getattr(made, field) for field in fields] == [getattr(plain, field) for field in fields]
        assert made.decay_batchnorm
    values = ((0, 0), 0, 0.0, "cross_entropy", False, 0, -1)
    assert tuple(getattr(plain, field) for field in fields) == values


def test_recipes_of_before_leave_later_fields_alone():
    plain = Recipe()
    for name in set(RECIPES) - set(NEWER):
        changed_fields = [f for f in LATER if getattr(RECIPES[name], f) != getattr(plain, f)]
        assert changed_fields == [], name


def test_denseaspp_as_in_section_4_3_of_the_report():
    made = recipe("denseaspp_cityscapes")
    assert (made.model, made.weights, made.dataset) == ("denseaspp-student4", "imagenet", "cityscapes")
    assert made.dataset_options == {"num_classes": 20}
    assert (made.optimizer, made.learning_rate, made.weight_decay) == ("adam", 3e-4, 1e-5)
    assert (made.epochs, made.batch_size) == (60, 8)
    assert made.image_size == made.crop == (512, 1024)
    assert recipe("denseaspp_cityscapes", cache_features=True).cache_features  # nothing random is in the way
    streets = recipe("denseaspp_streets")
    assert streets.model_options["frozen"] is False and streets.weights == "none"
    assert streets.crop == streets.dataset_options["size"]


def test_fastfcn_as_in_section_4_1_and_its_release():
    made = recipe("fastfcn_pcontext")
    assert (made.model, made.dataset, made.epochs, made.batch_size) == (
        *("fastfcn-r50-enc-jpu", "pascal_context"),
        *(80, 16),
    )
    assert (made.optimizer, made.momentum, made.weight_decay, made.decay_batchnorm) == (
        "sgd",
        0.9,
        1e-4,
        True,
    )
    assert (made.learning_rate, made.lr_batch, made.head_lr_multiplier) == (0.001, 16, 10)
    assert (made.pretrained_lr_divisor, made.schedule, made.poly_power, made.drop_last) == (
        1,
        "poly",
        0.9,
        True,
    )
    assert (made.augmentation, made.crop, made.short_side, made.flip, made.blur) == (
        *("fastfcn", (480, 480), (260, 1040)),
        *(0.5, 0.5),
    )
    assert (made.aux_loss, made.aux_weight, made.presence_weight, made.seed) == ("plain", 0.2, 0.2, 1)
    assert (made.windows, made.base_size, made.combine) == (480, 520, "exp")
    assert made.scales == FASTFCN_SCALES
    assert changed("fastfcn_ade20k", "fastfcn_pcontext") == {"dataset", "epochs", "learning_rate"}
    made = recipe("fastfcn_ade20k")
    assert (made.dataset, made.epochs, made.learning_rate) == ("ade20k", 120, 0.01)
    assert changed("fastfcn_ade20k_trainval", "fastfcn_ade20k") == {
        *("weights", "train_split", "val_split", "epochs", "learning_rate"),
    }
    made = recipe("fastfcn_ade20k_trainval")
    assert (made.weights, made.train_split, made.epochs, made.learning_rate) == ("", "trainval", 20, 0.001)


def test_recipes_of_ladder_densenets_have_one_optimizer_and_schedule():
    made = [recipe for name, recipe in RECIPES.items() if name.startswith("ldn_")]
    assert len(made) == 6
    assert {(r.optimizer, r.schedule, r.recompute, r.chunked_loss) for r in made} == {
        ("amsgrad", "cosine", "", False)
    }


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_plain_and_fit_the_kit(name):
    made = RECIPES[name]
    assert made.name == name
    assert json.loads(json.dumps(made.settings())) == made.settings()
    assert made.model in models.MODELS
    model = models.build(made.model, device="meta", **made.model_options)  # the options are the model's
    assert model is not None


def test_every_default_is_explained():
    for field in dataclasses.fields(Recipe):
        reason = field.metadata["reason"]
        assert (
            field.name == "name"
            or "options" in field.name
            or any(word in reason for word in ("Sec.", "Table", "chosen: "))
        ), field.name


def test_changes_keep_the_rest():
    made = recipe("ldn_streets", epochs=2, crop=[64, 96], learning_rate=1)
    assert (made.epochs, made.crop, made.learning_rate) == (2, (64, 96), 1.0)
    assert isinstance(made.learning_rate, float)
    assert made.dataset == "streets"
    assert RECIPES["ldn_streets"].epochs != 2


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ldn_street", {}, "no recipe named 'ldn_street': did you mean ldn_streets"),
        ("zzz", {}, "there is ddrnet_cityscapes, denseaspp_cityscapes, "),
        ("ldn_streets", {"epoch": 1}, "no field 'epoch': did you mean epochs"),
        ("ldn_streets", {"epochs": "3"}, "epochs is a whole number, not '3'"),
        ("ldn_streets", {"epochs": True}, "epochs is a whole number, not True"),
        ("ldn_streets", {"flip": "often"}, "flip is a number, not 'often'"),
        ("ldn_streets", {"multi_scale": 1}, "multi_scale is True or False, not 1"),
        ("ldn_streets", {"crop": 448}, r"crop is a pair \(whole number, whole number\), not 448"),
        ("ldn_streets", {"crop": (448.0, 448)}, "crop is a pair"),
        ("ldn_streets", {"dataset_options": "train=3"}, "dataset_options is a dict"),
        ("ldn_streets", {"epochs": 0}, "epochs must be at least 1, not 0"),
        ("ldn_streets", {"learning_rate": 0}, "learning_rate must be above 0"),
        ("ldn_streets", {"aux_weight": 1.5}, "aux_weight must be between 0 and 1"),
        ("ldn_streets", {"scale": (2.0, 0.5)}, "scale is a range"),
        ("ldn_streets", {"crop": (0, 5)}, "crop is height and width"),
        ("ldn_streets", {"betas": (0.9, 1.0)}, "betas lie between"),
        (
            "ldn_streets",
            {"weights": "cityscapes"},
            "weights is 'imagenet', 'none' or the path of a checkpoint such as .*final.pt, not 'cityscapes'",
        ),
        ("ldn_streets", {"optimizer": "lamb"}, "optimizer is 'amsgrad' or 'adam' or 'sgd', not 'lamb'"),
        ("regseg_streets", {"short_side": (1600, 400)}, r"short_side is a range .*, not \(1600, 400\)"),
        ("regseg_streets", {"short_side": (0, 400)}, r"short_side is a range .*, not \(0, 400\)"),
        ("regseg_streets", {"short_side": (0.5, 2.0)}, "short_side is a pair"),
        ("regseg_streets", {"rand_augment": 8}, "operations, from 0 to 7 .*, not 8"),
        ("regseg_streets", {"rand_augment": -1}, "not -1"),
        ("regseg_streets", {"rand_magnitude": 1.1}, "rand_magnitude must be between 0 and 1, not 1.1"),
        ("regseg_streets", {"class_uniform": 1.5}, "class_uniform must be between 0 and 1, not 1.5"),
        ("regseg_streets", {"loss": "focal"}, "loss is 'cross_entropy' or 'ohem', not 'focal'"),
        ("regseg_streets", {"ohem_threshold": -0.3}, "ohem_threshold must be 0 or more, not -0.3"),
        ("regseg_streets", {"ohem_share": 0}, "ohem_share is above 0 and at most 1, .*, not 0.0"),
        ("regseg_streets", {"ohem_share": 1.1}, "not 1.1"),
        ("regseg_streets", {"warmup_steps": -1}, "warmup_steps must be 0 or more, not -1"),
        ("regseg_streets", {"warmup_factor": 2}, "warmup_factor must be between 0 and 1, not 2.0"),
        ("regseg_streets", {"momentum": 1.0}, r"momentum lies between 0 and 1 \(1 excluded\), not 1.0"),
        ("regseg_streets", {"data_seed": -2}, "data_seed is 0 or more, or -1 for the run's seed, not -2"),
        (
            "regseg_streets",
            {"loss": "ohem", "chunked_loss": True},
            "loss='ohem' ranks the pixels of the whole batch, .* chunked_loss=True .* leave out one of them",
        ),
        ("ldn_streets", {"schedule": "step"}, "schedule is 'cosine' or 'poly', not 'step'"),
        ("ldn_streets", {"poly_power": -1}, "poly_power must be 0 or more, not -1.0"),
        (
            "ldn_streets",
            {"recompute": "unit", "model_options": {"recompute": "td"}},
            "recompute is 'unit', and 'td' in model_options: leave out the second",
        ),
    ],
)
def test_errors_say_what_and_what_instead(name, changes, message):
    with pytest.raises(ValueError, match=message):
        recipe(name, **changes)


def test_weights_may_be_a_file():
    assert recipe("ldn_streets", weights="runs/x/final.pt").weights_file
    for weights in ("imagenet", "none", ""):
        assert not recipe("ldn_streets", weights=weights).weights_file


def test_a_recipe_cannot_be_changed_by_accident():
    made = recipe("ldn_streets")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.epochs = 3
    made.dataset_options["train"] = 1
    assert RECIPES["ldn_streets"].dataset_options["train"] == 64


def test_another_data_set_does_not_inherit_options():
    assert recipe("ldn_streets", dataset="camvid").dataset_options == {}
    assert recipe("ldn_streets", dataset="streets").dataset_options["train"] == 64
    assert recipe(
        "ldn_streets", dataset="cityscapes", dataset_options={"num_classes": 20}
    ).dataset_options == {"num_classes": 20}


def test_instances_stay_where_the_other_set_has_them():
    for dataset, kept in (("camvid", False), ("folder", False), ("streets", True), ("cityscapes", True)):
        assert recipe("ldn_cityscapes", dataset=dataset).instances is kept
    assert recipe("ldn_cityscapes", dataset="camvid", instances=True).instances
    assert recipe("ldn_camvid", dataset="streets").instances is False
