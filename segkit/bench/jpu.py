"""FastFCN's Table 2: forward passes of dilated networks beside those of networks with a JPU in its place.

OMP_NUM_THREADS=1 python -m segkit.bench jpu --out data/measured
python -m segkit.bench jpu --upsamplings none bilinear fpn jpu --device cuda --out data/measured

Networks with the same backbone and head take turns in every round. Frames per second depend on the machine,
so what stands beside the paper's are ratios to the first of them, the dilated one. As in the authors' script,
a pass is one 512x512 image, 59 classes, and all outputs: the auxiliary head's and the presence logits too.
Unlike there, a GPU is waited for before and after each pass. The default is six pairs, all of Table 2: some
six minutes on one thread of a CPU. The table's other rows, bilinear and FPN, are there for the asking.
"""

import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from segkit import console
from segkit.bench import _record
from segkit.measure.latency import (
    PAPERS_ROUNDS,
    PAPERS_WARMUP,
    PRECISIONS,
    Clock,
    Latency,
    compared,
    interleaved,
)
from segkit.models import build
from segkit.models.fastfcn import DEPTHS, HEADS, UPSAMPLINGS

CLASSES, IMAGE_SIZE = 59, (512, 512)  # Section 4.2; the classes are those of the authors' script
MACHINE = "a Titan Xp"
BACKBONES = tuple(f"r{depth}" for depth in DEPTHS)
# Frames per second in Table 2, by backbone and head, in the order of UPSAMPLINGS; None: no such row.
TABLE_2: dict[str, tuple[float | None, ...]] = {
    "r50-enc": (18.77, 45.67, 37.87, 37.56),
    "r50-aspp": (15.99, None, None, 20.67),
    "r50-psp": (18.08, None, None, 28.48),
    "r101-enc": (10.51, 35.20, 32.40, 32.02),
    "r101-aspp": (10.46, None, None, 18.08),
    "r101-psp": (11.36, None, None, 23.87),
}


def printed(group: str, upsampling: str) -> float | None:
    """Frames per second in Table 2; None where it has no such row.

    Args:
        group: backbone and head, such as ``"r50-enc"``.
        upsampling: one of the table's.
    """
    return TABLE_2[group][UPSAMPLINGS.index(upsampling)]


def measure(
    group: str,
    upsamplings: Sequence[str],
    image_size: tuple[int, int],
    *,
    device: str = "cpu",
    rounds: int = 5,
    warmup: int = 1,
    precision: str = "fp32",
    auxiliary: bool = True,
    clock: Clock = time.perf_counter,
) -> dict[str, Latency]:
    """Times the networks of one backbone and head, which take turns.

    Args:
        group: such as ``"r50-enc"``.
        upsamplings: the ratios are to the first.
        image_size: (H, W) of the one image.
        device: "cpu" or "cuda", which is waited for before and after each pass.
        rounds: timed passes of each.
        warmup: rounds before, not timed.
        precision: a key of `segkit.measure.latency.PRECISIONS`.
        auxiliary: whether the other outputs are computed too.
        clock: seconds.

    Returns:
        By upsampling.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        networks = {
            upsampling: build(f"fastfcn-{group}-{upsampling}", num_classes=CLASSES).eval().to(device)
            for upsampling in upsamplings
        }
        image = torch.randn(1, 3, *image_size).to(device)
    calls = {
        name: partial(_forward, network, image, precision, auxiliary) for name, network in networks.items()
    }
    return compared(interleaved(calls, rounds=rounds, warmup=warmup, device=device, clock=clock))


def _forward(network: nn.Module, image: Tensor, precision: str, auxiliary: bool) -> dict:
    dtype = PRECISIONS[precision]
    with torch.inference_mode(), torch.autocast(image.device.type, dtype=dtype, enabled=dtype is not None):
        return network(image, auxiliary=auxiliary)


def rows(group: str, found: dict[str, Latency], *, comparable: bool) -> list[dict]:
    """What the record says about the networks of a group.

    Args:
        group: such as ``"r50-enc"``.
        found: by upsampling.
        comparable: whether the setting is the paper's; if not, its numbers are left out.

    Returns:
        For each ``model``, ``median``, ``quartiles`` and ``minimum`` in seconds, ``per_second``,
        ``speed_ratio`` to the first by the median over the rounds, ``speed_ratio_of_minima``, and
        ``paper_per_second`` and ``paper_speed_ratio``, None where the paper has none.
    """
    first = next(iter(found))
    made = []
    for upsampling, timed in found.items():
        paper, others = (printed(group, name) if comparable else None for name in (upsampling, first))
        made.append(
            {
                "model": f"fastfcn-{group}-{upsampling}",
                "median": timed.median,
                "quartiles": list(timed.quartiles),
                "minimum": min(timed.times),
                "per_second": timed.per_second,
                "speed_ratio": 1 / timed.ratio,
                "speed_ratio_of_minima": min(found[first].times) / min(timed.times),
                "paper_per_second": paper,
                "paper_speed_ratio": paper / others if paper and others else None,
            }
        )
    return made


def _line(row: dict) -> str:
    ratio = row["paper_speed_ratio"]
    return (
        f"{row['model']:<26}{1e3 * row['median']:9.1f} ms{row['per_second']:8.2f} /s"
        f"   speed {row['speed_ratio']:.2f} ({row['speed_ratio_of_minima']:.2f} of minima)"
        + (f"   the paper's {ratio:.2f}" if ratio else "")
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark, prints a line for each network, writes the result as JSON."""
    parser = console.command("bench jpu", __doc__)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--heads", nargs="+", choices=tuple(HEADS), default=list(HEADS))
    parser.add_argument(
        "--upsamplings",
        nargs="+",
        choices=UPSAMPLINGS,
        default=["none", "jpu"],
        help="ratios are to the first of them (default: none jpu)",
    )
    parser.add_argument(
        "--image-size", type=console.size, default=IMAGE_SIZE, metavar="HxW", help="(default: 512x512)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="(default: fp32)")
    parser.add_argument(
        "--rounds",
        type=console.count,
        help=f"timed passes of each (default: 5; cuda: {PAPERS_ROUNDS}, as many as the paper's)",
    )
    parser.add_argument(
        "--only-out",
        action="store_true",
        help="without auxiliary head and presence logits, which the paper timed too",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write jpu.json (cuda: jpu_cuda.json) here")
    options = parser.parse_args(argv)
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu times the networks here")
    if min(options.image_size) < 32:
        height, width = options.image_size
        parser.error(f"--image-size {height}x{width}: give at least 32 pixels a side")
    upsamplings = list(dict.fromkeys(options.upsamplings))
    groups = [f"{b}-{h}" for b in dict.fromkeys(options.backbones) for h in dict.fromkeys(options.heads)]
    one_thread = not cuda and torch.get_num_threads() == 1
    measuring = {
        "rounds": options.rounds or (PAPERS_ROUNDS if cuda else 5),
        "warmup": PAPERS_WARMUP if cuda else 1,
        "precision": options.precision,
        "auxiliary": not options.only_out,
    }
    comparable = tuple(options.image_size) == IMAGE_SIZE and not options.only_out

    result = _record.stamp(None if argv is None else ["segkit.bench", "jpu", *argv], device=options.device)
    if hasattr(os, "getloadavg"):  # timings mean little on a busy machine: say how busy it was
        result["machine"]["load_at_start"] = os.getloadavg()[0]
    result |= {
        "device": options.device,
        "image_size": list(options.image_size),
        "num_classes": CLASSES,
        "batch_size": 1,
        **measuring,
        "clock": "the processor's time, one thread" if one_thread else "wall time",
        "unit": "seconds of a pass in eval mode; images per second",
        "speed_ratio": (
            "to the first network of the same backbone and head, the median over the rounds; these take turns"
        ),
        "comparable": comparable,
        "paper": f"Table 2, frames per second on {MACHINE}",
        "rows": [],
    }
    if not comparable:
        result["note"] = "the paper timed one 512x512 image and all outputs: its numbers are left out"
    for group in groups:
        found = measure(
            group,
            upsamplings,
            tuple(options.image_size),
            device=options.device,
            # other programs take turns with ours on a CPU; of one thread the processor's time is its own
            clock=time.process_time if one_thread else time.perf_counter,
            **measuring,
        )
        made = rows(group, found, comparable=comparable)
        result["rows"] += made
        for row in made:
            print(_line(row), flush=True)
    # by name, for the claims
    result["speed_ratios"] = {
        row["model"].removeprefix("fastfcn-"): row["speed_ratio"] for row in result["rows"]
    }
    if not comparable:
        print(result["note"])
    if hasattr(os, "getloadavg"):
        result["machine"]["load_at_end"] = os.getloadavg()[0]
    if options.out:
        _record.write(options.out / ("jpu_cuda.json" if cuda else "jpu.json"), result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
