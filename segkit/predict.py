"""Segments your own images: `python -m segkit.predict IMAGE ... --checkpoint FILE`.

For photo.jpg it writes photo_overlay.png, the image with the classes' colors laid over it, and
photo_labels.png, whose pixels are class numbers (a palette image, so that it shows the colors too). Both have
the image's size. Existing files of these names are replaced, but never an image that was given.

With --ids there is also ids/photo.png, a gray image in the numbers of the data set's own label files, which
is what evaluation servers want: train id + 1 for ADE20K and Pascal Context, 7 to 33 for Cityscapes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from segkit.console import command
from segkit.data.labels import LabelSpace, to_ids
from segkit.data.transforms import normalize
from segkit.evaluation.inference import MULTI_SCALE, load_model, predict
from segkit.evaluation.windows import FASTFCN_SCALES
from segkit.training.distributed import choose_device


def _parser() -> argparse.ArgumentParser:
    parser = command("predict", __doc__)
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="any format Pillow reads, any size"
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="written by segkit.train")
    parser.add_argument(
        "--out", type=Path, default=Path("predictions"), metavar="DIR", help="default: predictions"
    )
    scales, in_windows = (", ".join(f"{s:g}" for s in several) for several in (MULTI_SCALE, FASTFCN_SCALES))
    parser.add_argument(
        "--multi-scale",
        action="store_true",
        help=f"average over mirror images and scales (as trained, else {scales}, or in windows {in_windows})",
    )
    parser.add_argument(
        "--windows",
        type=int,
        choices=(0,),
        help="0: show the model whole images, even if its recipe slides windows over them",
    )
    parser.add_argument(
        "--alpha", type=_alpha, default=0.5, help="weight of the colors, 0 to 1 (default: 0.5)"
    )
    parser.add_argument(
        "--ids", action="store_true", help="labels in the data set's own numbers too, in DIR/ids"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    return parser


def _alpha(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def read_image(path: Path) -> Image.Image:
    """Reads an image as a camera or an editor shows it: turned upright, RGB.

    Transparency is dropped, 16-bit gray brought to 8 bits; of an animation the first frame is taken.

    Raises:
        ValueError: when the file is missing, no image, damaged, or has pixels without a fixed range.
    """
    if not path.is_file():
        raise ValueError("it is a folder" if path.is_dir() else "there is no such file")
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            image.load()
    except Exception as error:  # each of Pillow's decoders fails in its own way
        raise ValueError(f"it cannot be read as an image ({error})") from error
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip at 255
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def segment(
    model: nn.Module, image: Image.Image, *, multi_scale: bool = False, whole: bool = False
) -> Tensor:
    """Labels each pixel of an RGB image: int64 (H, W) on the CPU.

    The image is resized as those were that training measured the model on, and shown in the same windows, or
    with `whole` in none. One that is then smaller than the model can take is enlarged until it is not, and
    one whose sides the model cannot divide is padded (see `segkit.evaluation.inference.predict`); the labels
    have the image's own size in any case.

    Args:
        model: from `segkit.evaluation.inference.load_model`.
        image: RGB.
        multi_scale: average over the scales of the model's recipe, and mirror images.
        whole: do without windows.
    """
    device = next(model.parameters()).device
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(device)  # (1, 3, H, W)
    pixels = normalize(pixels, mean=model.image_mean, std=model.image_std)
    own = pixels.shape[-2:]
    seen = model.image_size or [max(1, round(side * model.image_resolution)) for side in own]
    windows = None if whole else model.image_windows
    scales: tuple[float, ...] = (1.0,)
    if multi_scale:
        scales = MULTI_SCALE if whole and model.image_windows else model.image_scales
    if windows is None:
        smallest = getattr(model, "minimum_size", 1) / min(seen)
        scales = tuple(max(scale, smallest) for scale in scales)
    if tuple(seen) != tuple(own):
        pixels = F.interpolate(pixels, tuple(seen), mode="bilinear", antialias=True)  # (1, 3, h, w)
    scores = predict(model, pixels, scales=scales, flip=multi_scale, windows=windows)  # (1, C, h, w)
    if tuple(seen) != tuple(own):
        scores = F.interpolate(scores, own, mode="bilinear")
    return scores.argmax(1)[0].cpu()


def overlay(image: Image.Image, labels: Tensor, space: LabelSpace, *, alpha: float = 0.5) -> Image.Image:
    """Lays the classes' colors over an RGB image; `alpha` is their weight, 0 to 1."""
    return Image.blend(image, Image.fromarray(space.color(labels)), alpha)


def label_image(labels: Tensor, space: LabelSpace) -> Image.Image:
    """A palette image whose pixel values are the class numbers."""
    image = Image.fromarray(labels.numpy().astype(np.uint8))
    image.putpalette([value for color in space.palette for value in color])
    return image


def legend(labels: Tensor, space: LabelSpace) -> str:
    """The classes found and their share of the pixels, the largest first."""
    shares = labels.flatten().bincount(minlength=space.num_classes) / labels.numel()
    found = [(share, name) for share, name in zip(shares.tolist(), space.classes, strict=True) if share > 0]
    width = max(len(name) for _, name in found)
    found.sort(key=lambda pair: -pair[0])
    return "\n".join(f"  {name:{width}} {100 * share:6.2f} %" for share, name in found)


def _targets(images: Sequence[Path], out: Path, *, ids: bool) -> list[tuple[Path, ...]]:
    """The files to write for each image; images of one name get numbers, so that none takes another's."""
    targets, taken = [], set()
    for path in images:
        name, number = path.stem, 1
        while name.casefold() in taken:  # some file systems do not tell a from A
            number += 1
            name = f"{path.stem}_{number}"
        taken.add(name.casefold())
        own = (out / "ids" / f"{name}.png",) if ids else ()
        targets.append((out / f"{name}_overlay.png", out / f"{name}_labels.png", *own))
    return targets


def _write(path: Path, image: Image.Image) -> None:
    """Writes a PNG aside and renames it, so that a kill leaves no half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        image.save(aside, format="PNG")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _do(path: Path, targets: tuple[Path, ...], args: Any, model: nn.Module, space: LabelSpace) -> None:
    for target in targets:
        if target.exists() and any(given.exists() and target.samefile(given) for given in args.images):
            raise ValueError(f"{target} would be overwritten, but it is an input; choose another --out")
    image = read_image(path)
    labels = segment(model, image, multi_scale=args.multi_scale, whole=args.windows == 0)
    pictures = [overlay(image, labels, space, alpha=args.alpha), label_image(labels, space)]
    if args.ids:
        pictures.append(Image.fromarray(to_ids(labels, space)))
    for target, picture in zip(targets, pictures, strict=True):
        _write(target, picture)
    print(f"{path} ({image.height}x{image.width}) -> {targets[0]}, {targets[1].name}")
    print(legend(labels, space), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        0; 1 when some image could not be done, each with one line on stderr, while the others were; 2 when
        none can be, after one line on stderr.
    """
    args = _parser().parse_args(arguments)
    try:
        model, space = load_model(args.checkpoint, device=choose_device(args.device))
        if args.ids:
            to_ids(np.zeros((1, 1), int), space)  # rather now than at the first image
        (args.out / "ids" if args.ids else args.out).mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    failed = 0
    for path, targets in zip(args.images, _targets(args.images, args.out, ids=args.ids), strict=True):
        try:
            _do(path, targets, args, model, space)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:  # RuntimeError: a full GPU
            print(f"error: {path}: {' '.join(str(error).split())}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
