"""Scores a trained model on a data set: `python -m segkit.evaluate --checkpoint FILE`.

Data set, its options and the images' size are those the model was trained on, unless told otherwise.
Examples:

    python -m segkit.evaluate --checkpoint runs/ldn_streets-12345678/final.pt
    python -m segkit.evaluate --checkpoint final.pt --dataset cityscapes --data-dir ~/data --multi-scale
    python -m segkit.evaluate --checkpoint final.pt --windows 480 --base-size 520 --combine exp
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from segkit import console, data
from segkit.data.labels import LabelSpace
from segkit.evaluation.inference import MULTI_SCALE, evaluate, load_model, read_checkpoint
from segkit.evaluation.metrics import CITYSCAPES_MEAN_SIZES, REDUCED_WITHOUT
from segkit.evaluation.windows import COMBINE, FASTFCN_SCALES, Windows
from segkit.training.distributed import choose_device
from segkit.training.inputs import AtResolution, AtSize
from segkit.training.state import write_text


def _parser() -> argparse.ArgumentParser:
    parser = console.command("evaluate", __doc__)
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="written by segkit.train")
    parser.add_argument(
        "--dataset", metavar="NAME", help=f"{', '.join(data.DATASETS)}; default: the one trained on"
    )
    root = console.literal(data.data_root())
    parser.add_argument("--data-dir", metavar="DIR", help=f"where data lies (default: {root})")
    parser.add_argument("--split", help="part of the data set (default: the one the run ended with, or val)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=console.key_value,
        metavar="KEY=VALUE",
        help="of the data set, such as size=128x256 or num_classes=20; may be given several times",
    )
    parser.add_argument(
        "--resolution",
        type=_positive,
        metavar="F",
        help="resize images and labels by F first (default: as trained, by a factor or to one size)",
    )
    parser.add_argument(
        "--windows",
        type=_pixels,
        metavar="N",
        help="show the model sliding windows of N pixels a side; 0: whole images (default: as trained)",
    )
    parser.add_argument(
        "--base-size",
        type=_pixels,
        metavar="N",
        help="with --windows: resize the long side to N pixels first (default: as trained, else 0: do not)",
    )
    parser.add_argument(
        "--combine",
        choices=COMBINE,
        help="with --windows: average probabilities, or exp of the logits as FastFCN's code does "
        "(default: as trained, else probability)",
    )
    scales, in_windows = (", ".join(f"{s:g}" for s in several) for several in (MULTI_SCALE, FASTFCN_SCALES))
    parser.add_argument(
        "--multi-scale",
        action="store_true",
        help=f"average over mirror images and scales (as trained, else {scales}, or in windows {in_windows})",
    )
    parser.add_argument("--limit", type=console.count, metavar="N", help="only the first N images")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    parser.add_argument("--amp", action="store_true", help="bfloat16 where it may be used, on a GPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here too")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _pixels(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of pixels")
    return int(text)


def _view(args: argparse.Namespace, model: nn.Module) -> tuple[Windows | None, tuple[float, ...]]:
    """How images are seen: in which windows, None for whole ones, and on which scales."""
    trained: Windows | None = model.image_windows
    side = (trained.side if trained else 0) if args.windows is None else args.windows
    if not side:
        for name, value in (("--base-size", args.base_size), ("--combine", args.combine)):
            if value is not None:
                raise ValueError(f"{name} is for sliding windows; give --windows N with it, such as 480")
    windows = None
    if side:
        base_size = (trained.base_size if trained else 0) if args.base_size is None else args.base_size
        combine = args.combine or (trained.combine if trained else Windows.combine)
        windows = Windows(side=side, base_size=base_size, combine=combine)
    if not args.multi_scale:
        return windows, (1.0,)
    if bool(windows) == bool(trained):
        return windows, model.image_scales
    return windows, FASTFCN_SCALES if windows else MULTI_SCALE


def _open(args: argparse.Namespace, trained: dict[str, Any], space: LabelSpace) -> tuple[str, Any]:
    """The data set's name and the opened split; `trained` is the recipe of the run, empty where unknown."""
    name = args.dataset or trained.get("dataset")
    if not name:
        raise ValueError("the checkpoint does not say what it was trained on; give --dataset")
    if name != trained.get("dataset"):
        trained = {}
    split = args.split or trained.get("final_split", "val")
    options = dict(trained.get("dataset_options", {}))
    if space.name == "cityscapes20" and name in ("cityscapes", "streets"):
        options.setdefault("num_classes", space.num_classes)
    options.update(args.option)
    dataset = data.load(name, split, data_dir=args.data_dir, **options)
    if dataset.space.num_classes != space.num_classes:
        raise ValueError(
            f"the model predicts {space.num_classes} classes ({space.name}), but {name} has "
            f"{dataset.space.num_classes} ({dataset.space.name}); choose another --dataset or --checkpoint"
        )
    for index, (mine, theirs) in enumerate(zip(space.classes, dataset.space.classes, strict=True)):
        if mine != theirs:
            raise ValueError(
                f"class {index} is {mine!r} to the model ({space.name}) and {theirs!r} in {name} "
                f"({dataset.space.name}); choose another --dataset or --checkpoint"
            )
    if space.instance_classes and dataset.space.instance_classes:
        dataset = data.load(name, split, data_dir=args.data_dir, instances=True, **options)
    return name, dataset


def _run(args: argparse.Namespace) -> None:
    device = choose_device(args.device)
    if args.json and not args.json.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {args.json.absolute().parent} to write {args.json.name} to")
    state = read_checkpoint(args.checkpoint)
    trained = state.get("settings", {}).get("recipe", {})
    del state  # it holds the optimizer's state, twice the size of the model
    model, space = load_model(args.checkpoint, device=device)
    windows, scales = _view(args, model)
    name, dataset = _open(args, trained, space)
    size = None if args.resolution else model.image_size
    resolution = args.resolution or model.image_resolution
    if size:
        dataset = AtSize(dataset, size)
    elif resolution != 1:
        dataset = AtResolution(dataset, resolution)
    total = min(args.limit or len(dataset), len(dataset))
    done = 0

    def count(sample: dict[str, Any], prediction: Tensor) -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r{done} of {total} images", end=end, file=sys.stderr, flush=True)

    # The benchmark's instance sizes are those of full images; anything else is weighed with its own.
    official = name == "cityscapes" and resolution == 1 and not size
    result = evaluate(
        model,
        dataset,
        device=device,
        scales=scales,
        flip=args.multi_scale,
        windows=windows,
        limit=args.limit,
        amp=args.amp,
        instance_sizes=CITYSCAPES_MEAN_SIZES if official else None,
        on_image=count,
    )
    at = "" if resolution == 1 else f" at {resolution:g} of its size"
    at = f" at {size[0]}x{size[1]}" if size else at
    print(f"{args.checkpoint} on {name} {dataset.split}{at}")
    print(result)
    if result.reduced_miou is not None:
        left_out = ", ".join(REDUCED_WITHOUT)
        print(f"\nreduced mIoU, without {left_out} (RegSeg, Sec. 4.3): {100 * result.reduced_miou:.2f}")
    if args.json:
        values = {
            "checkpoint": str(args.checkpoint),
            "dataset": name,
            "split": dataset.split,
            "resolution": resolution,
            "image_size": size,
            **result.as_dict(),
        }
        write_text(args.json, json.dumps(values, indent=1, allow_nan=False) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 after one line on stderr."""
    args = _parser().parse_args(arguments)
    try:
        _run(args)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
