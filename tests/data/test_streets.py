"""Procedural street scenes: the same for the same seed, labeled to the pixel, on disk as Cityscapes is."""

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segkit.bench import streets as bench
from segkit.data import streets
from segkit.data._street import canvas as canvas_module
from segkit.data._street import furniture, people, textures, writer
from segkit.data._street.canvas import Canvas, Light, View
from segkit.data._street.layout import TURNS, compose
from segkit.data._street.site import dice_for
from segkit.data._street.vehicles import Pose
from segkit.data.cityscapes import Cityscapes
from segkit.data.labels import CITYSCAPES19, CITYSCAPES_IDS

THINGS = range(24, 34)
SMALL = (48, 96)
REPOSITORY = Path(__file__).resolve().parents[2]


def digest(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[streets.Scene]]:
    """One round of the rare things in each split, at the notebooks' size."""
    return {
        split: [streets.render(size=(128, 256), seed=0, split=split, index=k) for k in range(len(TURNS))]
        for split in ("train", "val")
    }


# -- what a scene is


def test_arrays(scenes):
    known = set(CITYSCAPES_IDS)
    for scene in itertools.chain(*scenes.values()):
        assert scene.image.shape == (128, 256, 3)
        assert scene.label_ids.shape == scene.instance_ids.shape == (128, 256)
        assert scene.image.dtype == scene.label_ids.dtype == np.uint8
        assert scene.instance_ids.dtype == np.uint16
        assert set(np.unique(scene.label_ids)) <= known
        numbered = scene.instance_ids >= 1000
        assert (scene.instance_ids[~numbered] == scene.label_ids[~numbered]).all()
        assert (scene.instance_ids[numbered] // 1000 == scene.label_ids[numbered]).all()
        assert set(np.unique(scene.label_ids[numbered])) <= set(THINGS)


def test_every_class_occurs_in_both_splits(scenes):
    # sixteen scenes are one round of turns, so this holds for any set of sixteen or more
    for split, several in scenes.items():
        seen = np.unique([scene.label_ids for scene in several])
        classes = {CITYSCAPES_IDS[int(k)] for k in seen} - {255, -1}
        missing = set(range(19)) - classes
        assert not missing, (split, [CITYSCAPES19.classes[k] for k in missing])


def test_no_cracks(scenes):
    # strips of ground overlap: between them nothing shows of what lies below
    for scene in itertools.chain(*scenes.values()):
        assert not (scene.label_ids == 0).any()
        assert not (scene.label_ids[70:] == 6).any()


def test_ignored_labels_occur(scenes):
    seen = np.unique([scene.label_ids for scene in scenes["train"]])
    assert {1, 3, 4, 5} <= set(seen.tolist())  # own car, out of roi, static, dynamic


def test_long_tail(scenes):
    labels = np.concatenate([scene.label_ids.ravel() for several in scenes.values() for scene in several])
    counts = np.bincount(labels, minlength=34)
    share = {k: counts[k] / counts.sum() for k in range(34)}
    road, building, vegetation, car = share[7], share[11], share[21], share[26]
    assert 0.2 < road < 0.5 and 0.1 < building < 0.35 and 0.06 < vegetation < 0.3 and 0.03 < car < 0.2
    small = (17, 19, 20, 24, 25, 32, 33)  # poles, lights, signs, people, riders, two wheels
    assert all(share[k] < 0.03 for k in small)
    assert road > 10 * sum(share[k] for k in (19, 25, 32))


def test_colors_do_not_decide_the_class(scenes):
    # the nearest mean color of 19 classes, learned on one split, must be a bad classifier on the other
    def flat(split):
        image = np.concatenate([s.image.reshape(-1, 3) for s in scenes[split]]).astype(np.float32)
        return image, np.concatenate([s.label_ids.ravel() for s in scenes[split]])

    (image, labels), (other, truth) = flat("train"), flat("val")
    classes = [k for k, to in CITYSCAPES_IDS.items() if k >= 0 and to < 19]
    means = np.stack([image[labels == k].mean(0) for k in classes])
    counted = np.isin(truth, classes)
    distance = ((other[counted][::7, None] - means) ** 2).sum(-1)
    guess = np.array(classes)[distance.argmin(1)]
    assert (guess == truth[counted][::7]).mean() < 0.5


def test_things_of_a_class_differ_in_color(scenes):
    means = []
    for scene in itertools.chain(*scenes.values()):
        for thing in np.unique(scene.instance_ids[scene.label_ids == 26]):
            pixels = scene.image[scene.instance_ids == thing]
            if len(pixels) > 100:
                means.append(pixels.mean(0))
    assert len(means) > 30
    assert np.std(means, axis=0).min() > 25  # of 255


# -- the same, and never the same


def test_same_arguments_same_bytes():
    first, again = (streets.render(size=SMALL, seed=3, split="val", index=7) for _ in range(2))
    for name in ("image", "label_ids", "instance_ids"):
        assert (getattr(first, name) == getattr(again, name)).all()


def test_a_scene_does_not_depend_on_those_rendered_before():
    alone = subprocess.run(
        [
            *(sys.executable, "-P", "-c"),
            "import sys, hashlib; sys.path.append(sys.argv[1]); from _street.painter import paint\n"
            "image, ids = paint((48, 96), 3, 1, 7)\n"
            "print(hashlib.sha256(image.tobytes()).hexdigest(), 'torch' in sys.modules)",
            str(REPOSITORY / "segkit" / "data"),
        ],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    here = streets.render(size=SMALL, seed=3, split="val", index=7)
    assert alone == [hashlib.sha256(here.image.tobytes()).hexdigest(), "False"]  # and workers need no torch


def test_no_two_images_are_the_same(scenes):
    images = [scene.image.tobytes() for several in scenes.values() for scene in several]
    images += [
        streets.render(size=(128, 256), seed=1, split="train", index=k).image.tobytes() for k in range(4)
    ]
    assert len(set(images)) == len(images)


def test_splits_and_seeds_never_share_random_numbers():
    first = {
        dice_for(seed, split, index).random()
        for seed in (0, 1, 2, 2**32, 2**32 + 1)
        for split in (0, 1)
        for index in range(200)
    }
    assert len(first) == 5 * 2 * 200
    assert len(set(writer.SPLITS.values())) == len(writer.SPLITS)
    assert not set(writer.CITIES["train"]) & set(writer.CITIES["val"])


@pytest.mark.parametrize("index", [0, 5, 10])
def test_a_scene_is_the_same_at_every_size(index):
    large = streets.render(size=(512, 1024), seed=0, split="train", index=index)
    small = streets.render(size=(128, 256), seed=0, split="train", index=index)
    reduced = large.instance_ids[2::4, 2::4]
    assert (reduced == small.instance_ids).mean() > 0.95
    for thing in np.unique(small.instance_ids[small.instance_ids >= 1000]):
        if (small.instance_ids == thing).sum() > 60:
            both = ((small.instance_ids == thing) & (reduced == thing)).sum()
            assert both > 0.6 * (small.instance_ids == thing).sum()
    image = np.asarray(Image.fromarray(large.image).reduce(4)).astype(int)
    assert np.abs(image - small.image).mean() < 10  # of 255


@pytest.mark.parametrize("size", [(32, 32), (64, 128), (50, 333), (333, 50), (360, 480)])
def test_any_size(size):
    scene = streets.render(size=size, seed=0, split="train", index=2)
    assert scene.image.shape == (*size, 3) and scene.instance_ids.shape == size
    assert len(np.unique(scene.label_ids)) >= 4


def test_full_size():
    scene = streets.render(size=(1024, 2048), seed=0, split="val", index=1)
    assert scene.image.shape == (1024, 2048, 3)
    # neighboring pixels of the road differ: the surface has a texture
    road = (scene.label_ids[:, 1:] == 7) & (scene.label_ids[:, :-1] == 7)
    assert (np.diff(scene.image[..., 1].astype(int), axis=1)[road] != 0).mean() > 0.5


# -- labels are what one sees


@pytest.fixture
def empty() -> Canvas:
    """A black canvas under white light, without haze."""
    view = View(focal=2.2, horizon=0.4, shift=0.0, height=1.3, curve=0.0)
    light = Light(
        sun=(0.0, 1.0, 0.0),
        direct=(0.5, 0.5, 0.5),
        ambient=(0.6, 0.6, 0.6),
        haze=(255, 255, 255),
        haze_length=1e9,
        shadow=1.0,
    )
    return Canvas((200, 400), view, light)


STROKES = {
    "polygon": lambda c: c.polygon([(20.3, 11.8), (150.6, 40.1), (90.5, 170.2)], (200, 100, 50), 7),
    "ellipse": lambda c: c.ellipse(100.4, 80.7, 33.3, 21.9, (200, 100, 50), 7),
    "line": lambda c: c.line([(5, 5), (90, 70), (300, 20)], 3.4, (200, 100, 50), 7),
    "veil": lambda c: c.veil([(20.3, 11.8), (450.6, 40.1), (90.5, 170.2)], (250, 250, 250), 0.4, 7),
    "limb": lambda c: c.limb((-1.0, 0.0, 8.0), (1.0, 2.0, 9.0), 0.2, 0.1, (200, 100, 50), 7),
    "surface": lambda c: c.surface(
        [(-2.0, 0.0, 6.0), (2.0, 0.0, 12.0), (2.0, 2.0, 12.0)], (200, 100, 50), 7, (1.0, 1.0, 1.0)
    ),
    "sprite": lambda c: c.sprite(
        textures.foliage(0), (-30.5, 20.5, 180.5, 260.5), (bytes([9] * 256),) * 3, 7, flip=True
    ),
    "textured": lambda c: c.textured(
        Image.new("RGB", (64, 48), (90, 120, 150)),
        [(-3.0, 3.0, 7.0), (-1.0, 3.0, 30.0), (-1.0, 0.0, 30.0), (-3.0, 0.0, 7.0)],
        7,
        (90, 120, 150),
    ),
}


@pytest.mark.parametrize("stroke", STROKES)
def test_a_stroke_changes_color_and_id_of_the_same_pixels(empty, stroke):
    STROKES[stroke](empty)
    picture, ids = empty.arrays()
    assert 50 < (ids == 7).sum() < ids.size
    assert ((picture > 0).any(-1) == (ids == 7)).all()
    assert set(np.unique(ids)) == {0, 7}


def test_people_shrink_with_distance(empty):
    look = people.Look(
        height=1.8,
        skin=(200, 160, 130),
        hair=(60, 40, 30),
        jacket=(50, 60, 200),
        trousers=(60, 60, 70),
        shoes=(40, 40, 40),
    )
    heights = []
    for z in (8.0, 16.0, 32.0):
        canvas = Canvas((800, 1600), empty.view, empty.light)
        people.person(canvas, pose=Pose(lateral=0.0, z=z), look=look, stride=0.2, ident=24000)
        rows = np.flatnonzero((canvas.arrays()[1] == 24000).any(1))
        heights.append(np.ptp(rows) + 1)
        assert heights[-1] == pytest.approx(1.8 * canvas.focal / z, rel=0.08)
    assert heights[0] / heights[1] == pytest.approx(2, rel=0.08)
    assert heights[1] / heights[2] == pytest.approx(2, rel=0.08)


def test_nearer_things_hide_farther_ones(empty):
    for z, ident in ((30.0, 20), (10.0, 17)):
        furniture.post(empty, lateral=0.0, z=z, height=3.0, radius=0.5, color=(99, 99, 99), ident=ident)
    ids = empty.arrays()[1]
    assert (ids == 17).any() and not (ids == 20).any()
    depths = [depth for depth, _ in sorted(compose(0, 0, 0).things, key=lambda item: -item[0])]
    assert depths == sorted(depths, reverse=True) and len(depths) > 50


def test_homography_maps_corners_to_corners():
    corners = [(10.0, 20.0), (110.0, 40.0), (105.0, 90.0), (5.0, 160.0)]
    a, b, c, d, e, f, g, h = canvas_module.homography(corners, (65, 33))
    for (u, v), (x, y) in zip(corners, [(0.5, 0.5), (64.5, 0.5), (64.5, 32.5), (0.5, 32.5)], strict=True):
        w = g * u + h * v + 1
        assert ((a * u + b * v + c) / w, (d * u + e * v + f) / w) == pytest.approx((x, y))
    assert canvas_module.homography([(0, 0), (10, 10), (20, 20), (30, 30)], (8, 8)) is None


# -- on disk


def test_set_is_read_by_the_cityscapes_loader(tmp_path):
    folder = streets.generate(tmp_path / "new" / "root", size=SMALL, train=3, val=2, seed=5, workers=1)
    for split, count in (("train", 3), ("val", 2)):
        dataset = Cityscapes(folder, split, instances=True)
        assert len(dataset) == count and dataset.split == split
        for index in range(count):
            scene = streets.render(size=SMALL, seed=5, split=split, index=index)
            name = writer.stem(split, index)[1]
            sample = dataset[dataset.names.index(name)]
            assert (sample["image"].permute(1, 2, 0).numpy() == scene.image).all()
            assert (sample["instances"].numpy() == scene.instance_ids).all()
            expected = np.vectorize(CITYSCAPES_IDS.get)(scene.label_ids)
            assert (sample["labels"].numpy() == expected).all()


def test_files_are_named_and_stored_as_in_cityscapes(tmp_path):
    folder = streets.generate(tmp_path, size=SMALL, train=1, val=0, workers=1)
    city, stem = writer.stem("train", 0)
    assert stem == f"{city}_000000_000019"
    truth = folder / "gtFine" / "train" / city
    with Image.open(folder / "leftImg8bit" / "train" / city / f"{stem}_leftImg8bit.png") as image:
        assert (image.mode, image.size) == ("RGB", (96, 48))
    with Image.open(truth / f"{stem}_gtFine_labelIds.png") as labels:
        assert labels.mode == "L"
    with Image.open(truth / f"{stem}_gtFine_instanceIds.png") as instances:
        assert instances.mode.startswith("I") and np.asarray(instances).max() >= 24000
    record = json.loads((folder / streets.RECORD).read_text())
    assert record == {
        **{"set": "streets", "version": streets.VERSION, "size": [48, 96]},
        **{"train": 1, "val": 0, "seed": 0},
    }


def test_same_files_for_any_number_of_workers(tmp_path):
    sets = [
        digest(streets.generate(tmp_path / str(workers), size=SMALL, train=3, val=2, workers=workers))
        for workers in (1, 2)
    ]
    assert sets[0] == sets[1]
    assert len(sets[0]) == 3 * 5 + 1


def test_a_larger_set_begins_with_the_smaller_one(tmp_path):
    small = digest(streets.generate(tmp_path, size=SMALL, train=2, val=1, workers=1) / "leftImg8bit")
    large = digest(streets.generate(tmp_path, size=SMALL, train=3, val=1, workers=1) / "leftImg8bit")
    assert small.items() < large.items()


def test_a_finished_set_is_not_painted_again(tmp_path, monkeypatch):
    folder = streets.generate(tmp_path, size=SMALL, train=1, val=1)
    monkeypatch.setattr(streets, "write_all", lambda *_: pytest.fail("painted again"))
    before = digest(folder)
    assert streets.generate(tmp_path, size=SMALL, train=1, val=1) == folder
    assert digest(folder) == before


def test_of_two_at_once_one_generates_and_the_other_waits(tmp_path, monkeypatch):
    painted, paint = [], streets.write_all

    def slowly(*arguments):
        painted.append(arguments)
        time.sleep(0.3)
        paint(*arguments)

    monkeypatch.setattr(streets, "write_all", slowly)
    folders = []
    both = [
        threading.Thread(
            target=lambda: folders.append(streets.generate(tmp_path, size=SMALL, train=2, val=0))
        )
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(folders) == 2 and folders[0] == folders[1] and len(painted) == 1
    assert len(list(folders[0].rglob("*_leftImg8bit.png"))) == 2


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a system with SIGKILL")
def test_a_killed_generation_leaves_nothing_that_looks_finished(tmp_path):
    options = {"size": SMALL, "train": 400, "val": 0}
    program = (
        f"from segkit.data import streets; streets.generate({str(tmp_path)!r}, **{options!r}, workers=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("*_instanceIds.png")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    (leftover,) = tmp_path.glob(".*.partial")
    assert not list(tmp_path.glob("streets_*"))

    # its workers end with it
    deadline = time.monotonic() + 20
    while True:
        before = len(list(leftover.rglob("*.png")))
        time.sleep(0.5)
        if len(list(leftover.rglob("*.png"))) == before:
            break
        assert time.monotonic() < deadline
    assert before < 3 * 400

    # and the next one does not build on what it left
    name = leftover.name.removeprefix(".").split(".")[0].replace("train400", "train1")
    shutil.move(leftover, tmp_path / f".{name}.0000.partial")
    folder = streets.generate(tmp_path, size=SMALL, train=1, val=0)
    assert folder.name == name
    assert not list(tmp_path.glob(".*.partial"))


def test_a_failing_worker_is_reported_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "__file__", str(tmp_path / "nowhere" / "_street" / "writer.py"))
    with pytest.raises(RuntimeError, match=r"worker that renders streets failed: .*No module named"):
        streets.generate(tmp_path / "root", size=SMALL, train=2, val=0, workers=2)
    assert [path.name for path in (tmp_path / "root").iterdir() if not path.name.endswith(".lock")] == []


# -- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": (31, 64)}, r"31x64.*height must be from 32 to 1024"),
        ({"size": (64, 16)}, r"64x16.*width must be from 32 to 2048"),
        ({"size": (1025, 2048)}, r"1025x2048.*height must be from 32 to 1024"),
        ({"size": (1024, 2049)}, r"1024x2049.*width must be from 32 to 2048"),
        ({"size": 128}, r"size must be two whole numbers \(height, width\), not 128"),
        ({"size": (128.5, 256)}, r"two whole numbers"),
        ({"size": (1, 2, 3)}, r"two whole numbers"),
        ({"train": -1}, r"train must not be negative, and is -1"),
        ({"val": -4}, r"val must not be negative, and is -4"),
        ({"train": 1.5}, r"train must be a whole number, not 1.5"),
        ({"seed": -2}, r"seed must not be negative, and is -2"),
        ({"train": 0, "val": 0}, r"both are 0"),
        ({"workers": 0}, r"workers is 0"),
    ],
)
def test_bad_sets(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        streets.generate(tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, r"unknown streets split 'test'; there is train and val"),
        ({"index": -1}, r"index must not be negative"),
        ({"index": "first"}, r"index must be a whole number, not 'first'"),
        ({"size": (8, 16)}, r"8x16"),
    ],
)
def test_bad_scenes(arguments, message):
    with pytest.raises(ValueError, match=message):
        streets.render(**{"size": SMALL, "seed": 0, "split": "train", "index": 0, **arguments})


def test_unwritable_root(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot be generated in .*file.*SEGKIT_DATA"):
        streets.generate(tmp_path / "file", size=SMALL, train=1, val=0)


def test_lost_and_foreign_files(tmp_path):
    folder = streets.generate(tmp_path, size=SMALL, train=2, val=0)
    next(folder.rglob("*_labelIds.png")).unlink()
    with pytest.raises(OSError, match=r"holds 1 files \*_gtFine_labelIds.png and should hold 2; delete"):
        streets.generate(tmp_path, size=SMALL, train=2, val=0)
    (folder / streets.RECORD).unlink()
    with pytest.raises(OSError, match=r"no finished set of streets"):
        streets.generate(tmp_path, size=SMALL, train=2, val=0)


# -- the benchmark and what data/README.md says


def test_benchmark(tmp_path, capsys):
    out = tmp_path / "streets.json"
    arguments = ["--sizes", "48x96", "--images", "2", "--train", "2", "--val", "1", "--frequencies", "2"]
    assert bench.main([*arguments, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == result
    assert {"command", "machine", "versions", "date", "sizes", "frequencies"} <= set(result)
    size = result["sizes"]["48x96"]
    assert size["rendering_one_core"]["images"] == 2 and size["writing"]["images"] == 3
    assert size["rendering_one_core"]["seconds"] > 0 and size["writing"]["bytes"] > 3 * 1000
    shares = [row["pixels"] for name, row in result["frequencies"].items() if name != "ignored"]
    assert len(shares) == 19 and sum(shares) == pytest.approx(1)


def test_readme_shows_the_measured_frequencies():
    measured = json.loads((REPOSITORY / "data" / "measured" / "streets.json").read_text())["frequencies"]
    rows = {}
    for line in (REPOSITORY / "data" / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in CITYSCAPES19.classes and len(cells) == 4:
            rows[cells[0]] = cells[1:]
    assert list(rows) == list(CITYSCAPES19.classes)
    for name, (share, seen, _) in rows.items():
        assert float(share) == pytest.approx(100 * measured[name]["pixels"], abs=0.006)
        assert float(seen) == pytest.approx(100 * measured[name]["images"], abs=0.51)
