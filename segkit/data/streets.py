"""`streets`: procedural street scenes with the 19 Cityscapes classes, in Cityscapes' folders and label files.

    scene = render(size=(512, 1024), seed=0, split="train", index=3)      # one scene, in memory
    folder = generate("data", size=(128, 256), train=64, val=16)          # a set on disk, made on first use

A scene is a street in metres, seen by a pinhole camera: what it shows depends on (seed, split, index) alone,
the size only says how finely it is painted. How streets look is decided in `segkit/data/_street`.
"""

import json
import logging
import math
import operator
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segkit.data._street.painter import paint
from segkit.data._street.writer import SPLITS, label_ids, write_all

__all__ = ["MAX_SIZE", "MIN_SIZE", "VERSION", "Scene", "generate", "render"]

VERSION = (
    1  # of the generator; a change of what it paints needs a new one, so that old sets are not taken for new
)
MIN_SIZE, MAX_SIZE = (32, 32), (1024, 2048)
RECORD = "streets.json"  # the last file written: a folder without it is not finished

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scene:
    """A rendered scene.

    Attributes:
        image: RGB, uint8 (H, W, 3).
        label_ids: Cityscapes' label ids (0..33, not the 19 train ids), uint8 (H, W).
        instance_ids: Cityscapes' instance ids, uint16 (H, W): `id * 1000 + k` for the k-th thing of a class
            that has instances, the bare id elsewhere (and for a crowd that cannot be told apart).
    """

    image: np.ndarray
    label_ids: np.ndarray
    instance_ids: np.ndarray


def render(*, size: tuple[int, int], seed: int, split: str, index: int) -> Scene:
    """Renders one scene.

    Args:
        size: (H, W) in pixels, from 32x32 to 1024x2048. A picture wider than 2:1 shows more to the sides.
        seed: Of the data set, not negative.
        split: "train" or "val"; they have no scene in common.
        index: Of the scene in its split, not negative.

    Returns:
        The scene; the same bytes for the same arguments.

    Raises:
        ValueError: For a size, seed, split or index that cannot be.
    """
    height, width = _size(size)
    if split not in SPLITS:
        raise ValueError(f"unknown streets split {split!r}; there is {' and '.join(SPLITS)}")
    seed, index = _natural("seed", seed), _natural("index", index)
    image, ids = paint((height, width), seed, SPLITS[split], index)
    return Scene(image, label_ids(ids), ids.astype(np.uint16))


def generate(
    root: str | os.PathLike,
    *,
    size: tuple[int, int] = (128, 256),
    train: int = 64,
    val: int = 16,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Makes sure that a set of streets lies in a folder below `root`, in Cityscapes' official layout.

    It is painted into a temporary folder and renamed when it is whole, under a lock: of two processes one
    generates and the other waits, and what a killed one leaves is removed by the next. A finished set is used
    as it is.

    Args:
        root: Folder for data sets; it is made if need be.
        size: (H, W) of the pictures, from 32x32 to 1024x2048.
        train: Number of training scenes.
        val: Number of validation scenes.
        seed: Which scenes; not negative.
        workers: Processes that paint; None = as many as the work deserves and this machine has cores. The
            files are the same for any number.

    Returns:
        The folder that holds leftImg8bit/ and gtFine/.

    Raises:
        ValueError: For a size, count, seed or number of workers that cannot be.
        OSError: If `root` cannot be written to (PermissionError and the like), or a set has lost files.
        RuntimeError: If a worker process failed.
    """
    height, width = _size(size)
    counts = {"train": _natural("train", train), "val": _natural("val", val)}
    seed = _natural("seed", seed)
    if not sum(counts.values()):
        raise ValueError(
            "streets needs train or val images: both are 0. Ask for at least one, such as train=64"
        )
    if workers is not None and (workers := _natural("workers", workers)) == 0:
        raise ValueError("workers is 0; give at least 1, or None to let streets choose")

    root = Path(root).expanduser()
    name = f"streets_{height}x{width}_train{counts['train']}_val{counts['val']}_seed{seed}_v{VERSION}"
    folder = root / name
    if _finished(folder, counts):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f".{name}.lock"):
            if _finished(folder, counts):  # another process made it while we waited
                return folder
            for leftover in root.glob(f".{name}.*.partial"):  # of one that was killed: we hold the lock
                shutil.rmtree(leftover, ignore_errors=True)
            partial = root / f".{name}.{uuid.uuid4().hex[:8]}.partial"
            partial.mkdir()
            try:
                jobs = [(split, index) for split, count in counts.items() for index in range(count)]
                workers = workers or _worth(len(jobs), height * width)
                log.info("generating %d street scenes of %dx%d in %s", len(jobs), height, width, folder)
                write_all(partial, (height, width), seed, jobs, min(workers, len(jobs)))
                record = {
                    "set": "streets",
                    "version": VERSION,
                    "size": [height, width],
                    **counts,
                    "seed": seed,
                }
                (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)  # gone already if all went well
    except OSError as error:
        if error.errno is None:  # our own, and clear
            raise
        # OSError picks the class that fits the number, such as PermissionError
        raise OSError(
            error.errno,
            f"streets cannot be generated in {root} ({error.strerror or error}); name a folder that can be "
            "written to and has room: data_dir, --data-dir or the environment variable SEGKIT_DATA",
        ) from error
    return folder


def _size(size: tuple[int, int]) -> tuple[int, int]:
    try:
        height, width = (operator.index(n) for n in size)
    except (TypeError, ValueError):
        raise ValueError(f"size must be two whole numbers (height, width), not {size!r}") from None
    for which, n, low, high in zip(("height", "width"), (height, width), MIN_SIZE, MAX_SIZE, strict=True):
        if not low <= n <= high:
            raise ValueError(
                f"streets of {height}x{width} (height x width) cannot be rendered: the {which} must be from "
                f"{low} to {high}; for example 128x256"
            )
    return height, width


def _natural(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None
    if number < 0:
        raise ValueError(f"{name} must not be negative, and is {number}; use 0 or more")
    return number


def _finished(folder: Path, counts: dict[str, int]) -> bool:
    """Whether the set is there; an error if it was and has lost files since."""
    if not (folder / RECORD).is_file():
        if folder.exists():
            raise OSError(
                f"{folder} is there, but it is no finished set of streets ({RECORD} is missing); delete or "
                "move it, and it is generated again"
            )
        return False
    for split, count in counts.items():
        for part, ending in (
            ("leftImg8bit", "leftImg8bit"),
            ("gtFine", "gtFine_labelIds"),
            ("gtFine", "gtFine_instanceIds"),
        ):
            found = sum(1 for _ in (folder / part / split).glob(f"*/*_{ending}.png"))
            if found != count:
                raise OSError(
                    f"{folder / part / split} holds {found} files *_{ending}.png and should hold {count}; "
                    f"delete {folder}, and it is generated again"
                )
    return True


def _worth(scenes: int, pixels: int) -> int:
    """How many processes the work deserves: starting one takes about half a second."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    seconds = scenes * (0.06 + 0.4 * pixels / (MAX_SIZE[0] * MAX_SIZE[1]))
    return max(1, min(cores, 16, math.ceil(seconds / 1.5)))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a file's lock; the system frees it when the process ends, however it ends."""
    with open(path, "a+b") as handle:
        if os.name == "nt":
            import msvcrt
            import time

            while True:
                try:
                    msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
                    break
                except OSError:
                    time.sleep(0.2)
            try:
                yield
            finally:
                handle.seek(0)
                msvcrt.locking(handle.fileno(), msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
