"""From a recipe to its data sets and to the stream of training batches."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from segkit import data
from segkit.data.class_uniform import Centroids
from segkit.data.sampling import Augmented, EpochBatches, Key, collate, read_labels
from segkit.data.transforms import RandomRescale, fastfcn_transform, regseg_transform, training_transform
from segkit.training import features
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
        size = self._size(sample["labels"])
        return {
            key: self._rescale.transform(value, size) if isinstance(value, tv_tensors.TVTensor) else value
            for key, value in sample.items()
        }

    def label_map(self, index: int) -> Tensor:
        """The labels of a sample alone."""
        labels = read_labels(self.dataset, index)
        return self._rescale.transform(labels, self._size(labels))

    def _size(self, labels: Tensor) -> dict[str, list[int]]:
        height, width = labels.shape
        return {"size": [max(1, round(height * self.factor)), max(1, round(width * self.factor))]}

    def verify(self, **options: Any) -> Any:
        """As the data set's own `verify`."""
        return self.dataset.verify(**options)


class AtSize(AtResolution):
    """Images and label maps of a data set, resized to one size (H, W) whatever their shape.

    As the DenseASPP report's Sec. 3 does, 1024x2048 to 512x1024. Figures on such a set are of that size.
    """

    def __init__(self, dataset: Any, size: tuple[int, int]) -> None:
        super().__init__(dataset, 1.0)
        self.size = tuple(size)

    def _size(self, labels: Tensor) -> dict[str, list[int]]:
        return {"size": list(self.size)}


def open_split(recipe: Recipe, split: str, *, data_dir: Any = None, instances: bool = False) -> Any:
    """One split of the recipe's data set, at the recipe's image size or resolution."""
    options = dict(recipe.dataset_options)
    if instances:
        options["instances"] = True
    dataset = data.load(recipe.dataset, split, data_dir=data_dir, **options)
    if any(recipe.image_size):
        return AtSize(dataset, recipe.image_size)
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

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self._batches())


def augmentation(recipe: Recipe) -> v2.Compose:
    """The random transform of the recipe.

    FastFCN's where it says so, else RegSeg's where it has a `short_side`, else Ladder-DenseNet's.

    Raises:
        ValueError: if a value is outside its range, or RegSeg's options are asked for without a `short_side`.
    """
    if recipe.augmentation == "fastfcn":
        return fastfcn_transform(
            crop=recipe.crop, short_side=recipe.short_side, flip=recipe.flip, blur=recipe.blur
        )
    if any(recipe.short_side):
        return regseg_transform(
            crop=recipe.crop,
            short_side=recipe.short_side,
            flip=recipe.flip,
            rand_augment=recipe.rand_augment,
            rand_magnitude=recipe.rand_magnitude,
        )
    for name in ("rand_augment", "class_uniform"):
        if value := getattr(recipe, name):
            raise ValueError(
                f"{name}={value} belongs to RegSeg's augmentation, which short_side turns on: give a range "
                f"such as short_side=(400, 1600), or {name}=0"
            )
    return training_transform(crop=recipe.crop, scale=recipe.scale, flip=recipe.flip)


def centroids(dataset: Any, recipe: Recipe) -> Centroids | None:
    """What class-uniform sampling draws from, found by reading all labels; None where the recipe has none."""
    if not recipe.class_uniform:
        return None
    left_out = [name.strip() for name in recipe.class_uniform_without.split(",")]
    return Centroids(dataset, without=[name for name in left_out if name])


class Batches:
    """The training batches of a recipe on this process, epoch by epoch.

    What an epoch yields depends on the recipe, the number of processes and the epoch alone: neither on the
    number of workers nor on what ran before.

    Args:
        dataset: the training set, or its features, which are taken as they are.
        recipe: what to do with it.
        world: this process among all.
        workers: loading processes; None for none on the CPU (which is busy) and up to 8 beside a GPU.

    Raises:
        ValueError: if the recipe's options do not fit each other, the data, or the number of processes.
    """

    def __init__(self, dataset: Any, recipe: Recipe, world: World, *, workers: int | None = None) -> None:
        gpu = world.device.type == "cuda"
        if workers is None:
            workers = min(8, (os.cpu_count() or 1) // world.size) if gpu else 0
        self.workers = workers
        cached = isinstance(dataset, features.CachedFeatures)
        augmented = Augmented(dataset, None if cached else augmentation(recipe))
        self._positions = _Positions(
            len(dataset),
            batch_size=world.share_of_batch(recipe.batch_size),
            seed=recipe.seed if recipe.data_seed == -1 else recipe.data_seed,
            rank=world.rank,
            world_size=world.size,
            drop_last=recipe.drop_last,
            centroids=centroids(dataset, recipe),
            share=recipe.class_uniform,
        )
        len(self._positions)  # says now, not at the first batch, what does not fit
        self._loader = DataLoader(
            augmented,
            batch_sampler=self._positions,
            collate_fn=features.collate if cached else collate,
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
