"""Training batches and data sets at another resolution."""

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from segkit.data.transforms import PadBelowAndRight, RandomBlur, RandomShortSide
from segkit.training import inputs
from segkit.training.distributed import World
from segkit.training.inputs import AtResolution, AtSize, Batches, augmentation, centroids, verify


def batches_of(tiny, *, rank=0, size=1, **changes):
    world = World(rank, size, torch.device("cpu"))
    return Batches(tiny.TinySet(), tiny.tiny_recipe(**changes), world)


def test_an_epoch_is_the_same_wherever_it_starts(tiny):
    batches = batches_of(tiny)
    assert len(batches) == 3
    whole = list(batches.epoch(1))
    rest = list(batches.epoch(1, start=1))
    assert len(batches) == 3
    assert [batch["name"] for batch in rest] == [batch["name"] for batch in whole[1:]]
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(rest, whole[1:], strict=True))
    assert sorted(name for batch in whole for name in batch["name"]) == tiny.TinySet().names
    assert [batch["name"] for batch in batches.epoch(2)] != [batch["name"] for batch in whole]


def test_the_global_random_state_is_left_alone(tiny):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert len(list(batches_of(tiny).epoch(0))) == 3
    assert torch.equal(torch.get_rng_state(), before)


def test_two_processes_split_each_batch(tiny):
    whole = list(batches_of(tiny).epoch(0))
    halves = [list(batches_of(tiny, rank=rank, size=2).epoch(0)) for rank in range(2)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert len(first["name"]) == 2
        assert first["name"] + second["name"] == batch["name"]
        assert torch.equal(torch.cat([first["labels"], second["labels"]]), batch["labels"])


def test_half_resolution(tiny):
    full, half = tiny.TinySet(), AtResolution(tiny.TinySet(), 0.5)
    assert (len(half), half.names, half.space, half.split) == (len(full), full.names, full.space, full.split)
    sample = half[3]
    assert sample["name"] == full.names[3]
    assert isinstance(sample["labels"], tv_tensors.Mask)
    assert sample["image"].shape == (3, 16, 24)
    blocks = (
        full[3]["labels"].unfold(0, 2, 2).unfold(1, 2, 2).flatten(2)
    )  # each label is one of the pixels it covers
    assert (blocks == sample["labels"][..., None]).any(-1).all()
    assert torch.equal(sample["image"], half[3]["image"])


def test_one_size_whatever_the_shape(tiny, monkeypatch):
    class Mixed(tiny.TinySet):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            if index:
                sample["image"], sample["labels"] = sample["image"][:, :20], sample["labels"][:20]
            return {
                **sample,
                "image": tv_tensors.Image(sample["image"]),
                "labels": tv_tensors.Mask(sample["labels"]),
            }

    mixed, resized = Mixed(), AtSize(Mixed(), (24, 40))
    assert (len(resized), resized.names, resized.space) == (len(mixed), mixed.names, mixed.space)
    for index in (0, 1):
        sample = resized[index]
        assert (sample["image"].shape, sample["labels"].shape) == ((3, 24, 40), (24, 40))
        assert set(sample["labels"].unique().tolist()) <= set(mixed[index]["labels"].unique().tolist())
        assert torch.equal(resized.label_map(index), sample["labels"])
        row, column = 11, 7  # nearest-exact: the pixel in which the new pixel's center lies
        height, width = mixed[index]["labels"].shape
        from_row, from_column = int((row + 0.5) * height / 24), int((column + 0.5) * width / 40)
        assert sample["labels"][row, column] == mixed[index]["labels"][from_row, from_column]
    monkeypatch.setattr(inputs.data, "load", lambda name, split, **options: mixed)
    opened = inputs.open_split(tiny.tiny_recipe(image_size=(24, 40)), "train")
    assert isinstance(opened, AtSize) and opened.size == (24, 40)
    assert inputs.open_split(tiny.tiny_recipe(), "train") is mixed


def test_a_whole_image_passes_the_augmentation_unchanged(tiny):
    still = {"flip": 0.0, "scale": (1.0, 1.0)}
    batch = next(iter(batches_of(tiny, **still).epoch(0)))
    for name, image in zip(batch["name"], batch["image"], strict=True):
        assert torch.equal(image, tiny.TinySet()[int(name[-3:])]["image"])


def test_each_set_is_verified_once(tiny):
    class Counting(tiny.TinySet):
        calls = 0

        def verify(self):
            self.calls += 1

    mine = Counting()
    verify(mine, None, tiny.TinySet(), mine, AtResolution(mine, 0.5))
    assert mine.calls == 2  # itself, and once more at another resolution
    verify(AtResolution(tiny.TinySet(), 0.5))  # cannot be verified: trusted


REGSEG = {"short_side": (24, 48), "rand_augment": 2, "class_uniform": 0.5, "drop_last": True}


def equal(first, second) -> bool:
    return all(
        a["name"] == b["name"]
        and torch.equal(a["image"], b["image"])
        and torch.equal(a["labels"], b["labels"])
        for a, b in zip(first, second, strict=True)
    )


def test_regsegs_batches_follow_its_protocol(tiny):
    batches = batches_of(tiny, **REGSEG, batch_size=5)
    assert len(batches) == 2  # of 12 images; the rest is left out
    whole = list(batches.epoch(3))
    assert [batch["image"].shape for batch in whole] == [(5, 3, 32, 48)] * 2
    assert set(whole[0]) == {"image", "labels", "name"}
    assert equal(batches.epoch(3, start=1), whole[1:]) and len(batches) == 2
    assert equal(batches_of(tiny, **REGSEG, batch_size=5).epoch(3), whole)
    assert not equal(batches.epoch(4), whole)


def test_two_processes_split_regsegs_batches_too(tiny):
    whole = list(batches_of(tiny, **REGSEG).epoch(0))
    halves = [list(batches_of(tiny, **REGSEG, rank=rank, size=2).epoch(0)) for rank in range(2)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert first["name"] + second["name"] == batch["name"]
        assert torch.equal(torch.cat([first["image"], second["image"]]), batch["image"])


def test_the_data_have_a_seed_of_their_own(tiny):
    for options in ({}, REGSEG):
        expected = list(batches_of(tiny, **options, seed=7).epoch(0))
        assert equal(batches_of(tiny, **options, seed=1, data_seed=7).epoch(0), expected)
        assert not equal(batches_of(tiny, **options, seed=7, data_seed=0).epoch(0), expected)


def test_the_augmentation_is_that_of_the_recipe(tiny):
    ladder = augmentation(tiny.tiny_recipe()).transforms
    assert isinstance(ladder[0], v2.RandomHorizontalFlip)
    steps = augmentation(tiny.tiny_recipe(**REGSEG, flip=0.25, rand_magnitude=0.4)).transforms
    assert isinstance(steps[0], RandomShortSide) and steps[0].short_side == (24, 48)
    assert (steps[1].size, steps[2].p) == ((32, 48), 0.25)
    assert (steps[3].operations, steps[3].magnitude) == (2, 0.4)


FASTFCN = {"augmentation": "fastfcn", "short_side": (24, 48), "blur": 0.5, "drop_last": True}


def test_fastfcns_batches_follow_its_protocol(tiny):
    steps = augmentation(tiny.tiny_recipe(**FASTFCN, flip=0.25)).transforms
    assert [type(step) for step in steps] == [
        *(v2.RandomHorizontalFlip, RandomShortSide, PadBelowAndRight, v2.RandomCrop, RandomBlur),
    ]
    assert (steps[0].p, steps[1].short_side, steps[4].probability) == (0.25, (24, 48), 0.5)
    assert (steps[2].size, tuple(steps[3].size)) == ((32, 48), (32, 48))
    batches = batches_of(tiny, **FASTFCN, batch_size=5)
    whole = list(batches.epoch(3))
    assert [batch["image"].shape for batch in whole] == [(5, 3, 32, 48)] * 2
    assert equal(batches.epoch(3, start=1), whole[1:])
    assert equal(batches_of(tiny, **FASTFCN, batch_size=5).epoch(3), whole)
    assert not equal(batches.epoch(4), whole)


def test_centroids_only_where_the_recipe_draws_by_class(tiny):
    assert centroids(tiny.TinySet(), tiny.tiny_recipe()) is None
    found = centroids(tiny.TinySet(), tiny.tiny_recipe(class_uniform=0.5, class_uniform_without=" red,blue "))
    assert list(found.by_class) == ["green"] and found.length == 12


def test_label_maps_at_half_resolution(tiny):
    half = AtResolution(tiny.TinySet(), 0.5)
    assert torch.equal(half.label_map(3), half[3]["labels"])
    recipe = tiny.tiny_recipe(class_uniform=0.5)
    full, small = (centroids(dataset, recipe).by_class["red"] for dataset in (tiny.TinySet(), half))
    assert [place.image for place in full] == [place.image for place in small]
    for a, b in zip(full, small, strict=True):
        assert (b.x, b.y) == pytest.approx((a.x / 2, a.y / 2), abs=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rand_augment": 2}, r"rand_augment=2 .* short_side=\(400, 1600\), or rand_augment=0"),
        ({"class_uniform": 0.5}, "class_uniform=0.5 .* or class_uniform=0"),
        ({**REGSEG, "class_uniform_without": "cyan"}, "class_uniform_without 'cyan'"),
        ({**REGSEG, "class_uniform": 0.1}, "share of 0.1 of 12 samples is less than one"),
        ({**REGSEG, "batch_size": 13}, "drop_last leaves no batch: 12 samples"),
    ],
)
def test_options_that_do_not_fit_are_refused(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        batches_of(tiny, **changes)
