"""Forward passes of the networks in the papers' speed tables, side by side.

python -m segkit.bench latency --device cuda --out data/measured

The networks take turns in every round. Frames per second depend on the machine, so what is compared with a
paper are ratios within its own table, on images of its size. RegSeg's Table 8 has others than the rest:

python -m segkit.bench latency --models regseg ddrnet23 --image-size 720x960 --num-classes 11 --device cuda
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from segkit import console
from segkit.bench import _record
from segkit.measure.latency import (
    PAPERS_ROUNDS,
    PAPERS_WARMUP,
    PRECISIONS,
    Latency,
    compared,
    latency,
)
from segkit.models import MODELS, build

GPU_SIZE, CPU_SIZE = (1024, 2048), (256, 512)


@dataclass(frozen=True)
class Table:
    """A paper's table of speeds.

    Attributes:
        per_second: frames per second by network, as printed; None for a network of the kit whose row has no
            number. Ratios are to the first that was timed.
        image_size: (H, W) of the timed images.
        machine: that the paper timed on.
        num_classes: of the logits, which are part of the time.
        quoted: networks whose number the paper took from their own papers: machines and programs differ, so
            that a ratio says nothing.
    """

    per_second: dict[str, float | None]
    image_size: tuple[int, int]
    machine: str
    num_classes: int = 19
    quoted: frozenset[str] = frozenset()

    @property
    def setting(self) -> str:
        """What was timed: one image (Sec. 4.7), its size, the classes."""
        return _setting(1, self.image_size, self.num_classes)

    def ratio(self, model: str, first: str) -> float | None:
        """The printed speed over that of another network; None where the two do not compare."""
        ours, others = self.per_second[model], self.per_second[first]
        if ours is None or others is None or {model, first} & self.quoted:
            return None
        return ours / others


T4 = "a T4 in mixed precision"  # RegSeg, Sec. 4.7
TABLES = {
    "vnet.table2": Table(
        {"vnet": 37.4, "pspnet-r101": 1.9, "segnet": 5.0, "erfnet": 17.9, "enet": 22.0, "espnet": 47.6},
        image_size=(1024, 2048),
        machine="a TITAN Xp",
    ),
    "regseg.table8": Table(
        {"regseg": 70.0, "ddrnet23": 94.0},
        image_size=(720, 960),
        machine=T4,
        num_classes=11,
        quoted=frozenset({"ddrnet23"}),
    ),
    "regseg.table9": Table(
        {
            "regseg": 30.0,
            "ddrnet23": 37.1,
            "fc-hardnet70": 53.0,
            "swiftnet-rn18": 39.9,
            "lraspp-mobilenetv3": None,
        },
        image_size=(1024, 2048),
        machine=T4,
        quoted=frozenset({"ddrnet23", "fc-hardnet70", "swiftnet-rn18"}),
    ),
    "regseg.table10": Table({"regseg": 30.0, "ddrnet23": 30.0}, image_size=(1024, 2048), machine=T4),
}


def default_models() -> list[str]:
    """The networks of the tables that the kit has, each once."""
    names = dict.fromkeys(name for table in TABLES.values() for name in table.per_second)
    return [name for name in names if name in MODELS]


def by_table(found: dict[str, Latency], image_size: tuple[int, int], num_classes: int) -> dict[str, dict]:
    """Speeds within each table of which at least two networks were timed.

    Args:
        found: by network.
        image_size: (H, W) of the images on which they were timed.
        num_classes: of their logits.

    Returns:
        By table: ``image_size`` and ``num_classes``, the paper's; ``comparable``, whether ours are the same,
        of one image in a batch; ``note`` where they are not; ``rows``, for each network ``model``,
        ``per_second`` and ``speed_ratio`` to the table's first network that was timed (the median over the
        rounds), and, where the paper's are comparable, ``paper_per_second`` and ``paper_speed_ratio``, else
        None. The latter is None too where a number is missing or quoted.
    """
    result = {}
    for name, table in TABLES.items():
        timed = [model for model in table.per_second if model in found]
        if len(timed) < 2:
            continue
        batch_size = found[timed[0]].batch_size
        within = compared({model: found[model].times for model in timed}, batch_size)
        setting = _setting(batch_size, image_size, num_classes)
        comparable = setting == table.setting
        result[name] = {
            "image_size": list(table.image_size),
            "num_classes": table.num_classes,
            "comparable": comparable,
            "rows": [
                {
                    "model": model,
                    "paper_per_second": table.per_second[model] if comparable else None,
                    "paper_speed_ratio": table.ratio(model, timed[0]) if comparable else None,
                    "per_second": within[model].per_second,
                    "speed_ratio": 1 / within[model].ratio,
                }
                for model in timed
            ],
        }
        if not comparable:
            result[name]["note"] = (
                f"the paper timed {table.setting}, here it was {setting}: its ratios do not compare and are "
                f"left out"
            )
    return result


def _setting(batch_size: int, image_size: tuple[int, int], num_classes: int) -> str:
    return f"{batch_size}x3x{image_size[0]}x{image_size[1]} with {num_classes} classes"


def _show(name: str, found: dict) -> None:
    """Prints a table of `by_table`."""
    rows, table = found["rows"], TABLES[name]
    beside = f"here, and in the paper on {table.machine}" if found["comparable"] else "here"
    print(f"\nspeeds within {name}, to {rows[0]['model']}: {beside}")
    for row in rows:
        line = f"  {row['model']:<20} {row['speed_ratio']:6.3f}"
        if row["paper_speed_ratio"] is not None:
            line += f" {row['paper_speed_ratio']:.3f}"
        elif found["comparable"]:
            line += " - (quoted by the paper)" if row["model"] in table.quoted else " -"
        print(line)
    if "note" in found:
        print(f"  {found['note']}")


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark, prints a line for each network, writes the result as JSON."""
    parser = console.command("bench latency", __doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        help="the ratios are to the first (default: those of the tables)",
    )
    parser.add_argument(
        "--image-size",
        type=console.size,
        metavar="HxW",
        help="(default: 1024x2048, as most of the tables, with --device cuda; 256x512 on a CPU)",
    )
    parser.add_argument(
        "--num-classes", type=console.count, default=19, metavar="N", help="maps of the logits (default: 19)"
    )
    parser.add_argument("--batch", type=console.count, default=1, help="images in a pass (default: 1)")
    parser.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        default="fp32",
        help="fp16 is RegSeg's mixed precision, Sec. 4.7 (default: fp32)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument(
        "--rounds",
        type=console.count,
        help=f"timed passes of each (default: 9; cuda: {PAPERS_ROUNDS}, RegSeg's Sec. 4.7)",
    )
    parser.add_argument(
        "--auxiliary", action="store_true", help="with the auxiliary heads, as FastFCN's Table 2 was timed"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write latency.json (cuda: latency_cuda.json) here"
    )
    options = parser.parse_args(argv)
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu times the networks here")
    image_size = options.image_size or (GPU_SIZE if cuda else CPU_SIZE)
    if min(image_size) < 1:
        parser.error(f"--image-size {image_size[0]}x{image_size[1]}: give at least one pixel a side")
    names = list(dict.fromkeys(options.models or default_models()))
    try:
        for name in names:  # a wrong name before anything takes time or memory
            build(name, device="meta")
    except ValueError as error:
        parser.error(str(error))

    result = _record.stamp(
        None if argv is None else ["segkit.bench", "latency", *argv], device=options.device
    )
    if hasattr(os, "getloadavg"):  # timings mean little on a busy machine: say how busy it was
        result["machine"]["load_at_start"] = os.getloadavg()[0]
    rounds, warmup = options.rounds or (PAPERS_ROUNDS if cuda else 9), PAPERS_WARMUP if cuda else 2
    result |= {
        "device": options.device,
        "image_size": list(image_size),
        "num_classes": options.num_classes,
        "batch_size": options.batch,
        "precision": options.precision,
        "auxiliary": options.auxiliary,
        "rounds": rounds,
        "warmup": warmup,
        "unit": "seconds of a pass in eval mode, wall time; images per second",
        "ratio": "of times, to the first network, the median over the rounds; the networks take turns",
    }
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        networks = {name: build(name, num_classes=options.num_classes) for name in names}
    try:
        found = latency(
            networks,
            image_size,
            batch_size=options.batch,
            device=options.device,
            rounds=rounds,
            warmup=warmup,
            precision=options.precision,
            auxiliary=options.auxiliary,
        )
    except ValueError as error:  # a size that a network cannot take; its message says which it can
        parser.error(str(error))
    result["rows"] = [
        {
            "model": name,
            "median": timed.median,
            "quartiles": list(timed.quartiles),
            "minimum": min(timed.times),
            "per_second": timed.per_second,
            "ratio": timed.ratio,
        }
        for name, timed in found.items()
    ]
    result["tables"] = by_table(found, image_size, options.num_classes)

    for name, timed in found.items():
        print(f"{name:<20} {timed}")
    for table, within in result["tables"].items():
        _show(table, within)
    if options.out:
        _record.write(options.out / ("latency_cuda.json" if cuda else "latency.json"), result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
