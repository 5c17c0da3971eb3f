"""Which sample comes when, and with which randomness: a function of seed, epoch and position alone.

A batch never depends on how many workers load it, on what ran before, or on whether the run was resumed:
the order of an epoch and the random numbers of every augmentation are hashed from (seed, epoch, position).

    batches = EpochBatches(len(dataset), batch_size=16, seed=0, epoch=3)
    loader = DataLoader(Augmented(dataset, transform), batch_sampler=batches, collate_fn=collate,
                        num_workers=4, generator=torch.Generator())

(The loader's own `generator` keeps it from taking a number out of torch's global one.)

Class-uniform sampling, which shows rare classes more often, is an option of `EpochBatches`: see
`segkit.data.class_uniform`.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

if TYPE_CHECKING:
    from segkit.data.class_uniform import Centroids

Point = tuple[float, float]
"""x and y of a place in an image, pixels from its upper left corner."""
Key = tuple[int, int] | tuple[int, int, Point]
"""What `Augmented` is asked for: index of the sample, seed of its augmentation, perhaps a place to show."""


def _hash63(*parts: object) -> int:
    """A 63-bit integer from the parts; unlike a library's generator it is the same in every version."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def shuffled(length: int, *parts: object) -> list[int]:
    """The numbers below `length` in an order that the parts decide: seed, epoch, what is shuffled."""
    return sorted(range(length), key=lambda i: _hash63(*parts, i))


class EpochBatches:
    """The batches of one epoch, as keys `(index, draw)` for `Augmented`; a `batch_sampler` of a DataLoader.

    The epoch's global order is a shuffle of all indices. It is cut into global batches of
    `batch_size * world_size` positions, the last one filled up from the order's beginning, and each global
    batch into one piece per rank. So ranks never share a position, and the same global batches come out of 1
    process with 16 images, 2 with 8 or 4 with 4. `draw` is the seed for the augmentation at a position.

    With a `share` above 0 the order is `centroids.epoch`'s, of the same length, and the keys of samples drawn
    for a class are `(index, draw, point)`.

    Args:
        length: number of samples in the data set.
        batch_size: samples per batch and process.
        seed: of the run.
        epoch: from 0; another epoch is another order and other draws.
        rank: this process, from 0.
        world_size: number of processes.
        start: batches to leave out at the front, where a resumed run goes on.
        drop_last: leave the positions out that do not fill a global batch, instead of filling it up.
        centroids: of the data set, for class-uniform sampling.
        share: of the samples, to be drawn class by class; 0 is a plain shuffle.

    Raises:
        ValueError: if an argument is outside its range, if nothing is left after `drop_last`, or if there are
            no centroids for a share, or those of another number of samples.
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
        drop_last: bool = False,
        centroids: "Centroids | None" = None,
        share: float = 0.0,
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
        whole = batch_size * world_size
        if drop_last and length < whole:
            raise ValueError(
                f"drop_last leaves no batch: {length} samples do not fill one of {whole}; take smaller "
                "batches, more samples, or drop_last=False"
            )
        self.batches = length // whole if drop_last else -(-length // whole)
        if not 0 <= start <= self.batches:
            raise ValueError(f"start must be from 0 to the epoch's {self.batches} batches, got {start}")
        self.length, self.batch_size, self.seed, self.epoch = length, batch_size, seed, epoch
        self.rank, self.world_size, self.start = rank, world_size, start
        self.centroids, self.share = centroids, share
        if share:
            if centroids is None:
                raise ValueError(f"share is {share}, but without centroids no class can be drawn for")
            if centroids.length != length:
                raise ValueError(f"the centroids are those of {centroids.length} samples, not of {length}")
            centroids.counts(share)  # says now if the share is none

    def __len__(self) -> int:
        """Batches left in the epoch."""
        return self.batches - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        order = self._order()
        for batch in range(self.start, self.batches):
            first = (batch * self.world_size + self.rank) * self.batch_size
            yield [
                self._key(order[position % self.length], position)
                for position in range(first, first + self.batch_size)
            ]

    def _order(self) -> list[tuple[int, Point | None]]:
        if self.share:
            return self.centroids.epoch(self.share, seed=self.seed, epoch=self.epoch)
        return [(index, None) for index in shuffled(self.length, self.seed, self.epoch, "order")]

    def _key(self, place: tuple[int, Point | None], position: int) -> Key:
        (index, point), draw = place, _hash63(self.seed, self.epoch, "draw", position)
        return (index, draw) if point is None else (index, draw, point)


class Augmented(Dataset):
    """A data set seen through a random transform, its randomness fixed by the key.

    Items are asked for by a key `(index, draw)`: the transform runs with torch's CPU generator seeded with
    `draw`, and the generator is put back afterwards. A transform must take its randomness from there, as
    all of `transforms.v2` do. From a key `(index, draw, point)` the sample gets a "point", one
    `tv_tensors.KeyPoints`, which the transform shall keep in the crop.

    Args:
        dataset: a map-style data set of samples.
        transform: from sample to sample; None leaves samples as they are.
    """

    def __init__(self, dataset: Any, transform: Callable[[dict], dict] | None) -> None:
        self.dataset, self.transform = dataset, transform
        self.space, self.split, self.names = dataset.space, dataset.split, dataset.names

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        index, draw, *points = key
        sample = self.dataset[index]
        if points:
            size = tuple(sample["labels"].shape)
            point = tv_tensors.KeyPoints(points, dtype=torch.float32, canvas_size=size)  # (1, 2)
            sample = {**sample, "point": point}
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


def read_labels(dataset: Any, index: int) -> Tensor:
    """The labels (H, W) of a sample: by the data set's `label_map`, which need not read the image, if any."""
    return dataset.label_map(index) if hasattr(dataset, "label_map") else dataset[index]["labels"]


class _First(Dataset):
    """The first samples of a data set; see `first`."""

    def __init__(self, dataset: Any, count: int) -> None:
        self.dataset = dataset
        self.space, self.split, self.names = dataset.space, dataset.split, dataset.names[:count]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[range(len(self))[index]]

    def label_map(self, index: int) -> Tensor:
        """The labels of a sample alone; see `read_labels`."""
        return read_labels(self.dataset, range(len(self))[index])

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
