"""The Pascal Context loader on tiny sets in its two forms: run-length masks in a JSON file, and PNG files."""

import json
import pickle
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from segkit.data import load, pascal_context
from segkit.data.__main__ import main
from segkit.data.labels import PASCAL_CONTEXT59
from segkit.data.pascal_context import CATEGORY_IDS, PascalContext, convert

mask_api = pytest.importorskip("pycocotools.mask", reason="the tests encode masks with pycocotools")
# pycocotools 2.0.11 hands its arrays over in a way that numpy 2 still takes but no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

IMAGES = {
    "2008_000002": ("train", (6, 8)),
    "2008_000008": ("val", (7, 5)),
    "2009_000001": ("train", (6, 8)),
    "2010_000003": ("val", (6, 9)),
    "2010_000007": ("test", (4, 4)),
}


def encoded(mask):
    rle = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def number(name):
    return int(name.replace("_", ""))


def make(root, save):
    """Writes images and JSON file; returns what the file holds, and each image's train ids."""
    rng = np.random.default_rng(0)
    content = {
        "info": {"version": "1.0"},
        "images": [],
        "annos_segmentation": [],
        "annos_occlusion": [],
        "annos_boundary": [],
        "categories": [{"category_id": id, "name": "x", "onlysemantic": 0} for id in CATEGORY_IDS],
        "parts": [{"part_id": 1, "name": "beak"}],
    }
    ids = {name: np.zeros(size, int) for name, (_, size) in IMAGES.items()}
    for name, (phase, size) in IMAGES.items():
        save(root / "JPEGImages" / f"{name}.jpg", rng.integers(0, 256, (*size, 3), np.uint8))
        content["images"].append(
            {"image_id": number(name), "file_name": f"{name}.jpg", "height": size[0], "width": size[1]}
            | {"phase": phase, "date_captured": "2008"}
        )
    for turn in range(5):  # the masks of an image lie apart in the file, and their ids fall
        for place, name in enumerate(name for name, (phase, _) in IMAGES.items() if phase != "test"):
            mask = rng.random(ids[name].shape) < 0.4
            index = int(rng.integers(1, 60))
            ids[name][mask] = index
            content["annos_segmentation"].append(
                {"id": 100 - 4 * turn - place, "image_id": number(name), "category_id": CATEGORY_IDS[index]}
                | {"segmentation": encoded(mask), "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 9}
                | {"parts": [{"part_id": 1, "segmentation": encoded(mask)}]}
            )
    write(root, content)
    return content, {name: np.where(map == 0, 255, map - 1) for name, map in ids.items()}


def write(root, content):
    (root / "trainval_merged.json").write_text(json.dumps(content))


@pytest.fixture
def made(tmp_path, save):
    content, truth = make(tmp_path, save)
    return tmp_path, content, truth


def labels(dataset):
    return {sample["name"]: sample["labels"].numpy() for sample in dataset}


def same(found, truth):
    assert all(np.array_equal(found[name], truth[name]) for name in found), "labels differ"
    return sorted(found)


def test_the_sixty_categories_are_background_and_the_classes_in_alphabetical_order():
    assert len(CATEGORY_IDS) == 60 and list(CATEGORY_IDS) == sorted(set(CATEGORY_IDS))
    assert list(PASCAL_CONTEXT59.classes) == sorted(PASCAL_CONTEXT59.classes)
    named = {PASCAL_CONTEXT59.classes[CATEGORY_IDS.index(id) - 1]: id for id in (2, 23, 284, 360, 420, 458)}
    assert named == {"aeroplane": 2, "bicycle": 23, "person": 284, "sky": 360, "tree": 420, "wood": 458}


def test_masks_are_painted_in_the_order_of_the_file(made):
    root, _, truth = made
    train = PascalContext(root, "train")
    assert train.space is PASCAL_CONTEXT59 and train.split == "train"
    assert same(labels(train), truth) == train.names == ["2008_000002", "2009_000001"]
    assert same(labels(PascalContext(root, "val")), truth) == ["2008_000008", "2010_000003"]
    both = PascalContext(root, "trainval")
    assert same(labels(both), truth) == sorted([*train.names, "2008_000008", "2010_000003"])
    assert any((map == 255).any() and (map < 59).any() for map in labels(both).values())
    sample = train[0]
    picture = np.asarray(Image.open(root / "JPEGImages" / "2008_000002.jpg"))
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), picture)
    assert all(np.array_equal(both.label_map(i).numpy(), both[i]["labels"].numpy()) for i in range(4))


def test_an_image_without_masks_is_all_background(made):
    root, content, _ = made
    gone = number("2009_000001")
    rest = [mask for mask in content["annos_segmentation"] if mask["image_id"] != gone]
    write(root, content | {"annos_segmentation": rest})
    assert (PascalContext(root, "train")[1]["labels"] == 255).all()


def test_the_json_file_is_read_once(made, monkeypatch):
    root, content, truth = made
    calls = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda *a, **k: calls.append(a) or loads(*a, **k))
    for split in ("train", "val", "trainval"):
        same(labels(PascalContext(root, split)), truth)
    assert len(calls) == 1
    write(root, content | {"images": content["images"][:2], "more": " " * 9})
    with pytest.raises(ValueError, match="is not listed"):
        PascalContext(root, "train")
    assert len(calls) == 2, "a changed file is read again"


def test_it_goes_to_the_workers_of_a_loader(made):
    dataset = PascalContext(made[0], "val")
    same(labels(pickle.loads(pickle.dumps(dataset))), made[2])


def test_verify_counts_what_a_direct_count_gives(made):
    root, _, truth = made
    summary = PascalContext(root, "trainval").verify(workers=2)
    counts = sum(np.bincount(truth[name].ravel(), minlength=256) for name in truth if "7" not in name)
    assert summary.images == 4 and summary.sizes == {(6, 8): 2, (7, 5): 1, (6, 9): 1}
    assert summary.pixels == tuple(counts[:59]) and summary.ignored == counts[255]


def test_converted_it_is_the_same_without_json_and_decoder(made, monkeypatch):
    root, _, truth = made
    assert convert(root) == 4
    assert sorted(path.name for path in root.iterdir()) == [
        *("ImageSets", "JPEGImages", "SegmentationClassContext", "trainval_merged.json"),
    ]
    lists = {
        part: (root / f"ImageSets/SegmentationContext/{part}.txt").read_text() for part in ("train", "val")
    }
    assert lists == {"train": "2008_000002\n2009_000001\n", "val": "2008_000008\n2010_000003\n"}
    with Image.open(root / "SegmentationClassContext" / "2008_000002.png") as picture:
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(picture), (truth["2008_000002"] + 1) % 256)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert convert(root) == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    (root / "trainval_merged.json").unlink()
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    for split, count in (("train", 2), ("val", 2), ("trainval", 4)):
        dataset = PascalContext(root, split)
        assert len(same(labels(dataset), truth)) == count
    assert np.array_equal(dataset.label_map(0).numpy(), truth["2008_000002"])


def test_what_was_broken_off_is_not_taken_for_converted(made):
    root, content, truth = made
    good = content["annos_segmentation"][-1].copy()
    content["annos_segmentation"][-1]["category_id"] = 1
    write(root, content)
    with pytest.raises(ValueError, match="category 1,"):
        convert(root)
    same(labels(PascalContext(root, "train")), truth)  # still the JSON file
    content["annos_segmentation"][-1] = good
    write(root, content)
    assert convert(root) == 4
    same(labels(PascalContext(root, "trainval")), truth)


def test_png_files_of_unknown_origin_are_left_alone(made, save):
    save(made[0] / "SegmentationClassContext" / "2008_000002.png", np.zeros((6, 8), np.uint8))
    with pytest.raises(FileExistsError, match=r"SegmentationClassContext holds files.*train\.txt"):
        convert(made[0])


def test_without_the_decoder_the_json_form_names_the_cure(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(RuntimeError, match="pip install pycocotools"):
        PascalContext(made[0], "train")


MASKS = "annos_segmentation"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.pop(MASKS), "has no masks: its list 'annos_segmentation'"),
        (lambda c: c.update({MASKS: []}), "has no masks: its list 'annos_segmentation'"),
        (lambda c: c.pop("images"), "has no masks: its list 'images'"),
        (lambda c: c[MASKS][3].pop("segmentation"), "entry 3 of 'annos_segmentation' has no mask"),
        (lambda c: c[MASKS][3].update(segmentation=[[1, 2, 3, 4]]), "entry 3 .*has no mask"),
        (lambda c: c[MASKS][3]["segmentation"].update(counts=[5, 43.0]), "entry 3 .*has no mask"),
        (lambda c: c[MASKS][3]["segmentation"].update(counts=[5, True]), "entry 3 .*has no mask"),
        (lambda c: c[MASKS][3]["segmentation"].update(counts=[49, -1]), "entry 3 .*has no mask"),
        (lambda c: c[MASKS][3]["segmentation"].update(counts=[2**32, 43]), "entry 3 .*has no mask"),
        (lambda c: c[MASKS][3]["segmentation"].update(counts=None), "entry 3 .*has no mask"),
        (lambda c: c[MASKS][3]["segmentation"].update(size=[6]), "entry 3 .*has no mask"),
        (lambda c: c[MASKS][3].pop("category_id"), "entry 3 .*has no mask"),
        (lambda c: c[MASKS][3].update(image_id=7), "annotation 97 is of the image 7, which is not listed"),
        (lambda c: c["images"][1].pop("height"), "entry 1 of 'images' needs"),
        (lambda c: c["images"][1].update(width="wide"), "entry 1 of 'images' needs"),
        (
            lambda c: c[MASKS][0]["segmentation"].update(size=[8, 6]),
            r"the mask of annotation 100 of 2008_000002 is 8x6, but .*2008_000002\.jpg is 6x8",
        ),
        (
            lambda c: c["images"][0].update(height=8, width=6),
            r"the image of 2008_000002 is 8x6, but .*2008_000002\.jpg is 6x8",
        ),
        (lambda c: [image.update(phase="val") for image in c["images"]], "no image of the phase 'train'"),
    ],
)
def test_a_json_file_that_cannot_serve_is_refused_on_construction(made, spoil, message):
    root, content, _ = made
    spoil(content)
    write(root, content)
    with pytest.raises(ValueError, match=f"{re.escape(str(root / 'trainval_merged.json'))}.*{message}"):
        PascalContext(root, "train")


@pytest.mark.parametrize("text", ["", "[1, 2]", "not JSON", "\udcff"])
def test_a_file_that_is_no_json_is_refused(made, text):
    root, _, _ = made
    (root / "trainval_merged.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"trainval_merged\.json (cannot be read|has no masks)"):
        PascalContext(root, "train")


def test_a_cut_json_file_is_refused(made):
    path = made[0] / "trainval_merged.json"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged or cut short"):
        PascalContext(made[0], "train")


@pytest.mark.parametrize("shape", [(6, 9), (6, 7)])
def test_run_lengths_that_do_not_fit_their_image_are_named_when_they_are_read(made, shape):
    root, content, _ = made
    content[MASKS][0]["segmentation"]["counts"] = encoded(np.eye(*shape))["counts"]
    write(root, content)
    dataset = PascalContext(root, "train")
    message = "run lengths of annotation 100 of 2008_000002 do not fill its 6x8 pixels"
    for read in (lambda: dataset[0], lambda: dataset.label_map(0), dataset.verify):
        with pytest.raises(ValueError, match=message):
            read()
    assert dataset[1]["name"] == "2009_000001"


def runs(mask):
    """Lengths of the runs of a mask, column by column, beginning with pixels that are not in it."""
    pixels = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(pixels, prepend=False))
    return np.diff(edges, prepend=0, append=pixels.size).tolist()


def test_listed_run_lengths_are_read_as_the_compressed_ones(made):
    root, content, truth = made
    rng = np.random.default_rng(0)
    for item in content[MASKS]:
        mask = mask_api.decode(item["segmentation"]).astype(bool)
        item["segmentation"]["counts"] = runs(mask) + [0] * int(rng.integers(2))
    write(root, content)
    same(labels(PascalContext(root, "trainval")), truth)


@pytest.mark.parametrize("counts", [[], [47], [5, 44], [5, 2**32 - 1]])
def test_listed_run_lengths_that_do_not_fit_their_image_are_named(made, counts):
    root, content, _ = made
    content[MASKS][0]["segmentation"]["counts"] = counts
    write(root, content)
    dataset = PascalContext(root, "train")
    with pytest.raises(ValueError, match=r"run lengths of annotation 100 .* do not fill its 6x8 pixels"):
        dataset[0]


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_listed_run_lengths_are_compressed_without_a_change(mask):
    assert pascal_context._compressed(runs(mask), *mask.shape) == encoded(mask)["counts"]


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_a_mask_is_decoded_where_and_only_where_its_runs_fill_the_pixels(mask, size):
    counts = encoded(mask)["counts"]
    found = pascal_context._decoded(pascal_context.Mask(1, 2, mask.shape, counts))
    np.testing.assert_array_equal(found, mask)
    other = pascal_context._decoded(pascal_context.Mask(1, 2, size, counts))
    assert (other is not None) == (size[0] * size[1] == mask.size)


def test_a_category_outside_the_sixty_is_named_with_its_place(made):
    root, content, _ = made
    mask = np.zeros((6, 8), bool)
    mask[2, 5] = mask[3, 1] = True
    last = {"id": 7, "image_id": number("2008_000002"), "category_id": 457, "segmentation": encoded(mask)}
    content[MASKS].append(last)
    write(root, content)
    with pytest.raises(
        ValueError, match=r"2008_000002 has the category 457, first at row 2, column 5.*0, 2, 9"
    ):
        PascalContext(root, "train")[0]


def test_an_image_that_is_missing_or_of_another_size_is_named(made, save):
    root, _, _ = made
    path = root / "JPEGImages" / "2009_000001.jpg"
    dataset = PascalContext(root, "train")
    save(path, np.zeros((6, 9, 3), np.uint8))
    for read in (lambda: dataset[1], lambda: PascalContext(root, "train")):
        with pytest.raises(ValueError, match=r"2009_000001 is 6x8, but .*2009_000001\.jpg is 6x9"):
            read()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(path))} is missing"):
        PascalContext(root, "train")
    assert len(PascalContext(root, "val")) == 2


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("JPEGImages", r"needs the folder .*JPEGImages, which is missing.*trainval_merged\.json"),
        ("ImageSets/SegmentationContext/train.txt", r"train\.txt and what belongs to it.*VOCtrainval"),
        ("SegmentationClassContext", "SegmentationClassContext and what belongs to it.*VOCtrainval"),
        ("SegmentationClassContext/2008_000002.png", r"2008_000002\.png is missing"),
        ("JPEGImages/2008_000002.jpg", r"2008_000002\.jpg is missing"),
    ],
)
def test_a_partial_set_of_png_files_names_the_part(made, tmp_path_factory, gone, message):
    root, _, _ = made
    convert(root)
    (root / "trainval_merged.json").unlink()
    (root / gone).rename(tmp_path_factory.mktemp("gone") / "gone")
    with pytest.raises(FileNotFoundError, match=message):
        PascalContext(root, "train")


def test_a_png_label_outside_the_list_is_named(made, save):
    root, _, _ = made
    convert(root)
    values = np.zeros((6, 8), np.uint8)
    values[1, 2] = 60
    save(root / "SegmentationClassContext" / "2008_000002.png", values)
    with pytest.raises(ValueError, match=r"2008_000002\.png: label value 60 at row 1, column 2 .* 0 to 59"):
        PascalContext(root, "train")[0]
    (root / "ImageSets/SegmentationContext/val.txt").write_text("\n")
    with pytest.raises(FileNotFoundError, match=r"val\.txt lists no images"):
        PascalContext(root, "val")


def test_an_unknown_split_lists_the_known(tmp_path):
    with pytest.raises(ValueError, match="'test': there are 'train', 'val', 'trainval'"):
        PascalContext(tmp_path, "test")


@pytest.mark.parametrize(
    "place", [".", "pascal_context", "VOC2010", "VOCdevkit/VOC2010", "pascal_context/VOCdevkit/VOC2010"]
)
def test_it_is_found_where_it_is_usually_unpacked(tmp_path, save, place):
    make(tmp_path / place, save)
    dataset = load("pascal_context", "val", data_dir=tmp_path)
    assert dataset.root == tmp_path / place and len(dataset) == 2


def test_a_set_that_is_not_there_names_the_folder_and_the_cure(tmp_path):
    folder = re.escape(str(tmp_path / "pascal_context" / "VOCdevkit" / "VOC2010"))
    with pytest.raises(FileNotFoundError, match=f"{folder}.*VOCtrainval_03-May-2010.tar"):
        load("pascal_context", "train", data_dir=tmp_path)


def test_the_command_converts_and_checks(tmp_path, save, capsys):
    root = tmp_path / "VOCdevkit" / "VOC2010"
    make(root, save)
    for _ in range(2):
        assert main(["pascal_context", "--data-dir", str(tmp_path), "--convert", "--verify"]) == 0
        printed = capsys.readouterr().out
        assert f"pascal_context: {root}" in printed
        assert re.search(r"train +2 images of 6x8, all read and right", printed)
        assert re.search(r"^\(ignored\) +[\d.]+ +[\d.]+$", printed, re.MULTILINE)
    assert len(list((root / "SegmentationClassContext").iterdir())) == 4


def test_the_command_checks_no_header_before_it_needs_to(tmp_path, save, monkeypatch):
    make(tmp_path, save)
    checked = []
    check = PascalContext._check_headers
    monkeypatch.setattr(
        PascalContext, "_check_headers", lambda self, pair: checked.append(pair.name) or check(self, pair)
    )
    command = ["pascal_context", "--data-dir", str(tmp_path), "--convert"]
    assert main(command) == 0
    assert len(checked) == 2 * 4  # once with masks, to convert them, and once with PNG files
    assert main(command) == 0
    assert len(checked) == 3 * 4


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, save, capsys, monkeypatch):
    assert main(["ade20k", "--data-dir", str(tmp_path), "--convert"]) == 2
    assert "--convert is for pascal_context alone" in capsys.readouterr().err
    make(tmp_path, save)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    assert main(["pascal_context", "--data-dir", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "pip install pycocotools" in printed.err
