"""The same batches, whatever the number of workers or processes, and after a resume."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors

from segkit.data.labels import CAMVID11
from segkit.data.sampling import Augmented, EpochBatches, collate, first
from segkit.data.transforms import training_transform


class Pictures(Dataset):
    """Stands for a data set: image i is filled with i, its labels with i % 11."""

    space, split = CAMVID11, "train"

    def __init__(self, length: int = 7, size: tuple[int, int] = (12, 10)) -> None:
        self.names = [f"picture{i}" for i in range(length)]
        self.size = size

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        rows = torch.arange(self.size[0], dtype=torch.uint8)[:, None].expand(self.size)
        return {
            "image": tv_tensors.Image(rows.expand(3, -1, -1) + index),
            "labels": tv_tensors.Mask(torch.full(self.size, index % 11, dtype=torch.uint8)),
            "name": self.names[index],
        }


counts = st.integers(1, 40)

# Python 3.12 and later warn of fork() beside threads; a spawned worker could not import the stand-in above.
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@settings(max_examples=60, deadline=None)
@given(length=counts, batch_size=st.integers(1, 9), world_size=st.integers(1, 5), epoch=st.integers(0, 3))
def test_ranks_share_one_order_that_covers_everything(length, batch_size, world_size, epoch):
    def rank_batches(rank, **options):
        return list(
            EpochBatches(
                length,
                batch_size=batch_size,
                seed=1,
                epoch=epoch,
                rank=rank,
                world_size=world_size,
                **options,
            )
        )

    ranks = [rank_batches(rank) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(len(batch) == batch_size for batches in ranks for batch in batches)
    order = [key for step in zip(*ranks, strict=True) for batch in step for key in batch]
    indices = [index for index, _ in order]
    assert sorted(indices[:length]) == list(range(length))  # once each, before anything comes twice
    assert indices[length:] == [
        indices[i % length] for i in range(length, len(indices))
    ]  # wrapped to the beginning
    assert len(indices) - length < batch_size * world_size
    draws = [draw for _, draw in order]
    assert len(set(draws)) == len(draws), "a sample that comes twice is augmented differently"
    assert all(0 <= draw < 2**63 for draw in draws)
    # One process with the whole batch sees the very same global batches.
    alone = list(EpochBatches(length, batch_size=batch_size * world_size, seed=1, epoch=epoch))
    assert [key for batch in alone for key in batch] == order


@settings(max_examples=40, deadline=None)
@given(length=counts, batch_size=st.integers(1, 9), data=st.data())
def test_a_start_skips_that_many_batches(length, batch_size, data):
    whole = EpochBatches(length, batch_size=batch_size, seed=3, epoch=2)
    start = data.draw(st.integers(0, len(whole)))
    rest = EpochBatches(length, batch_size=batch_size, seed=3, epoch=2, start=start)
    assert list(rest) == list(whole)[start:] == list(rest)
    assert len(rest) == len(whole) - start


def test_seed_and_epoch_change_order_and_draws():
    keys = {
        (seed, epoch): next(iter(EpochBatches(50, batch_size=50, seed=seed, epoch=epoch)))
        for seed, epoch in itertools.product((0, 1, -1, 2**40), (0, 1, 10))
    }
    orders = {tuple(index for index, _ in batch) for batch in keys.values()}
    draws = {draw for batch in keys.values() for _, draw in batch}
    assert len(orders) == 12 and len(draws) == 12 * 50
    assert tuple(range(50)) not in orders


def test_the_stream_is_the_same_in_every_version():
    # Written down once: a change here would change every run that is resumed or repeated.
    assert list(EpochBatches(3, batch_size=2, seed=0, epoch=0)) == [
        [(2, 4329409292950026894), (0, 2318461552546118589)],
        [(1, 195610457696435199), (2, 6187022052544171990)],
    ]


@settings(max_examples=60, deadline=None)
@given(length=counts, batch_size=st.integers(1, 9), world_size=st.integers(1, 5))
def test_the_last_batch_can_be_left_out(length, batch_size, world_size):
    options = {"batch_size": batch_size, "seed": 1, "epoch": 0, "world_size": world_size}
    if length < batch_size * world_size:
        with pytest.raises(
            ValueError, match=f"{length} samples do not fill one of {batch_size * world_size}"
        ):
            EpochBatches(length, **options, drop_last=True)
        return
    for rank in range(world_size):
        kept = list(EpochBatches(length, **options, rank=rank, drop_last=True))
        assert kept == list(EpochBatches(length, **options, rank=rank))[: length // (batch_size * world_size)]
        assert len(EpochBatches(length, **options, drop_last=True, start=1)) == len(kept) - 1


def test_a_point_comes_with_its_sample():
    seen = []
    Augmented(Pictures(), lambda sample: seen.append(sample["point"]) or sample)[2, 5, (3.5, 7.0)]
    assert isinstance(seen[0], tv_tensors.KeyPoints)
    assert seen[0].tolist() == [[3.5, 7.0]] and seen[0].canvas_size == (12, 10)
    assert "point" not in Augmented(Pictures(), lambda sample: sample)[2, 5]


def loaded(num_workers: int, start: int = 0) -> list[dict]:
    dataset = Augmented(Pictures(), training_transform(crop=(8, 8)))
    batches = EpochBatches(len(dataset), batch_size=2, seed=5, epoch=1, start=start)
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        generator=torch.Generator(),
        multiprocessing_context="fork" if num_workers else None,
    )
    return list(loader)


def same(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(
        x["name"] == y["name"]
        and torch.equal(x["image"], y["image"])
        and torch.equal(x["labels"], y["labels"])
        for x, y in zip(a, b, strict=True)
    )


@forks
def test_batches_do_not_depend_on_the_number_of_workers():
    torch.manual_seed(0)
    expected = loaded(0)
    for num_workers in (1, 2):
        torch.manual_seed(num_workers)
        assert same(loaded(num_workers), expected)
    assert not same(expected, expected[::-1])


@forks
def test_a_resumed_epoch_goes_on_with_the_same_batches():
    assert same(loaded(0, start=2), loaded(0)[2:])
    assert same(loaded(2, start=3), loaded(0)[3:])


def test_the_global_generator_is_untouched_and_no_gpu_is_reseeded(monkeypatch):
    def refuse(seed):
        raise AssertionError("the generators of the GPUs are not ours to seed")

    torch.manual_seed(11)
    before = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    loaded(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_generator_is_put_back_after_an_error():
    def broken(sample):
        torch.rand(3)
        raise RuntimeError("broken")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken"):
        Augmented(Pictures(), broken)[0, 1]
    assert torch.equal(torch.get_rng_state(), before)


def test_the_draw_decides_the_augmentation():
    dataset = Augmented(Pictures(size=(40, 40)), training_transform(crop=(8, 8)))
    a, b, c = (dataset[2, draw]["image"] for draw in (1, 1, 2**63 - 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert (dataset.space, dataset.split, dataset.names, len(dataset)) == (
        CAMVID11,
        "train",
        Pictures().names,
        7,
    )


def test_no_transform_leaves_samples_as_they_are():
    assert torch.equal(Augmented(Pictures(), None)[3, 9]["image"], Pictures()[3]["image"])


def test_collate_stacks_plain_tensors():
    samples = [Pictures()[i] for i in (1, 4)]
    batch = collate(samples)
    assert set(batch) == {"image", "labels", "name"}
    assert batch["image"].shape == (2, 3, 12, 10) and batch["image"].dtype == torch.uint8
    assert batch["labels"].shape == (2, 12, 10) and batch["labels"].dtype == torch.int64
    assert type(batch["image"]) is type(batch["labels"]) is torch.Tensor
    assert batch["name"] == ["picture1", "picture4"]
    assert torch.equal(batch["image"][1], samples[1]["image"])
    for sample in samples:
        sample["instances"] = tv_tensors.Mask(torch.ones(12, 10, dtype=torch.int32))
    assert collate(samples)["instances"].dtype == torch.int32


def test_collate_names_the_sample_of_another_size():
    with pytest.raises(ValueError, match="picture1 is 9x10, but picture0 is 12x10"):
        collate([Pictures()[0], Pictures(size=(9, 10))[1]])
    with pytest.raises(ValueError, match="no samples"):
        collate([])


@pytest.mark.parametrize("n", [None, 0, 7, 100])
def test_first_of_all_is_the_data_set(n):
    dataset = Pictures()
    assert first(dataset, n) is dataset


def test_first_keeps_what_describes_the_data():
    some = first(Pictures(), 3)
    assert (some.space, some.split, some.names) == (CAMVID11, "train", ["picture0", "picture1", "picture2"])
    assert [sample["name"] for sample in some] == some.names
    assert some[-1]["name"] == "picture2"
    with pytest.raises(IndexError):
        some[3]
    with pytest.raises(ValueError, match="-1"):
        first(Pictures(), -1)
    assert len(first(some, 2)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size"),
        ({"epoch": -1}, "epoch"),
        ({"world_size": 0}, "world_size"),
        ({"rank": 1}, "rank"),
        ({"start": 6}, "5 batches, got 6"),
        ({"start": -1}, "got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(change, message):
    arguments = {"length": 10, "batch_size": 2, "seed": 0, "epoch": 0, **change}
    with pytest.raises(ValueError, match=message):
        EpochBatches(arguments.pop("length"), **arguments)
