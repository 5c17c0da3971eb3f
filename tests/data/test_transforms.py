"""Flip, rescale, crop and padding on image, labels and instances together; normalization."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms import v2

from segkit.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    InstanceMask,
    RandomRescale,
    normalize,
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
