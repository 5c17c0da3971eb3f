"""The loader of ADE20K's SceneParse150 on a tiny set in the official layout, and what one submits."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from segkit import models, predict
from segkit.data import load
from segkit.data.__main__ import main
from segkit.data.ade20k import ADE20K
from segkit.data.labels import ADE20K150, LabelSpace


@pytest.fixture
def make(save):
    """Writes 3 training and 2 validation images of several sizes; values 0 to 150 in a known pattern."""

    def make(root):
        rng = np.random.default_rng(0)
        for folder, stem, count in (("training", "ADE_train_{:08d}", 3), ("validation", "ADE_val_{:08d}", 2)):
            for i in range(1, count + 1):
                name, shape = stem.format(i), (11, 14 + i)
                picture = rng.integers(0, 256, shape if i == 1 else (*shape, 3), np.uint8)  # some are gray
                save(root / "images" / folder / f"{name}.jpg", picture)
                save(root / "annotations" / folder / f"{name}.png", values(shape, i))
        return root

    return make


def values(shape, first):
    return ((np.arange(shape[0] * shape[1]).reshape(shape) + first) % 151).astype(np.uint8)


def test_a_sample_is_what_lies_on_disk(tmp_path, make):
    dataset = ADE20K(make(tmp_path), "train")
    assert dataset.space is ADE20K150 and dataset.split == "train"
    assert dataset.names == [f"ADE_train_0000000{i}" for i in (1, 2, 3)]
    for i, sample in enumerate(dataset, 1):
        path = tmp_path / "images" / "training" / f"{sample['name']}.jpg"
        picture = np.asarray(Image.open(path).convert("RGB"))
        np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), picture)
        stored = values((11, 14 + i), i).astype(int)
        np.testing.assert_array_equal(sample["labels"].numpy(), np.where(stored == 0, 255, stored - 1))
        assert set(np.unique(sample["labels"])) == {*range(150), 255}


def test_splits(tmp_path, make):
    root = make(tmp_path)
    names = {split: ADE20K(root, split).names for split in ("train", "val", "trainval")}
    assert names["val"] == ["ADE_val_00000001", "ADE_val_00000002"]
    assert names["trainval"] == names["train"] + names["val"]


@pytest.mark.parametrize(("split", "message"), [("test", "no public labels.*--ids"), ("validation", "'val'")])
def test_an_unknown_split_is_refused(tmp_path, split, message):
    with pytest.raises(ValueError, match=message):
        ADE20K(tmp_path, split)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("images/training", "images/training, which is missing: .*ADEChallengeData2016.zip"),
        ("annotations/training", "annotations/training, which is missing: .*ADEChallengeData2016.zip"),
        ("images/training/ADE_train_00000002.jpg", r"ADE_train_00000002\.jpg is missing, the image of "),
        ("annotations/training/ADE_train_00000002.png", r"ADE_train_00000002\.png is missing"),
    ],
)
def test_a_partial_set_names_the_part(tmp_path, tmp_path_factory, make, gone, message):
    root = make(tmp_path)
    (root / gone).rename(tmp_path_factory.mktemp("gone") / "gone")
    with pytest.raises(FileNotFoundError, match=message):
        ADE20K(root, "trainval")
    assert len(ADE20K(root, "val")) == 2


def test_an_empty_folder_is_an_error(tmp_path):
    for kind in ("images", "annotations"):
        (tmp_path / kind / "validation").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.jpg: download"):
        ADE20K(tmp_path, "val")


def test_a_label_outside_the_list_is_named(tmp_path, make, save):
    root = make(tmp_path)
    labels = values((11, 16), 0)
    labels[4, 5] = 151
    save(root / "annotations" / "validation" / "ADE_val_00000002.png", labels)
    message = r"ADE_val_00000002\.png: label value 151 at row 4, column 5 .*'ade20k150' uses 0 to 150"
    for read in (lambda: ADE20K(root, "val")[1], ADE20K(root, "val").verify):
        with pytest.raises(ValueError, match=message):
            read()


@pytest.mark.parametrize("place", [".", "ade20k", "ADEChallengeData2016", "ade20k/ADEChallengeData2016"])
def test_it_is_found_where_it_is_usually_unpacked(tmp_path, make, place):
    root = make(tmp_path / place)
    dataset = load("ade20k", "trainval", data_dir=tmp_path)
    assert dataset.root == root and len(dataset) == 5


def test_a_set_that_is_not_there_names_the_folder_and_the_cure(tmp_path):
    folder = re.escape(str(tmp_path / "ade20k" / "ADEChallengeData2016"))
    with pytest.raises(FileNotFoundError, match=f"{folder}.*ADEChallengeData2016.zip"):
        load("ade20k", "train", data_dir=tmp_path)


def test_the_command_counts_the_classes_and_sums_up_many_sizes(tmp_path, make, save, capsys):
    root = make(tmp_path)
    for i in range(4, 9):
        save(root / "images" / "training" / f"ADE_train_{i:08d}.jpg", np.zeros((11, 14 + i, 3), np.uint8))
        save(root / "annotations" / "training" / f"ADE_train_{i:08d}.png", values((11, 14 + i), i))
    assert main(["ade20k", "--data-dir", str(tmp_path), "--verify"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"train +8 images of 8 sizes from 11x15 to 11x22, all read and right", printed)
    assert re.search(r"val +2 images of 11x15, 11x16, all read and right", printed)
    shares = re.findall(r"^[a-z( )]+?\)? +(\d+\.\d+) +(\d+\.\d+)$", printed, re.MULTILINE)
    assert len(shares) == 151
    assert [sum(map(float, column)) for column in zip(*shares, strict=True)] == pytest.approx(
        [100, 100], abs=0.08
    )


class Nearest(nn.Module):
    """Labels each pixel with the class of the nearest color."""

    def __init__(self, space):
        super().__init__()
        self.conv = nn.Conv2d(3, space.num_classes, 1)
        colors = torch.tensor(space.palette) / 255
        with torch.no_grad():
            self.conv.weight.copy_(1e4 * colors[..., None, None])
            self.conv.bias.copy_(-5e3 * (colors**2).sum(1))

    def forward(self, x):
        return {"out": self.conv(x)}


def checkpoint(path, space, monkeypatch):
    monkeypatch.setitem(models.MODELS, "nearest", lambda *, num_classes, recompute=None: Nearest(space))
    parts = {"name": space.name, "classes": list(space.classes), "palette": [list(c) for c in space.palette]}
    state = {"model_name": "nearest", "model_options": {}, "num_classes": space.num_classes, "space": parts}
    torch.save({**state, "model": Nearest(space).state_dict(), "mean": [0.0] * 3, "std": [1.0] * 3}, path)
    return str(path)


def test_what_is_submitted_is_what_the_label_files_hold(tmp_path, make, save, monkeypatch):
    truth = np.arange(150).reshape(10, 15).astype(np.uint8)
    image = save(tmp_path / "ADE_val_00000001.png", np.array(ADE20K150.palette, np.uint8)[truth])
    model = checkpoint(tmp_path / "final.pt", ADE20K150, monkeypatch)
    assert predict.main([str(image), "--checkpoint", model, "--out", str(tmp_path / "out"), "--ids"]) == 0
    written = tmp_path / "out" / "ids" / "ADE_val_00000001.png"
    with Image.open(written) as picture:
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(picture), truth + 1)
    with Image.open(tmp_path / "out" / "ADE_val_00000001_labels.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), truth)
    root = make(tmp_path / "set")
    save(root / "images" / "validation" / "ADE_val_00000001.jpg", np.zeros((10, 15, 3), np.uint8))
    written.rename(root / "annotations" / "validation" / written.name)
    np.testing.assert_array_equal(ADE20K(root, "val")[0]["labels"].numpy(), truth)


def test_a_model_of_a_set_without_own_numbers_cannot_write_them(tmp_path, save, monkeypatch, capsys):
    space = LabelSpace("toy", ("a", "b"), ((0, 0, 0), (250, 250, 250)))
    image = save(tmp_path / "photo.png", np.zeros((4, 4, 3), np.uint8))
    model = checkpoint(tmp_path / "final.pt", space, monkeypatch)
    assert predict.main([str(image), "--checkpoint", model, "--out", str(tmp_path / "out"), "--ids"]) == 2
    assert "'toy' has no other numbers than its train ids" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
