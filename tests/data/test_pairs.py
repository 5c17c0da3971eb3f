"""What all loaders share: damaged, mismatched and odd files are named on construction or when read."""

import re

import numpy as np
import pytest
from PIL import Image

from segkit.data.labels import LabelSpace
from segkit.data.pairs import Pair, PairDataset, check_choice

SPACE = LabelSpace("two", ("a", "b"), ((1, 1, 1), (2, 2, 2)))
IDS = {0: 0, 1: 1, 255: 255}


@pytest.fixture
def pair(tmp_path, save):
    """A sound pair, 40x60: noise, so that a file cut in half is cut inside its pixels."""
    rng = np.random.default_rng(0)
    image = save(tmp_path / "image.png", rng.integers(0, 256, (40, 60, 3), np.uint8))
    labels = save(tmp_path / "labels.png", rng.integers(0, 2, (40, 60), np.uint8))
    return Pair("one", image, labels)


def open_pairs(*pairs, **options):
    return PairDataset(pairs, space=SPACE, split="train", train_ids=IDS, **options)


def cut(path, share=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_cut_image_is_found_on_construction(pair, suffix):
    path = pair.image.with_suffix(suffix)
    Image.open(pair.image).save(path)
    assert len(open_pairs(pair._replace(image=path))) == 1
    cut(path)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} cannot be read.*damaged or cut short"):
        open_pairs(pair._replace(image=path))


def test_a_cut_label_file_is_found_on_construction(pair):
    cut(pair.labels, 0.9)
    with pytest.raises(ValueError, match=r"labels\.png cannot be read"):
        open_pairs(pair)


def test_damage_inside_a_file_is_found_when_it_is_read(pair):
    data = bytearray(pair.image.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    pair.image.write_bytes(data)
    dataset = open_pairs(pair)
    with pytest.raises(ValueError, match=r"image\.png cannot be read"):
        dataset[0]
    with pytest.raises(ValueError, match=r"image\.png cannot be read"):
        dataset.verify()


@pytest.mark.parametrize("content", [b"", b"not a picture at all"])
def test_a_file_that_is_no_picture_is_named(pair, content):
    pair.labels.write_bytes(content)
    with pytest.raises(ValueError, match=r"labels\.png cannot be read"):
        open_pairs(pair)


def test_a_file_removed_later_is_reported_as_missing(pair):
    dataset = open_pairs(pair)
    pair.image.unlink()
    with pytest.raises(FileNotFoundError, match=r"image\.png"):
        dataset[0]


def test_sizes_must_agree(pair, save):
    save(pair.labels, np.zeros((40, 61), np.uint8))
    with pytest.raises(ValueError, match=r"labels\.png is 40x61 but .*image\.png is 40x60"):
        open_pairs(pair)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((40, 60, 3), np.uint8), "a color picture"),
        (np.zeros((40, 60, 4), np.uint8), "a color picture"),
        (np.zeros((40, 60), np.uint16), "16-bit"),
    ],
)
def test_a_label_file_holds_one_8_bit_number_per_pixel(pair, save, array, message):
    save(pair.labels, array)
    with pytest.raises(ValueError, match=f"labels.png is {message}.*8-bit grayscale or palette"):
        open_pairs(pair)


def test_a_16_bit_image_is_refused(pair, save):
    save(pair.image, np.zeros((40, 60), np.uint16))
    with pytest.raises(ValueError, match=r"image.png is an image of mode .*8 bits"):
        open_pairs(pair)


def test_palette_and_1_bit_label_files_are_read_by_index(pair):
    values = np.asarray(Image.open(pair.labels))
    palette = Image.fromarray(values).convert("P")
    palette.putpalette([9, 9, 9, 200, 10, 10] + [0] * 750)
    palette.putdata(values.ravel().tolist())
    palette.save(pair.labels)
    np.testing.assert_array_equal(open_pairs(pair)[0]["labels"].numpy(), values)
    Image.fromarray(values.astype(bool)).save(pair.labels)
    np.testing.assert_array_equal(open_pairs(pair)[0]["labels"].numpy(), values)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_image_modes_become_rgb(pair, mode):
    Image.open(pair.image).convert(mode).save(pair.image)
    expected = np.asarray(Image.open(pair.image).convert("RGB"))
    np.testing.assert_array_equal(open_pairs(pair)[0]["image"].permute(1, 2, 0).numpy(), expected)


def test_a_sound_png_with_bytes_after_its_end_is_accepted(pair):
    pair.image.write_bytes(pair.image.read_bytes() + b"trailing")
    assert open_pairs(pair)[0]["image"].shape == (3, 40, 60)


def test_the_first_bad_pair_by_name_is_reported(pair):
    gone = [Pair(name, pair.image, pair.labels.with_name(f"{name}.png")) for name in ("z", "m", "x")]
    with pytest.raises(FileNotFoundError, match="'m'"):
        open_pairs(*gone, pair._replace(name="a"))


def test_a_name_may_occur_once(pair):
    with pytest.raises(ValueError, match="'one'"):
        open_pairs(pair, pair)


@pytest.mark.parametrize(
    ("value", "message"), [("beta", "did you mean 'bet'"), ("xyz", "unknown letter 'xyz': there are")]
)
def test_check_choice_names_the_near_one(value, message):
    with pytest.raises(ValueError, match=f"{message}.*'alpha', 'bet'"):
        check_choice("letter", value, ["alpha", "bet"])
