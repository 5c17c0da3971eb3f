"""The CamVid loader and `unpack`, on tiny sets; on the real pack where SEGKIT_TEST_CAMVID_PACK names it."""

import copy
import hashlib
import io
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segkit.data.camvid import CamVid, unpack, verify
from segkit.data.labels import CAMVID11


def pack(folder: Path, path: Path, top: str = "camvid_pack/") -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            tar.add(file, arcname=top + file.relative_to(folder).as_posix())
    return path


def write_sums(root: Path) -> None:
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(root).as_posix()}\n"
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "SHA256SUMS"
    ]
    (root / "SHA256SUMS").write_text("".join(lines))


def write_manifest(root: Path, **change) -> None:
    counts = np.bincount(np.arange(48) % 12, minlength=12)
    splits = {
        part: {
            "images": n,
            "sizes": {"8x6": n},
            "pixel_counts": {str(i): int(n * c) for i, c in enumerate(counts)},
        }
        for part, n in (("train", 3), ("val", 2), ("test", 2))
    }
    splits["val"].update(change)
    (root / "manifest.json").write_text(json.dumps({"splits": splits}))


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def nothing_left(data_dir: Path) -> bool:
    return not data_dir.exists() or not list(data_dir.iterdir())


@pytest.mark.parametrize(
    ("suffix", "prefix"), [(".png", "/SegNet/CamVid/"), (".webp", ""), (".png", "C:\\CamVid\\")]
)
def test_splits_and_samples(tmp_path, make_camvid, suffix, prefix):
    root = make_camvid(tmp_path, suffix, prefix)
    assert {split: len(CamVid(root, split)) for split in ("train", "val", "test", "trainval")} == {
        "train": 3, "val": 2, "test": 2, "trainval": 5,
    }  # fmt: skip
    dataset = CamVid(root, "train")
    assert dataset.space is CAMVID11
    assert dataset.names == ["0001train_00000", "0001train_00001", "0001train_00002"]
    assert CamVid(root, "trainval").names == sorted(dataset.names + CamVid(root, "val").names)
    sample = dataset[2]
    labels = np.arange(48).reshape(6, 8) % 12
    np.testing.assert_array_equal(sample["labels"].numpy(), np.where(labels == 11, 255, labels))
    path = root / "train" / f"0001train_00002{suffix}"
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), np.asarray(Image.open(path)))


@pytest.mark.parametrize("gone", ["val.txt", "valannot", "val"])
def test_a_partial_set_names_the_part_and_the_cure(tmp_path, make_camvid, gone):
    root = make_camvid(tmp_path / "set")
    (root / gone).rename(tmp_path / "gone")
    with pytest.raises(
        FileNotFoundError, match=f"{re.escape(str(root / gone))}, .*segkit.data camvid --from"
    ):
        CamVid(root, "trainval")
    assert len(CamVid(root, "train")) == 3


def test_a_listed_file_that_is_missing_is_named(tmp_path, make_camvid):
    root = make_camvid(tmp_path)
    path = root / "valannot" / "0001val_00001.png"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        CamVid(root, "val")


@pytest.mark.parametrize(("text", "error"), [("", "lists no images"), ("only_one.png\n", "val.txt, line 1")])
def test_a_list_that_cannot_be_understood_is_named(tmp_path, make_camvid, text, error):
    root = make_camvid(tmp_path)
    (root / "val.txt").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        CamVid(root, "val")


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'tset': did you mean 'test'"):
        CamVid(tmp_path, "tset")


@pytest.mark.parametrize("kind", ["pack.tar", "pack.tar.gz", "flat.tar", "clone", "folder"])
def test_unpack_brings_the_same_files_from_every_source(tmp_path, make_camvid, kind):
    root = make_camvid(tmp_path / "clone" / "CamVid", ".webp", "")
    write_manifest(root)
    write_sums(root)
    (root / ".." / "README.md").write_text("not part of the data")
    source = {"clone": tmp_path / "clone", "folder": root}.get(kind)
    if source is None:
        source = pack(root, tmp_path / kind, "" if kind == "flat.tar" else "camvid_pack/")
    target, seen = unpack(source, tmp_path / "data" / "deep")
    assert target == tmp_path / "data" / "deep" / "camvid"
    assert contents(target) == contents(root)
    assert [path.name for path in target.parent.iterdir()] == ["camvid"]
    assert seen == verify(target)
    assert {part: summary.images for part, summary in seen.items()} == {
        "train": 3,
        "val": 2,
        "test": 2,
    }
    assert len(CamVid(target, "trainval")) == 5


def test_unpack_leaves_a_set_that_is_there_alone(tmp_path, make_camvid):
    source = pack(make_camvid(tmp_path / "set"), tmp_path / "pack.tar")
    target, seen = unpack(source, tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    assert unpack(source, tmp_path / "data") == (target, seen)
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before
    (target / "test" / "0001test_00000.png").unlink()
    with pytest.raises(ValueError, match=r"there already, but not right.*0001test_00000\.png.*Remove it"):
        unpack(source, tmp_path / "data")


def member(name: str, *, type: bytes = tarfile.REGTYPE, linkname: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, linkname
    data = b"payload" if type == tarfile.REGTYPE else b""
    info.size = len(data)
    return info, data


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil.txt"),
        member("camvid_pack/train/../../../evil.txt"),
        member("ABSOLUTE/evil.txt"),
        member("..\\evil.txt"),
        member("C:\\evil.txt"),
        member("camvid_pack/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("camvid_pack/link", type=tarfile.SYMTYPE, linkname="train.txt"),
        member("camvid_pack/hard", type=tarfile.LNKTYPE, linkname="camvid_pack/train.txt"),
        member("camvid_pack/pipe", type=tarfile.FIFOTYPE),
        member("camvid_pack/device", type=tarfile.CHRTYPE),
    ],
    ids=lambda evil: f"{evil[0].name}:{evil[0].type.decode()}",
)
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_tar_that_reaches_out_is_refused_before_anything_is_written(tmp_path, make_camvid, evil, place):
    good = pack(make_camvid(tmp_path / "set"), tmp_path / "good.tar")
    bad = tmp_path / "bad.tar"
    info = copy.copy(evil[0])
    info.name = info.name.replace(
        "ABSOLUTE", str(tmp_path)
    )  # not outside the test's folder, if it came to it
    evil = (info, evil[1])
    with tarfile.open(good) as source, tarfile.open(bad, "w") as tar:
        members = [(info, source.extractfile(info).read()) for info in source.getmembers()]
        for info, data in [evil, *members] if place == "first" else [*members, evil]:
            tar.addfile(info, io.BytesIO(data))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=f"bad.tar.*{re.escape(repr(evil[0].name))}.*nothing was unpacked"):
        unpack(bad, tmp_path / "data")
    assert set(tmp_path.rglob("*")) == before


def test_a_cut_tar_is_refused(tmp_path, make_camvid):
    source = pack(make_camvid(tmp_path / "set"), tmp_path / "pack.tar")
    data = source.read_bytes()
    for length in (0, 300, len(data) // 2 + 100, len(data) // 2 // 512 * 512):
        source.write_bytes(data[:length])
        with pytest.raises((ValueError, FileNotFoundError), match=re.escape(str(source))):
            unpack(source, tmp_path / "data")
        assert nothing_left(tmp_path / "data")


def test_what_is_not_there_or_not_camvid_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tar does not exist"):
        unpack(tmp_path / "nowhere.tar", tmp_path / "data")
    (tmp_path / "text.tar").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.tar is no readable tar"):
        unpack(tmp_path / "text.tar", tmp_path / "data")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no train\.txt"):
        unpack(tmp_path / "empty", tmp_path / "data")
    assert nothing_left(tmp_path / "data")


def spoil_label(root: Path) -> str:
    path = root / "testannot" / "0001test_00001.png"
    Image.fromarray(np.full((6, 8), 12, np.uint8)).save(path)
    return f"{path.name}: label value 12"


def spoil_size(root: Path) -> str:
    path = root / "testannot" / "0001test_00001.png"
    Image.fromarray(np.zeros((8, 6), np.uint8)).save(path)
    return f"{path.name} is 8x6"


def spoil_image(root: Path) -> str:
    path = root / "test" / "0001test_00001.png"
    path.write_bytes(path.read_bytes()[:60])
    return f"{path.name} cannot be read"


def spoil_pair(root: Path) -> str:
    (root / "test" / "0001test_00001.png").unlink()
    return "0001test_00001.png is missing"


def spoil_sum(root: Path) -> str:
    write_sums(root)
    path = root / "train" / "0001train_00000.png"
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path)
    return f"{path.name} is not the file that SHA256SUMS lists"


def spoil_sum_list(root: Path) -> str:
    (root / "SHA256SUMS").write_text(f"{'0' * 64}  gone.png\n")
    return "gone.png is missing"


def spoil_sum_path(root: Path) -> str:
    (root / "SHA256SUMS").write_text(f"{'0' * 64}  ../../etc/passwd\n")
    return "SHA256SUMS, line 1: .*leads out"


def spoil_manifest_count(root: Path) -> str:
    write_manifest(root, images=3)
    return "val: images are 2, but .*manifest.json says 3"


def spoil_manifest_size(root: Path) -> str:
    write_manifest(root, sizes={"480x360": 2})
    return "sizes .* are .*manifest.json says"


def spoil_manifest_pixels(root: Path) -> str:
    write_manifest(root, pixel_counts={"0": 96})
    return "pixels per class are .*manifest.json says"


def spoil_manifest(root: Path) -> str:
    (root / "manifest.json").write_text("{}")
    return "manifest.json cannot be understood"


@pytest.mark.parametrize("kind", ["tar", "folder"])
@pytest.mark.parametrize(
    "spoil", [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]
)
def test_what_verify_finds_stops_the_unpacking_and_leaves_nothing(tmp_path, make_camvid, kind, spoil):
    root = make_camvid(tmp_path / "set")
    message = spoil(root)
    source = pack(root, tmp_path / "pack.tar") if kind == "tar" else root
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        unpack(source, tmp_path / "data")
    assert ".camvid-" not in str(caught.value), "the temporary folder is gone when the message is read"
    assert str(source) in str(caught.value)
    assert nothing_left(tmp_path / "data")


@pytest.mark.skipif(
    "SEGKIT_TEST_CAMVID_PACK" not in os.environ, reason="SEGKIT_TEST_CAMVID_PACK names no pack"
)
def test_the_real_pack(tmp_path):
    target, seen = unpack(os.environ["SEGKIT_TEST_CAMVID_PACK"], tmp_path)
    assert (target / "SHA256SUMS").is_file() and (target / "manifest.json").is_file()
    splits = {split: CamVid(target, split) for split in ("train", "val", "test", "trainval")}
    assert {split: len(dataset) for split, dataset in splits.items()} == {
        "train": 367, "val": 101, "test": 233, "trainval": 468,
    }  # fmt: skip
    summary = seen["val"]
    assert summary.sizes == {(360, 480): 101}
    assert summary.frequencies[CAMVID11.classes.index("Bicyclist")] == pytest.approx(0.022175, abs=1e-6)
