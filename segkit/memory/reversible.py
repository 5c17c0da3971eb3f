"""A stack of reversible units that keeps its output alone, so that its training memory is flat in depth.

A unit splits its channels in two equal halves X1 and X2 and computes, as "VNet: A Versatile Network for
Efficient Real-Time Semantic Segmentation" prints it (Section III, the V module),

    Z = X1 + F(X2),    Y1 = Z,    Y2 = X2 + Z,

which can be undone: X2 = Y2 - Y1, then X1 = Y1 - F(X2). With a second function G it is RevNet's unit,
Y2 = X2 + G(Z) ("The Reversible Residual Network", Section 3.1). The backward pass therefore needs no
activation of the forward pass but the last: it undoes the units one after the other, and the one evaluation
of F that undoes a unit is also the one that its gradient comes from.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

from segkit.memory.recompute import Freeze

__all__ = ["ReversibleSequence", "ReversibleUnit"]

_HALF = (torch.float16, torch.bfloat16)
_Call = Callable[[nn.Module, Tensor], Tensor]


def _checked(part: nn.Module, x: Tensor) -> Tensor:
    """``part(x)``, which must be of the shape of ``x`` and of no wider type."""
    out = part(x)
    name = type(part).__name__
    if not isinstance(out, Tensor):
        raise TypeError(f"A reversible unit's function must return a tensor; {name} returned {type(out)}.")
    if out.shape != x.shape:
        raise ValueError(
            f"A reversible unit's function must keep the shape of the half that it is given. {name} got "
            f"{tuple(x.shape)} and returned {tuple(out.shape)}; give its layers that many channels in and "
            f"out, and a padding that keeps the size."
        )
    if torch.promote_types(out.dtype, x.dtype) != x.dtype:
        raise TypeError(
            f"A reversible unit's function must not return a wider type than it is given. {name} got "
            f"{x.dtype} and returned {out.dtype}; convert the whole model, or what the function returns."
        )
    return out


class ReversibleUnit(nn.Module):
    """One reversible unit on two streams: ``Z = X1 + F(X2)``, output ``(Z, X2 + Z)`` or ``(Z, X2 + G(Z))``.

    Args:
        f: F, any module that keeps the shape of a half, (B, C/2, H, W).
        g: G, likewise. None is VNet's printed form, in which Z itself takes its place.

    Raises:
        TypeError: if ``f`` is not a module, or ``g`` neither a module nor None.
    """

    def __init__(self, f: nn.Module, g: nn.Module | None = None) -> None:
        super().__init__()
        if not isinstance(f, nn.Module) or not (g is None or isinstance(g, nn.Module)):
            wrong = f if not isinstance(f, nn.Module) else g
            raise TypeError(
                f"A reversible unit is made of modules, not of {wrong!r}; give f, and g or None, as torch.nn."
                f"Module."
            )
        self.f = f
        self.register_module("g", g)

    def forward(self, x1: Tensor, x2: Tensor, *, call: _Call = _checked) -> tuple[Tensor, Tensor]:
        """The unit itself; ``call(part, x)`` evaluates F and G."""
        z = x1 + call(self.f, x2)
        return z, x2 + (z if self.g is None else call(self.g, z))

    def inverse(self, y1: Tensor, y2: Tensor) -> tuple[Tensor, Tensor]:
        """The input halves from the output halves, up to round-off."""
        x2 = y2 - (y1 if self.g is None else _checked(self.g, y1))
        return y1 - _checked(self.f, x2), x2


class ReversibleSequence(nn.Module):
    """Reversible units in a row, of whose activations training keeps the output of the last one only.

    In training the whole stack is one node of the autograd graph. Its backward pass evaluates every F (and G)
    once, with gradients, and frees what a unit needed before it goes on to the next: memory does not grow
    with depth. The results are those of plain autograd, up to the round-off of the reconstruction:

    - batch norms update their statistics once;
    - units that draw random numbers (dropout) draw the same ones again, and the global random state goes on
      as if nothing had been recomputed;
    - gradients of parameters are returned to autograd, so frozen parameters and inputs,
      `torch.autograd.grad`, hooks on parameters and DistributedDataParallel work as ever;
    - the streams are float32 (or float64) under autocast too, whatever type the functions compute in: in half
      precision the reconstruction drifts away with depth. A half-precision input is therefore converted and
      the output is float32.

    In eval mode and without gradients the stack runs as any other module. Not supported: gradients of
    gradients, nn.DataParallel, parameters in half precision (each says so). `torch.compile` leaves the stack
    out of its graph and runs it as it stands; with ``fullgraph=True`` it refuses. Buffers other than the
    statistics of batch norms must not be changed by the functions.

    Args:
        units: one module F for each unit, or a `ReversibleUnit`.
        channel_dim: the dimension that is split in halves.

    Attributes:
        units: nn.ModuleList of `ReversibleUnit`.
        reversible: False runs plain autograd with the same parameters, to compare.

    Raises:
        TypeError: if ``units`` is not a sequence of modules.
        ValueError: if it is empty.
    """

    def __init__(self, units: Sequence[nn.Module], *, channel_dim: int = 1) -> None:
        super().__init__()
        if isinstance(units, nn.Module) and not isinstance(units, (nn.ModuleList, nn.Sequential)):
            raise TypeError(
                f"units must be a sequence of modules, one for each unit, and is a single "
                f"{type(units).__name__}; put it in a list."
            )
        units = list(units)
        if not units:
            raise ValueError("units is empty; give at least one module.")
        if isinstance(channel_dim, bool) or not isinstance(channel_dim, int):
            raise TypeError(f"channel_dim={channel_dim!r}: give the index of a dimension, e.g. 1.")
        self.units = nn.ModuleList(
            unit if isinstance(unit, ReversibleUnit) else ReversibleUnit(unit) for unit in units
        )
        self.channel_dim = channel_dim
        self.reversible = True

    def forward(self, x: Tensor) -> Tensor:
        """Run the stack.

        Args:
            x: (B, C, H, W), floating point, C even.

        Returns:
            A tensor of the same shape.

        Raises:
            TypeError: if ``x`` is not a floating-point tensor, a function returns a wider type than it is
                given, or, in training, parameters are in half precision.
            ValueError: if the number of channels is odd, or a function changes the shape.
            RuntimeError: in training under nn.DataParallel.
        """
        self._check(x)
        parameters = list(self.parameters())
        narrow = next((p.dtype for p in parameters if p.dtype in _HALF), None)
        if x.dtype in _HALF and narrow is None:
            x = x.float()
        train = self.training and torch.is_grad_enabled()
        if not (self.reversible and train):
            return self._plain(x)
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                "ReversibleSequence cannot be trained under nn.DataParallel, whose threads share the "
                "flags of batch norms; use DistributedDataParallel, one process for each GPU (torchrun)."
            )
        if narrow is not None:
            raise TypeError(
                f"ReversibleSequence cannot be trained with parameters in {narrow}: the inputs that it "
                f"reconstructs would drift away. Keep the model in float32 and use torch.autocast."
            )
        if not (x.requires_grad or any(p.requires_grad for p in parameters)):
            return self._plain(x)
        return self._recompute(x, parameters)

    @torch.no_grad()
    def inverse(self, y: Tensor) -> Tensor:
        """The input that the stack, in its present mode, makes ``y`` from, up to round-off. No gradients.

        Batch norms in train mode take the batch's statistics, which are the same as in the forward pass, and
        leave their running statistics alone. A stack that draws random numbers in train mode has no inverse.

        Args:
            y: (B, C, H, W), floating point, C even.

        Returns:
            A tensor of the same shape.
        """
        self._check(y)
        y1, y2 = y.chunk(2, self.channel_dim)
        with Freeze(self):
            for unit in reversed(self.units):
                y1, y2 = unit.inverse(y1, y2)
        return torch.cat((y1, y2), self.channel_dim)

    def extra_repr(self) -> str:
        return f"channel_dim={self.channel_dim}, reversible={self.reversible}"

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"ReversibleSequence needs a floating-point tensor and got {found}.")
        if not -x.dim() <= self.channel_dim < x.dim():
            raise ValueError(
                f"channel_dim={self.channel_dim}, and an input of shape {tuple(x.shape)} has no such one."
            )
        channels = x.shape[self.channel_dim]
        if channels % 2 or not channels:
            raise ValueError(
                f"ReversibleSequence splits the channels in two equal halves, and an input of shape "
                f"{tuple(x.shape)} has {channels} of them (dimension {self.channel_dim}). Give it an even "
                f"number."
            )

    def _plain(self, x: Tensor, call: _Call = _checked) -> Tensor:
        if not torch.is_grad_enabled():  # FlopCounterMode takes views of x for differentiable even here
            x = x.detach()
        x1, x2 = x.chunk(2, self.channel_dim)  # 2 x (B, C/2, H, W)
        for unit in self.units:
            x1, x2 = unit(x1, x2, call=call)
        return torch.cat((x1, x2), self.channel_dim)

    @torch.compiler.disable(reason="ReversibleSequence recomputes in a backward pass of its own")
    def _recompute(self, x: Tensor, parameters: list[Tensor]) -> Tensor:
        return _Stage.apply(x, self, *parameters)


class _Stage(torch.autograd.Function):
    """All units of a stack as one node of the graph, which saves the output and recomputes the rest.

    The parameters are inputs, so that autograd itself delivers their gradients; saved, so that autograd
    notices a change before the backward pass (they take no memory of their own).
    """

    # The gradient of the output comes in a list, from which it can be let go as soon as the last unit is done
    # with it. A PyTorch that does not know this keeps it until the end.
    boxed_grads_call = True

    @staticmethod
    def forward(ctx, x: Tensor, stage: ReversibleSequence, *parameters: Tensor) -> Tensor:
        ctx.stage = stage
        ctx.autocast = _autocast_state(x.device)
        ctx.evaluations = evaluations = []  # of F, or of F and then G, unit by unit
        number = {id(parameter): i for i, parameter in enumerate(parameters)}
        random = _random_state(x.device)

        def call(part: nn.Module, half: Tensor) -> Tensor:
            nonlocal random
            evaluation = _Evaluation(part, number)
            out = _checked(part, half)
            before, random = random, _random_state(half.device)
            evaluation.random = None if _same(before, random) else before
            evaluations.append(evaluation)
            return out

        with _autocast(ctx.autocast):
            y = stage._plain(x, call)
        ctx.save_for_backward(y, *parameters)
        return y

    @staticmethod
    def backward(ctx, *gradients):
        box = gradients[0] if isinstance(gradients[0], list) else list(gradients)
        if torch.is_grad_enabled():  # somebody may want gradients of these gradients
            return _backward_once(ctx, box.pop())
        return _backward(ctx, box)


def _backward(ctx, box: list[Tensor]) -> tuple[Tensor | None, ...]:
    """The backward pass; ``box`` holds the gradient of the output, so that nobody else keeps it alive."""
    stage, dim = ctx.stage, ctx.stage.channel_dim
    y, *parameters = ctx.saved_tensors
    if hasattr(ctx, "maybe_clear_saved_tensors"):  # unless the graph is retained; else it stays until the end
        ctx.maybe_clear_saved_tensors()
    wanted = ctx.needs_input_grad[2:]
    gradients: list[Tensor | None] = [None] * len(parameters)
    evaluations = list(ctx.evaluations)
    units = list(stage.units)

    def again(half: Tensor, differentiate: bool = True) -> tuple[Tensor, _Pull]:
        return evaluations.pop().again(half, differentiate, parameters, wanted, gradients)

    y1, y2 = y.chunk(2, dim)
    d1, d2 = box.pop().chunk(2, dim)
    del y
    # Copies, so that the wholes can go: a half that is still needed would keep the other one alive.
    y1, d2 = y1.clone(), d2.clone()
    if units[-1].g is not None:
        y2, d1 = y2.clone(), d1.clone()

    # Where the input needs no gradient, the first unit with a parameter that does is the last one to be done.
    to_input = ctx.needs_input_grad[0]
    last = 0
    if not to_input:
        trained = [any(p.requires_grad for p in unit.parameters()) for unit in units]
        last = trained.index(True) if True in trained else len(units)
    with _autocast(ctx.autocast):
        for i in range(len(units) - 1, last - 1, -1):
            onward = to_input or i > last
            if units[i].g is None:
                y2 = y2 - y1  # X2
                d1 = d1 + d2  # the gradient of Z
            else:
                out, pull = again(y1)
                y2 = y2 - out
                del out
                d1 = _sum(d1, pull(d2))
            out, pull = again(y2, onward)
            y1 = y1 - out if onward else None  # X1
            del out
            d2 = _sum(d2, pull(d1))
    return torch.cat((d1, d2), dim) if to_input else None, None, *gradients


@once_differentiable
def _backward_once(ctx, gradient: Tensor):
    return _backward(ctx, [gradient])


class _Evaluation:
    """One evaluation of F or G in the forward pass: what it takes to do it again.

    Args:
        part: F or G.
        number: from the id of each parameter to its place among the stage's.

    Attributes:
        random: the random state that it began with; None if it drew nothing.
    """

    def __init__(self, part: nn.Module, number: dict[int, int]) -> None:
        self.part, self.freeze = part, Freeze(part)
        self.random: list[Tensor] | None = None
        self.modes = [(module, module.training) for module in part.modules()]
        self.slots = [
            (module._parameters, name, number[id(parameter)])
            for module, _ in self.modes
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]

    def again(
        self,
        half: Tensor,
        differentiate: bool,
        parameters: Sequence[Tensor],
        wanted: Sequence[bool],
        gradients: list[Tensor | None],
    ) -> tuple[Tensor, "_Pull"]:
        """``part(half)``, and what takes a gradient back through it.

        It runs with aliases in place of the parameters: hooks on those see the gradients that the stage
        returns, once, and not the partial ones in here.

        Args:
            half: (B, C/2, H, W).
            differentiate: whether a gradient of ``half`` is wanted.
            parameters: the stage's.
            wanted: for each of them, whether its gradient is.
            gradients: for each of them, the sum so far, which the backward step adds to.
        """
        if any(module.training != mode for module, mode in self.modes):
            raise RuntimeError(
                "A module of a ReversibleSequence went from train to eval mode, or back, between the forward "
                "and the backward pass, which runs it again; call backward first."
            )
        leaf = half.detach().requires_grad_(differentiate)
        aliases = {i: parameters[i].detach().requires_grad_(wanted[i]) for _, _, i in self.slots}
        originals = [slot[name] for slot, name, _ in self.slots]
        try:
            for slot, name, i in self.slots:
                slot[name] = aliases[i]
            with torch.enable_grad(), self.freeze, _replay(self.random, half.device):
                # A view: FlopCounterMode cannot have leaves as inputs of modules (pytorch issue 131753).
                out = self.part(leaf.view_as(leaf))
        finally:
            for (slot, name, _), original in zip(self.slots, originals, strict=True):
                slot[name] = original
        return out.detach(), _Pull(out, leaf, aliases, gradients)


class _Pull:
    """Takes a gradient back through one evaluation, once."""

    def __init__(
        self, out: Tensor, leaf: Tensor, aliases: dict[int, Tensor], gradients: list[Tensor | None]
    ) -> None:
        # An edge keeps the graph but not the value, which is free as soon as the caller is done with it.
        self.edge = get_gradient_edge(out) if out.requires_grad else None
        self.dtype, self.gradients = out.dtype, gradients
        self.inputs = {i: alias for i, alias in (*aliases.items(), (-1, leaf)) if alias.requires_grad}
        if self.edge is not None:
            _refuse_strangers(self.edge.node, self.inputs.values())

    def __call__(self, gradient: Tensor) -> Tensor | None:
        """The gradient of the half from that of the result; adds those of the parameters."""
        (edge, self.edge), (inputs, self.inputs) = (self.edge, None), (self.inputs, None)
        if edge is None or not inputs:
            return None
        found = torch.autograd.grad(
            (edge,), tuple(inputs.values()), (gradient.to(self.dtype),), allow_unused=True
        )
        found = dict(zip(inputs, found, strict=True))
        of_half = found.pop(-1, None)
        for i, new in found.items():
            self.gradients[i] = _sum(self.gradients[i], new)
        return of_half


def _refuse_strangers(node, inputs) -> None:
    """Raise if a result depends on a tensor that is no parameter of the unit: its gradient would be lost."""
    known = {id(tensor) for tensor in inputs}
    seen, todo = {node}, [node]
    while todo:
        node = todo.pop()
        if type(node).__name__ == "AccumulateGrad" and id(node.variable) not in known:
            raise RuntimeError(
                f"A unit of a ReversibleSequence uses a tensor of shape {tuple(node.variable.shape)} that "
                f"requires a gradient and is not among its parameters; the gradient would be lost. Make it a "
                f"parameter of the unit's module, or detach it."
            )
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Out of place: autograd may hand out one tensor as the gradient of several."""
    return a if b is None else b if a is None else a + b


def _autocast_state(device: torch.device) -> list[tuple[str, bool, torch.dtype]]:
    kinds = [kind for kind in {device.type, "cpu"} if torch.amp.is_autocast_available(kind)]
    return [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]


@contextmanager
def _autocast(state: list[tuple[str, bool, torch.dtype]]) -> Iterator[None]:
    """Autocast as it was, without its cache, where casts made without gradients would be found again."""
    with ExitStack() as stack:
        for kind, enabled, dtype in state:
            stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
        yield


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(bytes(old.numpy()) == bytes(new.numpy()) for old, new in zip(a, b, strict=True))


@contextmanager
def _replay(state: list[Tensor] | None, device: torch.device) -> Iterator[None]:
    """The random state of the forward pass for the time being; None: nothing was drawn."""
    if state is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state[1], device)
        yield
