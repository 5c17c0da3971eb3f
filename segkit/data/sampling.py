"""Which sample comes when, and with which randomness: a function of seed, epoch and position alone.

A batch never depends on how many workers load it, on what ran before, or on whether the run was resumed:
the order of an epoch and the random numbers of every augmentation are hashed from (seed, epoch, position).

    batches = EpochBatches(len(dataset), batch_size=16, seed=0, epoch=3)
    loader = DataLoader(Augmented(dataset, transform), batch_sampler=batches, collate_fn=collate,
                        num_workers=4, generator=torch.Generator())

(The loader's own `generator` keeps it from taking a number out of torch's global one.)
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


def _hash63(*parts: object) -> int:
    """A 63-bit integer from the parts; unlike a library's generator it is the same in every version."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class EpochBatches:
    """The batches of one epoch, as keys `(index, draw)` for `Augmented`; a `batch_sampler` of a DataLoader.

    The epoch's global order is a shuffle of all indices. It is cut into global batches of
    `batch_size * world_size` positions, the last one filled up from the order's beginning, and each global
    batch into one piece per rank. So ranks never share a position, and the same global batches come out of 1
    process with 16 images, 2 with 8 or 4 with 4. `draw` is the seed for the augmentation at a position.

    Args:
        length: number of samples in the data set.
        batch_size: samples per batch and process.
        seed: of the run.
        epoch: from 0; another epoch is another order and other draws.
        rank: this process, from 0.
        world_size: number of processes.
        start: batches to leave out at the front, where a resumed run goes on.

    Raises:
        ValueError: if an argument is outside its range.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        for name, value, least in (
            ("length", length, 1),
            ("batch_size", batch_size, 1),
            ("epoch", epoch, 0),
            ("world_size", world_size, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to world_size - 1 = {world_size - 1}, got {rank}")
        self.batches = -(-length // (batch_size * world_size))
        if not 0 <= start <= self.batches:
            raise ValueError(f"start must be from 0 to the epoch's {self.batches} batches, got {start}")
        self.length, self.batch_size, self.seed, self.epoch = length, batch_size, seed, epoch
        self.rank, self.world_size, self.start = rank, world_size, start

    def __len__(self) -> int:
        """Batches left in the epoch."""
        return self.batches - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = sorted(range(self.length), key=lambda i: _hash63(self.seed, self.epoch, "order", i))
        for batch in range(self.start, self.batches):
            first = (batch * self.world_size + self.rank) * self.batch_size
            yield [
                (order[position % self.length], _hash63(self.seed, self.epoch, "draw", position))
                for position in range(first, first + self.batch_size)
            ]


class Augmented(Dataset):
    """A data set seen through a random transform, its randomness fixed by the key.

    Items are asked for by a key `(index, draw)`: the transform runs with torch's CPU generator seeded with
    `draw`, and the generator is put back afterwards. A transform must take its randomness from there, as
    all of `transforms.v2` do.

    Args:
        dataset: a map-style data set of samples.
        transform: from sample to sample; None leaves samples as they are.
    """

    def __init__(self, dataset: Any, transform: Callable[[dict], dict] | None) -> None:
        self.dataset, self.transform = dataset, transform
        self.space, self.split, self.names = dataset.space, dataset.split, dataset.names

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, draw = key
        sample = self.dataset[index]
        if self.transform is None:
            return sample
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reseed every GPU too, and those are not put back here.
            torch.default_generator.manual_seed(draw)
            return self.transform(sample)


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stacks samples of one size into a batch.

    Args:
        samples: dicts with "image", "labels", "name" and perhaps "instances".

    Returns:
        "image" uint8 (B, 3, h, w), "labels" int64 (B, h, w), "name" list of B strings and, where the samples
        have it, "instances" int32 (B, h, w). Plain tensors.

    Raises:
        ValueError: if the samples differ in size.
    """
    if not samples:
        raise ValueError("collate() got no samples; a batch needs at least one")
    sizes = [tuple(sample["labels"].shape) for sample in samples]
    for sample, size in zip(samples, sizes, strict=True):
        if size != sizes[0]:
            raise ValueError(
                f"{sample['name']} is {size[0]}x{size[1]}, "
                f"but {samples[0]['name']} is {sizes[0][0]}x{sizes[0][1]}: "
                "one batch needs one size; crop them alike, or use batch size 1"
            )

    def stack(key: str) -> Tensor:
        return torch.stack([sample[key].as_subclass(Tensor) for sample in samples])

    batch = {"image": stack("image"), "labels": stack("labels").long()}
    batch["name"] = [sample["name"] for sample in samples]
    if "instances" in samples[0]:
        batch["instances"] = stack("instances")
    return batch


class _First(Dataset):
    """The first samples of a data set; see `first`."""

    def __init__(self, dataset: Any, count: int) -> None:
        self.dataset = dataset
        self.space, self.split, self.names = dataset.space, dataset.split, dataset.names[:count]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[range(len(self))[index]]

    def verify(self, *, limit: int | None = None, **options: Any) -> Any:
        """As the data set's own `verify`, for these samples alone."""
        return self.dataset.verify(limit=len(self.names[:limit]), **options)


def first(dataset: Any, n: int | None) -> Any:
    """The first n samples as a data set that keeps `.space`, `.split` and `.names`.

    Args:
        dataset: a map-style data set.
        n: how many; None or 0 for all, and more than there are is all.

    Raises:
        ValueError: if n is negative.
    """
    if n is not None and n < 0:
        raise ValueError(f"cannot take the first {n} samples; give a number above 0, or 0 or None for all")
    return dataset if not n or n >= len(dataset) else _First(dataset, n)
