"""What each operator does to positions: `follow` makes the values of its outputs, with their edges.

A convolution's edge has a `window` along each axis and a label for each group of channels. A mean over height
and width has two `whole` and a label for each channel; ``x.view(1, 2, 4, h, w).transpose(1, 2)`` moves labels
only. There is a function for each family of operators. What is not a matter of convolutions (attention, a
linear layer over space) raises `Refusal`, whose reason a user reads if the output depends on it.

In all functions ``find(tensor)`` is the value of a tensor, None for one that does not depend on the image; x
is the value of the first argument.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from segkit.measure._graph import SAME, Edge, Rule, Value, cells, reflect, resize, transposed, whole, window

Find = Callable[[object], Value | None]

# Output elements see the input elements at their own place (after broadcasting). PyTorch tags most of these.
_POINTWISE = "alias _to_copy detach lift_fresh prelu _prelu_kernel hardswish masked_fill where rsub expand"
_VIEWS = "view _unsafe_view permute transpose t squeeze unsqueeze slice select split split_with_sizes unbind"
_DIFFERENT = "an operator on tensors whose height and width are not the same dimensions"


class Refusal(Exception):
    """Why an operator is not followed."""


def follow(find: Find, name: str, func, args, kwargs, outs: list[Tensor]) -> list[Value | None]:
    """The values that an operator puts out, None for those that do not depend on the image."""
    if name in ("zero", "fill") or name.startswith("new_") or name.endswith("_like"):  # constants
        return [None for _ in outs]
    if is_pointwise(name, func) or name == "copy":
        operands = args[1:2] if name == "copy" else tensors((args, kwargs))
        return [_pointwise([v for v in map(find, operands) if v], out) for out in outs]
    if name in ("cat", "stack"):
        dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % outs[0].dim()
        return [_joined(find, args[0], dim, outs[0], new=name == "stack")]
    if name in ("mm", "bmm", "addmm", "baddbmm"):
        return [_product(find, name, args, outs[0])]
    if "attention" in name:
        raise Refusal("attention, which sees the whole image at once,")
    if name == "grid_sampler_2d":
        raise Refusal("grid_sample, which looks where the data tells it to,")
    x = find(args[0]) if args else None
    if x is None:
        raise Refusal(f"{name} of something constant by something that depends on the image")
    if name in _VIEWS.split():
        return _views(x, func, args, kwargs)
    if "batch_norm" in name:  # in training mode, and in instance norm, the statistics are the image's own
        return _normalized(x, outs, (), statistics=any(flag is True for flag in args[3:6]))
    if name == "native_group_norm":
        return _normalized(x, outs, (), statistics=True)
    if name in ("native_layer_norm", "_softmax", "_log_softmax"):
        dims = range(-len(args[1]), 0) if name == "native_layer_norm" else [args[1]]
        dims = {d % len(x.shape) for d in dims}
        return _normalized(x, outs, dims, statistics=bool(dims & set(x.axes)))
    if name in ("mean", "sum", "amax", "amin"):
        return [_reduced(x, args[1] if len(args) > 1 else kwargs.get("dim"), outs[0])]
    if name in _SPATIAL:
        if len(x.shape) != 4 or (x.axes != (2, 3) if x.axes else x.shape[2:] != (1, 1)):
            raise Refusal(f"{name} of a tensor whose last two dimensions are not height and width,")
        return [_mapped(x, _SPATIAL[name](find, x, args, out), out) for out in outs]
    raise Refusal(f"the operator {name}, which is not one whose field is known,")


def is_pointwise(name: str, func) -> bool:
    return name in _POINTWISE.split() or torch.Tag.pointwise in func.tags


def tensors(values) -> Iterator[Tensor]:
    """All tensors in nested arguments."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (dict, list, tuple)):
        for part in values.values() if isinstance(values, dict) else values:
            yield from tensors(part)


def _labels(lead: Sequence[int], dims: Iterable[int]) -> Tensor:
    """Labels that lead elements share along some dimensions."""
    kept = [1 if d in dims else n for d, n in enumerate(lead)]
    return torch.arange(math.prod(kept)).reshape(kept).expand(*lead).reshape(-1)


def _edge(source: Value, rules: tuple[Rule, Rule], labels: Tensor) -> Edge:
    """An edge where lead element j sees the source's lead element labels[j]."""
    own = torch.arange(math.prod(source.lead))
    return Edge(source, rules) if torch.equal(labels, own) else Edge(source, rules, labels, own)


def _broadcast(source: Value, grid: tuple[int, int]) -> tuple[Rule, Rule]:
    if any(n not in (1, m) for m, n in zip(grid, source.grid, strict=True)):
        raise Refusal(_DIFFERENT)
    return tuple(SAME if m == n else whole(1) for m, n in zip(grid, source.grid, strict=True))


# ---- element by element ---------------------------------------------------------------------------------


def _pointwise(found: list[Value], out: Tensor) -> Value | None:
    if not found:
        return None
    shape = tuple(out.shape)
    placed = {tuple(a + len(shape) - len(value.shape) for a in value.axes): value for value in found}
    placed.pop((), None)
    if len(placed) > 1:
        raise Refusal(_DIFFERENT)
    if placed:
        ((axes, value),) = placed.items()
        grid = value.grid if len(axes) == 1 else tuple(shape[a] for a in axes)
    elif len(shape) == 4 and shape[2:] != (1, 1) and all(value.shape[-2:] == (1, 1) for value in found):
        axes, grid = (2, 3), shape[2:]  # a gate or a context vector, spread over a map
    else:
        axes, grid = (), (1, 1)
    made = Value(shape, axes, grid)
    for value in found:
        own = [1] * (len(shape) - len(value.shape)) + list(value.shape)
        own = [1 if d in axes else n for d, n in enumerate(own)]
        if math.prod(own) != math.prod(value.lead):
            raise Refusal(_DIFFERENT)
        labels = torch.arange(math.prod(own)).reshape(own).expand(made.lead).reshape(-1)
        made.edges.append(_edge(value, _broadcast(value, grid), labels))
    return made


def _joined(find: Find, parts: Sequence[Tensor], dim: int, out: Tensor, *, new: bool) -> Value:
    """Concatenation along a dimension, or stacking along a ``new`` one."""
    found = [(find(part), 1 if new else part.shape[dim]) for part in parts if part.numel()]
    first = max((value for value, _ in found if value), key=lambda value: len(value.axes))
    axes = tuple(a + (new and a >= dim) for a in first.axes)
    if dim in axes or any(value and value.axes not in ((), first.axes) for value, _ in found):
        raise Refusal("a concatenation along height or width")
    made, start = Value(tuple(out.shape), axes, first.grid), 0
    lead = torch.arange(math.prod(made.lead)).reshape(made.lead)
    for value, n in found:
        if value:
            own = torch.arange(math.prod(value.lead))
            labels = torch.full((lead.numel(),), -1)
            labels[lead.narrow(dim, start, n).reshape(-1)] = own
            made.edges.append(Edge(value, _broadcast(value, first.grid), labels, own))
        start += n
    return made


# ---- views ----------------------------------------------------------------------------------------------


def _views(x: Value, func, args, kwargs) -> list[Value]:
    """Run the view on a tensor whose strides tell dimensions apart: lead, then height, then width."""
    strides, step = [0] * len(x.shape), math.prod(x.grid)
    for d in reversed(range(len(x.shape))):
        if d not in x.axes:
            strides[d] = step
            step *= x.shape[d]
    for axis, own in zip(x.axes, (x.grid[1], 1)[-len(x.axes) :], strict=False):
        strides[axis] = own
    carrier = torch.empty_strided(x.shape, strides, device="meta")
    try:
        views = [view for view in tensors(func(carrier, *args[1:], **kwargs)) if view.numel()]
    except RuntimeError:
        raise Refusal("a reshape that mixes height or width with other dimensions") from None
    return [_view(x, view) for view in views]


def _view(x: Value, view: Tensor) -> Value:
    height, width = x.grid
    area = height * width
    lead = torch.tensor(view.storage_offset() // area)
    offsets = divmod(view.storage_offset() % area, width)
    flat, rows, columns = [], [], []
    for d, (n, step) in enumerate(zip(view.shape, view.stride(), strict=True)):
        lead = lead.unsqueeze(-1)
        if n > 1 and step % area == 0:
            lead = lead + torch.arange(n) * (step // area)
        elif n == area and height > 1 and width > 1:
            flat.append((d, 1))
        elif n > 1:
            (columns if step % width else rows).append((d, step if step % width else step // width))
    if max(map(len, (flat, rows, columns))) > 1 or (flat and (rows or columns)):
        raise Refusal("a reshape that cuts height or width into parts")
    axes, grid, rules = tuple(d for d, _ in (*flat, *rows, *columns)), x.grid, (SAME, SAME)
    if not flat:
        found = [part[0] if part else (None, 1) for part in (rows, columns)]
        grid = tuple(1 if d is None else view.shape[d] for d, _ in found)
        rules = tuple(window(1, step, 1, -offset) for (_, step), offset in zip(found, offsets, strict=True))
        if view.dim() == 4 and view.shape[2:] == grid and set(axes) < {2, 3} and (axes or x.axes):
            axes = (2, 3)  # what is not found is a single place
    return Value(tuple(view.shape), axes, grid, [_edge(x, rules, lead.reshape(-1))])


# ---- sums over dimensions -------------------------------------------------------------------------------


def _normalized(x: Value, outs: list[Tensor], dims, *, statistics: bool) -> list[Value | None]:
    """Norms and softmax: an element sees all along ``dims``, or through ``statistics`` the whole image."""
    labels = _labels(x.lead, dims) if dims else None
    made = Value(tuple(outs[0].shape), x.axes, x.grid, [Edge(x, (SAME, SAME), labels, labels)])
    if statistics and x.axes:
        zeros = torch.zeros(math.prod(x.lead), dtype=torch.long)
        made.edges.append(Edge(x, tuple(map(whole, x.grid)), zeros, zeros, is_global=True))
    return [made, *(None for _ in outs[1:])]  # the others are the statistics, for the backward pass


def _reduced(x: Value, dims: Sequence[int] | None, out: Tensor) -> Value:
    """Sums, means and the like over some dimensions; over height or width they pool the whole image."""
    dims = {d % len(x.shape) for d in dims or range(len(x.shape))}
    pooled = dims & set(x.axes)
    axes = x.axes
    if out.dim() < len(x.shape):
        if 0 < len(pooled) < len(axes):
            raise Refusal("a mean over height or width alone (without keepdim=True)")
        axes = tuple(a - sum(d < a for d in dims) for a in axes)
    # a single axis stands for height and width
    grid = tuple(1 if a in dims else n for a, n in zip((x.axes * 2)[:2], x.grid, strict=False)) or (1, 1)
    rules = tuple(SAME if m == n else whole(n) for m, n in zip(grid, x.grid, strict=True))
    made = Value(tuple(out.shape), () if len(pooled) == len(axes) else axes, grid)
    own = torch.arange(math.prod(made.lead))
    made.edges.append(Edge(x, rules, own, _labels(x.lead, dims), is_global=bool(pooled)))
    return made


def _product(find: Find, name: str, args, out: Tensor) -> Value:
    """(..., n, k) times weights (k, m): a linear layer over channels."""
    x, weights = map(find, args[-2:])
    if x is None or (len(args) > 2 and find(args[0])):
        raise Refusal(f"the operator {name}, which is followed as a linear layer over channels only,")
    last = len(x.shape) - 1
    if weights or len(x.axes) == 2 or last in x.axes:
        what = "attention" if weights else "a linear layer over space"
        raise Refusal(f"{what}, which sees the whole image at once,")
    made = Value(tuple(out.shape), x.axes, x.grid)
    made.edges.append(Edge(x, (SAME, SAME), _labels(made.lead, {last}), _labels(x.lead, {last})))
    return made


# ---- operators on maps (B, C, H, W): the edges of an output ---------------------------------------------


def _mapped(x: Value, edges: list[Edge], out: Tensor) -> Value:
    grid = tuple(out.shape[2:])
    if not x.axes:  # a source without a place is the same everywhere
        for edge in edges:
            edge.rules = whole(1), whole(1)
    return Value(tuple(out.shape), (2, 3) if x.axes or grid != (1, 1) else (), grid, edges)


def _convolution(find: Find, x: Value, args, out: Tensor) -> list[Edge]:
    weight, stride, padding, dilation, is_transposed, groups = args[1], *args[3:7], args[8]
    if find(weight):
        raise Refusal("a convolution whose weights depend on the image")
    kind = transposed if is_transposed else window
    rules = tuple(map(kind, weight.shape[2:], stride, dilation, padding))
    group_of = [
        torch.arange(n * groups).repeat_interleave(c // groups) for n, c in (out.shape[:2], x.shape[:2])
    ]
    return [Edge(x, rules, *group_of)]


def _pooling(find: Find, x: Value, args, out: Tensor) -> list[Edge]:
    kernel, stride, padding, dilation = (*args[1:5], None, None, None)[:4]
    if not isinstance(dilation, Sequence):  # average pooling has none, but another argument there
        dilation = None
    rules = tuple(map(window, kernel, stride or kernel, dilation or (1, 1), padding or (0, 0)))
    return [Edge(x, rules, pools=True)]


def _adaptive_pooling(find: Find, x: Value, args, out: Tensor) -> list[Edge]:
    sizes = list(zip(x.grid, out.shape[2:], strict=True))
    rules = tuple(SAME if n == m else cells(n, m) for n, m in sizes)
    return [Edge(x, rules, is_global=any(n != m for n, m in sizes), pools=True)]


def _unpooling(find: Find, x: Value, args, out: Tensor) -> list[Edge]:
    sizes = zip(x.shape[2:], out.shape[2:], strict=True)
    rules = tuple(resize("nearest", Fraction(n, m), Fraction(0)) for n, m in sizes)
    return [Edge(source, rules) for source in (x, find(args[1])) if source]  # the maximum, and where it was


def _resizing(kind: str):
    def edges(find: Find, x: Value, args, out: Tensor) -> list[Edge]:
        aligned = kind != "nearest" and args[2]
        scales = (*args[2 if kind == "nearest" else 3 :], None, None)[:2]
        rules = []
        for n, m, scale in zip(x.shape[2:], out.shape[2:], scales, strict=True):
            step = Fraction(n, m) if scale is None else 1 / Fraction(scale).limit_denominator(2**16)
            if aligned:
                step = Fraction(n - 1, max(m - 1, 1))
            shift = Fraction(0) if aligned or kind == "nearest" else (step - 1) / 2
            rules.append(resize(kind, step, shift) if step else whole(1))
        return [Edge(x, tuple(rules))]

    return edges


def _padding(find: Find, x: Value, args, out: Tensor) -> list[Edge]:
    left, _, top, _, front, end, *batch = (*args[1], *[0] * 8)[:8]
    rules = window(padding=top), window(padding=left)
    if not (front or end or any(batch)):
        return [Edge(x, rules)]
    if min(front, end) < 0 or any(batch):
        raise Refusal("padding of the batch or cropping of channels")
    own, labels = torch.arange(math.prod(x.lead)), torch.full(out.shape[:2], -1)
    labels[:, front : front + x.shape[1]] = own.reshape(x.shape[:2])
    return [Edge(x, rules, labels.reshape(-1), own)]


def _reflection(find: Find, x: Value, args, out: Tensor) -> list[Edge]:
    left, _, top, _ = args[1]
    return [Edge(x, (reflect(top), reflect(left)))]


def _pixel_shuffle(find: Find, x: Value, args, out: Tensor) -> list[Edge]:
    """Output (c, h r + i, w r + j) is input (c r^2 + i r + j, h, w)."""
    r, own, edges = args[1], torch.arange(math.prod(x.lead)), []
    for k in range(r * r):
        rules = transposed(1, r, 1, -(k // r)), transposed(1, r, 1, -(k % r))
        edges.append(Edge(x, rules, own[k :: r * r], own))
    return edges


def _pixel_unshuffle(find: Find, x: Value, args, out: Tensor) -> list[Edge]:
    """Output (c r^2 + i r + j, h, w) is input (c, h r + i, w r + j)."""
    r, own, edges = args[1], torch.arange(math.prod(x.lead)), []
    for k in range(r * r):
        rules = window(1, r, 1, -(k // r)), window(1, r, 1, -(k % r))
        labels = torch.full((len(own), r * r), -1)
        labels[:, k] = own
        edges.append(Edge(x, rules, labels.reshape(-1), own))
    return edges


_SPATIAL = {
    "convolution": _convolution,
    "avg_pool2d": _pooling,
    "max_pool2d_with_indices": _pooling,
    "_adaptive_avg_pool2d": _adaptive_pooling,
    "max_unpool2d": _unpooling,
    "upsample_nearest2d": _resizing("nearest"),
    "upsample_bilinear2d": _resizing("bilinear"),
    "upsample_bicubic2d": _resizing("bicubic"),
    "constant_pad_nd": _padding,
    "reflection_pad2d": _reflection,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
}
