"""From a model to the graph of its values: `read` runs a copy of it once and notes every operator.

The copy runs on meta tensors, which have sizes but no data, so that even an image of 4096x4096 costs nothing.
For ``nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())`` the graph has three values in a row: the image, the
convolution's output and the activation's.

Some pooling has a window that grows with the image (``F.avg_pool2d(x, x.shape[2])``): the model is run at a
second size, and what differs pools the whole image.
"""

from difflib import get_close_matches
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from segkit.measure._graph import SAME, Edge, Network, Value
from segkit.measure._operators import Refusal, follow, is_pointwise, tensors
from segkit.measure.meta import run as run_on_meta
from segkit.measure.step import copy_model, undisturbed
from segkit.measure.tracker import MODEL, MeasurementError

LARGE = 4096  # side of the image that a network is run at: borders are far away
LARGER = 6144


def read(model: nn.Module, at, choice, image_size: tuple[int, int] | None, channels: int) -> Network:
    """Run a copy of the model on meta tensors and note what its output was computed from."""
    with undisturbed(), torch.no_grad():
        copied = copy_model(model, "meta").eval()
        network = _trace(copied, at, choice, image_size or (LARGE, LARGE), channels)
        other_side = LARGER if image_size is None else LARGE
        try:
            other = _trace(copied, at, choice, (other_side, other_side), channels)
        except (ValueError, TypeError, RuntimeError):
            other = network  # a model of one size only
    _mark_global_pools(network, other)
    _find_strides(network)
    return network


def _trace(model: nn.Module, at, choice, size: tuple[int, int], channels: int) -> Network:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    image = torch.empty(1, channels, *size, dtype=dtype, device="meta")
    reader = _Reader()
    start = reader.note(image, Value(tuple(image.shape), (2, 3), size))
    hooks = []
    for name, module in model.named_modules():
        enter = module.register_forward_pre_hook(lambda *_, name=name: reader.running.append(name or MODEL))
        leave = module.register_forward_hook(lambda *_: reader.running.pop() and None)
        hooks += [enter, leave]
    try:
        with reader:
            out = run_until(model, image, at, choice)
    finally:
        for hook in hooks:
            hook.remove()
    name, value = type(model).__name__, reader.find(out)
    if value is None:
        raise ValueError(
            f"The output of {name}{_where(at)} does not depend on the image: no path of operators leads from "
            f"one to the other. Choose another at= or output=."
        )
    if out.dim() != 4 or not (value.refusal or value.axes == (2, 3) or out.shape[2:] == (1, 1)):
        raise ValueError(no_place(out))
    return Network(name, reader.values, start, value)


class _Reader(TorchDispatchMode):
    """Follows tensors from the image on, below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Value] = []
        self.known: dict[int, tuple[Tensor, Value]] = {}  # tensors are kept: their ids must stay theirs
        self.written: dict[int, tuple[Tensor, int]] = {}  # by storage: last written to, and when
        self.running: list[str] = [MODEL]  # paths of modules

    def note(self, tensor: Tensor, value: Value) -> Value:
        value.number, value.name = len(self.values), self.running[-1]
        self.values.append(value)
        self.known[id(tensor)] = tensor, value
        return value

    def find(self, tensor) -> Value | None:
        """What is known of a tensor; None if it does not depend on the image."""
        if not isinstance(tensor, Tensor):
            return None
        _, value = self.known.get(id(tensor), (tensor, None))
        writer, when = self.written.get(tensor.untyped_storage()._cdata, (tensor, -1))
        if writer is tensor or (value and value.number >= when):
            return value
        sources = [self.known[id(t)][1] for t in (writer, tensor) if id(t) in self.known]
        if not sources:  # a constant that had another one written into it
            return None
        what = "a tensor that shares its memory with one that was written to in place"
        return self.note(tensor, self.refused(tensor, sources, what))

    def refused(self, tensor: Tensor, sources: list[Value], what: str) -> Value:
        reason = next((source.refusal for source in sources if source.refusal), None)
        reason = reason or f"{what} in {self.running[-1]}"
        edges = [Edge(source, (SAME, SAME)) for source in sources]
        return Value(tuple(tensor.shape), (), (1, 1), edges, reason)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if name in ("linear", "matmul"):
            with self:
                return func.decompose(*args, **kwargs)
        sources = [value for value in map(self.find, tensors((args, kwargs))) if value]
        out = run_on_meta(func, args, kwargs)
        if not sources:
            return out
        outs = [tensor for tensor in tensors(out) if tensor.numel()]
        writes = name.endswith("_") and not name.startswith("_")
        name = name.rstrip("_") if writes else name
        try:
            if any(source.refusal for source in sources):
                raise Refusal
            made = follow(self.find, name, func, args, kwargs, outs)
        except Refusal as refusal:
            made = [self.refused(tensor, sources, str(refusal)) for tensor in outs]
        if writes and not (is_pointwise(name, func) and len(sources) == 1):
            # Views of this memory, older ones and its base, are not what they were.
            self.written[outs[0].untyped_storage()._cdata] = outs[0], len(self.values)
        for tensor, value in zip(outs, made, strict=True):
            if value is None:
                self.known.pop(id(tensor), None)
            else:
                self.note(tensor, value)
        return out


def _mark_global_pools(network: Network, other: Network) -> None:
    """Tell pooling whose window grows with the image, by the same network on an image of another size."""
    pools, twins = ([e for v in run.values for e in v.edges if e.pools] for run in (network, other))
    if len(twins) != len(pools):
        twins = pools
    for edge, twin in zip(pools, twins, strict=True):
        adaptive = edge.is_global  # global unless the other size shows that it is not
        grows = any(a.taps != b.taps for a, b in zip(edge.rules, twin.rules, strict=True))
        covers = any(
            rule.taps and rule.taps[0] >= size > 1
            for rule, size in zip(twin.rules, twin.source.grid, strict=True)
        )
        edge.is_global = grows or (twin is edge if adaptive else covers)


def _find_strides(network: Network) -> None:
    """The distance of a value's places, in pixels, for those that see the image locally."""
    network.image.stride = Fraction(1), Fraction(1)
    for value in network.values:
        edges = [edge for edge in value.edges if not edge.is_global and edge.source.stride]
        if edges:
            value.stride = tuple(_stride(network, value, edges, axis) for axis in (0, 1))


def _stride(network: Network, value: Value, edges: list[Edge], axis: int) -> Fraction:
    for edge in edges:
        if edge.rules[axis].step is not None:
            return edge.source.stride[axis] * edge.rules[axis].step
    return Fraction(network.image.grid[axis], value.grid[axis])  # a single place, spread out


# ---- running a model up to the tensor that is asked for -------------------------------------------------


class _Stop(Exception):
    """Ends a run at the output of a submodule."""


def run_until(model: nn.Module, images: Tensor, at: str | None, choice) -> Tensor:
    """The chosen tensor of what a model, or its submodule ``at``, returns."""
    name, caught = type(model).__name__, []
    modules = dict(model.named_modules())
    if at is not None and at not in modules:
        near = get_close_matches(str(at), modules, n=3, cutoff=0.4) or [n for n in modules if n][:8]
        raise ValueError(f"{name} has no submodule {at!r}; near ones or the first: {', '.join(near)}.")

    def stop(module, inputs, output):
        caught.append(output)
        raise _Stop

    hook = None if at is None else modules[at].register_forward_hook(stop)
    try:
        found = model(images)
    except _Stop:
        found = caught[0]
    except MeasurementError:
        raise
    except NotImplementedError as error:
        raise MeasurementError(f"{name} cannot run on meta tensors, which have no values: {error}") from error
    except (RuntimeError, TypeError, AssertionError, ValueError, IndexError) as error:
        height, width = images.shape[2:]
        raise ValueError(
            f"{name} does not take an image of {height}x{width} pixels: {error} Give a larger one, or the "
            f"size that the model is made for, as image_size=(H, W)."
        ) from error
    finally:
        if hook is not None:
            hook.remove()
    if at is not None and not caught:
        raise ValueError(f"{name} never calls its submodule {at!r}; choose another one.")
    return _chosen(found, choice, name + _where(at))


def _chosen(found, choice, name: str) -> Tensor:
    if callable(choice):
        tensor = choice(found)
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"output= returned {type(tensor).__name__} for what {name} returns, not a tensor."
            )
        return tensor
    kind, picked = type(found).__name__, None
    if isinstance(found, Tensor):
        kind, picked = "a single tensor", found if choice is None else None
    elif isinstance(found, dict):
        choice = "out" if choice is None and "out" in found else choice
        kind, picked = f"a dict with {', '.join(map(repr, found))}", found.get(choice)
    elif isinstance(found, (list, tuple)):
        kind = f"{len(found)} outputs, numbered from 0"
        if isinstance(choice, int) and -len(found) <= choice < len(found):
            picked = found[choice]
    if isinstance(picked, Tensor):
        return picked
    chosen = "choose one by output=" if choice is None else f"output={choice!r} is no tensor of it"
    raise ValueError(f"{name} returns {kind}; {chosen} (a key, an index, or a function that picks a tensor).")


def _where(at: str | None) -> str:
    return f" at {at!r}" if at is not None else ""


def no_place(out: Tensor) -> str:
    return (
        f"The output has the shape {tuple(out.shape)}, which has no height and width that are places in the "
        f"image; choose a feature map by at= (a submodule, e.g. 'layer4') or output=."
    )
