"""Label tables against torchvision's, and the rules of a label space."""

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.datasets import Cityscapes

from segkit.data.labels import (
    ADE20K150,
    CAMVID11,
    CITYSCAPES19,
    CITYSCAPES20,
    CITYSCAPES_IDS,
    CITYSCAPES_LABELS,
    PASCAL_CONTEXT59,
    LabelSpace,
    distinct_colors,
    to_ids,
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


def test_pascal_context_has_59_classes_and_ade20k_150():
    assert PASCAL_CONTEXT59.num_classes == 59 and len(set(PASCAL_CONTEXT59.palette)) == 59
    assert PASCAL_CONTEXT59.classes[0] == "aeroplane" and PASCAL_CONTEXT59.classes[36] == "person"
    assert ADE20K150.num_classes == 150 and len(set(ADE20K150.palette)) == 150
    assert all(name == " ".join(name.split()) for name in ADE20K150.classes)


@pytest.mark.parametrize(
    ("index", "name"),
    [
        # Rows of the release's objectInfo150.txt, which counts from 1.
        *((1, "wall"), (13, "person"), (21, "car"), (27, "sea"), (38, "bathtub"), (45, "chest of drawers")),
        *(
            (57, "pool table"),
            (66, "toilet"),
            (74, "kitchen island"),
            (81, "bus"),
            (90, "television receiver"),
        ),
        *((100, "buffet"), (110, "swimming pool"), (117, "minibike"), (124, "trade name"), (128, "bicycle")),
        *((139, "ashcan"), (145, "bulletin board"), (150, "flag")),
    ],
)
def test_ade20k_counts_its_classes_as_the_release_does(index, name):
    assert ADE20K150.classes[index - 1] == name


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_train_ids_become_the_numbers_of_the_files(kind):
    ids = to_ids(kind([[0, 18], [13, 2]]), CITYSCAPES19)
    assert ids.dtype == np.uint8 and ids.tolist() == [[7, 33], [26, 11]]
    assert to_ids(kind([[0, 149]]), ADE20K150).tolist() == [[1, 150]]
    assert to_ids(kind([[0, 58]]), PASCAL_CONTEXT59).tolist() == [[1, 59]]
    table = np.arange(19)[None]
    assert [CITYSCAPES_IDS[int(id)] for id in to_ids(table, CITYSCAPES19)[0]] == list(range(19))


@pytest.mark.parametrize("label", [-1, 150, 255])
def test_a_label_that_is_no_class_has_no_number(label):
    with pytest.raises(ValueError, match=rf"label {label} is no class of 'ade20k150' \(0 to 149\)"):
        to_ids(np.array([[0, label]]), ADE20K150)


@pytest.mark.parametrize("space", [CAMVID11, CITYSCAPES20])
def test_a_space_without_other_numbers_is_refused(space):
    with pytest.raises(ValueError, match=f"'{space.name}' has no other numbers.*cityscapes19"):
        to_ids(np.zeros((1, 1), int), space)
