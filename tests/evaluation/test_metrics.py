import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torchmetrics.classification import MulticlassJaccardIndex
from torchvision import tv_tensors

from segkit.data.labels import CAMVID11, CITYSCAPES19
from segkit.evaluation.metrics import (
    REDUCED_WITHOUT,
    ConfusionMatrix,
    InstanceIoU,
    MeanIoUs,
    ObjectAreas,
    reduced_miou,
    sixty_class_miou,
    three_mious,
)


def counted(prediction, labels, num_classes=3):
    matrix = ConfusionMatrix(num_classes)
    matrix.update(torch.as_tensor(prediction), torch.as_tensor(labels))
    return matrix


def test_scores_of_a_hand_computed_image():
    #                 class 0: TP 2, FN 1, FP 1; class 1: TP 1, FN 1, FP 1; class 2 nowhere
    matrix = counted([[[0, 0, 1, 1, 0, 2]]], [[[0, 0, 0, 1, 1, 255]]])
    assert matrix.matrix.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    iou = matrix.iou()
    assert iou.dtype == torch.float64
    assert iou[:2].tolist() == [2 / 4, 1 / 3]
    assert iou[2].isnan()
    assert matrix.miou() == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert matrix.pixel_accuracy() == 3 / 5


def test_a_class_predicted_but_never_true_counts_as_zero():
    matrix = counted([[[0, 2]]], [[[0, 0]]])
    assert matrix.iou()[[0, 2]].tolist() == [0.5, 0.0]
    assert matrix.miou() == 0.25


def test_no_labeled_pixel_gives_nan():
    matrix = counted([[[0, 2]]], [[[255, 255]]])
    assert math.isnan(matrix.miou())
    assert math.isnan(matrix.pixel_accuracy())
    assert matrix.iou().isnan().all()


def test_reduced_miou_is_the_mean_of_cityscapes_other_16_classes():
    iou = torch.rand(19, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kept = [value for index, value in enumerate(iou.tolist()) if index not in (14, 15, 16)]
    assert [CITYSCAPES19.classes[index] for index in (14, 15, 16)] == list(REDUCED_WITHOUT)
    assert reduced_miou(iou, CITYSCAPES19.classes) == pytest.approx(sum(kept) / 16)


def test_reduced_miou_of_a_hand_computed_image():
    classes = ("road", "truck", "bus", "train")
    # road: TP 2, FN 1 (said to be a truck), FP 1 (really a train)
    matrix = counted([[[0, 0, 1, 0]]], [[[0, 0, 0, 3]]], num_classes=4)
    assert reduced_miou(matrix.iou(), classes) == pytest.approx(2 / 4)
    assert matrix.miou() == pytest.approx((2 / 4 + 0 + 0) / 3)


def test_reduced_miou_leaves_absent_classes_out_of_the_mean():
    iou = torch.tensor([0.25, math.nan, 0.75, 0.9, 0.9, 0.9], dtype=torch.float64)
    classes = ("road", "sky", "car", "train", "truck", "bus")
    assert reduced_miou(iou, classes) == pytest.approx(0.5)
    assert math.isnan(reduced_miou(torch.full((6,), math.nan), classes))


def test_reduced_miou_is_of_spaces_with_these_classes():
    iou = torch.ones(CAMVID11.num_classes)
    assert reduced_miou(iou, CAMVID11.classes) is None
    assert reduced_miou(torch.ones(3), ("road", "truck", "bus")) is None  # no train
    assert reduced_miou(torch.tensor([0.0, 1.0]), ("road", "sky"), without=("sky",)) == 0
    with pytest.raises(ValueError, match="3 class names for 2 IoUs"):
        reduced_miou(torch.ones(2), ("road", "car", "sky"))


@pytest.mark.parametrize("num_classes", [0, -1, 2.5, True])
def test_a_number_of_classes_that_is_none(num_classes):
    for kind in (ConfusionMatrix, ObjectAreas):
        with pytest.raises(ValueError, match="an integer of at least 1 is needed"):
            kind(num_classes)


def test_three_mious_by_hand():
    #                 to road, car, background
    matrix = torch.tensor([[6, 1, 1], [0, 3, 1], [2, 0, 6]])
    road, car, background = 6 / (6 + 2 + 2), 3 / (3 + 1 + 1), 6 / (6 + 2 + 2)
    road_official = 6 / (6 + 2)  # the 2 background pixels that were called road are ignored; FN 2, FP 0
    assert three_mious(matrix, background=2) == pytest.approx(
        MeanIoUs((road + car + background) / 3, (road_official + car) / 2, (road + car) / 2)
    )
    turned = matrix[[2, 0, 1]][:, [2, 0, 1]]  # background first: the order of classes does not matter
    assert three_mious(turned, background=0) == pytest.approx(three_mious(matrix, background=2))


def test_three_mious_leave_out_classes_without_pixels():
    # Class 1 occurs nowhere; class 2 is only predicted, and on background alone.
    matrix = torch.tensor([[4, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2, 6]])
    found = three_mious(matrix, background=3)
    assert found == pytest.approx(MeanIoUs((1 + 0 + 6 / 8) / 3, 1.0, (1 + 0) / 2))
    nothing_labeled = three_mious(torch.tensor([[0, 0], [3, 5]]), background=1)
    assert math.isnan(nothing_labeled.iou19_official)
    assert (nothing_labeled.iou20, nothing_labeled.iou19) == ((0 + 5 / 8) / 2, 0)
    assert all(math.isnan(value) for value in three_mious(torch.zeros(20, 20)))
    only_background = three_mious(torch.tensor([[7]]), background=0)
    assert only_background.iou20 == 1 and math.isnan(only_background.iou19)


def test_iou20_may_be_above_or_below_the_others():
    errors = torch.tensor([[5, 3, 0], [3, 5, 0], [0, 0, 0]])
    good, bad = errors.clone(), errors.clone()
    good[2, 2] = 90
    bad[2, 0] = bad[0, 2] = 9
    assert three_mious(good, 2).iou20 > three_mious(good, 2).iou19_official == three_mious(good, 2).iou19
    assert three_mious(bad, 2).iou20 < three_mious(bad, 2).iou19 < three_mious(bad, 2).iou19_official


def images(num_classes):
    """Pairs of small label and prediction maps, many of whose classes occur nowhere."""
    shape = hnp.array_shapes(min_dims=3, max_dims=3, max_side=6)
    label = st.sampled_from([0, 1, num_classes - 1, 255])
    prediction = st.integers(0, num_classes - 1)
    return shape.flatmap(
        lambda s: st.tuples(
            hnp.arrays(np.int64, s, elements=prediction), hnp.arrays(np.uint8, s, elements=label)
        )
    )


def confusions(num_classes):
    """Confusion matrices with many zeros, so that classes are missing."""
    count = st.one_of(st.just(0), st.integers(0, 9))
    return hnp.arrays(np.int64, (num_classes, num_classes), elements=count)


@settings(max_examples=200, deadline=None)
@given(confusions(4), st.integers(0, 3))
def test_order_of_the_three_mious(counts, background):
    found = three_mious(torch.from_numpy(counts), background)
    assert all(math.isnan(value) or 0 <= value <= 1 for value in found)
    if not math.isnan(found.iou19_official):
        assert found.iou19_official >= found.iou19 - 1e-12
    others = [c for c in range(4) if c != background]
    if not counts[background, others].any() and not math.isnan(found.iou19_official):
        assert found.iou19_official == pytest.approx(found.iou19)
    own = counts[background].sum() + counts[:, background].sum() - counts[background, background]
    if own and not math.isnan(found.iou19):
        of_background = counts[background, background] / own
        low, high = sorted((of_background, found.iou19))
        assert low - 1e-12 <= found.iou20 <= high + 1e-12


@settings(max_examples=60, deadline=None)
@given(images(4), images(4))
def test_the_official_mean_is_that_of_ignoring_background(one, other):
    """Counted with background's pixels relabeled 255, and both images summed before they are divided."""
    whole, ignoring = ConfusionMatrix(4), ConfusionMatrix(4)
    for prediction, labels in (one, other):
        whole.update(torch.from_numpy(prediction), torch.from_numpy(labels))
        ignoring.update(torch.from_numpy(prediction), torch.from_numpy(np.where(labels == 3, 255, labels)))
    found = three_mious(whole.matrix, background=3)
    expected = ignoring.iou()[:3].nanmean().item()
    assert found.iou19_official == pytest.approx(expected, nan_ok=True)
    assert found.iou20 == pytest.approx(whole.miou(), nan_ok=True)


@pytest.mark.parametrize(
    ("matrix", "background", "message"),
    [
        (torch.zeros(2, 3), 0, r"rows true and columns predicted, not \(2, 3\)"),
        (torch.zeros(4), 0, r"not \(4,\)"),
        (torch.zeros(19, 19), 19, "background=19 is none of the classes 0 … 18"),
        (torch.zeros(3, 3), -1, "background=-1 is none"),
        (-torch.ones(3, 3), 0, "some of these are negative or NaN"),
        (torch.full((3, 3), math.nan), 0, "some of these are negative or NaN"),
    ],
)
def test_three_mious_of_what_is_no_confusion_matrix(matrix, background, message):
    with pytest.raises(ValueError, match=message):
        three_mious(matrix, background)


def test_sixty_classes_are_59_and_a_zero():
    for of_59, of_60 in ((52.10, 51.23), (54.03, 53.13), (52.60, 51.72)):
        assert round(sixty_class_miou(of_59), 2) == of_60
    iou = torch.rand(59, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with_background = torch.cat([torch.zeros(1, dtype=torch.float64), iou])
    assert sixty_class_miou(iou.mean().item()) == pytest.approx(with_background.mean().item())
    for wrong in (-0.1, 101, math.nan):
        with pytest.raises(ValueError, match="is no mean IoU"):
            sixty_class_miou(wrong)


@settings(max_examples=60, deadline=None)
@given(st.lists(images(5), min_size=1, max_size=3))
def test_matches_counting_pixel_by_pixel(pairs):
    matrix = ConfusionMatrix(5)
    expected = np.zeros((5, 5), dtype=int)
    for prediction, labels in pairs:
        matrix.update(torch.from_numpy(prediction), torch.from_numpy(labels))
        for p, t in zip(prediction.flat, labels.flat, strict=True):
            if t != 255:
                expected[t, p] += 1
    assert matrix.matrix.tolist() == expected.tolist()
    iou = matrix.iou()
    for c in range(5):
        union = expected[c].sum() + expected[:, c].sum() - expected[c, c]
        assert iou[c].isnan() if union == 0 else iou[c].item() == expected[c, c] / union


@settings(max_examples=40, deadline=None)
@given(images(4))
def test_matches_torchmetrics(pair):
    prediction, labels = (torch.from_numpy(a).long() for a in pair)
    matrix = counted(prediction, labels, num_classes=4)
    per_class = MulticlassJaccardIndex(4, average="none", ignore_index=255)(prediction, labels).double()
    present = ~matrix.iou().isnan()
    torch.testing.assert_close(matrix.iou()[present], per_class[present], rtol=1e-6, atol=1e-7)
    if present.any():
        mean = MulticlassJaccardIndex(4, average="macro", ignore_index=255)(prediction, labels).item()
        assert matrix.miou() == pytest.approx(mean, abs=1e-6)


def test_torchmetrics_agrees_on_a_large_set_of_19_classes():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 19, (4, 64, 128), generator=generator)
    prediction = torch.where(
        torch.rand(labels.shape, generator=generator) < 0.7,
        labels,
        torch.randint(0, 19, labels.shape, generator=generator),
    )
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    matrix = ConfusionMatrix(19)
    for i in range(4):  # image by image here, all at once there
        matrix.update(prediction[i : i + 1], labels[i : i + 1].to(torch.uint8))
    reference = MulticlassJaccardIndex(19, average="none", ignore_index=255)(prediction, labels)
    torch.testing.assert_close(matrix.iou(), reference.double(), rtol=1e-6, atol=0)


def test_categories_forgive_confusion_inside_and_count_it_outside():
    # True 0, 0, 1, 2, 3; category ab = {0, 1}, c = {2}; class 3 is in no category, d = {4} occurs nowhere.
    matrix = counted([[[1, 0, 2, 2, 0]]], [[[0, 0, 1, 2, 3]]], num_classes=5)
    iou = matrix.category_iou([("ab", (0, 1)), ("c", (2,)), ("d", (4,))])
    assert iou[:2].tolist() == [2 / 4, 1 / 2]  # ab: TP 2, FN 1, FP 1; c: TP 1, FP 1
    assert iou[2].isnan()


def test_a_category_of_unknown_classes_is_named():
    with pytest.raises(ValueError, match=r"category 'sky' lists class 3; the classes are 0 … 2"):
        counted([[[0]]], [[[0]]]).category_iou([("sky", (0, 3))])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_every_integer_dtype_counts_the_same(dtype):
    matrix = counted(torch.tensor([[[0, 1]]], dtype=dtype), tv_tensors.Mask(torch.tensor([[[0, 255]]])))
    assert matrix.matrix.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("prediction", "labels", "message"),
    [
        ([[[0, 0]]], [[[0, 7]]], "the labels contain 7; the classes are 0 … 2"),
        ([[[0, 0]]], [[[0, -1]]], "the labels contain -1"),
        ([[[0, 3]]], [[[0, 0]]], "the prediction contains 3"),
        ([[[0, -2]]], [[[0, 0]]], "the prediction contains -2"),
        ([[[0.0]]], [[[0]]], "prediction is torch.float32"),
        ([[[0, 1]]], [[[0]]], r"shape \(1, 1, 2\) and the labels \(1, 1, 1\)"),
    ],
)
def test_wrong_input_is_named_and_leaves_the_counts_alone(prediction, labels, message):
    matrix = counted([[[0]]], [[[0]]])
    with pytest.raises(ValueError, match=message):
        matrix.update(torch.tensor(prediction), torch.tensor(labels))
    assert matrix.matrix.sum() == 1


def test_predictions_on_ignored_pixels_are_not_looked_at():
    assert counted([[[0, 255]]], [[[0, 255]]]).matrix.sum() == 1


def test_an_empty_image_adds_nothing():
    matrix = counted(torch.zeros(1, 0, 4, dtype=torch.long), torch.zeros(1, 0, 4, dtype=torch.long))
    assert matrix.matrix.sum() == 0


def test_where_update_cannot_raise_the_scores_do():
    # The meta device, like a GPU, has no values to look at while `update` runs.
    matrix = ConfusionMatrix(3, device="meta")
    matrix.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.zeros(1, 2, 2, dtype=torch.long))
    matrix = ConfusionMatrix(3)
    matrix._extremes = torch.tensor([0, 9, 0, 2])  # what a GPU's update would have left
    with pytest.raises(ValueError, match="the labels contain 9"):
        matrix.iou()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_counts_the_same_without_waiting():
    labels = torch.randint(0, 19, (2, 64, 64), generator=torch.Generator().manual_seed(0))
    prediction = labels.flip(1)
    labels[:, :8] = 255
    expected = counted(prediction, labels, 19)
    matrix = ConfusionMatrix(19, device="cuda")
    on_gpu = prediction.cuda(), labels.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        matrix.update(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(matrix.matrix.cpu(), expected.matrix)
    matrix.update(on_gpu[0] + 19, on_gpu[1])
    with pytest.raises(ValueError, match="the prediction contains"):
        matrix.miou()


# Two instances of class 1 (4 and 1 pixels), one of class 2, a crowd of class 1, and background.
LABELS = torch.tensor([[[1, 1, 1, 1, 1, 2, 2, 1, 0, 0]]])
INSTANCES = torch.tensor([[[24000] * 4 + [24001] + [26000] * 2 + [24] + [7] * 2]])
PREDICTION = torch.tensor([[[1, 1, 1, 0, 1, 2, 1, 0, 2, 0]]])


def test_instance_iou_by_hand():
    instances = InstanceIoU((1, 2))
    instances.update(PREDICTION, LABELS, INSTANCES)
    assert instances.mean_sizes.tolist() == [2.5, 2.0]
    # Class 1: weights 2.5/4 and 2.5/1, so iTP = 3 * 2.5/4 + 2.5, iFN = 2.5/4; FP 1; the crowd's pixel is out.
    # Class 2: iTP = iFN = 1; FP 1.
    itp, ifn = 3 * 2.5 / 4 + 2.5, 2.5 / 4
    expected = [itp / (itp + 1 + ifn), 1 / 3]
    assert instances.iou(counted(PREDICTION, LABELS).matrix).tolist() == pytest.approx(expected)


def test_instance_iou_with_given_mean_sizes():
    instances = InstanceIoU((2, 1), mean_sizes=(10, 100))
    instances.update(PREDICTION, LABELS, INSTANCES)
    class_1 = 175 / (200 + 1)  # 100 * (3/4 + 1), of 2 instances
    assert instances.iou(counted(PREDICTION, LABELS).matrix).tolist() == pytest.approx([5 / 11, class_1])


def test_one_id_in_two_images_is_two_instances_and_order_does_not_matter():
    one_by_one, together = InstanceIoU((1, 2)), InstanceIoU((1, 2))
    flipped = [t.flip(2) for t in (PREDICTION, LABELS, INSTANCES)]
    one_by_one.update(PREDICTION, LABELS, INSTANCES)
    one_by_one.update(*flipped)
    together.update(*(torch.cat(p) for p in zip((PREDICTION, LABELS, INSTANCES), flipped, strict=True)))
    matrix = counted(PREDICTION, LABELS).matrix * 2
    assert together.iou(matrix).tolist() == one_by_one.iou(matrix).tolist()
    assert together.mean_sizes.tolist() == [2.5, 2.0]


def test_equal_instances_make_iiou_the_iou():
    labels = torch.tensor([[[1, 1, 1, 1, 0, 0]]])
    ids = torch.tensor([[[24000, 24000, 24001, 24001, 7, 7]]])
    prediction = torch.tensor([[[1, 0, 1, 1, 1, 0]]])
    instances = InstanceIoU((1,))
    instances.update(prediction, labels, ids)
    matrix = counted(prediction, labels)
    assert instances.iou(matrix.matrix).item() == pytest.approx(matrix.iou()[1].item())


def test_instance_classes_without_instances():
    instances = InstanceIoU((1, 2))
    background = torch.zeros(1, 1, 3, dtype=torch.long)
    instances.update(background, background, background)
    iou = instances.iou(counted([[[0, 1, 0]]], background).matrix)
    assert iou[0] == 0.0  # only false positives
    assert iou[1].isnan()  # nothing at all


def test_instances_labeled_ignored_are_left_out():
    labels = torch.tensor([[[1, 255]]])
    instances = InstanceIoU((1,))
    instances.update(torch.tensor([[[1, 1]]]), labels, torch.tensor([[[24000, 29000]]]))
    assert instances.mean_sizes.item() == 1


def test_instance_iou_refuses_mismatched_input():
    with pytest.raises(ValueError, match="they have to be the same"):
        InstanceIoU((1,)).update(PREDICTION, LABELS, INSTANCES[..., :3])
    with pytest.raises(ValueError, match="1 mean sizes for 2 instance classes"):
        InstanceIoU((1, 2), mean_sizes=(3.0,))


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.int64, (2, 3, 4), elements=st.integers(0, 2)),
    hnp.arrays(np.int64, (2, 3, 4), elements=st.sampled_from([0, 1, 2, 255])),
    hnp.arrays(np.int64, (2, 3, 4), elements=st.integers(0, 2)),
)
def test_instance_iou_matches_weighting_pixel_by_pixel(prediction, labels, number):
    # Labels 1 and 2 are instance classes; number 0 stands for a crowd.
    ids = np.where(number > 0, labels * 1000 + number, labels)
    matrix = counted(prediction, labels).matrix
    instances = InstanceIoU((1, 2))
    instances.update(*(torch.from_numpy(a) for a in (prediction, labels, ids)))
    for slot, c in enumerate((1, 2)):
        masks = [(ids[b] == c * 1000 + n, prediction[b]) for b, n in itertools.product((0, 1), (1, 2))]
        masks = [(mask, predicted) for mask, predicted in masks if mask.any()]
        mean = sum(mask.sum() for mask, _ in masks) / len(masks) if masks else 0
        itp = sum(((predicted == c) & mask).sum() * mean / mask.sum() for mask, predicted in masks)
        ifn = sum(((predicted != c) & mask).sum() * mean / mask.sum() for mask, predicted in masks)
        fp = ((prediction == c) & (labels != c) & (labels != 255)).sum()
        value = instances.iou(matrix)[slot].item()
        total = itp + fp + ifn
        assert math.isnan(value) if total == 0 else value == pytest.approx(itp / total)


def test_object_areas_by_hand():
    #  two regions of class 0 (a diagonal does not join them), instances 24001 (in two pieces) and 24002 of
    #  class 1, side by side, and a crowd of class 1; nothing of class 2
    labels = torch.tensor([[[0, 1, 1, 1], [1, 0, 0, 255], [1, 1, 0, 255]]])
    instances = torch.tensor([[[0, 24001, 24001, 24002], [24001, 0, 0, 0], [24, 24, 0, 29000]]])
    objects = ObjectAreas(3)
    objects.update(labels, instances)
    assert sorted(objects.areas(0).tolist()) == [1, 3]
    assert sorted(objects.areas(1).tolist()) == [1, 2, 3]
    assert objects.medians[:2].tolist() == [2.0, 2.0]
    assert objects.medians[2].isnan() and len(objects.areas(2)) == 0
    objects.update(torch.zeros(1, 2, 5, dtype=torch.uint8))  # another size, and no instances
    assert objects.medians[0] == 3.0


def test_objects_do_not_go_on_in_the_next_image():
    objects = ObjectAreas(2)
    objects.update(torch.ones(2, 1, 3, dtype=torch.long), torch.full((2, 1, 3), 24000))
    assert objects.areas(1).tolist() == [3, 3]
    assert objects.areas(0).tolist() == []


def regions_by_flooding(labels):
    """Areas by class, found pixel by pixel."""
    height, width = labels.shape
    left, areas = set(itertools.product(range(height), range(width))), {}
    while left:
        start = left.pop()
        edge, area = [start], 0
        while edge:
            y, x = edge.pop()
            area += 1
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if near in left and labels[near] == labels[start]:
                    left.remove(near)
                    edge.append(near)
        areas.setdefault(int(labels[start]), []).append(area)
    return areas


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 2)))
def test_regions_match_flooding(labels):
    objects = ObjectAreas(3)
    objects.update(torch.from_numpy(labels)[None])
    expected = regions_by_flooding(labels)
    for c in range(3):
        assert sorted(objects.areas(c).tolist()) == sorted(expected.get(c, []))
        assert objects.medians[c].item() == pytest.approx(
            float(np.median(expected[c])) if c in expected else math.nan, nan_ok=True
        )


def test_a_long_snake_is_one_region():
    labels = torch.zeros(1, 40, 40, dtype=torch.long)
    labels[:, 1::2] = 1
    labels[:, 1::4, -1] = labels[:, 3::4, 0] = 0  # rows of class 0, joined at alternating ends
    objects = ObjectAreas(2)
    objects.update(labels)
    assert objects.areas(0).tolist() == [(labels == 0).sum()]


def test_object_areas_refuse_what_does_not_fit():
    objects = ObjectAreas(3)
    with pytest.raises(ValueError, match=r"labels \(1, 1, 2\), instances \(1, 1, 3\): both have to be one"):
        objects.update(torch.zeros(1, 1, 2), torch.zeros(1, 1, 3))
    with pytest.raises(ValueError, match=r"labels \(2, 3\): both have to be one"):
        objects.update(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"the labels contain 3; the classes are 0 … 2, .* 255 are ignored"):
        objects.update(torch.tensor([[[255, 3]]]))
