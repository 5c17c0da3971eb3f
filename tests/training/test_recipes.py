"""Recipes say what the paper says, explain each default, and refuse what makes no sense."""

import dataclasses
import json

import pytest

from segkit import models
from segkit.training.recipes import RECIPES, Recipe, recipe


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
        ("zzz", {}, "there is ldn_camvid, "),
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
        ("ldn_streets", {"weights": "cityscapes"}, "weights is 'imagenet' or 'none', not 'cityscapes'"),
        ("ldn_streets", {"optimizer": "sgd"}, "optimizer is 'amsgrad' or 'adam', not 'sgd'"),
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
