"""What data sets of image files beside label files share: finding, checking, reading.

Three depths of checking, each error naming its file and the cure:

- on construction: every image has its labels, and from the file headers alone that both are of one size, of a
  kind that can be read, and not cut short (about 0.2 ms a pair);
- `dataset[i]`: the same pair decoded, its label values looked up;
- `dataset.verify()`: every pair decoded by several threads; run it before a long training.
"""

import os
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors

from segkit.data.labels import LabelSpace
from segkit.data.transforms import InstanceMask

IMAGE_MODES = ("RGB", "RGBA", "L", "LA", "P", "CMYK", "YCbCr", "1")
LABEL_MODES = ("L", "P", "1")
INSTANCE_MODES = ("I;16", "I;16B", "I", "L")  # Pillow names a 16-bit PNG differently from version to version


class Pair(NamedTuple):
    """One image and what belongs to it."""

    name: str
    image: Path
    labels: Path
    instances: Path | None = None


@dataclass(frozen=True)
class Summary:
    """What `verify` saw.

    Args:
        images: number of pairs.
        sizes: number of images of each (H, W).
        pixels: labeled pixels of each class, in class order.
        ignored: pixels that are no class.
    """

    images: int
    sizes: Mapping[tuple[int, int], int]
    pixels: tuple[int, ...]
    ignored: int

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Share of each class in all pixels, from 0 to 1; with the ignored share they add up to 1."""
        total = sum(self.pixels) + self.ignored
        return tuple(count / total for count in self.pixels)


class PairDataset(Dataset):
    """A map-style data set over image and label files; the base of the loaders in this package.

    Args:
        pairs: what it holds; sorted by name here.
        space: the label space of the train ids.
        split: the name of the split.
        train_ids: for every value a label file may hold, its train id or the ignore index.
        instances: give instance ids too.

    Raises:
        FileNotFoundError: if a pair lacks a file.
        ValueError: if a header shows that a pair cannot be used.
    """

    def __init__(
        self,
        pairs: Iterable[Pair],
        *,
        space: LabelSpace,
        split: str,
        train_ids: Mapping[int, int],
        instances: bool = False,
    ) -> None:
        self.pairs = sorted(pairs, key=lambda pair: pair.name)
        self.space, self.split, self.instances = space, split, instances
        self.names = [pair.name for pair in self.pairs]
        for before, name in zip(self.names, self.names[1:], strict=False):
            if before == name:
                raise ValueError(
                    f"two images of the {split!r} split are called {name!r}; rename or remove one"
                )
        self._train_ids = np.full(256, -1, np.int16)  # -1: a value that label files must not hold
        for value, train_id in train_ids.items():
            self._train_ids[value % 256] = train_id
        with ThreadPoolExecutor(8) as pool:  # header reads wait for the disk, not for the processor
            for _ in pool.map(self._check_headers, self.pairs):
                pass

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, object]:
        """Reads one pair.

        Returns:
            "image" `tv_tensors.Image` uint8 (3, H, W); "labels" `tv_tensors.Mask` uint8 (H, W), train ids;
            "name" str; with `instances=True` "instances", an `InstanceMask` int32 (H, W).

        Raises:
            FileNotFoundError: if a file is gone.
            ValueError: if a file is damaged, of another kind or size, or holds an unknown label.
        """
        pair = self.pairs[index]
        image, labels, instances = self._read(pair)
        sample: dict[str, object] = {
            "image": tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1).contiguous()),  # (3, H, W)
            "labels": tv_tensors.Mask(torch.from_numpy(labels)),  # (H, W)
            "name": pair.name,
        }
        if instances is not None:
            sample["instances"] = InstanceMask(torch.from_numpy(instances))  # (H, W)
        return sample

    def label_map(self, index: int) -> tv_tensors.Mask:
        """The labels of one pair as in `dataset[index]["labels"]`; the image is not read, which is slow.

        Raises:
            FileNotFoundError, ValueError: as `dataset[index]`, for the label file.
        """
        pair = self.pairs[index]
        labels = self._looked_up(pair, decode(pair.labels, "label file", LABEL_MODES))
        return tv_tensors.Mask(torch.from_numpy(labels))

    def verify(self, *, limit: int | None = None, workers: int | None = None) -> Summary:
        """Decodes every pair and checks it whole.

        Args:
            limit: only the first so many pairs; None for all.
            workers: threads; None for one per processor, at most 16.

        Returns:
            Counts, sizes and class frequencies of what was read.

        Raises:
            FileNotFoundError, ValueError: as `dataset[i]`, for the first pair by name that is not right.
        """

        def count(pair: Pair) -> tuple[tuple[int, int], np.ndarray]:
            _, labels, _ = self._read(pair)
            return labels.shape, np.bincount(labels.ravel(), minlength=256)

        pairs = self.pairs[:limit]
        sizes: Counter[tuple[int, int]] = Counter()
        pixels = np.zeros(256, np.int64)
        workers = workers or min(16, os.cpu_count() or 1)
        with ThreadPoolExecutor(
            workers
        ) as pool:  # threads help, because Pillow decodes outside Python's lock
            for size, counts in pool.map(count, pairs):
                sizes[size] += 1
                pixels += counts
        classes = tuple(int(n) for n in pixels[: self.space.num_classes])
        return Summary(len(pairs), dict(sizes), classes, int(pixels[self.space.ignore_index]))

    def _files(self, pair: Pair) -> Iterator[tuple[Path, str, Sequence[str]]]:
        yield pair.image, "image", IMAGE_MODES
        yield pair.labels, "label file", LABEL_MODES
        if self.instances:
            yield pair.instances, "instance file", INSTANCE_MODES

    def _check_headers(self, pair: Pair) -> None:
        sizes = {}
        for path, role, modes in self._files(pair):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} is missing: it is the {role} of {pair.name!r} in the {self.split!r} split. "
                    "Restore it, or remove the files that belong to it"
                )
            sizes[path] = _header(path, role, modes)
        _same_size(sizes)

    def _read(self, pair: Pair) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Image uint8 (H, W, 3), train ids uint8 (H, W) and, if asked for, instance ids int32 (H, W)."""
        image, values, *rest = (decode(path, role, modes) for path, role, modes in self._files(pair))
        paths = [path for path, *_ in self._files(pair)]
        _same_size({path: array.shape[:2] for path, array in zip(paths, (image, values, *rest), strict=True)})
        labels = self._looked_up(pair, values)
        return image, labels, rest[0].astype(np.int32) if rest else None

    def _looked_up(self, pair: Pair, values: np.ndarray) -> np.ndarray:
        """The train ids uint8 (H, W) of a label file's values."""
        labels = self._train_ids[values]
        if labels.min() < 0:
            row, column = np.argwhere(labels < 0)[0]
            value, known = values[row, column], _ranges(np.flatnonzero(self._train_ids >= 0))
            raise ValueError(
                f"{pair.labels}: label value {value} at row {row}, column {column} has no meaning; "
                f"{self.space.name!r} uses {known}. Correct the file"
            )
        return labels.astype(np.uint8)


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    """Raises a ValueError that lists the choices, the near ones first, unless the value is one of them."""
    choices = list(choices)
    if value not in choices:
        near = get_close_matches(str(value).lower(), choices, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown {what} {value!r}: {hint}there are {', '.join(map(repr, choices))}")


def files(folder: Path, pattern: str) -> list[Path]:
    """The visible files in a folder that match a pattern, sorted."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} cannot be read, it is damaged or cut short ({error}); copy or download it again"
    )


# What Pillow raises for a broken file, depending on the format and where it breaks.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)


def _header(path: Path, role: str, modes: Sequence[str]) -> tuple[int, int]:
    """(H, W) from the header; decodes only a file whose end looks cut off."""
    try:
        with Image.open(path) as picture:
            mode, (width, height) = picture.mode, picture.size
            if not _ends_well(path, picture.format):
                picture.load()
    except FileNotFoundError:
        raise
    except _BROKEN as error:
        raise _damaged(path, error) from None
    _check_mode(path, role, mode, modes)
    return height, width


def _ends_well(path: Path, format: str | None) -> bool:
    """Whether the file has its format's proper end; a cheap sign that nothing was cut off."""
    with path.open("rb") as file:
        start = file.read(12)
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - 12))
        end = file.read()
    if format == "PNG":
        return end == b"\x00\x00\x00\x00IEND\xaeB`\x82"
    if format == "JPEG":
        return end.endswith(b"\xff\xd9")
    if format == "WEBP":
        return struct.unpack("<I", start[4:8])[0] + 8 <= length
    return False


def decode(path: Path, role: str, modes: Sequence[str]) -> np.ndarray:
    """Reads one file whole, for loaders whose labels are no files of their own.

    Args:
        path: the file.
        role: "image", "label file" or "instance file"; says what is given back, and is named in errors.
        modes: Pillow's modes that will do, such as `IMAGE_MODES`.

    Returns:
        uint8 (H, W, 3) for an image, (H, W) integers for a map.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged, or of another mode; says how to save it.
    """
    try:
        with Image.open(path) as picture:
            _check_mode(path, role, picture.mode, modes)
            array = np.array(picture.convert("RGB") if role == "image" else picture)
    except (FileNotFoundError, _WrongKind):
        raise
    except _BROKEN as error:
        raise _damaged(path, error) from None
    return array.astype(np.uint8) if array.dtype == bool else array


class _WrongKind(ValueError):
    """A sound file of a kind that cannot serve; not to be mistaken for a damaged one."""


def _check_mode(path: Path, role: str, mode: str, modes: Sequence[str]) -> None:
    if mode in modes:
        return
    if role == "image":
        raise _WrongKind(f"{path} is an image of mode {mode!r}; save it with 8 bits per channel, such as RGB")
    if role == "instance file":
        raise _WrongKind(
            f"{path} is of mode {mode!r}; instance ids are one number per pixel, a 16-bit grayscale PNG"
        )
    kind = "16-bit or wider" if mode.startswith(("I", "F")) else "a color picture"
    raise _WrongKind(
        f"{path} is {kind} (mode {mode!r}); a label file holds one class number per pixel: "
        "save it as an 8-bit grayscale or palette PNG"
    )


def _same_size(sizes: Mapping[Path, tuple[int, int]]) -> None:
    (image, size), *others = sizes.items()
    for path, other in others:
        if other != size:
            raise ValueError(
                f"{path} is {other[0]}x{other[1]} but {image} is {size[0]}x{size[1]} (height x width); "
                "make the two the same size"
            )


def _ranges(values: np.ndarray) -> str:
    """Sorted numbers in short: "0 to 11, 255"."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
