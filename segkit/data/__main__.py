"""Gets, generates and checks data: `python -m segkit.data NAME`.

    python -m segkit.data streets --size 1024x2048 --train 64 --val 16    generate (once), count the classes
    python -m segkit.data camvid --from PATH                              unpack or copy, verify
    python -m segkit.data cityscapes --data-dir DIR --verify              read every file of every split
    python -m segkit.data folder --data-dir DIR --verify                  the same for your own images
    python -m segkit.data pascal_context --convert                        run-length masks to PNG files, once

Without `--verify` a set that is there already gets the cheap checks only: pairs, headers, sizes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from segkit.console import command, literal, size
from segkit.data import DATASETS, camvid, data_root, load, pascal_context, pascal_context_root
from segkit.data.pairs import PairDataset, Summary, check_choice

SPLITS = {
    "streets": ("train", "val"),
    "cityscapes": ("train", "val"),  # the labels of test are not public
    "camvid": camvid.PARTS,
    "folder": ("train", "val"),
    "pascal_context": pascal_context.PARTS,
    "ade20k": ("train", "val"),  # the labels of test are not public
}


def _parser() -> argparse.ArgumentParser:
    parser = command("data", __doc__)
    parser.add_argument("name", metavar="NAME", help=", ".join(DATASETS))
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help=f"where data lies (default: {literal(data_root())})"
    )
    parser.add_argument("--verify", action="store_true", help="read every file whole")
    parser.add_argument("--from", dest="source", type=Path, metavar="PATH", help="camvid: tar pack or folder")
    parser.add_argument("--convert", action="store_true", help="pascal_context: masks to PNG files, once")
    streets = parser.add_argument_group("streets")
    streets.add_argument("--size", type=size, metavar="HxW", help="of the images (default: 128x256)")
    streets.add_argument("--train", type=int, metavar="N", help="training images (default: 64)")
    streets.add_argument("--val", type=int, metavar="N", help="validation images (default: 16)")
    streets.add_argument("--seed", type=int, help="of the scenes (default: 0)")
    return parser


def _print(name: str, datasets: Sequence[PairDataset], summaries: Sequence[Summary] | None) -> None:
    print(f"{name}: {datasets[0].root}")
    if summaries is None:
        for dataset in datasets:
            print(f"  {dataset.split:6} {len(dataset):5} images, headers checked (--verify reads them whole)")
        return
    for dataset, summary in zip(datasets, summaries, strict=True):
        names = [f"{height}x{width}" for height, width in sorted(summary.sizes)]
        sizes = ", ".join(names) if len(names) < 7 else f"{len(names)} sizes from {names[0]} to {names[-1]}"
        print(f"  {dataset.split:6} {summary.images:5} images of {sizes}, all read and right")
    print(f"\n{'share of pixels, %':20}" + "".join(f"{dataset.split:>9}" for dataset in datasets))
    columns = [(*summary.frequencies, 1 - sum(summary.frequencies)) for summary in summaries]
    for row, shares in zip(
        (*datasets[0].space.classes, "(ignored)"), zip(*columns, strict=True), strict=True
    ):
        print(f"{row:20}" + "".join(f"{100 * abs(share):9.3f}" for share in shares))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 2 after one line on stderr."""
    args = _parser().parse_args(arguments)
    try:
        check_choice("data set", args.name, DATASETS)
        options = {key: getattr(args, key) for key in ("size", "train", "val", "seed")}
        options = {key: value for key, value in options.items() if value is not None}
        data_dir = None if args.data_dir is None else args.data_dir.expanduser()
        if args.source is not None:
            if args.name != "camvid":
                raise ValueError(
                    f"--from is for camvid alone; put {args.name} where it belongs, or use --data-dir"
                )
            data_dir, seen = camvid.unpack(args.source.expanduser(), data_dir or data_root())
        if args.convert:
            if args.name != "pascal_context":
                raise ValueError(f"--convert is for pascal_context alone; {args.name} is read as it is")
            pascal_context.convert(pascal_context_root(data_dir))
        # `streets --val 0` makes a train split alone; with nothing at all asked for, load says what is wrong.
        splits = [split for split in SPLITS[args.name] if options.get(split) != 0] or SPLITS[args.name]
        datasets = [load(args.name, split, data_dir=data_dir, **options) for split in splits]
        summaries = None
        if args.source is not None:
            summaries = [seen[dataset.split] for dataset in datasets]
        elif args.verify or args.name == "streets":  # what was just generated is shown with its frequencies
            summaries = [dataset.verify() for dataset in datasets]
        _print(args.name, datasets, summaries)
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: pycocotools is not installed
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
