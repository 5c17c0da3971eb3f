"""Label tables against torchvision's, and the rules of a label space."""

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.datasets import Cityscapes

from segkit.data.labels import (
    CAMVID11,
    CITYSCAPES19,
    CITYSCAPES20,
    CITYSCAPES_IDS,
    CITYSCAPES_LABELS,
    LabelSpace,
    distinct_colors,
)


def test_the_cityscapes_table_is_torchvisions():
    theirs = [
        (row.name, row.id, row.train_id % 256, row.category, row.has_instances, row.color)
        for row in Cityscapes.classes
    ]
    assert [tuple(row) for row in CITYSCAPES_LABELS] == theirs
    assert len(CITYSCAPES_IDS) == 35


def test_nineteen_classes_seven_categories_eight_with_instances():
    assert CITYSCAPES19.num_classes == 19
    assert CITYSCAPES19.classes[0] == "road" and CITYSCAPES19.classes[18] == "bicycle"
    assert [name for name, _ in CITYSCAPES19.categories] == [
        "flat", "construction", "object", "nature", "sky", "human", "vehicle",
    ]  # fmt: skip
    assert sorted(index for _, members in CITYSCAPES19.categories for index in members) == list(range(19))
    assert CITYSCAPES19.instance_classes == tuple(range(11, 19))


def test_twenty_classes_end_with_background():
    assert CITYSCAPES20.classes == (*CITYSCAPES19.classes, "background")
    assert CITYSCAPES20.num_classes == 20


def test_camvid_has_the_eleven_classes_of_segnet():
    assert CAMVID11.num_classes == 11
    assert CAMVID11.classes[3] == "Road" and CAMVID11.classes[10] == "Bicyclist"


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_color_paints_classes_and_leaves_ignored_pixels_black(kind):
    painted = CITYSCAPES19.color(kind([[0, 255], [18, 10]]))
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[[128, 64, 128], [0, 0, 0]], [[119, 11, 32], [70, 130, 180]]]


@pytest.mark.parametrize("labels", [[[19]], [[-1]], [[254]]])
def test_color_refuses_a_label_that_is_no_class(labels):
    with pytest.raises(ValueError, match=str(labels[0][0])):
        CITYSCAPES19.color(np.asarray(labels))


def test_color_refuses_a_batch():
    with pytest.raises(ValueError, match=r"\(1, 2, 2\)"):
        CITYSCAPES19.color(np.zeros((1, 2, 2), int))


def test_a_space_is_rebuilt_from_plain_lists():
    plain = dataclasses.asdict(CITYSCAPES19)
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}
    assert LabelSpace(**plain) == CITYSCAPES19


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"palette": ((0, 0, 0),)}, "2 classes but 1 colors"),
        ({"classes": ("a", "a")}, "'a' twice"),
        ({"classes": (), "palette": ()}, "0 classes"),
        ({"palette": ((0, 0, 0), (0, 0, 256))}, "256"),
        ({"categories": (("all", (0, 2)),)}, r"\[2\]"),
        ({"instance_classes": (5,)}, r"\[5\]"),
        ({"ignore_index": 1}, "ignore_index 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    parts = {"name": "two", "classes": ("a", "b"), "palette": ((1, 2, 3), (4, 5, 6))}
    with pytest.raises(ValueError, match=message):
        LabelSpace(**{**parts, **change})


def test_distinct_colors_are_distinct():
    colors = distinct_colors(60)
    assert len(set(colors)) == 60
    assert colors[:5] == distinct_colors(5)
