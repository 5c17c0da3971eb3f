"""How little memory a training step needs: the paper's rows, the planner's frontier, the largest batches.

python -m segkit.bench plans --out data/measured
"""

import argparse
import functools
import sys
from pathlib import Path

from torch import nn

from segkit import models
from segkit.bench import _record
from segkit.measure.peak import MIB, NOT_COUNTED, Step, largest_batch, peak_memory, static_bytes
from segkit.memory import chunked_step, frontier

MODEL, BATCH, SIZE, OPTIMIZER = "ldn121-32-4", 6, (768, 768), "amsgrad"  # of the paper's Table 12
STEPS = {"default": None, "chunked": chunked_step}

# Table 12 from the top, the last but one also as the authors' released code does it, with TD.
PAPER: dict[str, str | None] = {
    "baseline": None,
    "(3x3)": "3x3",
    "(cat 1x1)": "cat1x1",
    "(cat 1x1) (3x3)": "cat1x1,3x3",
    "(block) (stem) (TD) (UP)": "block,stem,td,tu",
    "(cat 1x1 3x3)": "unit",
    "(cat 1x1 3x3) and TD": "unit,td",
    "(cat 1x1 3x3) (stem) (TD) (UP)": "unit,stem,td,tu",
}
ALL = "unit,stem,td,tu,spp,cat,nested"  # all that there is beyond the paper, on top of its last row
# One thing after the other on the way from the paper's leanest row to the leanest step.
LADDER: tuple[tuple[str, str, str, str, dict], ...] = (
    # name, recompute, step, precision, options of the model
    ("the paper's leanest row", "unit,stem,td,tu", "default", "fp32", {}),
    ("+ loss in chunks", "unit,stem,td,tu", "chunked", "fp32", {}),
    ("+ block outputs rebuilt (cat)", "unit,stem,td,tu,cat", "chunked", "fp32", {}),
    ("+ SPP as a segment (spp)", "unit,stem,td,tu,cat,spp", "chunked", "fp32", {}),
    ("+ segments in segments (nested)", ALL, "chunked", "fp32", {}),
    ("+ TD pools first (pool_first)", ALL, "chunked", "fp32", {"pool_first": True}),
    ("+ bf16 autocast", ALL, "chunked", "bf16", {"pool_first": True}),
    ("ReLU out of place", ALL, "chunked", "fp32", {"inplace": False}),
)
FRONTIERS = (("default", "fp32"), ("chunked", "fp32"), ("chunked", "bf16"))

NETWORKS = ("ldn121-32-4", "ldn121-64-4", "ldn161-64-4")
CROPS = (448, 512, 768)
CHOICES = {  # plan: recompute, step
    "none": (None, "default"),
    "unit": ("unit", "default"),
    "all": ("unit,stem,td,tu", "default"),
    "all + chunked": (ALL, "chunked"),
}
BUDGETS = (8, 12, 24, 80)  # GiB


def simulate(recompute: str | None, step: str, precision: str, options: dict) -> dict:
    """One step of the paper's setting; bytes, and the multiply-adds done again."""
    model = models.build(MODEL, device="meta", recompute=recompute, **options)
    peak = peak_memory(model, BATCH, SIZE, step=STEPS[step], optimizer=OPTIMIZER, precision=precision)
    return {
        "recompute": recompute or "",
        "step": step,
        "precision": precision,
        **options,
        "predicted": peak.total,
        "recomputed_macs": peak.recomputed_macs,
    }


def largest_batches(model: nn.Module, crop: int, step: Step | None) -> dict[str, int]:
    """The largest batch by GiB; all budgets share the simulated peaks."""

    @functools.cache
    def peak_of(batch: int) -> int:
        return peak_memory(model, batch, (crop, crop), step=step, optimizer=OPTIMIZER).total

    fixed = static_bytes(model, OPTIMIZER)
    return {str(gib): largest_batch(peak_of, gib * 2**30, fixed=fixed) for gib in BUDGETS}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark, prints a line for each plan, writes the result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m segkit.bench plans", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="write plans.json here")
    parser.add_argument(
        "--only", choices=("rows", "frontier", "batches"), help="one part only (nothing is written then)"
    )
    options = parser.parse_args(argv)
    parts = (options.only,) if options.only else ("rows", "frontier", "batches")

    result = _record.stamp(None if argv is None else ["segkit.bench", "plans", *argv])
    plain = models.build(MODEL, device="meta")
    result |= {
        "counted": "live storages, each rounded up to 512 bytes, simulated on meta tensors",
        "not_counted": NOT_COUNTED,
        "unit": "bytes",
        "model": MODEL,
        "batch_size": BATCH,
        "image_size": list(SIZE),
        "optimizer": OPTIMIZER,
        "forward_macs": peak_memory(plain, BATCH, SIZE, optimizer=OPTIMIZER).forward_macs,
    }
    if "rows" in parts:
        result["paper"] = {
            name: _row(name, recompute, "default", "fp32", {}) for name, recompute in PAPER.items()
        }
        result["ladder"] = {name: _row(name, *row) for name, *row in LADDER}
    if "frontier" in parts:
        result["frontiers"] = []
        for step, precision in FRONTIERS:
            plans = frontier(plain, BATCH, SIZE, step=STEPS[step], optimizer=OPTIMIZER, precision=precision)
            rows = []
            for found in plans:
                rows.append(
                    {
                        "recompute": found.recompute,
                        "predicted": found.total,
                        "recomputed_macs": found.recomputed_macs,
                    }
                )
                print(f"frontier, {step} {precision}: {found}", flush=True)
            result["frontiers"].append({"step": step, "precision": precision, "plans": rows})
    if "batches" in parts:
        result["largest_batch"] = []
        for name in NETWORKS:
            for plan, (recompute, step) in CHOICES.items():
                model = models.build(name, device="meta", recompute=recompute)
                for crop in CROPS:
                    fits = largest_batches(model, crop, STEPS[step])
                    row = {
                        "model": name,
                        "plan": plan,
                        "recompute": recompute or "",
                        "step": step,
                        "crop": crop,
                    }
                    result["largest_batch"].append({**row, "batch_by_gib": fits})
                    print(f"{name} {crop}x{crop} {plan}: largest batch by GiB {fits}", flush=True)
    if options.out and not options.only:
        _record.write(options.out / "plans.json", result)
    return 0


def _row(name: str, recompute: str | None, step: str, precision: str, options: dict) -> dict:
    row = simulate(recompute, step, precision, options)
    print(
        f"{name:<34} {row['predicted'] / MIB:9.1f} MiB  {row['recomputed_macs'] / 1e9:6.1f} GMAC again",
        flush=True,
    )
    return row


if __name__ == "__main__":
    sys.exit(main())
