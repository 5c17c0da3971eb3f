"""Checkpoints that survive a kill at any moment: written aside, then renamed into place."""

import logging
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

_log = logging.getLogger("segkit")

KEEP = 2  # checkpoints of a run: the last one, and the one before in case the last one cannot be read


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read."""


@contextmanager
def _written_aside(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the name ``path`` once all of it is on disk; gone if that fails."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # the bytes must be on disk before the name is
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def save(path: str | Path, state: dict[str, Any]) -> Path:
    """Writes a checkpoint so that ``path`` holds either what it held before or all of the new state.

    Args:
        path: where to; the folder exists.
        state: tensors, numbers, strings, lists, tuples and dicts: what ``weights_only`` can read.
    """
    path = Path(path)
    with _written_aside(path) as file:
        torch.save(state, file)
    return path


def write_text(path: str | Path, text: str) -> None:
    """Writes a small text file by the same rule as :func:`save`."""
    with _written_aside(Path(path)) as file:
        file.write(text.encode("utf-8"))


def _sync_folder(folder: Path) -> None:
    """Puts the renaming itself on disk, where the system lets a folder be opened (Windows does not)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load(path: str | Path, *, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Reads a checkpoint without running code from it (``weights_only=True``).

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is truncated, damaged, or no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError) as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"cannot read {path} ({size:,} bytes): it is truncated, damaged, or no checkpoint"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a checkpoint")
    return state


def step_path(folder: Path, step: int) -> Path:
    """The file of the checkpoint after ``step`` steps."""
    return folder / f"checkpoint-{step:08d}.pt"


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    return sorted(Path(folder).glob("checkpoint-*.pt"))


def latest(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that can be read, with its content; None where the folder has none at all.

    One that cannot be read is named in a warning of the ``segkit`` logger, and the one before is taken.

    Raises:
        CheckpointError: if there are checkpoints but none of them can be read.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            return path, load(path)
        except CheckpointError as error:
            _log.warning("%s; trying the checkpoint before it", error)
    if found:
        raise CheckpointError(
            f"none of the {len(found)} checkpoints in {folder} can be read: start over with --overwrite"
        )
    return None


def prune(folder: str | Path, *, keep: int = KEEP) -> None:
    """Deletes all checkpoints but the last ``keep``."""
    found = checkpoints(folder)
    for path in found[: max(0, len(found) - keep)]:
        path.unlink()


def drop_after(path: Path) -> None:
    """Deletes the checkpoints that are newer than ``path``."""
    for newer in checkpoints(path.parent):
        if newer.name > path.name:
            newer.unlink()
