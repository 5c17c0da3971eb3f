"""Ways to train a stack of reversible units, side by side: memory, time, batch-norm updates, exactness.

python -m segkit.bench reversible --out data/measured

The units are those of VNet's last stage. Every way runs the same units with the same weights on the same
batch: plain autograd; ours, one autograd Function for the stack; ours with a Function for each unit; a
torch.utils.checkpoint for each unit; and memcnn and RevTorch where they are installed.
"""

import copy
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segkit import console
from segkit.bench import _record
from segkit.measure.peak import MIB, NOT_COUNTED, MeasurementError, peak_memory
from segkit.memory.reversible import ReversibleSequence
from segkit.models.vnet import asymmetric

WIDTH = 128  # channels of VNet's last stage
DILATIONS = (2, 4, 8)  # of its units, in turn
DEPTHS = (6, 12, 24, 48)  # units: VNet's last stage has 6, and 2, 4 and 8 times as many
SIMULATED = (4, (128, 256))  # batch and map size at the paper's batch of 4 images of 1024x2048
TIMED = {"cpu": (2, (24, 48)), "cuda": SIMULATED}


class NotInstalled(RuntimeError):
    """A package of others that is compared where it is there."""


class Stack(nn.Module):
    """An ordinary convolution, then the units run in some way: ``forward`` takes images (B, 3, h, w).

    Args:
        functions: F of each unit, on half of the channels.
        way: a key of `WAYS`.
    """

    def __init__(self, functions: list[nn.Module], way: str) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, WIDTH, 1)
        self.body = WAYS[way](functions)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.enter(x))  # (B, WIDTH, h, w)


def plain(functions: list[nn.Module]) -> nn.Module:
    """The units under ordinary autograd."""
    body = ReversibleSequence(functions)
    body.reversible = False
    return body


def one_each(functions: list[nn.Module]) -> nn.Module:
    """A Function for each unit: ours, a stack of one each."""
    return nn.Sequential(*(ReversibleSequence([f]) for f in functions))


class Checkpointed(nn.Module):
    """A checkpoint around each unit: what PyTorch offers for any network."""

    def __init__(self, functions: list[nn.Module]) -> None:
        super().__init__()
        self.units = ReversibleSequence(functions).units

    def forward(self, x: Tensor) -> Tensor:
        streams = x.chunk(2, 1)
        for unit in self.units:
            streams = checkpoint(unit, *streams, use_reentrant=False)
        return torch.cat(streams, 1)


def memcnn(functions: list[nn.Module]) -> nn.Module:
    """memcnn's InvertibleModuleWrapper around its AdditiveCoupling, with the identity as G."""
    package = _package("memcnn")
    return nn.Sequential(
        *(
            package.InvertibleModuleWrapper(package.AdditiveCoupling(Fm=f, Gm=nn.Identity()))
            for f in functions
        )
    )


def revtorch(functions: list[nn.Module]) -> nn.Module:
    """RevTorch's ReversibleSequence, with the identity as G."""
    package = _package("revtorch")
    return package.ReversibleSequence(
        nn.ModuleList(package.ReversibleBlock(f, nn.Identity()) for f in functions)
    )


WAYS: dict[str, Callable[[list[nn.Module]], nn.Module]] = {
    "plain": plain,
    "ours": ReversibleSequence,
    "one Function a unit": one_each,
    "checkpoint a unit": Checkpointed,
    "memcnn": memcnn,
    "revtorch": revtorch,
}
OURS = "ours"


def _package(name: str):
    try:
        with warnings.catch_warnings():  # about what newer versions of PyTorch will do without
            warnings.simplefilter("ignore")
            return __import__(name)
    except ImportError as error:
        raise NotInstalled(f"{name} is not installed (pip install {name}): {error}") from error


def step(model: nn.Module, images: Tensor, labels: Tensor | None = None) -> Tensor:
    """Forward and loss: the mean square of the stack's output."""
    return model(images).square().mean()


class Bench:
    """All ways at one depth, on one device.

    Args:
        units: how many.
        device: "cpu" or "cuda".
        batch_size: of the steps that are run.
        image_size: (h, w) of their maps.
    """

    def __init__(self, units: int, device: str, batch_size: int, image_size: tuple[int, int]) -> None:
        torch.manual_seed(0)
        self.units, self.device = units, device
        functions = [asymmetric(WIDTH // 2, DILATIONS[i % len(DILATIONS)]) for i in range(units)]
        enter = nn.Conv2d(3, WIDTH, 1)
        self.functions: dict[str, list[nn.Module]] = {}
        self.models: dict[str, Stack] = {}
        self.rows: dict[str, dict] = {}
        for way in WAYS:
            row: dict = {"units": units, "way": way}
            self.rows[way] = row
            try:
                model = Stack(own := copy.deepcopy(functions), way)
            except NotInstalled as error:
                row["note"] = str(error)
                continue
            model.enter.load_state_dict(enter.state_dict())
            self.functions[way], self.models[way] = own, model.to(device)
        self.images = torch.rand(batch_size, 3, *image_size).to(device)

    def run(self, rounds: int, simulated: tuple[int, tuple[int, int]] | None = None) -> list[dict]:
        """Measures everything.

        Returns:
            For each way: ``units``, ``way``; ``peak``, bytes, and ``by_kind``, simulated for batch and map
            size ``simulated``; ``norm_updates``, of one step; ``gradient_error``, in float64, the largest of
            any parameter: its largest deviation from plain autograd by its largest value;
            ``gradient_error_fp32``, where a value that round-off carries over the kink of a PReLU changes the
            gradient of one channel visibly; ``seconds``, the median of a step; ``ratio`` to the plain step,
            the median over rounds (on a CPU of the time that it computed, which other programs disturb less);
            on a GPU ``measured``, bytes that a step took. ``note`` where something is missing.
        """
        for way in list(self.models):
            self._simulate(way, *(simulated or SIMULATED))
        expected: dict[torch.dtype, list[Tensor]] = {}
        for way in list(self.models):
            try:
                for dtype, key in ((torch.float32, "gradient_error_fp32"), (torch.float64, "gradient_error")):
                    found = self._gradients(way, dtype)
                    pairs = zip(found, expected.setdefault(dtype, found), strict=True)
                    self.rows[way][key] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
            except Exception as error:  # whatever other people's code raises
                if way in ("plain", OURS):
                    raise
                self.rows[way]["note"] = f"does not run: {type(error).__name__}: {error}"
                del self.models[way]
        self._time(rounds)
        if self.device == "cuda":
            for way in self.models:
                self._measure(way)
        return list(self.rows.values())

    def _simulate(self, way: str, batch_size: int, image_size: tuple[int, int]) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                peak = peak_memory(self.models[way], batch_size, image_size, step=step)
            self.rows[way] |= {"peak": peak.total, "by_kind": peak.by_kind}
        except (MeasurementError, RuntimeError, NotImplementedError, TypeError) as error:
            if way in ("plain", OURS):
                raise
            reason = str(error).splitlines()[0][:160]
            self.rows[way]["note"] = f"cannot be followed on meta tensors: {reason}"

    def _gradients(self, way: str, dtype: torch.dtype) -> list[Tensor]:
        norm = next(m for m in self.functions[way][0].modules() if isinstance(m, nn.BatchNorm2d))
        before = int(norm.num_batches_tracked)
        self.models[way].to(dtype)
        self._step(way, self.images.to(dtype))
        self.rows[way]["norm_updates"] = int(norm.num_batches_tracked) - before
        functions = (parameter for f in self.functions[way] for parameter in f.parameters())
        gradients = [p.grad.clone() for p in (*self.models[way].enter.parameters(), *functions)]
        self.models[way].to(torch.float32)
        return gradients

    def _step(self, way: str, images: Tensor | None = None) -> None:
        self.models[way].zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step(self.models[way], self.images if images is None else images).backward()

    def _time(self, rounds: int) -> None:
        wall: dict[str, list[float]] = {way: [] for way in self.models}
        work: dict[str, list[float]] = {way: [] for way in self.models}
        ways = list(self.models)
        for turn in range(rounds + 1):
            gc.collect()  # what other people's code leaves in cycles
            for way in ways:
                self._synchronize()
                began, computed = time.perf_counter(), time.process_time()
                self._step(way)
                self._synchronize()
                if turn:  # the first round warms up
                    wall[way].append(time.perf_counter() - began)
                    work[way].append(time.process_time() - computed)
            ways = ways[1:] + ways[:1]  # nobody always runs after the same one
        clock = work if self.device == "cpu" else wall
        for way in self.models:
            self.rows[way]["seconds"] = statistics.median(wall[way])
            ratios = [a / b for a, b in zip(clock[way], clock["plain"], strict=True)]
            self.rows[way]["ratio"] = statistics.median(ratios)

    def _measure(self, way: str) -> None:
        for other in self.models.values():
            other.zero_grad()
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self._step(way)
        self._synchronize()
        self.rows[way]["measured"] = torch.cuda.max_memory_allocated() - before

    def _synchronize(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def summary(rows: list[dict]) -> list[dict]:
    """Ours at each depth against the rest.

    Returns:
        For each depth: ``units``; ``lowest_peak``, the way that has it; ``fastest``, of the others that keep
        less than plain autograd; ``slower``, our time by that one's, less 1; ``norm_updates`` and
        ``gradient_error`` of ours.
    """
    result = []
    for units in dict.fromkeys(row["units"] for row in rows):
        here = [row for row in rows if row["units"] == units]
        ours = next(row for row in here if row["way"] == OURS)
        fastest = min(
            (row for row in here if row["way"] not in ("plain", OURS) and "ratio" in row),
            key=lambda row: row["ratio"],
        )
        result.append(
            {
                "units": units,
                "lowest_peak": min((row for row in here if "peak" in row), key=lambda row: row["peak"])[
                    "way"
                ],
                "fastest": fastest["way"],
                "slower": ours["ratio"] / fastest["ratio"] - 1,
                "norm_updates": ours["norm_updates"],
                "gradient_error": ours["gradient_error"],
            }
        )
    return result


def _line(row: dict) -> str:
    cells = [f"{row['units']:5d}  {row['way']:<20}"]
    for key, unit, form in (
        ("peak", MIB, "{:9.1f}"),
        ("measured", MIB, "{:9.1f}"),
        ("seconds", 1e-3, "{:9.1f}"),
        ("ratio", 1, "{:6.3f}"),
        ("norm_updates", 1, "{:8.0f}"),
        ("gradient_error", 1, "{:9.1e}"),
        ("gradient_error_fp32", 1, "{:9.1e}"),
    ):
        if key == "measured" and key not in row:
            continue
        text = form.format(row[key] / unit) if key in row else "-"
        cells.append(text.rjust(len(form.format(0))))
    return "  ".join(cells) + (f"  ({row['note']})" if "note" in row else "")


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark, prints a line for each way and depth, writes the result as JSON."""
    parser = console.command("bench reversible", __doc__)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where steps are timed (default: cpu)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write reversible.json here")
    parser.add_argument(
        "--units",
        type=console.count,
        nargs="+",
        default=DEPTHS,
        metavar="N",
        help=f"depths of the stack (default: {' '.join(map(str, DEPTHS))})",
    )
    parser.add_argument(
        "--batch", type=console.count, help="batch size of the timed steps (default: 2; cuda 4)"
    )
    parser.add_argument(
        "--maps",
        type=console.size,
        metavar="HxW",
        help="map size of the timed steps (default: 24x48; 128x256)",
    )
    parser.add_argument(
        "--rounds", type=console.count, default=9, help="timed steps of each way (default: 9)"
    )
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu times the steps here")
    batch, maps = TIMED[options.device]
    batch, maps = options.batch or batch, options.maps or maps

    result = _record.stamp(
        None if argv is None else ["segkit.bench", "reversible", *argv], device=options.device
    )
    for package in ("memcnn", "revtorch"):
        try:
            result["versions"][package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    result |= {
        "device": options.device,
        "channels": WIDTH,
        "simulated": {"batch_size": SIMULATED[0], "map_size": list(SIMULATED[1]), "precision": "fp32"},
        "timed": {
            "batch_size": batch,
            "map_size": list(maps),
            "rounds": options.rounds,
            "ratio": "of CPU time" if options.device == "cpu" else "of wall time",
        },
        "not_counted": NOT_COUNTED,
        "unit": "bytes, seconds",
        "rows": [],
    }
    measured = "   measured" if options.device == "cuda" else ""
    print(
        f"units  {'way':<20}   peak MiB{measured}         ms  /plain     norms   gradient   in fp32",
        flush=True,
    )
    for units in options.units:
        rows = Bench(units, options.device, batch, maps).run(options.rounds)
        for row in rows:
            print(_line(row), flush=True)
        result["rows"] += rows
        result["summary"] = summary(result["rows"])
        if options.out:  # after each depth: a run that is cut off keeps what it has
            _record.write(options.out / "reversible.json", result)
    for row in result["summary"]:
        print(
            f"{row['units']} units: lowest peak {row['lowest_peak']}; ours {100 * row['slower']:+.1f} % time "
            f"against {row['fastest']}, the fastest other that keeps less than plain autograd"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
