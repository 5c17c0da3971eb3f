"""Your own images and masks."""

import re

import numpy as np
import pytest

from segkit.data.folder import Folder, read_classes


def test_images_and_masks_are_paired_by_name(tmp_path, make_folder):
    root = make_folder(tmp_path / "garden")
    dataset = Folder(root, "train")
    assert dataset.names == ["a", "b"] and Folder(root, "val").names == ["c"]
    assert Folder(root, "trainval").names == ["a", "b", "c"]
    assert dataset.space.name == "garden"
    assert dataset.space.classes == ("road", "grass", "sky")
    assert dataset.space.palette[0] == (128, 64, 128) and dataset.space.palette[2] == (70, 130, 180)
    expected = (np.arange(35).reshape(5, 7) % 3).astype(np.uint8)
    expected[0, 0] = 255
    np.testing.assert_array_equal(dataset[0]["labels"].numpy(), expected)
    assert dataset.verify().ignored == 2


def test_files_that_systems_leave_behind_are_passed_over(tmp_path, make_folder):
    root = make_folder(tmp_path)
    for name in (".DS_Store", "._a.jpg", "Thumbs.db", "notes.txt"):
        (root / "images" / "train" / name).write_bytes(b"x")
        (root / "masks" / "train" / name).write_bytes(b"x")
    assert len(Folder(root, "train")) == 2


def test_a_mask_value_without_a_class_is_named(tmp_path, make_folder, save):
    root = make_folder(tmp_path)
    save(root / "masks" / "val" / "c.png", np.full((5, 7), 3, np.uint8))
    dataset = Folder(root, "val")
    with pytest.raises(ValueError, match=r"c.png: label value 3 at row 0, column 0 .*0 to 2, 255"):
        dataset.verify()


@pytest.mark.parametrize(
    "gone", ["classes.txt", "images", "masks", "masks/train", "masks/train/a.png", "images/train/a.webp"]
)
def test_what_is_missing_is_named(tmp_path, make_folder, gone):
    root = make_folder(tmp_path / "set")
    (root / gone).rename(tmp_path / "gone")
    named = re.escape(str(root / gone).removesuffix(".webp"))
    with pytest.raises(FileNotFoundError, match=named):
        Folder(root, "train")


def test_an_empty_split_is_an_error(tmp_path, make_folder):
    root = make_folder(tmp_path)
    for path in (root / "images" / "val").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no \.jpg"):
        Folder(root, "val")


def test_two_images_of_one_name_are_refused(tmp_path, make_folder, save):
    root = make_folder(tmp_path)
    save(root / "images" / "train" / "a.png", np.zeros((5, 7, 3), np.uint8))
    with pytest.raises(ValueError, match="'a'"):
        Folder(root, "train")


@pytest.mark.parametrize("split", ["test", "../train", ""])
def test_an_unknown_split_lists_the_folders(tmp_path, make_folder, split):
    with pytest.raises(ValueError, match="'train', 'val', 'trainval'"):
        Folder(make_folder(tmp_path), split)


def test_class_lines(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\ufeffroad,1 2 3\r\n  wet grass \r\nsky\t4, 5, 6\n\n", encoding="utf-8")
    space = read_classes(path)
    assert space.classes == ("road", "wet grass", "sky")
    assert space.palette[0] == (1, 2, 3) and space.palette[2] == (4, 5, 6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("road\n\nsky\n", "line 2 has no class name"),
        ("road, 1 2\n", "line 1: '1 2' is not a color"),
        ("road\nsky, 1 2 256\n", "line 2: '1 2 256'"),
        ("road, blue\n", "'blue' is not a color"),
        ("road\nroad\n", "'road' twice"),
    ],
)
def test_a_class_line_that_cannot_be_understood_is_named(tmp_path, text, message):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"classes.txt.*{message}"):
        read_classes(path)


def test_a_class_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("Straße\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"classes.txt is not UTF-8"):
        read_classes(path)
