"""Writes scenes as files in Cityscapes' layout; also the program that a worker process runs.

Workers are started as programs of their own (not by multiprocessing), so that they import neither torch nor
the caller's main module: safe in a notebook, under pytest and in a script without a main guard.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .painter import paint

# A split's number is part of every scene's random numbers: no two splits share a scene.
SPLITS = {"train": 0, "val": 1}
# Cities that are on no map; as in Cityscapes, no city is in two splits.
CITIES = {"train": ("altenbruck", "birkenau", "farnheim", "lindenfels"), "val": ("marienthal", "westerholm")}

Job = tuple[str, int]  # split, index


def stem(split: str, index: int) -> tuple[str, str]:
    """City and file stem of a scene, `<city>_<sequence>_<frame>` as in Cityscapes."""
    city = CITIES[split][index % len(CITIES[split])]
    return city, f"{city}_{index:06d}_000019"


def label_ids(instance_ids: np.ndarray) -> np.ndarray:
    """Cityscapes label ids (uint8) of instance ids: `id * 1000 + k` or `id`."""
    return np.where(instance_ids >= 1000, instance_ids // 1000, instance_ids).astype(np.uint8)


def write(folder: Path, size: tuple[int, int], seed: int, split: str, index: int) -> None:
    """Renders one scene and writes its three PNG files below `folder`."""
    picture, ids = paint(size, seed, SPLITS[split], index)
    city, name = stem(split, index)
    images, truth = folder / "leftImg8bit" / split / city, folder / "gtFine" / split / city
    images.mkdir(parents=True, exist_ok=True)
    truth.mkdir(parents=True, exist_ok=True)
    # level 1: a third of the time of the default level for a file a few per cent larger
    Image.fromarray(picture).save(images / f"{name}_leftImg8bit.png", compress_level=1)
    Image.fromarray(label_ids(ids)).save(truth / f"{name}_gtFine_labelIds.png", compress_level=1)
    Image.fromarray(ids.astype(np.uint16)).save(truth / f"{name}_gtFine_instanceIds.png", compress_level=1)


def write_all(folder: Path, size: tuple[int, int], seed: int, jobs: Sequence[Job], workers: int) -> None:
    """Writes scenes with so many worker processes (1 = in this one).

    Raises:
        RuntimeError: If a worker failed; carries its last lines.
    """
    if workers <= 1 or not sys.executable:
        for split, index in jobs:
            write(folder, size, seed, split, index)
        return
    package = Path(__file__).resolve().parent
    program = f"import sys; sys.path.append(sys.argv[1]); from {package.name}.writer import main; main()"
    command = [sys.executable, "-P", "-c", program, str(package.parent)]
    # a worker is one core's work: libraries below numpy must not start threads of their own
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    running = []
    try:
        for k in range(workers):
            errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed below; a pipe could fill up)
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors, env=environment)
            running.append((process, errors))
            order = {"folder": str(folder), "size": size, "seed": seed, "jobs": jobs[k::workers]}
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()  # and left open: its end tells the worker that we are gone
        for process, errors in running:
            if process.wait():
                errors.seek(0)
                last = errors.read().decode(errors="replace").strip().splitlines()[-3:]
                raise RuntimeError(f"a worker that renders streets failed: {' | '.join(last)}")
    finally:
        for process, errors in running:
            if process.poll() is None:
                process.kill()
            process.wait()
            with contextlib.suppress(OSError):  # the worker is gone, and so may be the pipe
                process.stdin.close()
            errors.close()


def main() -> None:
    """What a worker does: reads its orders from the first line of stdin, and ends with its parent."""
    order = json.loads(sys.stdin.readline())

    def follow() -> None:
        sys.stdin.read()  # returns when the parent has closed the pipe or died
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    for split, index in order["jobs"]:
        write(Path(order["folder"]), tuple(order["size"]), order["seed"], split, index)
    sys.stderr.flush()
    os._exit(0)  # the watching thread holds stdin, which an ordinary exit would wait for
