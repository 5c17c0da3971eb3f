"""Peak memory of training steps: predicted on meta tensors and, on a GPU, measured beside it.

python -m segkit.bench memory --device cuda --out data/measured
"""

import argparse
import gc
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from segkit import models
from segkit.bench import _record
from segkit.measure.peak import MIB, NOT_COUNTED, peak_memory

TOLERANCE = 0.03  # of fp32: predicted against measured


@dataclass(frozen=True)
class Configuration:
    """One training step. Attributes as the arguments of `models.build` and `measure.peak_memory`."""

    model: str
    batch_size: int
    image_size: tuple[int, int]
    recompute: str | None = None
    optimizer: str | None = "amsgrad"
    precision: str = "fp32"

    def __str__(self) -> str:
        height, width = self.image_size
        plan = f" recompute={self.recompute}" if self.recompute else ""
        return f"{self.model} {self.batch_size}x{height}x{width} {self.optimizer} {self.precision}{plan}"


_PAPER = (768, 768)  # crops and batch size of the paper's Tables 12 and 13
LEAN = "unit,stem,td,tu"
CONFIGURATIONS: tuple[Configuration, ...] = (
    # Table 12: what each segment brings
    Configuration("ldn121-32-4", 6, _PAPER),
    Configuration("ldn121-32-4", 6, _PAPER, "3x3"),
    Configuration("ldn121-32-4", 6, _PAPER, "cat1x1"),
    Configuration("ldn121-32-4", 6, _PAPER, "cat1x1,3x3"),
    Configuration("ldn121-32-4", 6, _PAPER, "block,stem,td,tu"),
    Configuration("ldn121-32-4", 6, _PAPER, "unit"),
    Configuration("ldn121-32-4", 6, _PAPER, "unit,td"),
    Configuration("ldn121-32-4", 6, _PAPER, LEAN),
    # Table 13: other backbones
    Configuration("ldn161-32-4", 6, _PAPER),
    Configuration("ldn161-32-4", 6, _PAPER, LEAN),
    Configuration("ladder-resnet18-32-4", 6, _PAPER),
    Configuration("ladder-resnet50-32-4", 6, _PAPER),
    Configuration("ladder-resnet101-32-4", 6, _PAPER),
    # other networks of the family, other batches, sizes and optimizers
    Configuration("ldn121-64-4", 6, _PAPER),
    Configuration("ldn121-64-4", 6, _PAPER, LEAN),
    Configuration("ldn169-32-4", 4, _PAPER, "unit"),
    Configuration("ladder-dpn68-32-4", 4, _PAPER),
    Configuration("lddn121-8-4", 2, _PAPER),
    Configuration("dn121-32", 8, (448, 448), None, "adam"),
    Configuration("ldn121-32-4", 2, (256, 256), None, None),
    Configuration("ldn121-32-4", 16, (448, 448), None, "sgd"),
    Configuration("ldn121-32-4", 16, _PAPER, LEAN),
    Configuration("ldn121-32-4", 4, (1024, 2048), LEAN),
    Configuration("ldn121-32-4", 3, (497, 731), "cat1x1,3x3"),  # sizes that nothing divides
    # bf16 autocast
    Configuration("ldn121-32-4", 6, _PAPER, precision="bf16"),
    Configuration("ldn121-32-4", 6, _PAPER, "block,stem,td,tu", precision="bf16"),
    Configuration("ldn121-32-4", 6, _PAPER, LEAN, precision="bf16"),
    Configuration("ldn161-32-4", 6, _PAPER, precision="bf16"),
    Configuration("ladder-resnet18-32-4", 6, _PAPER, precision="bf16"),
)


def measure(configuration: Configuration, device: str) -> dict:
    """Predict one step, and on a GPU run it.

    Returns:
        The configuration; ``predicted``, bytes, with ``by_kind`` and where the peak is; ``reserved``, what
        the allocator takes for it; ``seconds`` that it took; on a GPU ``measured``, ``measured_requested``
        and ``measured_reserved``, bytes, ``error`` (measured / predicted - 1) and ``workspace`` by operator,
        or ``note`` where the step did not fit.
    """
    model = models.build(configuration.model, device="meta", recompute=configuration.recompute)
    arguments = (model, configuration.batch_size, configuration.image_size)
    options = {"optimizer": configuration.optimizer, "precision": configuration.precision}
    begin = time.perf_counter()
    note = None
    try:
        peak = peak_memory(*arguments, **options, device=device)
    except torch.OutOfMemoryError:
        note = "the step does not fit on this GPU"
    if note is not None:  # out of the handler, whose traceback holds the step's tensors
        gc.collect()
        torch.cuda.empty_cache()
        peak = peak_memory(*arguments, **options)
    i = peak.timeline.peak
    row = {
        **asdict(configuration),
        "image_size": list(configuration.image_size),
        "predicted": peak.total,
        "reserved": peak.reserved,
        "by_kind": peak.by_kind,
        "peak_at": {"phase": peak.timeline.phases[i], "operator": peak.timeline.operators[i]},
        "seconds": round(time.perf_counter() - begin, 3),
    }
    if device == "cuda":
        for name in ("measured", "measured_requested", "measured_reserved"):
            row[name] = getattr(peak, name)
        row["error"] = peak.measured / peak.total - 1 if peak.measured else None
        row["workspace"] = dict(list(peak.workspace.items())[:5])
    if note is not None:
        row["note"] = note
    return row


def summary(rows: list[dict]) -> dict:
    """Largest errors by precision, and which fp32 rows are outside the tolerance and why.

    A row is explained where the largest workspace that an operator took for itself, and the ends of blocks
    that the allocator did not split off, cover what was measured beyond the prediction.
    """
    result: dict = {}
    for precision in ("fp32", "bf16"):
        measured = [row for row in rows if row["precision"] == precision and row.get("measured")]
        if measured:
            largest = max(measured, key=lambda row: abs(row["error"]))
            result[precision] = {"rows": len(measured), "largest_error": largest["error"]}
        if measured and precision == "fp32":
            outside = [row for row in measured if abs(row["error"]) > TOLERANCE]
            result[precision]["outside_tolerance"] = [
                {"row": rows.index(row), "error": row["error"], **_why(row)} for row in outside
            ]
    return result


def _why(row: dict) -> dict:
    workspace = max(row["workspace"].values(), default=0)
    unsplit = row["measured"] - row["measured_requested"]
    beyond = row["measured"] - row["predicted"]
    explained = 0 < beyond <= workspace + unsplit + TOLERANCE * row["predicted"]
    return {"workspace": workspace, "unsplit": unsplit, "explained": explained}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark, prints a line for each step, writes the result as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m segkit.bench memory", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--device",
        choices=("meta", "cuda"),
        default="meta",
        help="meta predicts, cuda measures too (default: meta)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write memory.json (meta: memory_predicted.json) here"
    )
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="only configurations whose line contains TEXT"
    )
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device meta writes the predictions only")
    chosen = [configuration for configuration in CONFIGURATIONS if options.only in str(configuration)]
    if not chosen:
        parser.error(f"no configuration contains {options.only!r}; such as {CONFIGURATIONS[0]}")

    result = _record.stamp(None if argv is None else ["segkit.bench", "memory", *argv], device=options.device)
    result |= {
        "device": options.device,
        "counted": "live storages, each rounded up to 512 bytes",
        "not_counted": NOT_COUNTED,
        "unit": "bytes",
    }
    if options.device == "cuda":
        result["measured_by"] = (
            "torch.cuda.max_memory_allocated in the second step, less what was allocated before; "
            "measured_requested and measured_reserved: what was asked for, and what the allocator took from "
            "the card, the same way"
        )
        result["cudnn_benchmark"] = torch.backends.cudnn.benchmark
    result["rows"] = []
    name = "memory.json" if options.device == "cuda" else "memory_predicted.json"
    for configuration in chosen:
        row = measure(configuration, options.device)
        result["rows"].append(row)
        line = f"{configuration!s:<70} predicted {row['predicted'] / MIB:9.1f} MiB"
        if row.get("measured"):
            line += f"  measured {row['measured'] / MIB:9.1f} MiB  {100 * row['error']:+.2f} %"
            line += f"  reserved {row['reserved'] / MIB:.0f} | {row['measured_reserved'] / MIB:.0f} MiB"
        print(line + (f"  ({row['note']})" if "note" in row else ""), flush=True)
        if options.device == "cuda":
            result["summary"] = summary(result["rows"])
        if options.out:  # after each row: a run that is cut off keeps what it has
            _record.write(options.out / name, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
