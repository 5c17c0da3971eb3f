"""Flip, rescale, crop and padding on image, labels and instances together; normalization."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from torchvision import tv_tensors
from torchvision.transforms import v2

from segkit.data.augment import RandAugment
from segkit.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    InstanceMask,
    PadBelowAndRight,
    RandomBlur,
    RandomInnerCrop,
    RandomRescale,
    RandomShortSide,
    fastfcn_transform,
    normalize,
    regseg_transform,
    training_transform,
)

MEAN_PIXEL = (124, 116, 104)  # 255 * ImageNet's mean, rounded


def coded_sample(height: int, width: int) -> dict:
    """Every pixel says where it was: image (row, column, 7), labels row, instances 1000 * row + column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([rows, columns, torch.full_like(rows, 7)]).to(torch.uint8)
    return {
        "image": tv_tensors.Image(image),
        "labels": tv_tensors.Mask(rows.to(torch.uint8)),
        "instances": InstanceMask((1000 * rows + columns).to(torch.int32)),
        "name": "coded",
    }


def plain(sample: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tuple(sample[key].as_subclass(torch.Tensor) for key in ("image", "labels", "instances"))


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    crop=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    flip=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_without_rescaling_every_pixel_is_the_original_or_padding(size, crop, flip, seed):
    torch.manual_seed(seed)
    result = training_transform(crop=crop, scale=(1, 1), flip=float(flip))(coded_sample(*size))
    image, labels, instances = plain(result)
    assert image.shape == (3, *crop) and labels.shape == crop and instances.shape == crop
    inside = labels != 255
    rows, columns = inside.any(1).nonzero().ravel(), inside.any(0).nonzero().ravel()
    # What was cropped is a full rectangle: the crop where the image is larger, the image where it is not.
    assert (len(rows), len(columns)) == (min(size[0], crop[0]), min(size[1], crop[1]))
    assert inside.sum() == len(rows) * len(columns)
    step = -1 if flip else 1
    assert torch.equal(image[0][inside], labels[inside])
    assert torch.equal(instances[inside], 1000 * image[0][inside].int() + image[1][inside].int())
    block = image[1][rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].int()
    assert (block[:, 1:] - block[:, :-1] == step).all()
    assert (image[:, ~inside] == torch.tensor(MEAN_PIXEL)[:, None]).all()
    assert (instances[~inside] == 0).all()


def test_types_and_strings_survive():
    result = training_transform(crop=(20, 20))(coded_sample(16, 24))
    assert result["name"] == "coded"
    assert type(result["image"]) is tv_tensors.Image and result["image"].dtype == torch.uint8
    assert type(result["labels"]) is tv_tensors.Mask and result["labels"].dtype == torch.uint8
    assert type(result["instances"]) is InstanceMask and result["instances"].dtype == torch.int32


def test_the_order_is_flip_rescale_crop():
    transform = training_transform(crop=(8, 8))
    assert [type(step) for step in transform.transforms] == [
        v2.RandomHorizontalFlip,
        RandomRescale,
        v2.RandomCrop,
    ]


def test_the_mean_pixel_can_be_chosen():
    sample = training_transform(crop=(9, 9), scale=(1, 1), mean_pixel=(1.4, 2.6, 3))(coded_sample(2, 2))
    image, labels, _ = plain(sample)
    assert (image[:, labels == 255] == torch.tensor([1, 3, 3])[:, None]).all()


def test_padding_leaves_the_image_at_varying_places():
    transform, places = training_transform(crop=(6, 6), scale=(1, 1), flip=0.0), set()
    torch.manual_seed(0)
    for _ in range(200):
        labels = transform(coded_sample(4, 5))["labels"]
        places.add(tuple((labels != 255).nonzero()[0].tolist()))
    assert places == {(row, column) for row in range(3) for column in range(2)}


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    factor=st.floats(0.5, 2),
    seed=st.integers(0, 2**32),
)
def test_rescaling_keeps_labels_on_the_image(size, factor, seed):
    torch.manual_seed(seed)
    sample = coded_sample(*size)
    image, labels, instances = plain(RandomRescale((factor, factor))(sample))
    height, width = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
    assert image.shape == (3, height, width)
    # The pixel whose center lies nearest below each new center, so labels are never shifted by half a pixel.
    expected = [min(int((row + 0.5) * size[0] / height), size[0] - 1) for row in range(height)]
    assert (
        labels.int() - torch.tensor(expected)[:, None]
    ).abs().max() <= 1  # float32 may round a tie either way
    assert torch.equal(instances // 1000, labels.int())


def test_labels_and_image_are_not_shifted_against_each_other():
    sample = coded_sample(200, 8)
    for factor in (0.5, 0.7, 1.4, 1.9):
        image, labels, _ = plain(RandomRescale((factor, factor))(sample))
        inner = slice(5, -5)
        shift = (image[0, inner].double() - labels[inner].double()).mean()
        # At factor 0.5 a new center falls between two old ones, and nearest-exact takes the lower one.
        assert abs(shift) <= (0.51 if factor == 0.5 else 0.05), (factor, shift)


def test_the_factor_is_uniform():
    torch.manual_seed(0)
    rescale = RandomRescale((0.5, 2.0))
    heights = torch.tensor([rescale.make_params([torch.empty(3, 1000, 4)])["size"][0] for _ in range(2000)])
    assert heights.min() >= 500 and heights.max() <= 2000
    assert torch.histc(heights.double(), bins=5, min=500, max=2000).min() > 330  # 400 expected, deviation 18
    assert heights.double().mean() == pytest.approx(1250, abs=40)


def test_images_are_antialiased():
    stripes = torch.zeros(3, 64, 64, dtype=torch.uint8)
    stripes[:, ::2] = 255
    small = RandomRescale((0.25, 0.25))({"image": tv_tensors.Image(stripes)})["image"]
    assert (small.float() - 127.5).abs().max() < 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalize(dtype):
    images = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    result = normalize(images, dtype=dtype)
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    expected = ((images.double() / 255 - mean) / std).to(dtype)
    assert result.dtype == dtype and type(result) is torch.Tensor
    torch.testing.assert_close(result, expected)
    other = normalize(images, mean=(0, 0, 0), std=(1, 1, 1))
    torch.testing.assert_close(other, images / 255)


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)])
def test_normalize_refuses_what_is_no_batch_of_pixels(images):
    with pytest.raises(ValueError, match="uint8"):
        normalize(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": (0, 8)}, "crop"),
        ({"crop": (8,)}, "crop"),
        ({"crop": (8.0, 8)}, "crop"),
        ({"crop": (8, 8), "scale": (0, 1)}, "scale"),
        ({"crop": (8, 8), "scale": (2, 1)}, "scale"),
        ({"crop": (8, 8), "flip": 1.5}, "1.5"),
        ({"crop": (8, 8), "mean_pixel": (0, 0)}, "mean_pixel"),
        ({"crop": (8, 8), "mean_pixel": (0, 0, 256)}, "256"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        training_transform(**options)


def test_the_stream_of_ladder_densenet_is_the_same_in_every_version():
    # Written down once: a change here would change every run that is resumed or repeated.
    torch.manual_seed(0)
    result = training_transform(crop=(6, 6))(coded_sample(20, 30))
    assert result["instances"].tolist()[0] == [13020, 13020, 13019, 13018, 13018, 13017]
    torch.manual_seed(1)
    assert training_transform(crop=(6, 6))(coded_sample(20, 30))["instances"].tolist()[0] == [
        3017,
        3018,
        3019,
        3020,
        3021,
        3023,
    ]


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    low=st.integers(1, 40),
    more=st.integers(0, 40),
    seed=st.integers(0, 2**32),
)
def test_the_short_side_is_drawn_and_the_aspect_kept(size, low, more, seed):
    torch.manual_seed(seed)
    image, labels, instances = plain(RandomShortSide((low, low + more))(coded_sample(*size)))
    height, width = labels.shape
    short, longer = min(height, width), max(height, width)
    assert low <= short <= low + more and image.shape == (3, height, width) == (3, *instances.shape)
    assert (height <= width) == (size[0] <= size[1]) or short == longer
    assert abs(longer - max(size) * short / min(size)) <= 0.5
    assert torch.equal(instances // 1000, labels.int())


def test_short_sides_are_whole_numbers_of_the_whole_range():
    torch.manual_seed(0)
    transform = RandomShortSide((4, 7))
    sizes = [transform.make_params([torch.empty(3, 10, 20)])["size"] for _ in range(400)]
    counts = torch.tensor([short for short, _ in sizes]).bincount(minlength=8)
    assert counts[:4].sum() == 0 and counts[4:].min() > 60  # 100 expected, deviation 9
    assert all(width == 2 * height for height, width in sizes)


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    crop=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    short_side=st.integers(1, 60),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 2**32),
)
def test_the_crop_holds_the_point_and_lies_in_the_image(size, crop, short_side, place, seed):
    torch.manual_seed(seed)
    sample = coded_sample(*size)
    sample["point"] = tv_tensors.KeyPoints(
        [[place[0] * size[1], place[1] * size[0]]], canvas_size=size, dtype=torch.float32
    )
    sample = RandomShortSide((short_side, short_side))(sample)
    height, width = sample["labels"].shape
    (x, y) = sample["point"][0].tolist()
    assert (x, y) == pytest.approx((place[0] * width, place[1] * height), abs=1e-4)
    transform = RandomInnerCrop(crop)
    window = transform.make_params([sample["image"], sample["point"]])
    top, left = window["top"], window["left"]
    assert (window["height"], window["width"]) == (min(crop[0], height), min(crop[1], width))
    assert 0 <= top <= min(int(y), height - 1) < top + window["height"] <= height
    assert 0 <= left <= min(int(x), width - 1) < left + window["width"] <= width
    torch.manual_seed(seed)
    window = transform.make_params([sample["image"], sample["point"]])
    torch.manual_seed(seed)
    result = transform(sample)
    assert "point" not in result and result["name"] == "coded"
    rows = slice(window["top"], window["top"] + window["height"])
    columns = slice(window["left"], window["left"] + window["width"])
    for ours, whole in zip(plain(result), plain(sample), strict=True):
        assert torch.equal(ours, whole[..., rows, columns])


def test_the_window_is_uniform_over_all_that_hold_the_point_then_moved_into_the_image():
    image = torch.empty(3, 4, 12)

    def lefts(x):
        torch.manual_seed(0)
        point = [tv_tensors.KeyPoints([[x, 2.0]], canvas_size=(4, 12))] if x is not None else []
        drawn = [RandomInnerCrop((4, 5)).make_params([image, *point])["left"] for _ in range(1000)]
        return torch.tensor(drawn).bincount(minlength=8) / 1000

    assert torch.allclose(lefts(6.5), torch.tensor([0, 0, 0.2, 0.2, 0.2, 0.2, 0.2, 0]), atol=0.05)
    assert torch.allclose(lefts(1.0), torch.tensor([0.8, 0.2, 0, 0, 0, 0, 0, 0]), atol=0.05)
    assert torch.allclose(lefts(12.0), torch.tensor([0, 0, 0, 0, 0, 0, 0, 1.0]), atol=0.05)
    assert torch.allclose(lefts(None), torch.full((8,), 0.125), atol=0.05)


def test_regsegs_order_pads_after_rand_augment():
    steps = regseg_transform(crop=(8, 8)).transforms
    assert [type(step) for step in steps] == [
        RandomShortSide,
        RandomInnerCrop,
        v2.RandomHorizontalFlip,
        RandAugment,
        v2.RandomCrop,
    ]
    assert (steps[0].short_side, steps[3].operations, steps[3].magnitude) == ((400, 1600), 2, 0.2)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    crop=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    flip=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_without_resizing_regsegs_pixels_are_the_original_or_padding(size, crop, flip, seed):
    torch.manual_seed(seed)
    short = min(size)
    transform = regseg_transform(crop=crop, short_side=(short, short), flip=float(flip), rand_augment=0)
    image, labels, instances = plain(transform(coded_sample(*size)))
    assert image.shape == (3, *crop) and labels.shape == crop and instances.shape == crop
    inside = labels != 255
    assert inside.sum() == min(size[0], crop[0]) * min(size[1], crop[1])
    assert torch.equal(image[0][inside], labels[inside])
    assert torch.equal(instances[inside], 1000 * image[0][inside].int() + image[1][inside].int())
    assert (image[:, ~inside] == torch.tensor((123, 116, 103))[:, None]).all()
    assert (instances[~inside] == 0).all()


def test_regsegs_padding_is_untouched_by_its_operations():
    # 20x20 into 60x60: padding has the mean pixel, however colors were changed inside.
    torch.manual_seed(0)
    for _ in range(20):
        transform = regseg_transform(crop=(60, 60), short_side=(20, 20), rand_augment=7, rand_magnitude=1.0)
        image, labels, instances = plain(transform(coded_sample(20, 20)))
        rows, columns = (labels != 255).any(1).nonzero().ravel(), (labels != 255).any(0).nonzero().ravel()
        outside = torch.ones_like(labels, dtype=torch.bool)
        outside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = False
        assert (image[:, outside] == torch.tensor((123, 116, 103))[:, None]).all()
        assert (labels[outside] == 255).all()
        assert (labels[~outside] == 255).any()  # the corners of what was turned
        assert (instances[labels == 255] == 0).all()


def test_a_single_pixel_may_come_out():
    image, labels, _ = plain(RandomRescale((0.4, 0.4))(coded_sample(3, 3)))
    assert image.flatten().tolist() == [1, 1, 7] and labels.tolist() == [[1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": (0, 8)}, "crop"),
        ({"short_side": (0, 10)}, r"short_side.*got \(0, 10\)"),
        ({"short_side": (10, 9)}, "short_side"),
        ({"short_side": (1.5, 9)}, "whole pixels"),
        ({"flip": -1}, "-1"),
        ({"rand_augment": 8}, "got 8"),
        ({"rand_magnitude": 1.2}, "got 1.2"),
    ],
)
def test_bad_arguments_of_regsegs_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        regseg_transform(**{"crop": (8, 8), **options})


def test_fastfcns_order_is_flip_resize_pad_crop_blur():
    steps = fastfcn_transform(crop=(8, 8)).transforms
    assert [type(step) for step in steps] == [
        v2.RandomHorizontalFlip,
        RandomShortSide,
        PadBelowAndRight,
        v2.RandomCrop,
        RandomBlur,
    ]
    assert (steps[0].p, steps[1].short_side, steps[4].probability) == (0.5, (260, 1040), 0.5)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    crop=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    flip=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_without_resizing_fastfcn_pads_black_below_and_at_the_right(size, crop, flip, seed):
    torch.manual_seed(seed)
    short = min(size)
    transform = fastfcn_transform(crop=crop, short_side=(short, short), flip=float(flip), blur=0)
    image, labels, instances = plain(transform(coded_sample(*size)))
    assert image.shape == (3, *crop) and labels.shape == crop and instances.shape == crop
    height, width = min(size[0], crop[0]), min(size[1], crop[1])
    inside = torch.zeros(crop, dtype=torch.bool)
    inside[:height, :width] = True
    assert torch.equal(image[0][inside], labels[inside]) and (image[2][inside] == 7).all()
    assert torch.equal(instances[inside], 1000 * image[0][inside].int() + image[1][inside].int())
    steps = image[1, :height, :width].int().diff(dim=1)
    assert (steps == (-1 if flip else 1)).all()
    assert (image[:, ~inside] == 0).all()
    assert (labels[~inside] == 255).all() and (instances[~inside] == 0).all()


def test_fastfcns_crops_lie_everywhere_in_the_image():
    transform, places = fastfcn_transform(crop=(6, 6), short_side=(8, 8), flip=0, blur=0), set()
    torch.manual_seed(0)
    for _ in range(300):
        places.add(divmod(int(transform(coded_sample(8, 9))["instances"][0, 0]), 1000))
    assert places == {(row, column) for row in range(3) for column in range(4)}


def test_blur_is_pillows_and_leaves_labels_sharp():
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 12, 17), dtype=torch.uint8)
    sample = {**coded_sample(12, 17), "image": tv_tensors.Image(image)}
    torch.manual_seed(5)
    _, deviation = torch.rand(2).tolist()
    torch.manual_seed(5)
    result = RandomBlur(1.0)(sample)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(deviation))
    assert torch.equal(result["image"].permute(1, 2, 0), torch.from_numpy(np.array(picture)))
    assert not torch.equal(result["image"], sample["image"])
    assert type(result["image"]) is tv_tensors.Image and result["image"].dtype == torch.uint8
    for key in ("labels", "instances"):
        assert torch.equal(result[key], sample[key]) and type(result[key]) is type(sample[key])


def test_blur_comes_as_often_as_told_and_up_to_a_pixel():
    torch.manual_seed(0)
    drawn = [RandomBlur(0.25).make_params([])["deviation"] for _ in range(2000)]
    some = torch.tensor([deviation for deviation in drawn if deviation])
    assert len(some) == pytest.approx(500, abs=80)  # deviation 19
    assert some.min() > 0 and some.max() < 1 and some.mean() == pytest.approx(0.5, abs=0.06)
    assert not any(RandomBlur(0.0).make_params([])["deviation"] for _ in range(50))


def test_whether_there_is_a_blur_changes_nothing_else():
    for seed in range(5):
        found = []
        for blur in (0.0, 1.0):
            torch.manual_seed(seed)
            sample = fastfcn_transform(crop=(9, 9), short_side=(6, 20), blur=blur)(coded_sample(12, 15))
            found.append((sample["labels"], torch.rand(())))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_stream_of_fastfcn_is_the_same_in_every_version():
    # Written down once: a change here would change every run that is resumed or repeated.
    torch.manual_seed(0)
    result = fastfcn_transform(crop=(6, 6), short_side=(10, 40))(coded_sample(20, 30))
    assert result["instances"].tolist()[0] == [14017, 14016, 14016, 14015, 14015, 14014]
    assert type(result["image"]) is tv_tensors.Image and result["name"] == "coded"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": (0, 8)}, "crop"),
        ({"short_side": (10, 9)}, "short_side"),
        ({"flip": 1.5}, "1.5"),
        ({"blur": -0.1}, "blur is a probability from 0 to 1, got -0.1"),
    ],
)
def test_bad_arguments_of_fastfcns_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fastfcn_transform(**{"crop": (8, 8), **options})
