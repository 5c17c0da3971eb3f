import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torchvision import tv_tensors

from segkit.evaluation.boundary import TrimapIoU, boundary_bands
from segkit.evaluation.metrics import ConfusionMatrix

WIDTHS = (1, 2, 4)
MAPS = hnp.arrays(np.int64, (2, 5, 7), elements=st.sampled_from([0, 0, 0, 1, 2, 255]))


def scored(prediction, labels, widths=WIDTHS, num_classes=3, **options):
    trimap = TrimapIoU(num_classes, widths, **options)
    trimap.update(torch.as_tensor(prediction), torch.as_tensor(labels))
    return trimap


def plain(prediction, labels, num_classes=3):
    matrix = ConfusionMatrix(num_classes)
    matrix.update(torch.as_tensor(prediction), torch.as_tensor(labels))
    return matrix


def in_band(labels, width, ignored_edges=False):
    """By looking at each pixel's square for two labels, ignored ones among them or not."""
    found = np.zeros(labels.shape, dtype=bool)
    for b, y, x in np.ndindex(labels.shape):
        square = labels[b, max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
        values = set(square.flatten().tolist())
        found[b, y, x] = len(values if ignored_edges else values - {255}) > 1
    return found


@settings(max_examples=60, deadline=None)
@given(MAPS, st.booleans())
def test_bands_match_a_search_around_each_pixel(labels, ignored_edges):
    bands = boundary_bands(torch.from_numpy(labels), WIDTHS, ignored_edges=ignored_edges).numpy()
    for index, width in enumerate(WIDTHS):
        assert ((bands <= index) == in_band(labels, width, ignored_edges)).all()
    assert bands.max() <= len(WIDTHS)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.int64, (2, 5, 7), elements=st.integers(0, 2)), MAPS)
def test_scores_are_those_of_the_band_alone(prediction, labels):
    trimap = scored(prediction, labels)
    for index, width in enumerate(WIDTHS):
        inside = np.where(in_band(labels, width), labels, 255)
        expected = plain(prediction, inside)
        assert torch.equal(trimap.matrices[index], expected.matrix)
        assert torch.equal(trimap.iou()[index].nan_to_num(-1), expected.iou().nan_to_num(-1))
        assert trimap.miou()[width] == pytest.approx(expected.miou(), nan_ok=True)
        labeled = (labels != 255).sum()
        share = (inside != 255).sum() / labeled if labeled else math.nan
        assert trimap.share()[width] == pytest.approx(share, nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.int64, (1, 6, 8), elements=st.integers(0, 2)),
    hnp.arrays(np.int64, (1, 6, 8), elements=st.integers(0, 2)),
)
def test_between_labeled_pixels_the_width_is_a_chessboard_distance(prediction, labels):
    """The distance to the nearest pixel of another class, which the square says without a distance map."""
    places = np.stack(np.indices(labels.shape[1:]), -1).reshape(-1, 2)
    values = labels.flatten()
    apart = np.abs(places[:, None] - places).max(-1)
    nearest = np.where(values[:, None] != values, apart, 99).min(1).reshape(labels.shape)
    bands = boundary_bands(torch.from_numpy(labels), range(1, 9)).numpy()
    assert (bands == np.minimum(nearest - 1, 8)).all()


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.int64, (1, 4, 6), elements=st.integers(0, 2)), MAPS)
def test_a_width_beyond_the_image_gives_plain_iou_where_there_is_a_boundary(prediction, labels):
    labels = labels[:1, :4, :6]
    trimap, usual = scored(prediction, labels, (10**9,)), plain(prediction, labels)
    if len(set(labels.flatten().tolist()) - {255}) > 1:
        assert torch.equal(trimap.matrices[0], usual.matrix)
        assert trimap.miou() == {10**9: usual.miou()}
        assert trimap.share() == {10**9: 1.0}
    else:
        assert trimap.matrices.sum() == 0
        assert math.isnan(trimap.miou()[10**9])


def test_a_boundary_by_hand():
    labels = torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 1]]])
    prediction = torch.tensor([[[1, 0, 0, 1, 1, 1, 1, 1]]])  # one pixel beside the boundary, and one far off
    trimap = scored(prediction, labels, (3, 1), num_classes=2)
    assert trimap.widths == (1, 3)
    assert trimap.matrices.tolist() == [[[0, 1], [0, 1]], [[2, 1], [0, 3]]]
    assert trimap.miou() == {1: pytest.approx((0 + 1 / 2) / 2), 3: pytest.approx((2 / 3 + 3 / 4) / 2)}
    assert trimap.share() == {1: 2 / 8, 3: 6 / 8}


def test_pixels_that_touch_at_a_corner_make_a_boundary():
    labels = torch.zeros(1, 3, 3, dtype=torch.long)
    labels[0, 0, 0] = 1
    bands = boundary_bands(labels, (1,))[0]
    assert (bands == 0).tolist() == [[True, True, False], [True, True, False], [False, False, False]]


def test_ignored_pixels_make_no_boundary_and_hide_none_unless_asked():
    labels = torch.tensor([[[0, 0, 0, 255, 255, 1, 1, 1]]])
    perfect = labels.where(labels != 255, 0)
    trimap = scored(perfect, labels, (1, 2, 3), num_classes=2)
    assert trimap.matrices.sum((1, 2)).tolist() == [0, 0, 2]  # the strip is reached across, but not scored
    assert math.isnan(trimap.miou()[1]) and trimap.miou()[3] == 1.0
    trimap = scored(perfect, labels, (1, 2, 3), num_classes=2, ignored_edges=True)
    assert trimap.matrices.sum((1, 2)).tolist() == [2, 4, 6]
    only = torch.full((1, 2, 2), 255)
    assert scored(only, only, ignored_edges=True).matrices.sum() == 0


def test_batches_add_up_and_label_maps_may_be_masks():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (4, 6, 6), generator=generator, dtype=torch.uint8)
    prediction = torch.randint(0, 3, (4, 6, 6), generator=generator)
    together, apart = scored(prediction, labels), TrimapIoU(3, WIDTHS)
    for one, truth in zip(prediction, labels, strict=True):
        apart.update(one[None], tv_tensors.Mask(truth[None]))
    assert torch.equal(together.matrices, apart.matrices)
    apart.update(prediction[:0], labels[:0])
    assert torch.equal(together.matrices, apart.matrices)


def test_another_ignore_index():
    labels = torch.tensor([[[-1, 0, 0, 1]]])
    prediction = torch.tensor([[[1, 0, 0, 0]]])
    trimap = scored(prediction, labels, (1, 2), num_classes=2, ignore_index=-1)
    assert trimap.matrices.tolist() == [[[1, 0], [1, 0]], [[2, 0], [1, 0]]]
    unsigned = labels.clamp(min=0).byte()  # cannot hold -1, and has nothing to ignore
    assert scored(prediction, unsigned, (1,), num_classes=2, ignore_index=-1).matrices.sum() == 2


def test_nothing_evaluated_gives_nan():
    trimap = TrimapIoU(3, (2,))
    assert math.isnan(trimap.miou()[2]) and math.isnan(trimap.share()[2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_figures_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 40, 50), generator=generator).repeat_interleave(5, 2)
    labels[0, :9] = 255
    prediction = torch.randint(0, 3, labels.shape, generator=generator)
    trimap = TrimapIoU(3, device="cuda")
    trimap.update(prediction.cuda(), labels)
    expected = scored(prediction, labels, trimap.widths)
    assert torch.equal(trimap.matrices.cpu(), expected.matrices)
    assert (trimap.miou(), trimap.share()) == (expected.miou(), expected.share())


@pytest.mark.parametrize("widths", [(), (0,), (1, 1), (1.5,), (True,)])
def test_widths_that_cannot_be_are_refused(widths):
    with pytest.raises(ValueError, match="different whole numbers of pixels from 1 on"):
        TrimapIoU(3, widths)


def test_input_that_does_not_fit_is_refused():
    maps = torch.zeros(1, 4, 4, dtype=torch.long)
    maps[0, 0, 0] = 1
    with pytest.raises(ValueError, match="num_classes"):
        TrimapIoU(0)
    with pytest.raises(ValueError, match=r"labels have shape \(4, 4\); they have to be maps"):
        scored(maps[0], maps[0])
    with pytest.raises(ValueError, match="they have to be the same"):
        scored(maps[:, :3], maps)
    with pytest.raises(ValueError, match=r"prediction is torch\.float32"):
        scored(maps.float(), maps)
    with pytest.raises(ValueError, match="labels contain 17"):
        scored(maps, maps * 17)
    far = torch.zeros(1, 4, 40, dtype=torch.long)
    far[..., 0], wrong = 1, far.clone()
    wrong[..., -1] = 9  # in no band
    with pytest.raises(ValueError, match="prediction contains 9"):
        scored(wrong, far)
