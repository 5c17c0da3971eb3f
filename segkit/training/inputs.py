"""From a recipe to its data sets and to the stream of training batches."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors

from segkit import data
from segkit.data.sampling import Augmented, EpochBatches, collate
from segkit.data.transforms import RandomRescale, training_transform
from segkit.training.distributed import World
from segkit.training.recipes import Recipe


class AtResolution(Dataset):
    """Images and label maps of a data set, resized by one factor, as for the half-size table of Sec. 6.2."""

    def __init__(self, dataset: Any, factor: float) -> None:
        self.dataset, self.factor = dataset, factor
        self.space, self.split, self.names = dataset.space, dataset.split, dataset.names
        self._rescale = RandomRescale((factor, factor))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        height, width = sample["labels"].shape
        size = {"size": [max(1, round(height * self.factor)), max(1, round(width * self.factor))]}
        return {
            key: self._rescale.transform(value, size) if isinstance(value, tv_tensors.TVTensor) else value
            for key, value in sample.items()
        }

    def verify(self, **options: Any) -> Any:
        """As the data set's own `verify`."""
        return self.dataset.verify(**options)


def open_split(recipe: Recipe, split: str, *, data_dir: Any = None, instances: bool = False) -> Any:
    """One split of the recipe's data set, at the recipe's resolution."""
    options = dict(recipe.dataset_options)
    if instances:
        options["instances"] = True
    dataset = data.load(recipe.dataset, split, data_dir=data_dir, **options)
    return dataset if recipe.resolution == 1 else AtResolution(dataset, recipe.resolution)


def verify(*datasets: Any) -> None:
    """Reads the data sets whole, each once, so that a file that cannot be used is named before training.

    Raises:
        FileNotFoundError, ValueError: naming the first such file. A data set without `verify` is trusted.
    """
    checked: list[Any] = [None]
    for dataset in datasets:
        if _has_verify(dataset) and not any(dataset is other for other in checked):
            dataset.verify()
            checked.append(dataset)


def _has_verify(dataset: Any) -> bool:
    """Whether a data set can be verified; one that wraps another can if that one can."""
    inner = getattr(dataset, "dataset", None)
    return hasattr(dataset, "verify") and (inner is None or _has_verify(inner))


class _Positions:
    """Where the next pass over the loader begins. It stays the same object, so worker processes live on."""

    def __init__(self, length: int, **options: Any) -> None:
        self.length, self.options = length, options
        self.epoch, self.start = 0, 0

    def _batches(self) -> EpochBatches:
        return EpochBatches(self.length, epoch=self.epoch, start=self.start, **self.options)

    def __len__(self) -> int:
        return len(self._batches())

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self._batches())


class Batches:
    """The training batches of a recipe on this process, epoch by epoch.

    What an epoch yields depends on the recipe, the number of processes and the epoch alone: neither on the
    number of workers nor on what ran before.

    Args:
        dataset: the training set.
        recipe: what to do with it.
        world: this process among all.
        workers: loading processes; None for none on the CPU (which is busy) and up to 8 beside a GPU.
    """

    def __init__(self, dataset: Any, recipe: Recipe, world: World, *, workers: int | None = None) -> None:
        gpu = world.device.type == "cuda"
        if workers is None:
            workers = min(8, (os.cpu_count() or 1) // world.size) if gpu else 0
        self._positions = _Positions(
            len(dataset),
            batch_size=world.share_of_batch(recipe.batch_size),
            seed=recipe.seed,
            rank=world.rank,
            world_size=world.size,
        )
        self._loader = DataLoader(
            Augmented(dataset, training_transform(crop=recipe.crop, scale=recipe.scale, flip=recipe.flip)),
            batch_sampler=self._positions,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=gpu,
            generator=torch.Generator(),  # its own: else each pass would take a number from the global one
        )

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self._positions.start + len(self._positions)

    def epoch(self, epoch: int, *, start: int = 0) -> DataLoader:
        """The batches of an epoch from batch ``start`` on; valid until the next call."""
        self._positions.epoch, self._positions.start = epoch, start
        return self._loader
