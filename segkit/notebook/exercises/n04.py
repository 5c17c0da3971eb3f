"""The exercises of notebook 04: what a reversible unit saves, and how it is undone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segkit.memory.reversible import ReversibleSequence
from segkit.models.vnet import asymmetric
from segkit.notebook import reverse
from segkit.notebook.exercises.kinds import UNANSWERED, Exercise, Function, Value

MIB = 2**20

# 04.1: plain autograd keeps six maps of half the channels for a unit: what its two convolutions, two batch
# norms and two PReLUs read. In stage 2 there are 3 more units at H/4, in stage 3 twice 3 at H/8.
_HALF_MAPS = 6
_STAGES = ((3, 16, 4), (6, 64, 8))  # units, half of the maps, subsampling


def _kept_by_more_depth(batch: int, height: int, width: int) -> float:
    """MiB that plain autograd keeps in VNet for alpha + 1 and beta + 2."""
    values = sum(n * maps * (height // s) * (width // s) for n, maps, s in _STAGES)
    return 4 * _HALF_MAPS * batch * values / MIB


_SLOPE = _kept_by_more_depth(4, *reverse.IMAGE)


# 04.2
def _inverse(f: nn.Module, y1: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
    x2 = y2 - y1
    return y1 - f(x2), x2


def _f_of_y2(f: nn.Module, y1: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
    return y1 - f(y2), y2 - y1


def _x1_from_y2(f: nn.Module, y1: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
    x1 = y1 - f(y2)
    return x1, y2 - x1


def _added(f: nn.Module, y1: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
    x2 = y2 - y1
    return y1 + f(x2), x2


def _swapped(f: nn.Module, y1: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
    return _inverse(f, y1, y2)[::-1]


def _f_of_y1(f: nn.Module, y1: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
    x2 = y2 - y1
    return y1 - f(y1), x2


def _inverse_case(channels: int, size: tuple[int, int]) -> Callable[[], tuple]:
    def make() -> tuple:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(channels)
            f = asymmetric(channels, 1).eval()
            y1, y2 = torch.randn(2, 2, channels, *size, requires_grad=True).unbind()
            return f, y1.detach().requires_grad_(), y2.detach().requires_grad_()

    return make


# 04.3
class Counted(nn.Module):
    """3x3 convolution and PReLU that count how often they run, in the buffer ``calls``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.activation = nn.PReLU(channels)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.activation(self.conv(x))


def _fused(f: nn.Module, y1: Tensor, y2: Tensor, d1: Tensor, d2: Tensor) -> tuple:
    """(X1, X2, dX1, dX2, gradients of F's parameters)."""
    x2 = (y2 - y1).detach().requires_grad_()
    out = f(x2)
    dz = d1 + d2
    g, *of_parameters = torch.autograd.grad(out, [x2, *f.parameters()], dz)
    return y1 - out.detach(), x2.detach(), dz, d2 + g, of_parameters


def _dz_without_d2(f: nn.Module, y1: Tensor, y2: Tensor, d1: Tensor, d2: Tensor) -> tuple:
    x2 = (y2 - y1).detach().requires_grad_()
    out = f(x2)
    g, *of_parameters = torch.autograd.grad(out, [x2, *f.parameters()], d1)
    return y1 - out.detach(), x2.detach(), d1, d2 + g, of_parameters


def _dx2_without_d2(f: nn.Module, y1: Tensor, y2: Tensor, d1: Tensor, d2: Tensor) -> tuple:
    x1, x2, dz, dx2, of_parameters = _fused(f, y1, y2, d1, d2)
    return x1, x2, dz, dx2 - d2, of_parameters


def _dx2_without_dz(f: nn.Module, y1: Tensor, y2: Tensor, d1: Tensor, d2: Tensor) -> tuple:
    x1, x2, dz, _, of_parameters = _fused(f, y1, y2, d1, d2)
    return x1, x2, dz, d2, of_parameters


def _g_from_d1(f: nn.Module, y1: Tensor, y2: Tensor, d1: Tensor, d2: Tensor) -> tuple:
    x2 = (y2 - y1).detach().requires_grad_()
    out = f(x2)
    g, *of_parameters = torch.autograd.grad(out, [x2, *f.parameters()], d1)
    return y1 - out.detach(), x2.detach(), d1 + d2, d2 + g, of_parameters


def _run_twice(f: nn.Module, y1: Tensor, y2: Tensor, d1: Tensor, d2: Tensor) -> tuple:
    with torch.no_grad():
        x1 = y1 - f(y2 - y1)
    return x1, *_fused(f, y1, y2, d1, d2)[1:]


def _unit_case(channels: int, size: tuple[int, int]) -> Callable[[], tuple]:
    def make() -> tuple:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(channels)
            f = Counted(channels)
            y1, y2, d1, d2 = torch.randn(4, 2, channels, *size).unbind()
            return f, y1, y2, d1, d2

    return make


# 04.5
def per_unit(functions: list[nn.Module]) -> nn.Module:
    """Where 04.5 starts: a reversible stack for each unit."""
    return nn.Sequential(*(ReversibleSequence([f]) for f in functions))


def plain(functions: list[nn.Module]) -> nn.Module:
    """All activations kept."""
    stack = ReversibleSequence(functions)
    stack.reversible = False
    return stack


class _Checkpointed(nn.Module):
    def __init__(self, stacks: list[nn.Module]) -> None:
        super().__init__()
        self.stacks = nn.ModuleList(stacks)

    def forward(self, x: Tensor) -> Tensor:
        for stack in self.stacks:
            x = checkpoint(stack, x, use_reentrant=False)
        return x


def checkpointed(functions: list[nn.Module]) -> nn.Module:
    """A checkpoint for each unit."""
    return _Checkpointed([plain([f]) for f in functions])


@dataclass(frozen=True)
class Flat:
    """A function that makes a module of a list of functions F, whose memory may not grow with their number.

    It is measured: `segkit.notebook.reverse.stack_peak` at two depths, without parameters and their
    gradients, which grow with depth in any network.

    Args:
        mistakes: what is known to grow, by the builder that does; recognised by its peaks.
        depths: numbers of units.
        tolerance: what the peak may grow by, as a fraction.
    """

    mistakes: Mapping[Callable, str] = field(default_factory=dict)
    depths: tuple[int, int] = (4, 16)
    tolerance: float = 0.005

    def hint(self, answer: object) -> str | None:
        """See `segkit.notebook.exercises.kinds`."""
        if answer is None or answer is ...:
            return UNANSWERED
        if not callable(answer):
            return f"a function is asked for, this is a {type(answer).__name__}"
        try:
            if answer(_small(2)) in (None, ...):
                return UNANSWERED
            if wrong := self._wrong(answer):
                return wrong
            peaks = self._peaks(answer)
        except Exception as error:  # a learner's function may raise anything
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if peaks[1] <= (1 + self.tolerance) * peaks[0]:
            return None
        found = " and ".join(
            f"{peak / MIB:,.1f} MiB with {d} units" for peak, d in zip(peaks, self.depths, strict=True)
        )
        for mistake, sentence in self.mistakes.items():
            if all(abs(a - b) <= 0.01 * b for a, b in zip(peaks, self._peaks(mistake), strict=True)):
                return f"{found}: {sentence}"
        return f"the results are right, but the peak grows: {found}"

    def _peaks(self, build: Callable) -> list[int]:
        found = []
        for depth in self.depths:
            peak = reverse.stack_peak(build, depth)
            found.append(peak.total - peak.by_kind["parameters"] - peak.by_kind["gradients"])
        return found

    def _wrong(self, answer: Callable) -> str | None:
        """What is wrong with the values or gradients, in float64 on a small stack."""
        results = []
        for build in (answer, plain):
            functions = _small(3)
            x = torch.linspace(-1, 1, 2 * 8 * 6 * 5, dtype=torch.float64).view(2, 8, 6, 5).sin()
            x.requires_grad_()
            y = build(functions)(x)
            if not isinstance(y, Tensor):
                return f"the module must return a tensor, and returns a {type(y).__name__}"
            y.square().sum().backward()
            missing = [p for f in functions for p in f.parameters() if p.grad is None]
            if missing or x.grad is None:
                return "some of the functions' parameters, or the input, get no gradient"
            results.append((y.detach(), [x.grad, *(p.grad for f in functions for p in f.parameters())]))
        (y, gradients), (right, right_gradients) = results
        if y.shape != right.shape or not torch.allclose(y, right, rtol=1e-9, atol=1e-9):
            return "the module computes something else: are the units in their order?"
        if not all(
            torch.allclose(a, b, rtol=1e-6, atol=1e-9)
            for a, b in zip(gradients, right_gradients, strict=True)
        ):
            return "the values are right, but the gradients differ from those of plain autograd"
        return None


def _small(count: int) -> list[nn.Module]:
    return reverse.units(count, maps=4)


EXERCISES: dict[str, Exercise] = {
    "04.1": Value(
        _SLOPE,
        {
            4736.7: "this is VNet itself at depth 1; what one more depth unit adds is a difference",
            6465.3: "this is the whole step at depth 2; take off what depth 1 takes",
            _SLOPE / 2**10: "right in GiB; give MiB",
            _SLOPE * MIB / 1e6: "right in MB of 10^6 bytes; give MiB, 2^20 bytes",
            _SLOPE / 4: "this is for one image; the batch has four",
            _SLOPE / 9: "this is for a single reversible unit; a depth unit adds 3 in stage 2, 6 in stage 3",
        },
    ),
    "04.2": Function(
        _inverse,
        [_inverse_case(4, (8, 8)), _inverse_case(3, (5, 7)), _inverse_case(6, (4, 6))],
        {
            _f_of_y2: "F was run on Y2, but it ran on X2: get X2 first (the two agree only where F is 0)",
            _x1_from_y2: "X1 came first, from F(Y2): F ran on X2, so get X2 = Y2 - Y1 first",
            _f_of_y1: "F was run on Y1, but it ran on X2",
            _added: "F was added in the forward pass, so it is subtracted on the way back",
            _swapped: "the right halves in the wrong order: return X1, then X2",
        },
    ),
    "04.3": Function(
        _fused,
        [_unit_case(4, (8, 8)), _unit_case(3, (5, 7)), _unit_case(6, (4, 6))],
        {
            _dz_without_d2: "Z goes into Y1 and into Y2: its gradient is the sum of both, dZ = dY1 + dY2",
            _g_from_d1: "dX1 is right, but F's gradients start from dY1 alone: F's output is part of "
            "Z, whose gradient is dZ = dY1 + dY2",
            _dx2_without_d2: "dX2 lacks dY2: X2 reaches Y2 directly as well as through F",
            _dx2_without_dz: "dX2 lacks what comes back through F: X2 reaches Z, too",
            _run_twice: "all values are right, but F ran twice: the run that rebuilds X1 can be the one "
            "that is differentiated",
        },
    ),
    "04.4": Value(
        100 * (1 - 2 * 5 / 5**2),
        {
            100 * (1 - 2 * 3 / 3**2): "this is what a 3x3 saves; the question is about 5x5",
            100 * 2 * 5 / 5**2: "this is what is left; what is saved is the rest",
            100 * (1 - 5 / 5**2): "there are two convolutions in the place of one: 5x1 and 1x5",
            1 - 2 * 5 / 5**2: "right as a fraction; give percent",
        },
    ),
    "04.5": Flat(
        {
            per_unit: "each unit is a Function of its own, and each keeps its own output",
            checkpointed: "a checkpoint keeps the input of each unit",
            plain: "this is plain autograd, which keeps everything",
        }
    ),
}
