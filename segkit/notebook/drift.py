"""What careless checkpoints do, for notebook 02: statistics that move twice, gradients that vanish.

Both on toy networks, in a moment; the very same steps, plain and checkpointed in several ways.
"""

import copy
import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segkit.measure import peak_memory
from segkit.memory.recompute import Freeze

MOMENTUM = 0.1  # of the batch norms: PyTorch's and torchvision's default


@dataclass(frozen=True)
class Drift:
    """Where the batch norms of a network are after one step, from running means of zero.

    Attributes:
        method: how the step was run.
        factor: running mean of a batch norm that every method but the plain one recomputes, as a factor of
            the batch's mean μ; PyTorch's definition makes it the momentum, 0.1.
        counter: its ``num_batches_tracked``.
        difference: of the running means and variances in ``state_dict()`` to those of the plain step, the
            largest.
        bit_equal: whether all of ``state_dict()`` is the plain step's, bit for bit.
        same_gradients: whether all gradients are.
    """

    method: str
    factor: float
    counter: int
    difference: float
    bit_equal: bool
    same_gradients: bool


def _naive(unit: nn.Module, *features: Tensor) -> Tensor:
    return checkpoint(unit.run, *features, use_reentrant=False)


def _ours(unit: nn.Module, *features: Tensor) -> Tensor:
    return checkpoint(
        unit.run, *features, use_reentrant=False, context_fn=lambda: (nullcontext(), Freeze(unit))
    )


def _through(call: Callable, model: nn.Module) -> nn.Module:
    """The model with each dense unit called by ``call(unit, *features)``."""
    for unit in model.features.denseblock1.values():
        forward = unit.forward
        # The block goes on to append to its list of features, so a segment must not keep that list as input.
        unit.run = lambda *features, forward=forward: forward(list(features))
        unit.forward = lambda features, unit=unit: call(unit, *features)
    return model


def _with_momentum(momentum: float, model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    return model


def bn_drift() -> list[Drift]:
    """One step of a small DenseNet of torchvision, by five methods from the same weights and images.

    Its dense units are checkpointed: naively; by torchvision's own ``memory_efficient=True`` (as far as the
    first convolution); naively with momentum 1 - sqrt(1 - m) in all recomputed norms, so that two updates
    move the running statistics about as far as one with m; and as `segkit.memory.recompute` does it.
    """

    def build(memory_efficient: bool = False) -> nn.Module:
        model = torchvision.models.DenseNet(
            growth_rate=4,
            block_config=(3,),
            num_init_features=8,
            num_classes=3,
            memory_efficient=memory_efficient,
        )
        if weights:
            model.load_state_dict(weights)
        return model

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        weights: dict[str, Tensor] = {}
        weights = copy.deepcopy(build().state_dict())
        images = torch.randn(4, 3, 32, 32)
        folklore = _through(_naive, build())
        _with_momentum(1 - math.sqrt(1 - MOMENTUM), folklore.features.denseblock1)
        models = {
            "plain": build(),
            "checkpoint(use_reentrant=False)": _through(_naive, build()),
            "torchvision, memory_efficient=True": build(memory_efficient=True),
            "momentum 1 - sqrt(1 - m)": folklore,
            "ours": _through(_ours, build()),
        }

    batch_mean: list[Tensor] = []  # of what the watched norm sees, (C,)
    watched = "features.denseblock1.denselayer3.norm1"
    hook = (
        models["plain"]
        .get_submodule(watched)
        .register_forward_pre_hook(lambda norm, inputs: batch_mean.append(inputs[0].mean((0, 2, 3)).detach()))
    )
    rows: list[Drift] = []
    for method, model in models.items():
        model(images).square().mean().backward()
        state = model.state_dict()
        gradients = [parameter.grad for parameter in model.parameters()]
        if method == "plain":
            hook.remove()
            plain_state, plain_gradients = state, gradients
        mean, mu = state[f"{watched}.running_mean"], batch_mean[0]
        off = [
            (state[key] - value).abs().max().item()
            for key, value in plain_state.items()
            if value.is_floating_point()
        ]
        rows.append(
            Drift(
                method,
                factor=(mean @ mu / (mu @ mu)).item(),
                counter=int(state[f"{watched}.num_batches_tracked"]),
                difference=max(off),
                bit_equal=all(torch.equal(state[key], value) for key, value in plain_state.items()),
                same_gradients=all(map(torch.equal, gradients, plain_gradients)),
            )
        )
    return rows


@dataclass(frozen=True)
class FirstSegment:
    """What becomes of a first segment, whose input (the images) needs no gradient.

    Attributes:
        method: how the segment was run.
        stem_gradient: norm of the gradient of its first convolution's weights; None where there is none.
        peak: bytes, of the whole step, by `peak_memory`.
        warning: what PyTorch warned of, or None.
    """

    method: str
    stem_gradient: float | None
    peak: int
    warning: str | None


class _Network(nn.Module):
    """A stem and a head; the stem is checkpointed unless ``reentrant`` is None."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.stem = nn.Sequential(*self._layers(3, 32), *self._layers(32, 16))
        self.head = nn.Sequential(*self._layers(16, 16), nn.Conv2d(16, 3, 1))
        self.reentrant = reentrant

    @staticmethod
    def _layers(channels_in: int, channels: int) -> tuple[nn.Module, ...]:
        convolution = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        return convolution, nn.BatchNorm2d(channels), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, 3, H, W)
        if self.reentrant is None:
            return self.head(self.stem(x))
        return self.head(checkpoint(self.stem, x, use_reentrant=self.reentrant))


def reentrant_loses_gradients() -> list[FirstSegment]:
    """A stem in no checkpoint, in one with ``use_reentrant=False``, and in one with ``use_reentrant=True``.

    The reentrant one asks only whether an *input* needs a gradient, and the images do not: the stem is not
    trained. What it no longer computes it needs no memory for.
    """
    rows = []
    for method, reentrant in (
        ("plain", None),
        ("checkpoint(use_reentrant=False)", False),
        ("checkpoint(use_reentrant=True)", True),
    ):
        with torch.random.fork_rng(devices=()), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.manual_seed(0)
            model = _Network(reentrant)
            model(torch.randn(2, 3, 16, 16)).square().mean().backward()
            peak = peak_memory(model, 2, (64, 64)).total
        gradient = model.stem[0].weight.grad
        rows.append(
            FirstSegment(
                method,
                stem_gradient=None if gradient is None else gradient.norm().item(),
                peak=peak,
                warning=str(caught[0].message) if caught else None,
            )
        )
    return rows
