"""What checkpoints save and what they cost, for notebook 02: tables, steps taken apart, measured files.

"Efficient Ladder-style DenseNets for Semantic Segmentation of Large Images", Sections 5 and 6.7.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from segkit import models
from segkit.measure import PeakMemory, peak_memory
from segkit.measure.allocator import Block, CachingAllocator
from segkit.measure.peak import MIB, Step, default_step
from segkit.memory.recompute import COVERS, MODIFIERS, Segments
from segkit.models.densenet import DenseBlock, DenseUnit
from segkit.notebook import records
from segkit.notebook.dense import Kept, OneMap, kept
from segkit.notebook.records import MEASURED

# The tables ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of Table 12 or 13.

    Attributes:
        label: as the paper prints it.
        claim: the beginning of the ids of its claims, such as "ldn.table12.unit".
        recompute: its segments.
        model: its network.
    """

    label: str
    claim: str
    recompute: str | None = None
    model: str = "ldn121-32-4"


LEANEST = "unit,stem,td,tu"  # of the paper's rows
TABLE_12 = (
    Row("baseline", "ldn.table12.baseline"),
    Row("(3x3)", "ldn.table12.3x3", "3x3"),
    Row("(cat 1x1)", "ldn.table12.cat1x1", "cat1x1"),
    Row("(cat 1x1) (3x3)", "ldn.table12.cat1x1-and-3x3", "cat1x1,3x3"),
    Row("(block) (stem) (TD) (UP)", "ldn.table12.block-stem-td-up", "block,stem,td,tu"),
    Row("(cat 1x1 3x3)", "ldn.table12.unit", "unit"),
    Row("(cat 1x1 3x3) (stem) (TD) (UP)", "ldn.table12.unit-stem-td-up", LEANEST),
)
WITH_TD = Row("(cat 1x1 3x3), and TD", "ldn.table12.unit", "unit,td")  # the authors' code reads it like this
TABLE_13 = (
    Row("LDN161", "ldn.table13.ldn161-32-4", model="ldn161-32-4"),
    Row("ResNet101", "ldn.table13.resnet101-32-4", model="ladder-resnet101-32-4"),
    Row("LDN121", "ldn.table13.ldn121-32-4"),
    Row("ResNet50", "ldn.table13.resnet50-32-4", model="ladder-resnet50-32-4"),
    Row("ResNet18", "ldn.table13.resnet18-32-4", model="ladder-resnet18-32-4"),
    Row("LDN161, checkpoints", "ldn.table13.ldn161-32-4-ckpt", LEANEST, "ldn161-32-4"),
    Row("LDN121, checkpoints", "ldn.table13.ldn121-32-4-ckpt", LEANEST),
)

# A step -------------------------------------------------------------------------------------------

# What the notebook calls an operator; others lose what is around their name.
_OPERATORS = {
    "_log_softmax": "log_softmax",
    "threshold": "ReLU",
    "relu": "ReLU",
    "relu_": "ReLU",
    "native_batch_norm": "batch norm",
    "upsample_bilinear2d": "bilinear upsampling",
    "cat": "concatenation",
    "_to_copy": "cast to another type",
}


def spoken(operator: str) -> str:
    """An operator of a timeline in words: "aten._log_softmax_backward_data" -> "log_softmax"."""
    name = re.sub(r"_backward(_data)?$", "", operator.removeprefix("aten."))
    return _OPERATORS.get(name, name.strip("_").replace("_", " "))


def place_of(path: str) -> str:
    """The part of a Ladder-DenseNet that a module belongs to: "backbone.denseblock1.denselayer3" -> "DB1"."""
    if path in ("(step)", "(model)"):  # what the whole network does itself is to upsample the logits
        return "loss"
    if path.startswith("("):
        return path.strip("()")
    parts = path.split(".")
    if parts[0] == "up":
        return f"TU{int(parts[1]) + 1}" if len(parts) > 1 else "TU"
    if parts[0] != "backbone":
        return {"spp": "SPP"}.get(parts[0], parts[0])
    if found := re.match(r"(denseblock|transition|layer)(\d)$", parts[1] if len(parts) > 1 else ""):
        return {"denseblock": "DB", "transition": "TD", "layer": "layer "}[found[1]] + found[2]
    return "stem"


def where(peak: PeakMemory) -> str:
    """What runs at the peak, in words: "loss, backward: log_softmax"."""
    i, line = peak.timeline.peak, peak.timeline
    phase = {"recompute": "rebuilding"}.get(line.phases[i], line.phases[i])
    return f"{place_of(line.modules[i])}, {phase}: {spoken(line.operators[i])}"


def largest_alive(peak: PeakMemory, count: int) -> list[tuple[str, str, float]]:
    """(place, kind, MiB) of what takes most at the peak, largest first."""
    sums: dict[tuple[str, str], int] = {}
    for (path, kind), size in peak.alive.items():
        key = (place_of(path), kind)
        sums[key] = sums.get(key, 0) + size
    ranked = sorted(sums.items(), key=lambda item: -item[1])[:count]
    return [(place, kind, size / MIB) for (place, kind), size in ranked]


@dataclass(frozen=True)
class Card:
    """What PyTorch's allocator holds of a card at one moment.

    Attributes:
        reserved: MiB that it has taken from the card, for each segment.
        pieces: (begin, MiB, kind) of each piece of them, laid end to end; kind: "in use", "free", or "asked"
            for what is served at that moment.
    """

    reserved: list[float]
    pieces: list[tuple[float, float, str]]

    def sum(self, kind: str) -> float:
        """MiB of a kind in all."""
        return sum(size for _, size, found in self.pieces if found == kind)


def fullest(peak: PeakMemory) -> Card:
    """The moment of some steps in which the allocator takes the last large segment from the card."""
    requests = last = most = 0

    def count(allocator: CachingAllocator, block: Block) -> None:
        nonlocal requests, last, most
        requests += 1
        if allocator.reserved > most and not block.small:
            last = requests
        most = max(most, allocator.reserved)

    peak.requests.replay(watch=count)
    found: list[Card] = []

    def look(allocator: CachingAllocator, block: Block) -> None:
        nonlocal requests
        requests -= 1
        if requests == 0:
            found.append(_card(allocator, block))

    requests = last
    peak.requests.replay(watch=look)
    return found[0]


def _card(allocator: CachingAllocator, asked: Block) -> Card:
    segments = allocator.segments()
    pieces, begin = [], 0.0
    for piece in itertools.chain(*segments):
        kind = "asked" if piece is asked else "free" if piece.free else "in use"
        pieces.append((begin, piece.size / MIB, kind))
        begin += piece.size / MIB
    return Card([sum(piece.size for piece in segment) / MIB for segment in segments], pieces)


@dataclass(frozen=True)
class Part:
    """What a part of the network takes in one step.

    Attributes:
        name: such as "DB1".
        kept: K, bytes that it keeps from the forward to the backward pass.
        need: T, bytes beside what is there always and what the parts before it keep, while it runs.
        before: what the parts before it keep, in all.
    """

    name: str
    kept: int
    need: int
    before: int


def parts_of(peak: PeakMemory) -> tuple[int, list[Part]]:
    """Take a step apart by the parts of its network, in the order of the forward pass.

    Returns:
        Bytes that are there from the first to the last moment (parameters, optimizer state, images, labels),
        and the parts. That plus the largest ``before + need`` is the peak.
    """
    timeline = peak.timeline
    always = ("parameters", "optimizer state", "input")
    base = sum(peak.by_kind[kind] for kind in always)
    turn = max(i for i, phase in enumerate(timeline.phases) if phase == "forward")
    names = list(dict.fromkeys(place_of(path) for path in timeline.modules[: turn + 1]))
    names.sort(key=lambda name: name == "loss")  # auxiliary heads run after the logits are upsampled
    keeps = dict.fromkeys(names, 0)
    for (path, kind), size in peak.alive_at(turn).items():
        if kind not in always:
            keeps[place_of(path)] += size
    before = {name: sum(list(keeps.values())[:i]) for i, name in enumerate(names)}
    need = dict.fromkeys(names, 0)
    for path, phase, total in zip(timeline.modules, timeline.phases, timeline.total, strict=True):
        if phase != "optimizer" and (name := place_of(path)) in need:
            need[name] = max(need[name], total - base - before[name])
    return base, [Part(name, keeps[name], need[name], before[name]) for name in names]


def count_plans(model: nn.Module) -> tuple[int, int]:
    """How many plans `segkit.memory.plan` chooses from, and how many choices the place with most has."""
    (segment,) = {id(s): s for m in model.modules() if (s := getattr(m, "segment", None))}.values()
    modifiers = [label for label, _, _ in segment.offers if label in MODIFIERS]
    places: dict[tuple[int, ...], list[str]] = {}
    for label, _, modules in segment.offers:
        if label not in MODIFIERS:
            places.setdefault(tuple(map(id, modules)), []).append(label)
    plans, most = 0, 0
    for chosen in (modifiers[:n] for n in range(len(modifiers) + 1)):
        covered = {inner for outer in chosen for inner in COVERS.get(outer, ())}
        choices = [sum(1 for _ in _allowed(labels, covered)) for labels in places.values()]
        plans, most = plans + math.prod(choices), max(most, *choices)
    return plans, most


def _allowed(labels: list[str], covered: set[str]) -> Iterator[list[str]]:
    """Subsets of labels in which none covers another and none is covered from outside."""
    for bits in range(2 ** len(labels)):
        chosen = [label for i, label in enumerate(labels) if bits >> i & 1]
        inside = {inner for outer in chosen for inner in COVERS.get(outer, ())}
        if not (inside | covered) & set(chosen):
            yield chosen


def without_early_stop(simulate, *arguments, **options):
    """``simulate(...)`` with checkpoints that rebuild their segment to its very end, as all did once."""
    with set_checkpoint_early_stop(False):
        return simulate(*arguments, **options)


# A toy --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """Which inputs of a chain's layers are there.

    Attributes:
        name: what has just happened, or is about to.
        kept: layers (from 1) whose inputs were kept in the forward pass.
        rebuilt: those whose inputs were computed again.
    """

    name: str
    kept: frozenset[int]
    rebuilt: frozenset[int]

    @property
    def live(self) -> int:
        return len(self.kept) + len(self.rebuilt)


def toy_step(layers: int, every: int) -> list[Moment]:
    """The backward pass of a chain of equal layers, each of which needs its input again (Section 5).

    Args:
        layers: how many.
        every: layers in a segment; 1 keeps every input, which is no checkpointing.

    Returns:
        The moment after the forward pass, and the one at which each layer's gradients are computed.
    """
    starts = range(1, layers + 1, every)
    moments = [Moment("forward done", frozenset(starts), frozenset())]
    for start in reversed(starts):
        for layer in reversed(range(start, min(start + every, layers + 1))):
            kept_now = frozenset(first for first in starts if first <= start)
            moments.append(Moment(f"backward of {layer}", kept_now, frozenset(range(start + 1, layer + 1))))
    return moments


def chain_live(layers: int, every: int) -> int:
    """The most inputs of a chain's layers that are alive at once in a real (simulated) step.

    Args:
        layers: 1x1 convolutions, all alike.
        every: layers in a checkpointed segment; 1: no checkpoints.
    """
    peak = peak_memory(_Chain(layers, every), 1, (16, 16), step=lambda model, images, _: model(images).sum())
    of_one = 4 * _Chain.width * 16 * 16  # bytes of a map
    return max(peak.timeline.bytes["activations"]) // of_one


class _Chain(nn.Module):
    width = 64  # wide enough for its maps to be no smaller than what is rounded

    def __init__(self, layers: int, every: int) -> None:
        super().__init__()
        with torch.device("meta"):
            self.first = nn.Conv2d(3, self.width, 1, bias=False)
            same = (nn.Conv2d(self.width, self.width, 1, bias=False) for _ in range(layers))
            self.layers = nn.ModuleList(same)
        self.every = every

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for start in range(0, len(self.layers), self.every):
            segment = self.layers[start : start + self.every]
            if self.every == 1:
                x = _through(segment, x)
            else:
                x = checkpoint(_through, segment, x, use_reentrant=False)
        return x


def _through(segment: Iterable[nn.Module], x: Tensor) -> Tensor:
    for layer in segment:
        x = layer(x)
    return x


# A dense unit -------------------------------------------------------------------------------------

UNIT_LABELS = (None, "3x3", "cat1x1", "cat1x1,3x3", "unit")


def kept_of_unit(recompute: str | None, maps: int, k: int) -> Kept:
    """What autograd keeps of one dense unit under a label, counted with hooks.

    Args:
        recompute: one of `UNIT_LABELS`.
        maps: that the unit reads.
        k: maps that it adds.
    """
    segment = Segments(recompute)
    with torch.device("meta"):
        unit = DenseUnit(maps, k, bottleneck=True, dilation=1, segment=segment, place="1")
        block = OneMap(DenseBlock({"denselayer1": unit}, segment, "1"))
    return kept(block, (1, maps, 16, 16))


# Exactness ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Twin:
    """How a step compares with another from the same weights on the same images.

    Attributes:
        gradients: whether all gradients are equal, bit for bit.
        state: whether ``state_dict()`` is, with the running statistics of all batch norms.
        difference: norm of what the gradients differ by, as a share of theirs.
    """

    gradients: bool
    state: bool
    difference: float


def trained_alike(
    recompute: str,
    *,
    step: Step = default_step,
    plain_step: Step = default_step,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **options,
) -> Twin:
    """One real step of LDN121 32→4 on two small images, with segments and without.

    Args:
        recompute: the segments of the one.
        step: its forward pass and loss.
        plain_step: those of the other, which has no segments.
        dtype: of weights and images.
        seed: of weights and images.
        options: of the one's `segkit.models.build`.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        plain = models.build("ldn121-32-4", spp_grids=(2, 1), dtype=dtype)
        images, labels = torch.randn(2, 3, 64, 64, dtype=dtype), torch.randint(19, (2, 64, 64))
        found = models.build("ldn121-32-4", spp_grids=(2, 1), dtype=dtype, recompute=recompute, **options)
        found.load_state_dict(plain.state_dict())
        for model, run in ((plain, plain_step), (found, step)):
            result = run(model.train(), images, labels)
            (result[0] if isinstance(result, tuple) else result).backward()
    pairs = [(a.grad, b.grad) for a, b in zip(found.parameters(), plain.parameters(), strict=True)]
    pairs = [(a, b) for a, b in pairs if b is not None]  # a loss of your own may leave heads out
    state = plain.state_dict()
    return Twin(
        gradients=all(torch.equal(a, b) for a, b in pairs),
        state=all(torch.equal(tensor, state[name]) for name, tensor in found.state_dict().items()),
        difference=math.sqrt(
            sum((a - b).double().square().sum().item() for a, b in pairs)
            / sum(b.double().square().sum().item() for _, b in pairs)
        ),
    )


# Measured files -----------------------------------------------------------------------------------

COMMANDS = {
    "plans.json": "python -m segkit.bench plans --out data/measured",
    "checkpointing.json": "python -m segkit.bench checkpointing --out data/measured",
    "memory.json": "python -m segkit.bench memory --device cuda --out data/measured",
}


def measured(name: str, *, folder: Path = MEASURED) -> dict | None:
    """A committed measurement, one of `COMMANDS`; None if it is not there."""
    if name not in COMMANDS:
        raise ValueError(f"no measurement {name!r}; there are {', '.join(COMMANDS)}")
    return records.read(name, folder)


def needed(name: str, *, folder: Path = MEASURED) -> dict:
    """A committed measurement that the notebook cannot do without.

    Raises:
        FileNotFoundError: if it is not there; the message has the command that makes it.
    """
    found = measured(name, folder=folder)
    if found is None:
        raise FileNotFoundError(
            f"{name} is not in the checkout's data/measured. Make it from the checkout's root with "
            f"`{COMMANDS[name]}`, or run this notebook in a checkout."
        )
    return found


def origin(record: Mapping) -> str:
    """Where a measurement is from: machine, versions, date."""
    machine, versions = record["machine"], record["versions"]
    busy = f", load {machine['load_at_start']:.1f} at the start" if "load_at_start" in machine else ""
    device = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores"
    return f"{device}{busy}; torch {versions['torch'].partition('+')[0]}; {record['date'][:10]}"


def largest_batches(plans: Mapping) -> dict[tuple[str, int, str], dict[int, int]]:
    """(model, crop, plan) -> GiB -> the largest batch that fits, from plans.json."""
    return {
        (row["model"], row["crop"], row["plan"]): {int(gib): n for gib, n in row["batch_by_gib"].items()}
        for row in plans["largest_batch"]
    }
