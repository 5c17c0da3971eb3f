"""The fields of a recipe that came with DenseASPP and FastFCN: what they mean and what they refuse."""

import dataclasses

import pytest

from segkit.evaluation.inference import MULTI_SCALE
from segkit.training.fields import LATER, Recipe
from segkit.training.recipes import RECIPES, recipe


def test_the_rate_grows_with_the_batch_only_where_it_is_for_one():
    assert Recipe(learning_rate=0.01, batch_size=4).initial_rate == 0.01
    assert Recipe(learning_rate=0.01, batch_size=4, lr_batch=16).initial_rate == pytest.approx(0.0025)
    assert Recipe(learning_rate=0.01, batch_size=16, lr_batch=16).initial_rate == 0.01


def test_scales_are_numbers():
    assert Recipe().scales == MULTI_SCALE
    assert Recipe(eval_scales="1, 0.5").scales == (1.0, 0.5)


def test_later_fields_are_fields():
    assert set(LATER) < {field.name for field in dataclasses.fields(Recipe)}
    assert len(set(LATER)) == len(LATER)


CACHED = {"cache_features": True}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ldn_streets", {"image_size": (64, 0)}, r"image_size is height and width .*, not \(64, 0\)"),
        ("ldn_streets", {"image_size": (-1, -1)}, r"not \(-1, -1\)"),
        (
            "ldn_streets",
            {"image_size": (64, 128), "resolution": 0.5},
            r"image_size=\(64, 128\) .* resolution=0.5 has no part in: leave out one of them",
        ),
        ("ldn_streets", {"eval_scales": "half"}, "eval_scales are numbers above 0 .*, not 'half'"),
        ("ldn_streets", {"eval_scales": ""}, "not ''"),
        ("ldn_streets", {"eval_scales": "1,0"}, "not '1,0'"),
        ("ldn_streets", {"eval_scales": "1,nan"}, "not '1,nan'"),
        ("ldn_streets", {"lr_batch": -1}, "lr_batch must be 0 or more, not -1"),
        ("ldn_streets", {"head_lr_multiplier": 0}, "head_lr_multiplier must be above 0, not 0.0"),
        ("ldn_streets", {"presence_weight": -0.2}, "presence_weight must be 0 or more, not -0.2"),
        ("ldn_streets", {"aux_loss": "hard"}, "aux_loss is 'soft' or 'plain', not 'hard'"),
        ("ldn_streets", {"windows": -1}, "windows must be 0 or more, not -1"),
        ("ldn_streets", {"base_size": -1}, "base_size must be 0 or more, not -1"),
        ("ldn_streets", {"combine": "max"}, "combine is 'probability' or 'exp', not 'max'"),
        ("ldn_streets", {"augmentation": "regseg"}, "augmentation is '' or 'fastfcn', not 'regseg'"),
        (
            "ldn_streets",
            {"blur": 0.5},
            "blur=0.5 belongs to FastFCN's augmentation: give augmentation='fastf",
        ),
        ("fastfcn_streets", {"blur": 1.5}, "blur must be between 0 and 1, not 1.5"),
        ("fastfcn_streets", {"short_side": (0, 0)}, "'fastfcn' resizes the short side: give a range such as"),
        ("fastfcn_streets", {"rand_augment": 2}, "rand_augment=2 belongs to RegSeg's .* leave out augmenta"),
        ("fastfcn_streets", {"class_uniform": 0.5}, "class_uniform=0.5 belongs to RegSeg's augmentation"),
        (
            "ldn_streets",
            CACHED,
            r"but flip=0.5, scale=\(0.5, 2.0\) changes it .*: give flip=0.0, scale=\(1.0, 1.0\), or leave",
        ),
        ("fastfcn_streets", CACHED, r"flip=0.5, scale=.*, short_side=\(64, 192\), blur=0.5 changes it"),
        ("denseaspp_cityscapes", {**CACHED, "rand_augment": 1}, "rand_augment=1 changes it"),
        (
            "denseaspp_cityscapes",
            {**CACHED, "class_uniform": 0.5},
            "class_uniform=0.5 changes .* give class_u",
        ),
        (
            "denseaspp_cityscapes",
            {**CACHED, "crop": (512, 512)},
            r"crop=\(512, 512\) is not their image_size=\(512, 1024\): give crop=\(512, 1024\), or leave out",
        ),
        (
            "denseaspp_cityscapes",
            {**CACHED, "exact_batchnorm": True},
            "exact_batchnorm=True passes images through the whole model.*: give exact_batchnorm=False, or",
        ),
    ],
)
def test_values_that_make_no_sense_are_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        recipe(name, **changes)


def test_recipes_are_checked_as_they_are_made():
    for made in RECIPES.values():
        assert dataclasses.replace(made) == made
