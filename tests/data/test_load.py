"""`load` and `data_root`: where data is looked for, and what the errors say."""

import re
from pathlib import Path

import pytest

import segkit.data
from segkit.data import data_root, load
from segkit.data.labels import CITYSCAPES20
from segkit.data.sampling import first


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like the checkout to `data_root`, with no SEGKIT_DATA set."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.delenv("SEGKIT_DATA", raising=False)
    monkeypatch.setattr(segkit.data, "__file__", str(tmp_path / "segkit" / "data" / "__init__.py"))
    return tmp_path


def test_the_root_is_the_variable_else_the_checkout_else_the_cache(checkout, tmp_path, monkeypatch):
    assert data_root() == checkout / "data"
    monkeypatch.setenv("SEGKIT_DATA", "~/sets")
    assert data_root() == Path.home() / "sets"
    monkeypatch.setenv("SEGKIT_DATA", "")
    assert data_root() == checkout / "data"
    (checkout / "pyproject.toml").unlink()
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_root() == tmp_path / "cache" / "segkit"
    monkeypatch.setattr("sys.platform", "darwin")
    assert data_root() == Path.home() / "Library" / "Caches" / "segkit"
    assert not (checkout / "data").exists(), "asking creates nothing"


def test_this_checkout_is_found(monkeypatch):
    monkeypatch.delenv("SEGKIT_DATA", raising=False)
    assert data_root().name in ("data", "segkit")


@pytest.mark.parametrize("place", ["itself", "camvid", "CamVid", "root"])
def test_a_set_lies_in_the_folder_itself_or_below(tmp_path, make_camvid, monkeypatch, place):
    monkeypatch.setenv("SEGKIT_DATA", str(tmp_path / "root"))
    folder = {"itself": tmp_path / "here", "root": tmp_path / "root" / "camvid"}.get(
        place, tmp_path / "here" / place
    )
    make_camvid(folder)
    dataset = load("camvid", "train", data_dir=None if place == "root" else str(tmp_path / "here"))
    assert dataset.root == folder and len(dataset) == 3


def test_every_set_opens_by_name(tmp_path, make_camvid, make_cityscapes, make_folder):
    make_camvid(tmp_path / "camvid")
    make_cityscapes(tmp_path / "cityscapes")
    make_folder(tmp_path / "folder")
    assert len(load("camvid", "trainval", data_dir=tmp_path)) == 5
    assert load("cityscapes", "val", data_dir=tmp_path, num_classes=20).space is CITYSCAPES20
    assert "instances" in load("cityscapes", "train", data_dir=tmp_path, instances=True)[0]
    assert len(load("folder", "train", data_dir=tmp_path)) == 2
    some = first(first(load("camvid", "trainval", data_dir=tmp_path), 4), 3)
    assert some.verify().images == 3 and some.verify(limit=2).images == 2


def test_streets_are_generated_once_with_what_was_asked_for(tmp_path, make_cityscapes, monkeypatch):
    from segkit.data import streets

    calls = []

    def generate(root, **options):
        calls.append((root, options))
        return make_cityscapes(tmp_path / "made")

    monkeypatch.setattr(streets, "generate", generate)
    monkeypatch.setenv("SEGKIT_DATA", str(tmp_path / "root"))
    dataset = load("streets", "val", size=[64, 128], train=5, val=3, seed=7, num_classes=20, instances=True)
    assert calls == [(tmp_path / "root", {"size": (64, 128), "train": 5, "val": 3, "seed": 7})]
    assert dataset.space is CITYSCAPES20 and "instances" in dataset[0]
    # A folder that is a finished set is used as it is.
    assert load("streets", "train", data_dir=tmp_path / "made").root == tmp_path / "made"
    assert len(calls) == 1
    load("streets", "train", data_dir=tmp_path / "elsewhere")
    assert calls[1] == (tmp_path / "elsewhere", {"size": (128, 256), "train": 64, "val": 16, "seed": 0})
    with pytest.raises(ValueError, match="unknown streets split 'test'"):
        load("streets", "test")


@pytest.mark.parametrize(
    ("name", "folder", "cure"),
    [
        ("camvid", "camvid", "python -m segkit.data camvid --from PATH"),
        ("cityscapes", "cityscapes", "cityscapes-dataset.com"),
        ("folder", "folder", "images/train"),
    ],
)
def test_a_set_that_is_not_there_names_the_folder_and_the_cure(tmp_path, name, folder, cure):
    with pytest.raises(FileNotFoundError, match=f"{re.escape(str(tmp_path / folder))}.*{cure}"):
        load(name, "train", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"name": "cityscape"}, "did you mean 'cityscapes'"),
        ({"name": "CamVid"}, "did you mean 'camvid'"),
        ({"name": "zzz"}, "'streets', 'cityscapes', 'camvid', 'folder'"),
        ({"name": "camvid", "size": (8, 8)}, "'camvid' has no option 'size'"),
        ({"name": "streets", "train": 0}, "train=0.*at least 1"),
        ({"name": "camvid", "instances": True}, "'camvid' has no option 'instances'"),
        ({"name": "streets", "sise": (8, 8)}, "no option 'sise'.*size, train, val, seed"),
    ],
)
def test_a_wrong_name_or_option_lists_the_right_ones(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        load(split="train", data_dir=tmp_path, **call)
