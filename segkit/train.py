"""Trains by a recipe: `python -m segkit.train RECIPE [--option value …]`.

Each field of a recipe is an option, and so is what concerns only this run. Examples:

    python -m segkit.train ldn_streets
    python -m segkit.train ldn_camvid --data-dir ~/data --epochs 10 --crop 352x480
    torchrun --nproc-per-node 2 -m segkit.train ldn_cityscapes --data-dir ~/data
    python -m segkit.train ldn_cityscapes --data-dir ~/data --resume
    python -m segkit.train regseg_camvid_finetune --data-dir ~/data --weights runs/RUN/final.pt
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin, get_type_hints

from segkit.console import command, key_value, literal, size
from segkit.training import RECIPES, Recipe, Run, recipe, train
from segkit.training.folder import runs_root
from segkit.training.recipes import near

_METAVARS = {int: "N", float: "X", str: "NAME"}


def _two(kind: type) -> Callable[[str], tuple]:
    """Reads A,B as two numbers of a kind."""

    def read(text: str) -> tuple:
        try:
            first, second = map(kind, text.split(","))
        except ValueError:
            which = "two whole numbers, such as 400,1600" if kind is int else "two numbers, such as 0.5,2"
            raise argparse.ArgumentTypeError(f"{text!r} is not {which}") from None
        return first, second

    return read


def _add_fields(parser: argparse.ArgumentParser, shown: Recipe) -> None:
    """An option for each field of a recipe; ``shown`` gives the defaults that the help prints."""
    said = f"defaults are those of {shown.name}; Sec., Fig. and Table are those of Ladder-DenseNet"
    group = parser.add_argument_group("the recipe", said)
    kinds = get_type_hints(Recipe)
    for field in dataclasses.fields(Recipe):
        if field.name == "name":
            continue
        kind, default = kinds[field.name], getattr(shown, field.name)
        options: dict[str, Any] = {"type": kind, "metavar": _METAVARS.get(kind)}
        if kind is bool:
            options = {"action": argparse.BooleanOptionalAction}
        elif get_origin(kind) is tuple:
            of_image = field.name in ("crop", "image_size")
            options = {"type": size if of_image else _two(get_args(kind)[0])}
            options["metavar"] = "HxW" if of_image else "A,B"
            default = ("x" if of_image else ",").join(map(str, default))
        elif get_origin(kind) is dict:
            options = {"type": key_value, "metavar": "KEY=VALUE", "nargs": "+"}
            default = " ".join(f"{key}={value}" for key, value in default.items())
        text = literal(f"{field.metadata['reason']} [{default if default != '' else 'none'}]")
        group.add_argument(f"--{field.name.replace('_', '-')}", default=None, help=text, **options)


def _parser(shown: Recipe) -> argparse.ArgumentParser:
    parser = command("train", __doc__, allow_abbrev=False)
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help=f"one of {', '.join(RECIPES)}")
    parser.add_argument("--list", action="store_true", help="print the recipes and end")
    run = parser.add_argument_group("this run")
    run.add_argument("--data-dir", metavar="DIR", help="where data lies (default: the data root)")
    runs = literal(runs_root())
    run.add_argument("--out-dir", metavar="DIR", help=f"the run's folder (default: {runs}/RECIPE-HASH)")
    run.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    run.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    run.add_argument("--overwrite", action="store_true", help="delete an unfinished run in the folder")
    run.add_argument("--max-minutes", type=float, metavar="M", help="stop after M minutes; --resume goes on")
    run.add_argument("--limit-train", type=int, metavar="N", help="only the first N training images")
    run.add_argument("--limit-val", type=int, metavar="N", help="only the first N images of the other splits")
    run.add_argument(
        "--workers", type=int, metavar="N", help="loading processes (default: 0, or up to 8 beside a GPU)"
    )
    run.add_argument(
        "--checkpoint-minutes",
        type=float,
        default=10.0,
        metavar="M",
        help="save so often within an epoch [10]",
    )
    run.add_argument("--checkpoint-steps", type=int, metavar="N", help="also save every N steps")
    run.add_argument("--no-verify", action="store_true", help="do not read all data once before training")
    run.add_argument(
        "--traceback", action="store_true", help="on an error show where in the code it was raised"
    )
    _add_fields(parser, shown)
    return parser


def _list() -> None:
    width = max(map(len, RECIPES))
    for name, each in RECIPES.items():
        resized = "images of {}x{}, ".format(*each.image_size) if any(each.image_size) else ""
        seen = f"measured in windows of {each.windows}, " if each.windows else ""
        print(
            f"{name:{width}} {each.model} on {each.dataset}, {each.epochs} epochs, batch {each.batch_size}, "
            f"{resized}crop {each.crop[0]}x{each.crop[1]}, {seen}weights {each.weights or 'to be given'}"
        )


def _changes(args: argparse.Namespace, base: Recipe) -> dict[str, Any]:
    """The fields that the command line sets; of options given as KEY=VALUE the recipe's others stay."""
    fields = [field.name for field in dataclasses.fields(Recipe) if field.name != "name"]
    changes = {name: getattr(args, name) for name in fields if getattr(args, name) is not None}
    for name, owner in (("model_options", "model"), ("dataset_options", "dataset")):
        if name in changes:
            same = changes.get(owner, getattr(base, owner)) == getattr(base, owner)
            changes[name] = (getattr(base, name) if same else {}) | dict(changes[name])
    return changes


def _epoch_line(chosen: Recipe) -> Callable[[dict[str, Any]], None]:
    def tell(entry: dict[str, Any]) -> None:
        miou = f", mIoU {100 * entry['miou']:.2f} %" if entry.get("miou") is not None else ""
        print(
            f"epoch {entry['epoch'] + 1}/{chosen.epochs}: loss {entry['loss']:.4f} nats{miou}, "
            f"{entry['seconds']:.1f} s",
            flush=True,
        )

    return tell


def _report(run: Run, chosen: Recipe) -> None:
    if run.evaluation is None:
        done = len(run.epochs)
        print(f"stopped after {done} of {chosen.epochs} epochs; --resume goes on from {run.folder}")
        return
    result = run.evaluation
    line = f"{chosen.final_split} mIoU {100 * result.miou:.2f} %"
    if result.reduced_miou is not None:
        line += f", reduced mIoU {100 * result.reduced_miou:.2f} %"
    line += f", pixel accuracy {100 * result.pixel_accuracy:.2f} %"
    if result.category_iou is not None:
        line += f", category IoU {100 * result.category_iou:.2f} %"
    if result.iiou is not None:
        line += f", iIoU {100 * result.iiou:.2f} %"
    if run.multi_scale is not None:
        line += f", multi-scale mIoU {100 * run.multi_scale.miou:.2f} %"
    print(f"{line} on {result.images} images; weights, log and figures in {run.folder}")


def _run(args: argparse.Namespace) -> None:
    if args.recipe is None:
        raise ValueError(f"which recipe? There is {', '.join(RECIPES)}")
    base = recipe(args.recipe)
    chosen = recipe(args.recipe, **_changes(args, base))
    run = train(
        chosen,
        data_dir=args.data_dir,
        out_dir=args.out_dir,
        device=args.device,
        resume=args.resume,
        overwrite=args.overwrite,
        max_minutes=args.max_minutes,
        limit_train=args.limit_train,
        limit_val=args.limit_val,
        workers=args.workers,
        checkpoint_minutes=args.checkpoint_minutes,
        checkpoint_steps=args.checkpoint_steps,
        verify=not args.no_verify,
        on_epoch=_epoch_line(chosen),
    )
    if int(os.environ.get("RANK", 0)) == 0:
        _report(run, chosen)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 after one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    named = next((RECIPES[word] for word in given if word in RECIPES), RECIPES["ldn_cityscapes"])
    parser = _parser(named)
    args, unknown = parser.parse_known_args(given)
    if unknown:
        options = [option for action in parser._actions for option in action.option_strings]
        parser.error(f"there is no option {unknown[0]!r}: {near(unknown[0], options)}")
    if args.list:
        _list()
        return 0
    try:
        _run(args)
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        if args.traceback:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
