"""RegSeg's D block: Table 1's four latencies, and other ways to compute the same block.

OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 \\
    python -m segkit.bench dblock --out data/measured

The MALLOC variables are glibc's: it keeps freed memory, as PyTorch does on a GPU. Without them a pass
asks the system for its 8 MiB maps anew, or does not, by luck of sizes and order; that is a fifth of a
pass or more, and hides what a way to compute the block gains.

All blocks have the same weights, take turns in every round, and are timed in eval mode without autograd, and
in training (forward and backward). The ways are those that avoid something that split-convolve-concatenate
does: the concatenation, the pass that scales the maps, the dilated convolution, the norms' own passes.
"""

import copy
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit import console
from segkit.bench import _record
from segkit.measure.latency import PAPERS_ROUNDS, PAPERS_WARMUP, PRECISIONS, compared, interleaved
from segkit.models.regseg import DBlock

ENVIRONMENT = ("OMP_NUM_THREADS", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
WIDTH, GROUP_WIDTH, MAPS = 256, 16, (64, 128)  # Table 1: 1x256x64x128
TABLE_1 = {  # name: dilations of the branches, ms on a T4
    "Y block": ((1,), 1.0),
    "D block (1, 1)": ((1, 1), 1.1),
    "D block (1, 4)": ((1, 4), 1.2),
    "D block (1, 10)": ((1, 10), 1.2),
}
Y_BLOCK, Y_FOLDED = "Y block", "Y block, norms folded"
TRIED_ON = "D block (1, 4)"  # what RegSeg has most of in Table 1
EXACT = {torch.float32: 1e-6, torch.float64: 1e-12}  # largest deviation of a tensor by its largest value
UNJUDGED = "gradients_float32"  # some are sums that cancel: float64 decides
FASTER = 0.97  # a ratio above is no gain


@dataclass(frozen=True)
class Way:
    """One way to compute a D block.

    Attributes:
        forward: ``forward(block, x)``, x (B, 256, h, w).
        what: it does differently.
        trains: False where autograd cannot go through; training is then the plain way.
        layout: of the block's weights and its input.
    """

    forward: Callable[[DBlock, Tensor], Tensor]
    what: str
    trains: bool = True
    layout: torch.memory_format = torch.contiguous_format


def plain(block: DBlock, x: Tensor) -> Tensor:
    """Split, convolve, concatenate; with one branch a Y block, which does neither split nor concatenate.

    Written out, for the block's own forward may become another way.
    """
    main = F.relu(block.norm(_joined(_convolved(block, x))), inplace=True)
    return _end(block, block.squeeze_excite(main), x)


def norm_by_branch(block: DBlock, x: Tensor) -> Tensor:
    """Norm and ReLU of each branch while it is in the cache, then the concatenation."""
    return _end(block, block.squeeze_excite(torch.cat(_normed(block, x), dim=1)), x)


def no_concatenation(block: DBlock, x: Tensor) -> Tensor:
    """Each branch has its columns of the last 1x1 convolution, gate and all; their products are summed."""
    parts = _normed(block, x)
    weights = _gated(block, torch.cat([F.adaptive_avg_pool2d(part, 1) for part in parts], dim=1))
    total = None
    for weight, part in zip(weights.chunk(len(parts), dim=2), parts, strict=True):
        part = part.flatten(2)  # (B, o/n, h*w)
        total = torch.bmm(weight, part) if total is None else torch.baddbmm(total, weight, part)
    return _join(block, total.unflatten(2, x.shape[2:]), x)


def sum_of_convolutions(block: DBlock, x: Tensor) -> Tensor:
    """The same with maps that are scaled, as in the plain way, and one 1x1 convolution for each branch."""
    parts = _normed(block, x)
    gates = _gate(block, torch.cat([F.adaptive_avg_pool2d(part, 1) for part in parts], dim=1))
    weights = block.conv3[0].weight.chunk(len(parts), dim=1)
    total = sum(
        F.conv2d(part * gate, weight)
        for part, gate, weight in zip(parts, gates.chunk(len(parts), dim=1), weights, strict=True)
    )
    return _join(block, total, x)


def gate_in_weights(block: DBlock, x: Tensor) -> Tensor:
    """Scales the columns of the last 1x1 convolution for each image, in place of the maps that they read."""
    main = F.relu(block.norm(_joined(_convolved(block, x))), inplace=True)  # (B, o, h, w)
    weights = _gated(block, F.adaptive_avg_pool2d(main, 1))
    return _join(block, torch.bmm(weights, main.flatten(2)).unflatten(2, main.shape[2:]), x)


def written_by_slices(block: DBlock, x: Tensor) -> Tensor:
    """The norm writes each branch into its slice of one tensor: no concatenation of its own."""
    parts, norm = _convolved(block, x), block.norm
    main, begin = parts[0].new_empty(len(x), WIDTH, *x.shape[2:]), 0
    for part in parts:
        maps = slice(begin, begin := begin + part.shape[1])
        torch.ops.aten.native_batch_norm.out(
            part,
            *(t[maps] for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)),
            False,
            0.0,
            norm.eps,
            out=main[:, maps],
            save_mean=norm.weight.new_empty(0),
            save_invstd=norm.weight.new_empty(0),
        )
    return _end(block, block.squeeze_excite(main.relu_()), x)


def by_phases(block: DBlock, x: Tensor) -> Tensor:
    """A convolution of dilation d is an ordinary one on each of the d x d maps of every d-th pixel."""
    parts = block.conv1(x).chunk(len(block.branches), dim=1)
    parts = [_by_phases(conv, part) for conv, part in zip(block.branches, parts, strict=True)]
    main = F.relu(block.norm(torch.cat(parts, dim=1)), inplace=True)
    return _end(block, block.squeeze_excite(main), x)


def norms_folded(block: DBlock, x: Tensor) -> Tensor:
    """In eval mode a norm is a factor and a summand for each channel: put into the convolution before it."""
    weight, bias = _folded(block.conv1[0].weight, block.conv1[1])
    parts = F.conv2d(x, weight, bias).relu_().chunk(len(block.branches), dim=1)
    weight, bias = _folded(torch.cat([conv.weight for conv in block.branches]), block.norm)
    cut = zip(block.branches, parts, weight.chunk(len(parts)), bias.chunk(len(parts)), strict=True)
    parts = [F.conv2d(p, w, b, 1, conv.padding, conv.dilation, conv.groups) for conv, p, w, b in cut]
    main = _joined(parts).relu_()
    main *= _gate(block, F.adaptive_avg_pool2d(main, 1))
    weight, bias = _folded(block.conv3[0].weight, block.conv3[1])
    return F.conv2d(main, weight, bias).add_(block.shortcut(x)).relu_()


PLAIN, FOLDED = "split, convolve, concatenate", "norms folded"
WAYS = {
    PLAIN: Way(plain, "the block as the paper has it"),
    "norm by branch": Way(norm_by_branch, "norm and ReLU before the concatenation"),
    "no concatenation": Way(no_concatenation, "products with parts of the last weights, summed"),
    "sum of convolutions": Way(sum_of_convolutions, "the same, with 1x1 convolutions of scaled maps"),
    "gate in the weights": Way(gate_in_weights, "the gate scales the last weights, not the maps"),
    "written by slices": Way(
        written_by_slices, "the norm writes where it would be concatenated", trains=False
    ),
    "dilation by phases": Way(by_phases, "an ordinary convolution of every d-th pixel"),
    "channels last": Way(plain, "weights and maps in channels-last layout", layout=torch.channels_last),
    FOLDED: Way(norms_folded, "in eval mode, norms in the weights before them", trains=False),
}


def y_block() -> DBlock:
    """A Y block of Table 1's size; its norms' values are random, as after some training."""
    block = DBlock(WIDTH, WIDTH, (1,), group_width=GROUP_WIDTH)
    for norm in (module for module in block.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return block


def branched(block: DBlock, dilations: tuple[int, ...]) -> DBlock:
    """A copy of a Y block, its grouped convolution cut into branches of these dilations, equal or not.

    `DBlock` itself splits only where dilations differ; Table 1's second row is what the splitting takes.
    """
    made, (whole,) = copy.deepcopy(block), block.branches
    made.branches = nn.ModuleList()
    for dilation, weight in zip(dilations, whole.weight.chunk(len(dilations)), strict=True):
        width = len(weight)
        conv = nn.Conv2d(
            width, width, 3, padding=dilation, dilation=dilation, groups=width // GROUP_WIDTH, bias=False
        )
        conv.weight = nn.Parameter(weight.detach().clone())
        made.branches.append(conv)
    return made.train(block.training)


def errors(way: Way, block: DBlock, x: Tensor) -> dict[str, float]:
    """How far a way is from the plain one, on the CPU: ``float32`` and ``float64`` the output in eval mode.

    Where the way can be trained, ``training_`` and ``gradients_`` with the same endings are the output in
    training, and of all gradients and running statistics the worst. Each is the largest deviation by the
    largest value of the tensor.
    """
    found = {}
    for dtype in EXACT:
        name = str(dtype).removeprefix("torch.")
        blocks = [copy.deepcopy(block).to("cpu", dtype, memory_format=w.layout) for w in (way, WAYS[PLAIN])]
        maps = x.detach().to("cpu", dtype)
        ours, theirs = (
            _eval(w, b.eval(), maps.contiguous(memory_format=w.layout))
            for w, b in zip((way, WAYS[PLAIN]), blocks, strict=True)
        )
        found[name] = _deviation(ours, theirs)
        if way.trains:
            up = torch.linspace(-1, 1, theirs.numel(), dtype=dtype).view_as(theirs)
            results = []
            for w, b in zip((way, WAYS[PLAIN]), blocks, strict=True):
                leaf = maps.contiguous(memory_format=w.layout).clone().requires_grad_()
                out = _training(w, b.train(), leaf, up)
                results.append(
                    (out, [leaf.grad, *(parameter.grad for parameter in b.parameters()), *b.buffers()])
                )
            (ours, tensors), (theirs, expected) = results
            found[f"training_{name}"] = _deviation(ours, theirs)
            found[f"gradients_{name}"] = max(map(_deviation, tensors, expected))
    return found


def exact(found: dict[str, float]) -> bool:
    """Whether all `errors` but `UNJUDGED` are within `EXACT`."""
    return all(
        error <= EXACT[getattr(torch, key.rpartition("_")[2])]
        for key, error in found.items()
        if key != UNJUDGED
    )


def time_all(
    blocks: dict[str, tuple[Way, DBlock]],
    x: Tensor,
    *,
    training: bool,
    rounds: int,
    warmup: int,
    precision: str,
    clock: Callable[[], float],
) -> tuple[dict[str, tuple[float, ...]], dict[str, str]]:
    """Seconds of each in every round, and why those that did not run did not."""
    calls, notes = {}, {}
    for name, (way, block) in blocks.items():
        block.train(training)
        maps = x.detach().contiguous(memory_format=way.layout).clone()
        if training:
            up = torch.ones_like(x).contiguous(memory_format=way.layout)
            call = partial(_training, way, block, maps.requires_grad_(), up, precision)
        else:
            call = partial(_eval, way, block, maps, precision)
        try:
            call()
        except (RuntimeError, NotImplementedError) as error:  # an operator that a device does not have
            if way.forward is plain:
                raise
            notes[name] = f"does not run: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
        else:
            calls[name] = call
    return interleaved(calls, rounds=rounds, warmup=warmup, device=x.device, clock=clock), notes


def _convolved(block: DBlock, x: Tensor) -> list[Tensor]:
    """What the branches put out."""
    parts = block.conv1(x).chunk(len(block.branches), dim=1)
    return [conv(part) for conv, part in zip(block.branches, parts, strict=True)]


def _joined(parts: list[Tensor]) -> Tensor:
    """(B, o, h, w); of one part a concatenation would be a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _normed(block: DBlock, x: Tensor) -> list[Tensor]:
    """The same after norm and ReLU, which do to a map what they do whatever the others."""
    norm, begin, parts = block.norm, 0, []
    if norm.training:
        norm.num_batches_tracked.add_(1)
    for part in _convolved(block, x):
        maps = slice(begin, begin := begin + part.shape[1])
        part = F.batch_norm(
            part,
            norm.running_mean[maps],
            norm.running_var[maps],
            norm.weight[maps],
            norm.bias[maps],
            norm.training,
            norm.momentum,
            norm.eps,
        )
        parts.append(part.relu_())
    return parts


def _gate(block: DBlock, means: Tensor) -> Tensor:
    """The gate of each map, (B, o, 1, 1), from the maps' means."""
    return block.squeeze_excite.gate[1:](means)


def _gated(block: DBlock, means: Tensor) -> Tensor:
    """The last 1x1 weights for each image, (B, o, o): column c times the gate of map c."""
    return block.conv3[0].weight.flatten(1) * _gate(block, means).flatten(2).transpose(1, 2)


def _folded(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return weight * factor.view(-1, 1, 1, 1), norm.bias - norm.running_mean * factor


def _by_phases(conv: nn.Conv2d, x: Tensor) -> Tensor:
    d = conv.dilation[0]
    if d == 1:
        return conv(x)
    (b, c, h, w), rows, columns = x.shape, -(-x.shape[2] // d), -(-x.shape[3] // d)
    x = F.pad(x, (0, columns * d - w, 0, rows * d - h)).view(b, c, rows, d, columns, d)
    x = x.permute(0, 3, 5, 1, 2, 4).reshape(b * d * d, c, rows, columns)
    x = F.conv2d(x, conv.weight, padding=1, groups=conv.groups).view(b, d, d, c, rows, columns)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(b, c, rows * d, columns * d)[..., :h, :w]


def _end(block: DBlock, main: Tensor, x: Tensor) -> Tensor:
    """The last 1x1 convolution, norm and shortcut."""
    return _join(block, block.conv3[0](main), x)


def _join(block: DBlock, main: Tensor, x: Tensor) -> Tensor:
    return F.relu(block.conv3[1](main) + block.shortcut(x), inplace=True)


def _precision(x: Tensor, precision: str):
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(x.device.type, dtype=dtype)


def _eval(way: Way, block: DBlock, x: Tensor, precision: str = "fp32") -> Tensor:
    with torch.inference_mode(), _precision(x, precision):
        return way.forward(block, x)


def _training(way: Way, block: DBlock, x: Tensor, up: Tensor, precision: str = "fp32") -> Tensor:
    x.grad = None
    block.zero_grad(set_to_none=True)
    with _precision(x, precision):
        out = way.forward(block, x)
    out.backward(up.to(out.dtype))
    return out.detach()


def _deviation(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _timing(times: dict[str, tuple[float, ...]]) -> dict[str, dict]:
    """What the record says about each; ratios are to the first."""
    least = min(next(iter(times.values())))
    return {
        name: {
            "median": found.median,
            "quartiles": list(found.quartiles),
            "minimum": min(found.times),
            "ratio": found.ratio,
            "ratio_of_minima": min(found.times) / least,
        }
        for name, found in compared(times).items()
    }


def _line(name: str, row: dict) -> str:
    cells = [f"{name:<32}"]
    for key in ("eval", "training"):
        found = row.get(key)
        if found is None:
            cells.append(" " * 24)
        else:
            cells.append(
                f"{1e3 * found['median']:9.2f} {found['ratio']:6.3f} {found['ratio_of_minima']:6.3f}"
            )
    if "error" in row:
        cells.append(f"{row['error']['float32']:8.0e} {row['error']['float64']:8.0e}")
    return "  ".join(cells) + (f"  ({row['note']})" if "note" in row else "")


def summary(rows: list[dict]) -> dict:
    """The verdict on the ways.

    Returns:
        ``faster``: names of those that are exact, take at most 97 % of the plain way's time in eval mode by
        the median and by the minimum, and in training not more than it by either (a way that cannot be
        trained trains the plain way); ``fastest``, of all that are exact, in eval mode by the median.
    """
    timed = [row for row in rows if "eval" in row]
    faster = [
        row["way"]
        for row in timed
        if row["exact"]
        and max(row["eval"]["ratio"], row["eval"]["ratio_of_minima"]) <= FASTER
        and (
            not row["trains"]
            or ("training" in row and max(row["training"]["ratio"], row["training"]["ratio_of_minima"]) <= 1)
        )
    ]
    among = (row for row in timed if row["exact"])
    return {"faster": faster, "fastest": min(among, key=lambda row: row["eval"]["ratio"])["way"]}


def measure(maps: tuple[int, int], device: str, **measuring) -> dict:
    """Everything, on one input (1, 256, h, w).

    Args:
        maps: (h, w).
        device: "cpu" or "cuda".
        **measuring: as for `time_all`.

    Returns:
        ``table1``: a row for each of the paper's blocks, and ``table1_ratios``, by block and mode;
        ``y_block_norms_folded``; ``ways``: a row for each way to compute the block that ``ways_on`` names. A
        row has ``eval`` and ``training`` where it was timed, a way's row also ``error`` (see `errors`) and
        `exact`.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        block = y_block()
        x = torch.randn(1, WIDTH, *maps).relu_()
        blocks = {name: branched(block, dilations) for name, (dilations, _) in TABLE_1.items()}
    others = {name: copy.deepcopy(blocks[TRIED_ON]) for name in WAYS}
    table = [
        {
            "block": name,
            "dilations": list(dilations),
            "paper_ms": paper,
            "paper_ratio": paper / TABLE_1[Y_BLOCK][1],
        }
        for name, (dilations, paper) in TABLE_1.items()
    ]
    ways = []
    for name, way in WAYS.items():
        found = errors(way, others[name], x[..., :24, :40])
        row = {"way": name, "what": way.what, "trains": way.trains, "error": found, "exact": exact(found)}
        ways.append(row)

    folded = {}
    for mode in ("eval", "training"):
        training = mode == "training"
        timed = {name: (WAYS[PLAIN], made.to(device)) for name, made in blocks.items()}
        if not training:
            timed[Y_FOLDED] = (WAYS[FOLDED], copy.deepcopy(blocks[Y_BLOCK]))
        for name, way in WAYS.items():
            if way.trains or not training:
                timed[name] = (way, others[name].to(device, memory_format=way.layout))
        times, notes = time_all(timed, x.to(device), training=training, **measuring)
        of_blocks = _timing({name: taken for name, taken in times.items() if name not in WAYS})
        of_ways = _timing({name: taken for name, taken in times.items() if name in WAYS})
        for row in table:
            row[mode] = of_blocks[row["block"]]
        if Y_FOLDED in of_blocks:
            folded[mode] = of_blocks[Y_FOLDED]
        for row in ways:
            if row["way"] in of_ways:
                row[mode] = of_ways[row["way"]]
            if row["way"] in notes:
                row["note"] = notes[row["way"]]
    return {
        "table1": table,
        "table1_ratios": {
            row["block"]: {mode: row[mode]["ratio"] for mode in ("eval", "training")} for row in table
        },
        "y_block_norms_folded": folded,
        "ways_on": TRIED_ON,
        "ways": ways,
    }


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark, prints a line for each block and way, writes the result as JSON."""
    parser = console.command("bench dblock", __doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        help="(default: fp32; cuda: fp16, the paper's mixed precision)",
    )
    parser.add_argument(
        "--maps",
        type=console.size,
        default=MAPS,
        metavar="HxW",
        help="of the input (default: 64x128, Table 1's)",
    )
    parser.add_argument(
        "--rounds", type=console.count, help=f"timed passes of each (default: 21; cuda: {PAPERS_ROUNDS})"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write dblock.json (cuda: dblock_cuda.json) here"
    )
    options = parser.parse_args(argv)
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu times the blocks here")
    if min(options.maps) < 1:
        parser.error(f"--maps {options.maps[0]}x{options.maps[1]}: give at least one pixel a side")
    if options.maps == (1, 1):
        parser.error("--maps 1x1: batch norm cannot train on one value per channel; give larger maps")
    precision = options.precision or ("fp16" if cuda else "fp32")
    one_thread = not cuda and torch.get_num_threads() == 1
    measuring = {
        "rounds": options.rounds or (PAPERS_ROUNDS if cuda else 21),
        "warmup": PAPERS_WARMUP if cuda else 2,
        "precision": precision,
        # other programs take turns with ours on a CPU; of one thread the processor's time is what it needs
        "clock": time.process_time if one_thread else time.perf_counter,
    }

    result = _record.stamp(None if argv is None else ["segkit.bench", "dblock", *argv], device=options.device)
    if hasattr(os, "getloadavg"):  # timings mean little on a busy machine: say how busy it was
        result["machine"]["load_at_start"] = os.getloadavg()[0]
    result |= {
        "environment": {name: os.environ.get(name) for name in ENVIRONMENT},
        "device": options.device,
        "input": [1, WIDTH, *options.maps],
        "group_width": GROUP_WIDTH,
        "precision": precision,
        "rounds": measuring["rounds"],
        "warmup": measuring["warmup"],
        "clock": "the processor's time, one thread" if one_thread else "wall time",
        "unit": "seconds of a pass; in training forward and backward",
        "ratio": "to the first row, the median over the rounds; all rows of a mode take turns",
        "error": "of the output by its largest value, on the CPU; gradients: and statistics, the worst",
        "exact": (
            f"outputs in eval mode and in training are within {EXACT[torch.float32]:g} in float32 and "
            f"{EXACT[torch.float64]:g} in float64, gradients and statistics in float64 too; gradients and "
            "statistics in float32 are reported only, as some are sums that cancel"
        ),
    }

    result |= measure(options.maps, options.device, **measuring)
    result["summary"] = summary(result["ways"])
    if hasattr(os, "getloadavg"):
        result["machine"]["load_at_end"] = os.getloadavg()[0]

    print(f"{'':<32}  {'eval ms':>9} {'ratio':>6} {'(min)':>6}  {'train ms':>9} {'ratio':>6} {'(min)':>6}")
    for row in result["table1"]:
        print(_line(row["block"], row) + f"   the paper's ratio {row['paper_ratio']:.1f}")
    print(_line(Y_FOLDED, result["y_block_norms_folded"]))
    print(
        f"\n{TRIED_ON}, computed in other ways, and how far they are from the first in float32 and float64:"
    )
    for row in result["ways"]:
        print(_line(row["way"], row))
    faster = ", ".join(result["summary"]["faster"]) or "none"
    print(f"\nfaster in eval mode and not slower in training: {faster}")
    if options.out:
        _record.write(options.out / ("dblock_cuda.json" if cuda else "dblock.json"), result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
