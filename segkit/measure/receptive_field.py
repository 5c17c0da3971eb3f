"""What an output pixel sees: the field by the papers' formula, exactly by probing, and as gradients weigh it.

Three instruments, from paper to network:

- `compose`, `bound`, `support` and `coverage` work on a list of layers: RegSeg's equations (1) and (2), its
  bound on dilations, and the pixels that are really touched. `largest_path` reads such a list off a network.
- `receptive_field` probes a network: one output pixel is marked, and the mark is carried back through every
  operator to all pixels that it can depend on, whatever the values are. That is what remains of a network
  when activations are identities, max-pooling is average pooling and every weight is one.
- `effective` weighs the field by the gradient of the network as it is, on given images.

For example::

    receptive_field(torchvision.models.resnet18(), at="layer4").size  # (435, 435)
    compose([1, 2, 5]).size, coverage([2, 2, 2])  # 17 and 0.29: three 3x3 convolutions of given dilations

Sizes are in pixels of the input; pairs are (H, W).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor, nn

from segkit.measure._graph import Network, Value, window
from segkit.measure._network import no_place, read, run_until
from segkit.measure._probe import Patch, Probe
from segkit.measure.step import copy_model, undisturbed

__all__ = [
    "Bound",
    "Composed",
    "EffectiveField",
    "Layer",
    "ReceptiveField",
    "bound",
    "compose",
    "coverage",
    "effective",
    "largest_path",
    "receptive_field",
    "support",
]

MOST_PHASES = 512  # that a probe looks at, of an upsampled output

# What may be asked of a model: nothing, a key, an index, or a function from what it returns to a tensor.
Choice = str | int | Callable[[object], Tensor] | None


# ---- a list of layers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One convolution or pooling, along one axis.

    Attributes:
        kernel: taps.
        stride: of its output in pixels of its input; below 1 where it upsamples.
        dilation: distance of the taps.
        name: where it stands in a network.
    """

    kernel: int
    stride: int | Fraction = 1
    dilation: int = 1
    name: str = ""

    def __post_init__(self) -> None:
        for label, value in (("kernel", self.kernel), ("dilation", self.dilation)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{label}={value!r}: a layer's {label} is an integer of at least 1.")
        stride = self.stride
        if isinstance(stride, bool) or not isinstance(stride, (int, Fraction)) or not stride > 0:
            raise ValueError(
                f"stride={stride!r}: a layer's stride is an integer of at least 1, or a Fraction."
            )

    @property
    def span(self) -> int:
        """k', the kernel with its holes: R = (d - 1)(K - 1) + K (DenseASPP, Section 4.1); RegSeg's 2r + 1."""
        return (self.dilation - 1) * (self.kernel - 1) + self.kernel


@dataclass(frozen=True)
class Composed:
    """The one convolution that a list of layers is equal to in ``size`` and ``stride`` (k and s)."""

    size: int | float
    stride: int | float


@dataclass(frozen=True)
class Bound:
    """A layer held against k/s >= r (RegSeg, Section 3.1).

    Attributes:
        layer: the layer.
        size: k of all layers before it.
        stride: s of all layers before it.
        ratio: k/s, the largest dilation that leaves no holes.
        holds: whether the layer's dilation is within it; a single tap always is.
    """

    layer: Layer
    size: int | float
    stride: int | float
    ratio: float
    holds: bool


# A layer may be given as its dilation (a 3x3 convolution), as (kernel, stride) or (kernel, stride, dilation).
LayerLike = Layer | int | tuple


def compose(layers: Iterable[LayerLike]) -> Composed:
    """The field of layers one after the other: k <- k + (k' - 1) s, s <- s s' (RegSeg, equations 1 and 2).

    k' is a layer's `Layer.span`. With strides of 1 it is DenseASPP's rule K = K1 + K2 - 1 (Section 4.1).

    Args:
        layers: in order from the input. Each is a `Layer`, a tuple (kernel, stride) or (kernel, stride,
            dilation), or an integer, the dilation of a 3x3 convolution.

    Raises:
        ValueError, TypeError: if one of them is none of these.
    """
    size, stride = _composed(_layers(layers))
    return Composed(_plain(size), _plain(stride))


def bound(layers: Iterable[LayerLike]) -> list[Bound]:
    """Each layer against the bound k/s >= r, k and s composed of all layers before it (RegSeg, Section 3.1).

    Where it is broken, the layer's taps are farther apart than what each of them sees: a chain of layers
    leaves holes unless later layers fill them, and a network may, through its other branches.

    Args:
        layers: as for `compose`.

    Returns:
        One entry per layer; those with ``not entry.holds`` break the bound.
    """
    layers, entries = _layers(layers), []
    for i, layer in enumerate(layers):
        size, stride = _composed(layers[:i])
        ratio = size / stride
        holds = layer.kernel == 1 or ratio >= layer.dilation
        entries.append(Bound(layer, _plain(size), _plain(stride), float(ratio), holds))
    return entries


def support(layers: Iterable[LayerLike]) -> Tensor:
    """The pixels that layers one after the other touch, as a bool map (size, size).

    Args:
        layers: as for `compose`, without upsampling; kernels are square.
    """
    layers = _layers(layers)
    if any(layer.stride < 1 for layer in layers):
        raise ValueError("support() takes layers of stride 1 and more; probe the network where it upsamples.")
    line = torch.ones(1, dtype=torch.bool)
    for layer in reversed(layers):
        line, _ = window(layer.kernel, int(layer.stride), layer.dilation).pull(line, 0, None)
    return line[:, None] & line[None, :]


def coverage(layers: Iterable[LayerLike]) -> float:
    """The share of their square field that layers one after the other really touch, 0 to 1.

    ``coverage([2, 2, 2])`` is 0.29: three 3x3 convolutions of dilation 2 see every second pixel (gridding).

    Args:
        layers: as for `support`.
    """
    return support(layers).double().mean().item()


def _layers(layers: Iterable[LayerLike]) -> list[Layer]:
    if isinstance(layers, (str, Layer, nn.Module)) or not isinstance(layers, Iterable):
        hint = " For a network there is largest_path(model)." if isinstance(layers, nn.Module) else ""
        raise TypeError(f"Expected a list of layers, got {type(layers).__name__}.{hint}")
    made = []
    for item in layers:
        if isinstance(item, Layer):
            made.append(item)
        elif isinstance(item, int) and not isinstance(item, bool):
            made.append(Layer(3, dilation=item))
        elif isinstance(item, (tuple, list)) and 1 <= len(item) <= 3:
            made.append(Layer(*item))
        else:
            raise TypeError(
                f"A layer is a Layer, (kernel, stride, dilation) or the dilation of a 3x3 convolution, not "
                f"{item!r}."
            )
    return made


def _composed(layers: Sequence[Layer]) -> tuple[Fraction, Fraction]:
    size = stride = Fraction(1)
    for layer in layers:
        size += (layer.span - 1) * stride
        stride *= layer.stride
    return size, stride


def _plain(value: Fraction) -> int | float:
    return int(value) if value.denominator == 1 else float(value)


# ---- a network: what it sees ----------------------------------------------------------------------------


@dataclass(frozen=True)
class ReceptiveField:
    """The field of an output pixel, exact. Pairs are (H, W).

    Attributes:
        size: pixels from the first to the last that is touched. Without ``image_size`` it is that of a pixel
            far from every border; with it, the image's borders clip it. Where an output is upsampled, pixels
            differ by their phase, the place between the coarse cells that they blend; ``size`` is then the
            largest.
        stride: distance of neighboring output pixels, in pixels of the input; 1 if the output has the size of
            the input, however coarse the features behind it are.
        offset: the center of the first output pixel's field, in pixels of the input, with the image's borders
            taken away; the field of pixel i is centered at offset + i * stride. Where an output is upsampled
            this holds for every ``period``-th pixel.
        period: output pixels after which the phases come again; 1 without upsampling.
        global_parts: paths of the modules on the way to the output that pool the whole image (global and
            pyramid pooling, squeeze-and-excite gates, statistics of group and instance norm); ``(model)`` is
            the model's own forward.
        include_global: whether they count; otherwise they are left out of everything here.
        box: with ``image_size``, the first and last row and the first and last column of the field,
            ((top, bottom), (left, right)); otherwise None.
    """

    size: tuple[int, int]
    stride: tuple[int | float, int | float]
    offset: tuple[int | float, int | float]
    period: tuple[int, int]
    global_parts: tuple[str, ...]
    include_global: bool
    box: tuple[tuple[int, int], tuple[int, int]] | None
    _probe: Callable[[], Tensor] = field(repr=False, compare=False)

    @cached_property
    def mask(self) -> Tensor:
        """The pixels of the field that are touched, bool ``size``: a 2-D probe, made when first asked for."""
        return self._probe()

    @cached_property
    def coverage(self) -> float:
        """The share of the field that is touched, 0 to 1.

        It takes a 2-D probe: the squared share of a row is more than what parallel branches touch.
        """
        return self.mask.sum().item() / self.mask.numel()


def receptive_field(
    model: nn.Module,
    *,
    at: str | None = None,
    output: Choice = None,
    image_size: tuple[int, int] | None = None,
    position: tuple[int, int] | None = None,
    include_global: bool = False,
    channels: int = 3,
) -> ReceptiveField:
    """The pixels that an output pixel depends on, whatever weights and images are.

    The network is run once on meta tensors, as a copy: the model is left as it was. Then marks are carried
    back operator by operator and channel by channel, along one axis at a time for size, stride and offset, on
    both for the mask. All output channels are marked. What an operator can depend on counts: zeros among the
    weights, dead activations and the choice of a max-pooling are not looked at, nor are detached tensors.

    Bilinear upsampling blends two cells an axis, so a pixel of upsampled logits sees one stride more than the
    features before; a pixel that falls onto a cell's center sees that cell only.

    Args:
        model: takes images (B, channels, H, W).
        at: path of a submodule, as in ``model.get_submodule(at)``: its output (at its first call) is taken
            instead of the model's, and what follows is not run.
        output: which tensor of what is returned: a key or an index, or a function from it to the tensor. None
            takes a tensor as it is, and ``"out"`` from a dict.
        image_size: (H, W) of an image whose borders clip the field; None for the field far from borders.
        position: row and column of the output pixel in that image, negative ones from the end; None for the
            middle.
        include_global: whether global pooling counts. It sees the whole image, so it needs ``image_size``.
        channels: of the input.

    Raises:
        TypeError: if the model is not a module.
        ValueError: if an argument is none of those above, the image is too small for the model, the output
            has no place in the image or does not depend on it, or what it depends on is not a matter of
            convolutions: attention, linear layers over space, sampling where the data says.
        MeasurementError: if the model cannot be followed.
    """
    _check_arguments(model, image_size, channels)
    if include_global and image_size is None:
        raise ValueError(
            "include_global=True: global pooling sees the whole image, however large it is; give image_size="
            "(H, W)."
        )
    if position is not None and image_size is None:
        raise ValueError(
            f"position={position!r}: only an image of a given size has borders; give image_size."
        )

    # Marks are counted on the CPU, also for a caller who works below `torch.device("meta")`.
    with torch.device("cpu"):
        network = read(model, at, output, image_size, channels)
        out, borders = network.output, image_size is not None
        sizes, offsets, places = zip(*(_along(network, axis) for axis in (0, 1)), strict=True)
    if not all(sizes) and not include_global:
        raise network.unseen()
    if borders:
        places = _position(position, out.grid)

    def probe() -> tuple[Tensor, tuple[tuple[int, int], tuple[int, int]]]:
        with torch.device("cpu"):
            seed = Patch(places, torch.ones(1, 1, dtype=torch.bool))
            patch = Probe(network, (0, 1), clip=borders, include_global=include_global).run(seed)
        if patch is None:
            raise network.unseen(include_global=include_global)
        (top, bottom), (left, right) = (_extent(patch.bits.any(1 - axis)) for axis in (0, 1))
        mask = patch.bits[top : bottom + 1, left : right + 1].clone()
        (y, x) = patch.start
        return mask, ((y + top, y + bottom), (x + left, x + right))

    # Near a border an axis alone may see what the other one cuts off.
    mask, box = probe() if borders else (None, None)
    # An output that sees the image as a whole only has a stride by its size.
    ratios = (Fraction(n, m) for n, m in zip(network.image.grid, out.grid, strict=True))
    return ReceptiveField(
        size=tuple(mask.shape if borders else sizes),
        stride=tuple(map(_plain, out.stride or ratios)),
        offset=offsets,
        period=tuple(network.period(axis) for axis in (0, 1)),
        global_parts=network.global_parts(),
        include_global=include_global,
        box=box,
        _probe=lambda: mask if borders else probe()[0],
    )


def _along(network: Network, axis: int) -> tuple[int, int | float, int]:
    """Size, offset and the output pixel that sees most, along one axis and far from borders."""
    out = network.output
    period = network.period(axis)
    place = out.grid[axis] // 2 // period * period
    seed = Patch((place,), torch.eye(min(period, MOST_PHASES), dtype=torch.bool))
    patch = Probe(network, (axis,)).run(seed)
    if patch is None:  # nothing but what pools the whole image
        return 0, math.nan, place
    # A phase may see nothing: a transposed convolution with gaps.
    ends = {phase: _extent(line) for phase, line in enumerate(patch.bits) if line.any()}
    phase, (first, last) = next(iter(ends.items()))
    offset = patch.start[0] + Fraction(first + last, 2) - (place + phase) * out.stride[axis]
    largest = max(ends, key=lambda phase: ends[phase][1] - ends[phase][0])
    first, last = ends[largest]
    return last - first + 1, _plain(offset), place + largest


def largest_path(
    model: nn.Module,
    *,
    at: str | None = None,
    output: Choice = None,
    axis: int = 0,
    image_size: tuple[int, int] | None = None,
    channels: int = 3,
) -> list[Layer]:
    """The layers along which a network's field grows largest by the formula, named by their modules.

    At every operator that joins branches the path goes into the one with the largest k. Layers that change
    neither k nor s are left out, and so is what pools the whole image. `compose` of the list is the papers'
    field of the network; where features are upsampled it is an estimate (a cell more for a bilinear one, as
    if the pixels were between two cells everywhere).

    Args:
        model: as for `receptive_field`, like ``at``, ``output`` and ``channels``.
        axis: 0 for the height, 1 for the width.
        image_size: (H, W) to run the model at, for one that takes no other.

    Raises:
        TypeError, ValueError, MeasurementError: as `receptive_field`.
    """
    _check_arguments(model, image_size, channels)
    if axis not in (0, 1):
        raise ValueError(f"axis={axis!r}: choose 0 for the height or 1 for the width.")
    network = read(model, at, output, image_size, channels)
    sizes: dict[Value, Fraction] = {network.image: Fraction(1)}
    before: dict[Value, tuple[Value, Layer | None]] = {}
    for value in network.needed():
        network.refuse(value)
        for edge in value.edges:
            if edge.is_global or edge.source not in sizes:
                continue
            taps = edge.rules[axis].taps
            layer = Layer(*taps, value.name) if taps else None
            size = sizes[edge.source] + ((layer.span - 1) * edge.source.stride[axis] if layer else 0)
            if value not in sizes or size > sizes[value]:
                sizes[value] = size
                before[value] = edge.source, layer
    if network.output not in sizes:
        raise network.unseen()
    path, value = [], network.output
    while value in before:
        value, layer = before[value]
        if layer is not None:
            path.append(layer)
    return path[::-1]


def _position(position, grid: tuple[int, int]) -> tuple[int, int]:
    if position is None:
        return grid[0] // 2, grid[1] // 2
    if not _are_integers(position):
        raise ValueError(f"position={position!r}: give (row, column) of an output pixel.")
    if any(not -n <= i < n for i, n in zip(position, grid, strict=True)):
        raise ValueError(f"position={tuple(position)}: the output has {grid[0]}x{grid[1]} pixels.")
    return tuple(i % n for i, n in zip(position, grid, strict=True))


def _check_arguments(model, image_size, channels) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"Expected a torch.nn.Module, got {type(model).__name__}; for a list of layers use compose()."
        )
    if image_size is not None and not (_are_integers(image_size) and min(image_size) > 0):
        raise ValueError(f"image_size={image_size!r}: give (H, W), two positive integers, e.g. (1024, 2048).")
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise ValueError(f"channels={channels!r}: give the number of channels of the input, e.g. 3.")


def _are_integers(pair) -> bool:
    return isinstance(pair, (tuple, list)) and [type(i) for i in pair] == [int, int]


def _extent(line: Tensor) -> tuple[int, int]:
    places = line.nonzero()
    return int(places[0]), int(places[-1])


# ---- a network: what it looks at ------------------------------------------------------------------------


@dataclass(frozen=True)
class EffectiveField:
    """How much each pixel weighs in an output pixel, by gradient.

    Attributes:
        map: |gradient|, summed over input channels and averaged over images, (H, W), sums to 1.
        extent: rows and columns of the smallest box, each axis on its own, that hold ``share`` of it.
        box: their first and last row, first and last column: ((top, bottom), (left, right)).
        share: 0 to 1.
    """

    map: Tensor = field(repr=False)
    extent: tuple[int, int]
    box: tuple[tuple[int, int], tuple[int, int]]
    share: float


def effective(
    model: nn.Module,
    images: Tensor,
    *,
    at: str | None = None,
    output: Choice = None,
    position: tuple[int, int] | None = None,
    share: float = 0.9,
) -> EffectiveField:
    """The effective receptive field: the gradient of one output pixel, of the sum of its channels.

    A copy of the model runs in eval mode, so the model is left as it was.

    Args:
        model: any differentiable one, attention included.
        images: (B, C, H, W), as the model takes them, on the model's device.
        at: as for `receptive_field`, like ``output`` and ``position`` (None for the middle of the output).
        share: of the gradient that the extent holds.

    Raises:
        TypeError: if the model is not a module, or the images are not a floating-point tensor.
        ValueError: if an argument is none of those above, the images are too small for the model, or the
            output has no gradient: no path, or one that is zero everywhere (dead activations).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"effective() takes a torch.nn.Module, not {type(model).__name__}.")
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = f"a {images.dtype} tensor" if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images: expected a floating-point tensor (B, C, H, W), got {kind}.")
    if images.dim() != 4 or not images.numel():
        raise ValueError(f"images: expected (B, C, H, W), at least one, got {tuple(images.shape)}.")
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
        raise ValueError(f"share={share!r}: give a number between 0 and 1, e.g. 0.9.")
    if images.is_meta or any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError("Gradients need values; model and images must be on a real device, not on 'meta'.")

    devices = sorted({tensor.device.index for tensor in (images, *model.parameters()) if tensor.is_cuda})
    with undisturbed(devices):
        network = copy_model(model, str(images.device)).eval().requires_grad_(False)
        leaf = images.detach().clone().requires_grad_()
        out = run_until(network, leaf * 1, at, output)  # a leaf allows no in-place use
        if out.dim() != 4 or not out.is_floating_point():
            raise ValueError(no_place(out))
        row, column = _position(position, tuple(out.shape[-2:]))
        (gradient,) = (
            torch.autograd.grad(out[:, :, row, column].double().sum(), leaf, allow_unused=True)
            if out.requires_grad
            else (None,)
        )
    if gradient is None:
        raise ValueError(
            f"No gradient path leads from the output of {type(model).__name__} to the image: it is detached, "
            f"computed without gradients, or does not depend on it. Choose another at= or output=."
        )
    weights = gradient.double().abs().sum(1).mean(0)  # (H, W)
    total = weights.sum()
    if not torch.isfinite(total) or total == 0:
        what = "zero everywhere (dead activations?)" if total == 0 else "not finite"
        raise ValueError(
            f"The gradient of output pixel ({row}, {column}) of {type(model).__name__} is {what} on these "
            f"images."
        )
    weights = weights / total
    box = tuple(_shortest_run(weights.sum(1 - axis), share) for axis in (0, 1))
    return EffectiveField(weights, tuple(last - first + 1 for first, last in box), box, share)


def _shortest_run(profile: Tensor, share: float) -> tuple[int, int]:
    """First and last place of the shortest run that holds the share of a profile that sums to 1.

    Among runs of one length the one that holds most; among those the first.
    """
    sums = torch.cat([profile.new_zeros(1), profile.cumsum(0)])
    ends = torch.searchsorted(sums, sums[:-1] + share * sums[-1], right=False)
    length = int((ends - torch.arange(len(profile), device=ends.device))[ends < len(sums)].min())
    first = int((sums[length:] - sums[:-length]).argmax())
    return first, first + length - 1
