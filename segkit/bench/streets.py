"""How fast street scenes are rendered and written: images a second by size, on one core and on all.

python -m segkit.bench streets --sizes 128x256 1024x2048 --images 16 --out data/measured/streets.json
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, features

from segkit.bench import _record
from segkit.data import streets
from segkit.data.labels import CITYSCAPES19, CITYSCAPES_IDS


def rendering(size: tuple[int, int], images: int, seed: int) -> dict:
    """Renders scenes in this process.

    Returns:
        `images`, `seconds` (wall), `cpu_seconds`, `images_per_second` on one core.
    """
    streets.render(size=size, seed=seed, split="val", index=0)  # fills the caches of noise and leaves
    wall, cpu = time.perf_counter(), time.process_time()
    for index in range(images):
        streets.render(size=size, seed=seed, split="train", index=index)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"images": images, "seconds": wall, "cpu_seconds": cpu, "images_per_second": images / wall}


def writing(size: tuple[int, int], train: int, val: int, seed: int, workers: int | None) -> dict:
    """Generates a set in a temporary folder, start of the worker processes included.

    Returns:
        `images`, `workers` (None = chosen by streets), `seconds`, `images_per_second`, `bytes` on disk.
    """
    with tempfile.TemporaryDirectory() as root:
        start = time.perf_counter()
        folder = streets.generate(root, size=size, train=train, val=val, seed=seed, workers=workers)
        seconds = time.perf_counter() - start
        total = sum(path.stat().st_size for path in folder.rglob("*.png"))
    count = train + val
    return {
        "images": count,
        "workers": workers,
        "seconds": seconds,
        "images_per_second": count / seconds,
        "bytes": total,
    }


def frequencies(size: tuple[int, int], images: int, seed: int) -> dict[str, dict[str, float]]:
    """How often the classes are seen in training scenes.

    Returns:
        By class: `pixels`, its share of all pixels that are not ignored, and `images`, the share of scenes
        that show it; and the same for "ignored", as a share of all pixels.
    """
    train_id = np.full(256, 255, np.uint8)
    for label_id, to in CITYSCAPES_IDS.items():
        if label_id >= 0:
            train_id[label_id] = to
    pixels, seen = np.zeros(256), np.zeros(256)
    for index in range(images):
        scene = streets.render(size=size, seed=seed, split="train", index=index)
        counts = np.bincount(train_id[scene.label_ids].ravel(), minlength=256)
        pixels += counts
        seen += counts > 0
    rows = {
        name: {"pixels": float(pixels[k] / pixels[:19].sum()), "images": float(seen[k] / images)}
        for k, name in enumerate(CITYSCAPES19.classes)
    }
    rows["ignored"] = {"pixels": float(pixels[255] / pixels.sum()), "images": float(seen[255] / images)}
    return rows


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; write HEIGHTxWIDTH, such as 128x256"
        ) from None
    return height, width


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and prints its result as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m segkit.bench streets", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--sizes", nargs="+", type=_size, default=[(128, 256), (1024, 2048)], metavar="HxW")
    parser.add_argument("--images", type=int, default=16, help="scenes to render for each size (default: 16)")
    parser.add_argument(
        "--train", type=int, default=64, help="training scenes of the written set (default: 64)"
    )
    parser.add_argument(
        "--val", type=int, default=16, help="validation scenes of the written set (default: 16)"
    )
    parser.add_argument("--workers", type=int, help="processes that write (default: streets chooses)")
    parser.add_argument(
        "--frequencies", type=int, default=0, metavar="N", help="count classes over N scenes of 256x512"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args(argv)
    if options.images < 1:
        parser.error(f"--images is {options.images}; give at least 1")

    arguments = None if argv is None else ["segkit.bench", "streets", *argv]
    result = _record.stamp(arguments)
    result["versions"] |= {
        "pillow": Image.__version__,
        "zlib": features.version("zlib"),
        "streets": streets.VERSION,
    }
    if hasattr(os, "getloadavg"):  # timings mean little on a busy machine: say how busy it was
        result["machine"]["load_at_start"] = os.getloadavg()[0]
    result["sizes"] = {}
    for size in options.sizes:
        result["sizes"][f"{size[0]}x{size[1]}"] = {
            "rendering_one_core": rendering(size, options.images, options.seed),
            "writing": writing(size, options.train, options.val, options.seed, options.workers),
        }
    if options.frequencies:
        result["frequencies"] = frequencies((256, 512), options.frequencies, options.seed)
    print(json.dumps(result, indent=1))
    if options.out:
        _record.write(options.out, result)
    return 0
