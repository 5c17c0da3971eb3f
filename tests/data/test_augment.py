"""RegSeg's reduced RandAug: each operation against Pillow and against arithmetic, and the random choice."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torchvision import tv_tensors

from segkit.data.augment import MEAN_PIXEL, OPERATIONS, RandAugment, rand_augment
from segkit.data.transforms import InstanceMask

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(30, 220, (40, 56, 3), np.uint8)
LABELS = torch.from_numpy(RNG.integers(0, 19, (40, 56), np.uint8))


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def changed(operation: str, magnitude: float = 0.2, sign: int = 1, picture: np.ndarray = PICTURE):
    image, _ = rand_augment(
        tensor(picture), torch.zeros(picture.shape[:2]).byte(), operation, magnitude, sign
    )
    return image.permute(1, 2, 0).numpy()


def by_pillow(operation: str, sign: int) -> np.ndarray:
    """What the paper's magnitude 0.2 is, written out."""
    picture, factor = Image.fromarray(PICTURE), {1: 1.18, -1: 0.82}[sign]
    return np.array(
        {
            "auto_contrast": lambda: ImageOps.autocontrast(picture),
            "equalize": lambda: ImageOps.equalize(picture),
            "rotate": lambda: picture.rotate(6 * sign, Image.Resampling.BILINEAR, fillcolor=(123, 116, 103)),
            "color": lambda: ImageEnhance.Color(picture).enhance(factor),
            "contrast": lambda: ImageEnhance.Contrast(picture).enhance(factor),
            "brightness": lambda: ImageEnhance.Brightness(picture).enhance(factor),
            "sharpness": lambda: ImageEnhance.Sharpness(picture).enhance(factor),
        }[operation]()
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_is_pillows_at_the_papers_magnitude(operation, sign):
    result = changed(operation, sign=sign)
    assert np.array_equal(result, by_pillow(operation, sign))
    assert not np.array_equal(result, PICTURE)


def test_the_seven_operations_of_the_paper():
    assert sorted(OPERATIONS) == [
        "auto_contrast",
        "brightness",
        "color",
        "contrast",
        "equalize",
        "rotate",
        "sharpness",
    ]


@settings(max_examples=30, deadline=None)
@given(magnitude=st.floats(0, 1), sign=st.sampled_from([1, -1]))
def test_brightness_and_contrast_by_arithmetic(magnitude, sign):
    factor = 1 + sign * 0.9 * magnitude
    pixels = PICTURE.astype(float)
    bright = np.clip(pixels * factor, 0, 255)
    assert np.abs(changed("brightness", magnitude, sign) - bright).max() <= 1
    gray = round((pixels @ (0.299, 0.587, 0.114)).mean())
    contrast = np.clip(gray + factor * (pixels - gray), 0, 255)
    assert np.abs(changed("contrast", magnitude, sign) - contrast).max() <= 2


def test_auto_contrast_uses_the_whole_range_and_equalize_flattens_the_histogram():
    stretched = changed("auto_contrast")
    assert (stretched.min((0, 1)) == 0).all() and (stretched.max((0, 1)) == 255).all()
    skewed = (255 * (RNG.random((64, 64, 3)) ** 3)).astype(np.uint8)  # most pixels are dark
    quarters = np.histogram(changed("equalize", picture=skewed), bins=4, range=(0, 256))[0] / skewed.size
    assert np.histogram(skewed, bins=4, range=(0, 256))[0][0] / skewed.size > 0.6
    assert np.abs(quarters - 0.25).max() < 0.02


@pytest.mark.parametrize("operation", ["auto_contrast", "equalize"])
def test_some_operations_have_no_strength(operation):
    assert np.array_equal(changed(operation, 0.0, 1), changed(operation, 1.0, -1))


@pytest.mark.parametrize("operation", sorted({*OPERATIONS} - {"auto_contrast", "equalize"}))
def test_magnitude_zero_changes_nothing(operation):
    assert np.array_equal(changed(operation, 0.0), PICTURE)


def test_only_rotate_moves_labels():
    for operation in OPERATIONS:
        _, labels = rand_augment(tensor(PICTURE), LABELS, operation)
        assert torch.equal(labels, LABELS) == (operation != "rotate")


@pytest.mark.parametrize("sign", [1, -1])
def test_labels_turn_with_the_image(sign):
    # The image shows the labels, so that each label can be compared with what is seen at its place.
    blocks = np.kron(RNG.integers(0, 6, (5, 7)), np.ones((24, 24))).astype(np.uint8)
    picture = np.repeat(40 * blocks[..., None], 3, 2)
    image, labels = rand_augment(tensor(picture), torch.from_numpy(blocks), "rotate", 0.2, sign)
    inside = labels != 255
    # Between two blocks bilinear and nearest pixels differ; within one they are the same.
    agree = (image[0].int() - 40 * labels.int()).abs() <= 1
    assert agree[inside].double().mean() > 0.9
    corners = labels[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).all()
    assert (image[:, 0, 0] == torch.tensor(MEAN_PIXEL)).all()
    # Six degrees move the middle of the right edge by 168 / 2 * sin(6°) = 9 pixels, up where it turns left.
    marked = np.zeros((120, 168), np.uint8)
    marked[58:62, 150:160] = 1
    _, moved = rand_augment(tensor(picture), torch.from_numpy(marked), "rotate", 0.2, sign)
    row = (moved == 1).nonzero()[:, 0].double().mean()
    assert row.item() == pytest.approx(59.5 - sign * (154.5 - 83.5) * np.sin(np.radians(6)), abs=0.5)


def sample() -> dict:
    return {
        "image": tv_tensors.Image(tensor(PICTURE)),
        "labels": tv_tensors.Mask(LABELS),
        "instances": InstanceMask(LABELS.int() + 1000),
        "name": "picture",
        "other": torch.ones(3),
    }


def test_the_transform_takes_distinct_operations_and_both_signs():
    transform, seen = RandAugment(2, 0.2), []
    torch.manual_seed(0)
    for _ in range(700):
        steps = transform.make_params([])["steps"]
        assert len({operation for operation, _ in steps}) == 2
        seen += steps
    for operation in OPERATIONS:
        signs = [sign for name, sign in seen if name == operation]
        assert len(signs) == pytest.approx(200, abs=60)  # standard deviation 12
        assert abs(sum(signs)) < 60  # standard deviation 14
    assert len(RandAugment(7).make_params([])["steps"]) == 7


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), operations=st.integers(0, 7))
def test_the_transform_is_its_operations_one_after_another(seed, operations):
    transform = RandAugment(operations, 0.4)
    torch.manual_seed(seed)
    steps = transform.make_params([])["steps"]
    torch.manual_seed(seed)
    result = transform(sample())
    image, labels = tensor(PICTURE), LABELS
    for operation, sign in steps:
        image, labels = rand_augment(image, labels, operation, 0.4, sign)
    assert torch.equal(result["image"], image) and torch.equal(result["labels"], labels)


def test_types_survive_and_instances_are_filled_with_their_own_value():
    result = RandAugment(7, 1.0)(sample())
    kinds = {key: type(value) for key, value in sample().items()}
    assert {key: type(value) for key, value in result.items()} == kinds
    assert result["image"].dtype == result["labels"].dtype == torch.uint8
    assert result["instances"].dtype == torch.int32
    outside = result["labels"] == 255
    assert outside.any() and torch.equal(result["instances"] == 0, outside)
    assert torch.equal(result["instances"][~outside] - 1000, result["labels"][~outside].int())
    assert result["name"] == "picture" and torch.equal(result["other"], torch.ones(3))


def test_an_instance_map_alone_is_filled_with_0():
    ids = InstanceMask(torch.full((40, 60), 7, dtype=torch.int32))
    _, turned = rand_augment(torch.zeros(3, 40, 60, dtype=torch.uint8), ids, "rotate", 1.0)
    assert isinstance(turned, InstanceMask) and turned.unique().tolist() == [0, 7]


@pytest.mark.parametrize("magnitude", [-0.1, 1.1, 2, float("nan")])
def test_a_magnitude_outside_its_range_is_refused(magnitude):
    with pytest.raises(ValueError, match=f"between 0 and 1.*got {magnitude}"):
        rand_augment(tensor(PICTURE), LABELS, "color", magnitude)
    with pytest.raises(ValueError, match=f"between 0 and 1.*got {magnitude}"):
        RandAugment(2, magnitude)


def test_what_is_none_of_these_is_refused():
    with pytest.raises(ValueError, match=r"unknown operation 'posterize'.*'auto_contrast', 'equalize'"):
        rand_augment(tensor(PICTURE), LABELS, "posterize")
    with pytest.raises(ValueError, match="1 or -1, got 0"):
        rand_augment(tensor(PICTURE), LABELS, "color", sign=0)
    with pytest.raises(ValueError, match=r"uint8 \(3, H, W\), got torch.float32"):
        rand_augment(tensor(PICTURE).float(), LABELS, "color")
    with pytest.raises(ValueError, match=r"int32 \(H, W\), got torch.int64 \(40, 56\)"):
        rand_augment(tensor(PICTURE), LABELS.long(), "color")
    for count in (8, -1):
        with pytest.raises(ValueError, match=f"0 to 7 distinct operations an image, got {count}"):
            RandAugment(count)
