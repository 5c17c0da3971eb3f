"""What a frozen backbone makes of each image, computed once and kept on disk; only the head then trains.

A backbone that is not trained gives the same features of an image in every epoch (the student's DenseASPP,
whose backbone is frozen). :func:`cached_features` computes them once and puts a data set in the place of the
training set that gives them instead of images. With ``recipe.cache_features`` the training loop does so; on
a CPU the losses are then, bit for bit, those of running the backbone in every step. For that, features are
computed in batches of the size trained with: PyTorch chooses another way to convolve for another size, which
rounds otherwise, by up to 1e-6 of the largest value in DenseNet-121.

Features are kept as the backbone gives them, float32, or bfloat16 where a GPU trains in mixed precision:
float16 would halve the room on disk, and change the logits (``python -m segkit.bench features`` says by how
much). They lie in ``features-HASH`` beside the run's folder, one file an image, so that all runs with one
backbone share them, whatever their heads.

What makes features stale, and how that is noticed:

- other weights, layers, output size, precision, batch size, kind of device or version of torch: HASH is of
  these;
- another image: a file is named after a hash of the pixels which the backbone sees, after reading and
  resizing. Reading all images at the start of a run costs less than one epoch without the cache, and does not
  rely on names, sizes or times of files;
- another function all the same, say after a change of the code: the first image's features are computed anew
  at the start of each run and compared;
- a file that was cut short, or put under another's name: it says inside which features it holds. What is
  found at the start is computed anew, what is found later is an error.
"""

import errno
import hashlib
import json
import logging
import pickle
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from segkit.data import sampling
from segkit.data.sampling import read_labels
from segkit.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize
from segkit.training import state
from segkit.training.distributed import World

_log = logging.getLogger("segkit")

KEY = "features.json"  # in the folder: what its features are of
OVERHEAD = 4096  # bytes of a file beside the features, at most
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest difference between features computed twice, by their largest value: far more than rounding,
and far less than what other layers change."""


class CachedFeatures(Dataset):
    """A data set that gives features in place of images; made by :func:`cached_features`.

    Items have "features" (c, h, w), and "labels" and "name" as the data set's own items have them.

    Args:
        dataset: whose labels and names these are.
        folder: where the files are.
        key: hash of what they are of, which each of them holds too.
        images: for each sample the hash of its image, which its file is named after.
    """

    def __init__(self, dataset: Any, folder: Path, key: str, images: Sequence[str]) -> None:
        self.dataset, self.folder, self.key, self.images = dataset, folder, key, list(images)
        self.space, self.split, self.names = dataset.space, dataset.split, dataset.names

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads the features and labels of an image.

        Raises:
            ValueError: if the file is damaged or holds the features of something else; it is named.
            FileNotFoundError: if the file is gone.
        """
        path = self.path(index)
        cure = f"delete {path}; --resume then computes it anew"
        if not path.is_file():
            raise FileNotFoundError(f"the features of {self.names[index]} are gone: {cure}")
        try:
            saved = state.load(path)
        except state.CheckpointError as error:
            raise ValueError(f"the features of {self.names[index]} are damaged ({error}): {cure}") from error
        if not self._fits(saved, index):
            raise ValueError(f"{path} does not hold the features of {self.names[index]}: {cure}")
        return {
            "features": saved["features"],  # (c, h, w)
            "labels": read_labels(self.dataset, index),  # (H, W)
            "name": self.names[index],
        }

    def label_map(self, index: int) -> Tensor:
        """The labels of a sample alone."""
        return read_labels(self.dataset, index)

    def path(self, index: int) -> Path:
        """The file with the features of a sample."""
        return self.folder / f"{self.images[index]}.pt"

    def fits(self, index: int) -> bool:
        """Whether a sample's file is there, whole, and says that it holds this sample's features.

        Its end is looked at, and what it says; the features themselves are only read by ``dataset[i]``.
        """
        path = self.path(index)
        if not path.is_file():
            return False
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError):
            return False
        return self._fits(saved, index)

    def _fits(self, saved: Any, index: int) -> bool:
        told = (saved.get("key"), saved.get("image")) if isinstance(saved, dict) else None
        return told == (self.key, self.images[index])

    def write(self, index: int, features: Tensor) -> None:
        """Keeps the features (c, h, w) of a sample; a run that is killed meanwhile leaves no half file."""
        # A clone, as saving a view would save all that it is a view of.
        features = features.cpu().clone(memory_format=torch.contiguous_format)
        state.save(self.path(index), {"key": self.key, "image": self.images[index], "features": features})


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stacks samples of :class:`CachedFeatures`; see :func:`segkit.data.sampling.collate`.

    Returns:
        "features" (B, c, h, w), "labels" int64 (B, H, W), "name" list of B strings.

    Raises:
        ValueError: if the samples differ in size.
    """
    batch = sampling.collate([{**sample, "image": sample["features"]} for sample in samples])
    batch["features"] = batch.pop("image")
    return batch


def check_frozen(model: nn.Module) -> None:
    """Makes sure that a model's features stay what they are while its head is trained.

    Raises:
        ValueError: if it has no features to be called with, or they change with training; says which part.
    """
    name = type(model).__name__
    backbone, given = getattr(model, "backbone", None), getattr(model, "features", None)
    if not (isinstance(backbone, nn.Module) and callable(given)):
        raise ValueError(
            "cache_features=True needs a model with a frozen backbone, such as denseaspp-student4, and "
            f"{name} has not both a backbone and features(images): leave out cache_features"
        )
    trained = [key for key, parameter in backbone.named_parameters() if parameter.requires_grad]
    was = model.training
    model.train()
    moving = [key or "itself" for key, module in backbone.named_modules() if module.training]
    model.train(was)
    if trained or moving:
        part = f"parameter {trained[0]} is trained" if trained else f"layer {moving[0]} is in train mode"
        raise ValueError(
            f"cache_features=True needs a frozen backbone, and in this {name}'s the {part}, which changes "
            "its features: freeze it (frozen=True in model_options), or leave out cache_features"
        )


@torch.no_grad()
def compute(
    model: nn.Module, images: Sequence[Tensor], batch_size: int, device: torch.device, *, amp: bool = False
) -> Tensor:
    """The features (n, c, h, w) of n images, uint8 (3, H, W), as a training step would compute them.

    The last image is repeated where there are fewer than ``batch_size``.
    """
    batch = torch.stack([*images, *[images[-1]] * (batch_size - len(images))])  # (B, 3, H, W)
    batch = normalize(batch.to(device))
    if device.type == "cuda":
        batch = batch.contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=amp):
        return model.features(batch)[: len(images)]


def cached_features(
    dataset: Any,
    model: nn.Module,
    root: Path,
    *,
    world: World,
    batch_size: int,
    amp: bool = False,
    size: tuple[int, int] | None = None,
    workers: int = 0,
    shown: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> CachedFeatures:
    """Computes the features of a data set that are not on disk yet, each process a share of them.

    Says through the ``segkit`` logger, before it computes any, how much room they will take. Interrupted, it
    goes on where it was the next time.

    Args:
        dataset: gives samples with "image" uint8 (3, H, W), "labels" (H, W) and "name", of one size.
        model: on the world's device; has a frozen ``backbone`` and ``features(images)``.
        root: the folder that ``features-HASH`` is in or will be; the same for all processes.
        world: this process among all.
        batch_size: images that this process will train on in a step.
        amp: in bfloat16 where it is safe, as the head will be trained; only on a GPU.
        size: (H, W) that all images must have; None for that of the first.
        workers: processes that read images; 0 for none.
        shown: shows the progress of the loop over the batches to compute.

    Returns:
        The data set of features, all of which are on disk.

    Raises:
        ValueError: if the model's features change with training, images differ in size, or what lies in the
            folder are features of another function.
        OSError: if the disk has no room for the features.
    """
    check_frozen(model)
    if len(dataset) == 0:
        raise ValueError("there is no image to compute features of: the data set is empty")
    sample = dataset[0]
    image = sample["image"].as_subclass(Tensor)
    example = compute(model, [image], batch_size, world.device, amp=amp)[0]  # (c, h, w)
    described = describe(model, example, batch_size, world.device, amp)
    key = _digest(json.dumps(described, sort_keys=True).encode())
    folder = Path(root) / f"features-{key[:8]}"
    images = _hashes(dataset, size or tuple(sample["labels"].shape), world, workers)
    cache = CachedFeatures(dataset, folder, key, images)
    if world.main:
        folder.mkdir(parents=True, exist_ok=True)
        state.write_text(folder / KEY, json.dumps(described, indent=2) + "\n")
    world.share(None)  # no process goes on before there is the folder

    here = [index for index in range(len(dataset))[world.rank :: world.size] if not cache.fits(index)]
    # Images that are alike share a file, which one process alone writes.
    lacking = sorted((index for part in world.gather(here) for index in part), reverse=True)
    missing = sorted({images[index]: index for index in lacking}.values())  # the first of each
    if 0 not in missing:
        _compare(example.cpu(), cache, 0)
    if missing:
        _check_room_for_all(world, folder, len(missing), example)
        own = missing[world.rank :: world.size]
        read = iter(_read(_Images(dataset), own, workers))
        for begin in shown(range(0, len(own), batch_size)):
            batch = own[begin : begin + batch_size]
            found = compute(model, [next(read) for _ in batch], batch_size, world.device, amp=amp)
            for index, maps in zip(batch, found, strict=True):
                cache.write(index, maps)
        world.share(None)  # no process trains before all have written
        if lost := [index for index in missing if not cache.fits(index)]:
            raise FileNotFoundError(
                f"{cache.path(lost[0])}, written by another process, is not here: runs must lie in a folder "
                "that all machines share"
            )
    return cache


def check_room(folder: Path, images: int, example: Tensor, *, tell: bool = True) -> None:
    """Makes sure that features fit on the disk, and says how much room they take.

    Args:
        folder: where they will be.
        images: how many.
        example: the features of one.
        tell: whether to log it.

    Raises:
        OSError: if they do not fit.
    """
    each = example.nbytes + OVERHEAD
    free = shutil.disk_usage(folder).free
    needed = f"the features of {images:,} images take {_bytes(images * each)}, {_bytes(each)} each"
    if images * each > free:
        raise OSError(
            errno.ENOSPC,
            f"{needed}, and only {_bytes(free)} are free; use another disk (--out-dir), smaller or fewer "
            "images (--limit-train), or leave out cache_features",
            str(folder),
        )
    if tell:
        _log.warning("%s, in %s, and stay there until it is deleted", needed, folder)


def _check_room_for_all(world: World, folder: Path, images: int, example: Tensor) -> None:
    """:func:`check_room` by the main process, before any writes, which fails in all processes or in none."""
    problem = None
    if world.main:
        try:
            check_room(folder, images, example)
        except OSError as error:
            problem = error
    if (problem := world.share(problem)) is not None:
        raise problem


def describe(
    model: nn.Module, example: Tensor, batch_size: int, device: torch.device, amp: bool
) -> dict[str, Any]:
    """What features depend on beside the image, as JSON would give it back."""
    # Not the layers' classes: SyncBatchNorm, which several GPUs have, computes the same in eval mode.
    layers = "\n".join(f"{name} {module.extra_repr()}" for name, module in model.backbone.named_modules())
    return {
        "format": 1,
        "backbone": type(model.backbone).__qualname__,
        "layers": _digest(layers.encode()),
        "weights": weights_digest(model.backbone),
        "shape": list(example.shape),
        "dtype": str(example.dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "device": device.type,
        "mixed_precision": amp,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "torch": str(torch.__version__),
    }


def weights_digest(module: nn.Module) -> str:
    """A hash of all parameters and buffers: names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_raw(tensor))
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's values, in order."""
    return tensor.detach().as_subclass(Tensor).cpu().contiguous().flatten().view(torch.uint8).numpy().data


class _Hashes(Dataset):
    """Of each sample the hash of its image, and its size (H, W)."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[str, tuple[int, ...]]:
        sample = self.dataset[index]
        shape = str(tuple(sample["image"].shape)).encode()
        return _digest(shape + bytes(_raw(sample["image"]))), tuple(sample["labels"].shape)


class _Images(Dataset):
    """Of each sample the image, uint8 (3, H, W)."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Tensor:
        return self.dataset[index]["image"].as_subclass(Tensor)


def _as_it_is(item: Any) -> Any:
    return item


def _read(dataset: Dataset, indices: Sequence[int], workers: int) -> DataLoader:
    """The items with these indices, one after the other."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # its own: else it would take a number from the global one
    )


def _hashes(dataset: Any, size: tuple[int, ...], world: World, workers: int) -> list[str]:
    """The hash of each image, each process reading its share of them.

    Raises:
        ValueError: if an image is of another size.
    """
    own = range(len(dataset))[world.rank :: world.size]
    found = []
    for index, (digest, found_size) in zip(own, _read(_Hashes(dataset), own, workers), strict=True):
        if found_size != tuple(size):
            raise ValueError(
                f"{dataset.names[index]} is {found_size[0]}x{found_size[1]}: cache_features=True keeps the "
                f"features of whole images, all of one size, here the crop's {size[0]}x{size[1]}; give "
                "image_size and crop that size, or leave out cache_features"
            )
        found.append(digest)
    by_rank = world.gather(found)
    return [by_rank[index % world.size][index // world.size] for index in range(len(dataset))]


def _compare(example: Tensor, cache: CachedFeatures, index: int) -> None:
    """Makes sure that features on disk are those that the model computes.

    Raises:
        ValueError: if they are not.
    """
    kept = cache[index]["features"].float()
    bound = TOLERANCE.get(example.dtype, 1e-3) * example.float().abs().max()
    if not (kept - example.float()).abs().max() <= bound:
        raise ValueError(
            f"{cache.folder} holds other features of {cache.names[index]} than this model computes, though "
            "weights and layers are the same; was the code changed? Delete the folder"
        )


def _bytes(number: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.1f} GB"
