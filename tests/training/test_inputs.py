"""Training batches and data sets at another resolution."""

import torch
from torchvision import tv_tensors

from segkit.training.distributed import World
from segkit.training.inputs import AtResolution, Batches, verify


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


def test_each_set_is_verified_once(tiny):
    class Counting(tiny.TinySet):
        calls = 0

        def verify(self):
            self.calls += 1

    mine = Counting()
    verify(mine, None, tiny.TinySet(), mine, AtResolution(mine, 0.5))
    assert mine.calls == 2  # itself, and once more at another resolution
    verify(AtResolution(tiny.TinySet(), 0.5))  # cannot be verified: trusted
