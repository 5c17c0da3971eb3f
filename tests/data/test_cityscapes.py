"""The Cityscapes loader on a tiny set in the official layout."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.datasets import Cityscapes as Theirs

from segkit.data.cityscapes import Cityscapes
from segkit.data.labels import CITYSCAPES19, CITYSCAPES20

THEIR_TRAIN_IDS = np.array([row.train_id for row in Theirs.classes if row.id >= 0])


def test_a_sample_is_what_lies_on_disk(tmp_path, make_cityscapes):
    dataset = Cityscapes(make_cityscapes(tmp_path), "train", instances=True)
    assert dataset.space is CITYSCAPES19 and dataset.split == "train"
    assert dataset.names == ["aachen_000001_000019", "zurich_000000_000019", "zurich_000002_000019"]
    sample = dataset[1]
    assert sample["name"] == "zurich_000000_000019"
    path = tmp_path / "leftImg8bit/train/zurich/zurich_000000_000019_leftImg8bit.png"
    assert isinstance(sample["image"], tv_tensors.Image) and sample["image"].dtype == torch.uint8
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), np.asarray(Image.open(path)))
    ids = np.arange(128).reshape(8, 16) % 34
    assert isinstance(sample["labels"], tv_tensors.Mask) and sample["labels"].dtype == torch.uint8
    np.testing.assert_array_equal(sample["labels"].numpy(), THEIR_TRAIN_IDS[ids])
    assert isinstance(sample["instances"], tv_tensors.Mask) and sample["instances"].dtype == torch.int32
    np.testing.assert_array_equal(sample["instances"].numpy(), np.where(ids >= 24, ids * 1000 + 1, ids))


def test_instances_are_read_only_when_asked_for(tmp_path, make_cityscapes):
    root = make_cityscapes(tmp_path, ("train",))
    for path in root.glob("gtFine/*/*/*instanceIds.png"):
        path.unlink()
    assert set(Cityscapes(root, "train")[0]) == {"image", "labels", "name"}
    with pytest.raises(FileNotFoundError, match=r"instanceIds\.png is missing"):
        Cityscapes(root, "train", instances=True)


def test_twenty_classes_ignore_nothing(tmp_path, make_cityscapes):
    root = make_cityscapes(tmp_path)
    twenty, nineteen = Cityscapes(root, "val", num_classes=20), Cityscapes(root, "val")
    assert twenty.space is CITYSCAPES20
    for a, b in zip(twenty, nineteen, strict=True):
        assert torch.equal(torch.where(b["labels"] == 255, 19, b["labels"]), a["labels"])
    assert twenty.verify().ignored == 0


def test_trainval_is_both(tmp_path, make_cityscapes):
    root = make_cityscapes(tmp_path, ("train",), count=2)
    make_cityscapes(tmp_path / "other", ("val",), count=1)
    for kind in ("leftImg8bit", "gtFine"):
        city = tmp_path / "other" / kind / "val" / "zurich"
        renamed = root / kind / "val" / "bonn"
        renamed.parent.mkdir()
        city.rename(renamed)
        for path in renamed.iterdir():
            path.rename(renamed / path.name.replace("zurich", "bonn"))
    assert len(Cityscapes(root, "trainval")) == 3
    assert Cityscapes(root, "trainval").split == "trainval"


def test_verify_counts_what_a_direct_count_gives(tmp_path, make_cityscapes):
    root = make_cityscapes(tmp_path)
    summary = Cityscapes(root, "train").verify(workers=2)
    ids = np.concatenate(
        [np.asarray(Image.open(path)).ravel() for path in root.glob("gtFine/train/*/*labelIds.png")]
    )
    counts = np.bincount(THEIR_TRAIN_IDS[ids], minlength=256)
    assert summary.images == 3 and summary.sizes == {(8, 16): 3}
    assert summary.pixels == tuple(counts[:19]) and summary.ignored == counts[255]
    assert sum(summary.frequencies) == pytest.approx(1 - counts[255] / counts.sum())
    assert Cityscapes(root, "train").verify(limit=1).images == 1


@pytest.mark.parametrize("folder", ["leftImg8bit/train", "gtFine/train"])
def test_a_missing_folder_is_named_with_the_cure(tmp_path, make_cityscapes, folder):
    root = make_cityscapes(tmp_path)
    (root / folder).rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=f"{re.escape(str(root / folder))}.*cityscapes-dataset.com"):
        Cityscapes(root, "train")


def test_an_empty_split_is_an_error(tmp_path):
    (tmp_path / "leftImg8bit" / "val").mkdir(parents=True)
    (tmp_path / "gtFine" / "val").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="holds no"):
        Cityscapes(tmp_path, "val")


def test_half_a_pair_is_named_either_way(tmp_path, make_cityscapes):
    root = make_cityscapes(tmp_path)
    image = root / "leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png"
    label = root / "gtFine/train/aachen/aachen_000001_000019_gtFine_labelIds.png"
    spare = image.read_bytes()
    image.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(image))):
        Cityscapes(root, "train")
    image.write_bytes(spare)
    label.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(label))):
        Cityscapes(root, "train")


@pytest.mark.parametrize(
    ("split", "hint"), [("validation", "'val'"), ("Train", "'train'"), ("demoVideo", "'test'")]
)
def test_an_unknown_split_lists_the_known(tmp_path, split, hint):
    with pytest.raises(ValueError, match=f"{split}.*{hint}"):
        Cityscapes(tmp_path, split)


def test_an_unknown_number_of_classes_is_refused(tmp_path, make_cityscapes):
    with pytest.raises(ValueError, match="34"):
        Cityscapes(make_cityscapes(tmp_path), "train", num_classes=34)


def test_an_id_beyond_the_table_is_named_with_its_place(tmp_path, make_cityscapes, save):
    root = make_cityscapes(tmp_path)
    path = root / "gtFine/train/zurich/zurich_000002_000019_gtFine_labelIds.png"
    labels = np.full((8, 16), 7, np.uint8)
    labels[2, 5] = 34
    save(path, labels)
    dataset = Cityscapes(root, "train")
    message = f"{re.escape(str(path))}: label value 34 at row 2, column 5 .* 0 to 33, 255"
    with pytest.raises(ValueError, match=message):
        dataset[2]
    with pytest.raises(ValueError, match=message):
        dataset.verify()
    assert dataset.verify(limit=2).images == 2
