"""Dilated and strided convolutions taken apart, as the FastFCN paper does in Equations 2 and 3 and Figure 3.

With S for split, C for a regular convolution, M for merge and R for reduce, a dilated convolution is S C M,
and a strided one C R. In a chain of dilated ones every M meets the next S, and the two cancel. All of it is
exact: for any length, any kernel, any rate, in one dimension (B, C, L) or two (B, C, H, W).

Two things it hangs on. The dilated convolution's padding is a multiple of its rate, ``rate * p``, and each
phase is padded by p. And what it is padded with is zeros: a phase's neighbor beyond the border is then a zero
too, while reflection would bring in another phase's values.
"""

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d}


def split(x: Tensor, rate: int) -> list[Tensor]:
    """S: every ``rate``-th value of each axis, from each start (in two dimensions, row by row).

    Args:
        x: (B, C, L) or (B, C, H, W).
        rate: phases of an axis.

    Returns:
        ``rate`` phases, in two dimensions ``rate ** 2``. Where it does not divide a length, the first phases
        are one longer than the others.

    Raises:
        ValueError: if ``x`` has other dimensions, or the rate is below 1.
    """
    _check(x, rate=rate)
    return [x[(..., *places)] for places in _places(x.dim() - 2, rate)]


def merge(phases: Sequence[Tensor], rate: int) -> Tensor:
    """M: what `split` took apart, put together again.

    Args:
        phases: in `split`'s order.
        rate: phases of an axis.

    Raises:
        ValueError: if their number or their sizes are not those of a split.
    """
    axes = phases[0].dim() - 2 if phases else 0
    if axes not in (1, 2) or len(phases) != rate**axes:
        raise ValueError(f"{len(phases)} phases cannot be merged at rate {rate}.")
    # along an axis, the phases that start first on the other one have all lengths once
    alone = [[phases[r * rate ** (axes - 1 - axis)] for r in range(rate)] for axis in range(axes)]
    size = [sum(phase.shape[2 + axis] for phase in alone[axis]) for axis in range(axes)]
    merged = phases[0].new_empty(*phases[0].shape[:2], *size)
    for places, phase in zip(_places(axes, rate), phases, strict=True):
        if merged[(..., *places)].shape != phase.shape:
            raise ValueError(
                f"Phases of shapes {', '.join(str(tuple(p.shape)) for p in phases)} are not those of one "
                f"map split at rate {rate}."
            )
        merged[(..., *places)] = phase
    return merged


def split_conv_merge(
    x: Tensor, weight: Tensor, *, rate: int, padding: int | Sequence[int] | None = None
) -> Tensor:
    """A dilated convolution without one: split, the regular convolution on each phase, merge (Figure 3a).

    Args:
        x: (B, C, L) or (B, C, H, W).
        weight: (D, C, k) or (D, C, k, k').
        rate: the dilation.
        padding: of the dilated convolution, with zeros, the same on both sides; one number, or one for each
            axis. None: what keeps the size if the kernel is odd, ``rate * (k // 2)``.

    Returns:
        What ``F.conv1d`` or ``F.conv2d`` with ``dilation=rate, padding=padding`` returns.

    Raises:
        ValueError: if the padding is no multiple of the rate; or the shapes do not fit.
    """
    _check(x, weight, rate=rate)
    kernel = tuple(weight.shape[2:])
    padding = tuple(rate * (k // 2) for k in kernel) if padding is None else _each(padding, len(kernel))
    if any(p % rate for p in padding):
        raise ValueError(
            f"padding={padding} at rate {rate}: a phase is padded by padding / rate, so this must be a "
            f"multiple of the rate, such as {rate * (kernel[0] // 2)}."
        )
    for side, k, p in zip(x.shape[2:], kernel, padding, strict=True):
        if side + 2 * p < rate * (k - 1) + 1:
            raise ValueError(
                f"A kernel of {k} at rate {rate} spans {rate * (k - 1) + 1} values and {side} padded by {p} "
                f"on both sides are fewer."
            )
    return merge(
        [_padded_conv(phase, weight, [p // rate for p in padding]) for phase in split(x, rate)], rate
    )


def conv_then_reduce(
    x: Tensor, weight: Tensor, *, stride: int, padding: int | Sequence[int] | None = None
) -> Tensor:
    """A strided convolution without one: the regular convolution, then every ``stride``-th value (Figure 3b).

    Args:
        x: (B, C, L) or (B, C, H, W).
        weight: (D, C, k) or (D, C, k, k').
        stride: of which values stay, the first being one.
        padding: of both convolutions, with zeros; None: k // 2.

    Returns:
        What ``F.conv1d`` or ``F.conv2d`` with ``stride=stride, padding=padding`` returns.

    Raises:
        ValueError: if the shapes do not fit, or the stride is below 1.
    """
    _check(x, weight, stride=stride)
    kernel = tuple(weight.shape[2:])
    padding = tuple(k // 2 for k in kernel) if padding is None else _each(padding, len(kernel))
    return split(CONVOLUTIONS[x.dim()](x, weight, padding=padding), stride)[0]


def _places(axes: int, rate: int) -> list[tuple[slice, ...]]:
    return list(itertools.product([slice(start, None, rate) for start in range(rate)], repeat=axes))


def _padded_conv(x: Tensor, weight: Tensor, padding: Sequence[int]) -> Tensor:
    """The regular convolution; nothing, where a phase is so short that it has no place for the kernel."""
    sides = [p for amount in reversed(padding) for p in (amount, amount)]
    x = F.pad(x, sides)
    size = [side - k + 1 for side, k in zip(x.shape[2:], weight.shape[2:], strict=True)]
    if min(size) < 1:
        return x.new_empty(x.shape[0], weight.shape[0], *(max(0, side) for side in size))
    return CONVOLUTIONS[x.dim()](x, weight)


def _each(padding: int | Sequence[int], axes: int) -> tuple[int, ...]:
    found = (padding,) * axes if isinstance(padding, int) else tuple(padding)
    if len(found) != axes or any(p < 0 for p in found):
        raise ValueError(f"padding={padding!r}: give a number from 0 on, or one for each of {axes} axes.")
    return found


def _check(x: Tensor, weight: Tensor | None = None, **step: int) -> None:
    if x.dim() not in CONVOLUTIONS:
        raise ValueError(f"Expected values of shape (B, C, L) or (B, C, H, W), got {tuple(x.shape)}.")
    if weight is not None and (weight.dim() != x.dim() or weight.shape[1] != x.shape[1]):
        raise ValueError(
            f"Weights of shape {tuple(weight.shape)} do not fit values of shape {tuple(x.shape)}: expected "
            f"(D, {x.shape[1]}, {', '.join('k' * (x.dim() - 2))})."
        )
    ((name, value),) = step.items()
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: an integer of at least 1 is needed.")
