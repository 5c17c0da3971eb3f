"""Class-uniform sampling: counts, centroids, an epoch's order, crops that hold their point."""

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from segkit.data import load
from segkit.data.class_uniform import (
    Centroid,
    Centroids,
    class_shares,
    class_uniform_counts,
    tile_centroids,
)
from segkit.data.labels import LabelSpace
from segkit.data.sampling import Augmented, EpochBatches, collate, first, read_labels
from segkit.data.transforms import regseg_transform

SPACE = LabelSpace("four", ("road", "car", "rider", "train"), ((0, 0, 0),) * 4)

# Python 3.12 and later warn of fork() beside threads; a spawned worker could not import the stand-in below.
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Maps:
    """Stands for a data set with the given label maps; the red of a pixel is its label."""

    space, split = SPACE, "train"

    def __init__(self, maps: list[np.ndarray]) -> None:
        self.maps, self.names = (
            [np.asarray(labels, np.uint8) for labels in maps],
            [str(i) for i in range(len(maps))],
        )

    def __len__(self):
        return len(self.maps)

    def __getitem__(self, index):
        labels = torch.from_numpy(self.maps[index])
        return {
            "image": tv_tensors.Image(labels.expand(3, *labels.shape)),
            "labels": tv_tensors.Mask(labels),
            "name": self.names[index],
        }


def scattered(count: int = 24, size: tuple[int, int] = (16, 32), seed: int = 0) -> Maps:
    """Road all over; a car in each picture, a rider in every fourth, a train in the first alone.

    These are 2x2 pixels, never across two tiles or over each other: each has one centroid, in its middle.
    """
    rng, maps = np.random.default_rng(seed), []
    for i in range(count):
        labels = np.zeros(size, np.uint8)
        for label, wanted in ((1, True), (2, i % 4 == 0), (3, i == 0)):
            if wanted:
                y, x = (
                    size[0] // 4 * label + rng.integers(0, size[0] // 4 - 1),
                    2 * rng.integers(0, size[1] // 2),
                )
                labels[y : y + 2, x : x + 2] = label
        maps.append(labels)
    return Maps(maps)


def test_the_counts_of_the_authors():
    assert class_uniform_counts(2975, 19, 0.5) == (78, 1482, 1493)
    assert class_uniform_counts(3475, 19, 0.5) == (91, 1729, 1746)
    assert class_uniform_counts(100, 19, 0) == (0, 0, 100)


@given(length=st.integers(1, 5000), classes=st.integers(1, 60), share=st.floats(0, 1))
def test_counts_fill_the_epoch_and_never_exceed_the_share(length, classes, share):
    if share > 0 and length * Fraction(str(share)) < classes:
        with pytest.raises(ValueError, match="less than one"):
            class_uniform_counts(length, classes, share)
        return
    each, drawn, plain = class_uniform_counts(length, classes, share)
    assert drawn == each * classes and drawn + plain == length and plain >= 0
    assert length * Fraction(str(share)) - classes < drawn <= length * Fraction(str(share))


def test_counts_are_not_rounded_below_a_whole_number():
    assert class_uniform_counts(100, 57, 0.57) == (1, 57, 43)  # 100 * 0.57 is 56.99... in floating point


def by_hand(labels: np.ndarray, classes: int) -> list[tuple[int, float, float]]:
    """Centers of mass in the fewest equal tiles that are no longer than high, tile by tile and by class."""
    axis = int(labels.shape[1] >= labels.shape[0])  # the long side's
    longer, shorter = labels.shape[axis], labels.shape[1 - axis]
    tiles = next(n for n in itertools.count(1) if longer <= n * shorter)
    found = []
    for tile in range(tiles):
        inside = np.arange(longer)
        inside = (inside >= tile * longer // tiles) & (inside < (tile + 1) * longer // tiles)
        for label in range(classes):
            rows, columns = np.nonzero((labels == label) & (inside if axis else inside[:, None]))
            if len(rows):
                found.append((label, columns.mean() + 0.5, rows.mean() + 0.5))
    return found


label_maps = st.tuples(st.integers(1, 9), st.integers(1, 30), st.booleans()).flatmap(
    lambda s: arrays(np.int16, s[:2] if s[2] else s[1::-1], elements=st.sampled_from([0, 1, 2, 3, -1, 255]))
)


@settings(max_examples=150, deadline=None)
@given(labels=label_maps)
def test_centroids_are_centers_of_mass_in_tiles(labels):
    found = list(tile_centroids(labels, 4))
    expected = by_hand(labels, 4)
    assert [label for label, *_ in found] == [label for label, *_ in expected]
    assert np.allclose([place for _, *place in found], [place for _, *place in expected])


@pytest.mark.parametrize(
    ("size", "tiles"), [((16, 32), 2), ((8, 16), 2), ((32, 16), 2), ((18, 24), 2), ((9, 9), 1)]
)
def test_tiles_at_any_size(size, tiles):
    # Cityscapes at full or half size has two squares; CamVid's 720x960 has two that are higher than wide.
    places = list(tile_centroids(np.zeros(size, np.uint8), 4))
    longer = max(size)
    middles = [(i + 0.5) * longer / tiles for i in range(tiles)]
    assert [place[1 if size[1] == longer else 2] for place in places] == middles


def test_centroids_name_images_and_places():
    labels = np.zeros((4, 8), np.uint8)
    labels[1, 5:8] = 1
    centroids = Centroids(Maps([np.full((4, 8), 2), labels]), without=["train"])
    assert centroids.length == 2 and list(centroids.by_class) == ["road", "car", "rider"]
    assert centroids.by_class["car"] == [Centroid(image=1, x=6.5, y=1.5)]
    assert centroids.by_class["rider"] == [Centroid(0, 2.0, 2.0), Centroid(0, 6.0, 2.0)]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(10, 40),
    share=st.floats(0.4, 1),
    batch_size=st.integers(1, 5),
    world_size=st.integers(1, 3),
    epoch=st.integers(0, 2),
)
def test_an_epoch_has_its_counts_and_the_ranks_share_it(count, share, batch_size, world_size, epoch):
    centroids = Centroids(scattered(count))
    options = {"seed": 3, "epoch": epoch, "centroids": centroids, "share": share}
    whole = EpochBatches(count, batch_size=batch_size * world_size, **options)
    keys = [key for batch in whole for key in batch]
    each, drawn, plain = class_uniform_counts(count, 4, share)
    once = keys[:count]  # what follows fills the last batch up
    assert all(0 <= key[0] < count for key in keys)
    without_point = [index for index, _, *point in once if not point]
    assert len(without_point) == plain == len(set(without_point))  # no image twice
    points = Counter(Centroid(index, *point[0]) for index, _, *point in once if point)
    assert points.total() == drawn
    for found in centroids.by_class.values():
        times = [points[place] for place in found]
        assert sum(times) == each and max(times) - min(times) <= 1  # too few go round and round
    ranks = [
        list(EpochBatches(count, batch_size=batch_size, rank=rank, world_size=world_size, **options))
        for rank in range(world_size)
    ]
    together = [key for step in zip(*ranks, strict=True) for batch in step for key in batch]
    assert together == keys
    # A resumed epoch goes on with the same keys.
    assert (
        list(EpochBatches(count, batch_size=batch_size * world_size, start=1, **options)) == list(whole)[1:]
    )
    assert list(whole) == list(whole)


def test_seed_and_epoch_change_the_order():
    centroids = Centroids(scattered())
    orders = {tuple(centroids.epoch(0.5, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    # Where samples stand that are drawn for a class changes too, not only which ones they are.
    places = {tuple(point is None for _, point in order) for order in orders}
    assert len(places) == 4


def test_a_share_of_zero_is_the_plain_shuffle():
    centroids = Centroids(scattered())
    plain = list(EpochBatches(24, batch_size=5, seed=2, epoch=1))
    assert list(EpochBatches(24, batch_size=5, seed=2, epoch=1, centroids=centroids, share=0.0)) == plain


def test_the_order_is_the_same_in_every_version():
    # Written down once: a change here would change every run that is resumed or repeated.
    maps = Maps([np.full((2, 2), label) for label in (0, 1, 2)])
    centroids = Centroids(maps, without=["train"])
    assert centroids.epoch(1.0, seed=0, epoch=0) == [
        (0, (1.0, 1.0)),
        (2, (1.0, 1.0)),
        (1, (1.0, 1.0)),
    ]


def test_a_drawn_class_is_in_its_crop():
    dataset = scattered(16, (32, 64))
    centroids = Centroids(dataset)
    augmented = Augmented(dataset, regseg_transform(crop=(12, 12), short_side=(24, 60), rand_augment=0))
    names = {(image, (x, y)): name for name, found in centroids.by_class.items() for image, x, y in found}
    shown = []
    for batch in EpochBatches(16, batch_size=4, seed=0, epoch=0, centroids=centroids, share=1.0):
        for key in batch:
            label = SPACE.classes.index(names[key[0], key[2]])
            assert (augmented[key]["labels"] == label).any(), key
            shown.append(label)
    assert Counter(shown) == {0: 4, 1: 4, 2: 4, 3: 4}


def loaded(num_workers: int) -> list[dict]:
    dataset = scattered()
    augmented = Augmented(dataset, regseg_transform(crop=(16, 16), short_side=(12, 40)))
    batches = EpochBatches(24, batch_size=3, seed=1, epoch=4, centroids=Centroids(dataset), share=0.6)
    return list(
        DataLoader(
            augmented,
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=collate,
            generator=torch.Generator(),
            multiprocessing_context="fork" if num_workers else None,
        )
    )


@forks
def test_batches_do_not_depend_on_the_number_of_workers():
    torch.manual_seed(0)
    alone = loaded(0)
    torch.manual_seed(1)
    for a, b in zip(alone, loaded(2), strict=True):
        assert a["name"] == b["name"] and set(a) == {"image", "labels", "name"}
        assert torch.equal(a["image"], b["image"]) and torch.equal(a["labels"], b["labels"])


def test_label_maps_are_read_without_images(make_cityscapes, tmp_path, monkeypatch):
    dataset = load("cityscapes", "train", data_dir=make_cityscapes(tmp_path / "cityscapes"))
    some = first(dataset, 2)
    for index in range(2):
        assert torch.equal(some.label_map(index), dataset[index]["labels"])
        assert isinstance(some.label_map(index), tv_tensors.Mask)
    assert torch.equal(read_labels(Maps([np.eye(3)]), 0), torch.eye(3))
    whole, few = Centroids(dataset), Centroids(some)
    assert (whole.length, few.length) == (3, 2)
    assert few.by_class["train"] == [place for place in whole.by_class["train"] if place.image < 2]

    def refuse(self, index):
        raise AssertionError("an image was read")

    monkeypatch.setattr(type(dataset), "__getitem__", refuse)
    assert Centroids(some).by_class == few.by_class


def test_shares_of_classes():
    labels = torch.tensor([[[0, 0], [0, 1]], [[0, 0], [255, 255]]])
    shares = class_shares([{"labels": labels}, {"labels": labels[:1]}], 3)
    assert shares.pixels.tolist() == pytest.approx([0.8, 0.2, 0])
    assert shares.images.tolist() == pytest.approx([1, 2 / 3, 0])


def test_class_uniform_sampling_shows_rare_classes_more_often():
    dataset = scattered(40, (32, 64))
    centroids = Centroids(dataset)
    augmented = Augmented(dataset, regseg_transform(crop=(16, 16), short_side=(24, 40), rand_augment=0))

    def shares(share):
        keys = EpochBatches(40, batch_size=8, seed=0, epoch=0, centroids=centroids, share=share)
        return class_shares((collate([augmented[key] for key in batch]) for batch in keys), 4).images

    plain, half = shares(0.0), shares(0.5)
    assert half[3] > plain[3] and half[2] > plain[2] + 0.05 and plain[0] == half[0] == 1


def test_a_class_that_never_occurs_is_named_with_the_cure():
    maps = Maps([np.zeros((4, 8)), np.ones((4, 8))])
    with pytest.raises(ValueError, match=r"'rider', 'train': no pixel of the 2 .*'train' split") as error:
        Centroids(maps)
    assert "class_uniform_without='rider,train'" in str(error.value)
    with pytest.raises(ValueError, match="class_uniform_without='train,rider'"):
        Centroids(maps, without=["train"])
    assert list(Centroids(maps, without=["train", "rider"]).by_class) == ["road", "car"]


def test_a_set_without_labels_is_refused():
    for maps in ([np.full((4, 8), 255)], [np.zeros((0, 8)), np.zeros((4, 0))]):
        with pytest.raises(ValueError, match=r"no tile of the \d label maps of the 'train' split"):
            Centroids(Maps(maps))


def test_other_bad_arguments_are_refused():
    maps = Maps([np.arange(4).reshape(2, 2)])
    with pytest.raises(ValueError, match="class in class_uniform_without 'trains': did you mean 'train'"):
        Centroids(maps, without=["trains"])
    with pytest.raises(ValueError, match="leaves no class"):
        Centroids(maps, without=SPACE.classes)
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"between 0 and 1, got {share}"):
            class_uniform_counts(10, 2, share)
    with pytest.raises(ValueError, match="got 0 and 2"):
        class_uniform_counts(0, 2, 0.5)
    with pytest.raises(ValueError, match=r"share of 0.5 of 1 samples is less than one for each of 4 classes"):
        EpochBatches(1, batch_size=1, seed=0, epoch=0, centroids=Centroids(maps), share=0.5)
    with pytest.raises(ValueError, match=r"share is 0\.5, but without centroids"):
        EpochBatches(1, batch_size=1, seed=0, epoch=0, share=0.5)
    with pytest.raises(ValueError, match="those of 1 samples, not of 2"):
        EpochBatches(2, batch_size=1, seed=0, epoch=0, centroids=Centroids(maps), share=1.0)
    for batches in ([], [{"labels": torch.full((1, 2, 2), 255)}]):
        with pytest.raises(ValueError, match=f"no pixel of the {len(batches)} images"):
            class_shares(batches, 3)
