"""Parameters and multiply-adds of a network for one image, as the papers count them; nothing is allocated.

Papers mean different things by FLOP. ``"conv"`` counts the multiply-adds of convolutions, transposed
convolutions, linear layers and matrix products, ``"conv+bn"`` one more for each value that a batch norm puts
out (the tables of Ladder-DenseNet), ``"fvcore"`` what the library fvcore calls its total (RegSeg): two for
each such value (one without affine parameters), four for each value of bilinear and one of nearest
interpolation, one for each input value of adaptive average pooling.
"""

import inspect
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from segkit.measure import meta

CONVENTIONS = ("conv", "conv+bn", "fvcore")


@dataclass(frozen=True)
class Cost:
    """Attributes: ``params``, number of parameters; ``macs``, multiply-adds for one image."""

    params: int
    macs: int


def cost(
    model: nn.Module, image_size: tuple[int, int], *, convention: str = "conv", auxiliary: bool = False
) -> Cost:
    """Count what one image of 3 x H x W costs in eval mode.

    The forward runs on meta tensors in place of the model's own, so the model may be anywhere, and is left as
    it was: values, buffers, mode, ``requires_grad``, random state.

    Args:
        model: takes (1, 3, H, W); returns a tensor, or a dict with the logits under ``"out"``.
        image_size: (H, W) in pixels.
        convention: one of ``CONVENTIONS``.
        auxiliary: False counts the path to ``"out"`` and the parameters that it uses; True adds the other
            outputs, asking for them by ``model(x, auxiliary=True)`` where the model's forward knows that
            argument.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if ``image_size`` is not a pair of positive integers, the convention is unknown, or the
            model's output is neither a tensor nor a dict with ``"out"``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"cost() takes a torch.nn.Module, not {type(model).__name__}.")
    if convention not in CONVENTIONS:
        raise ValueError(
            f"Unknown convention {convention!r}; choose one of {', '.join(map(repr, CONVENTIONS))}."
        )
    if (
        not isinstance(image_size, (tuple, list))
        or len(image_size) != 2
        or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in image_size)
    ):
        raise ValueError(f"image_size={image_size!r}: give (H, W), two positive integers, e.g. (1024, 2048).")

    knows_auxiliary = "auxiliary" in inspect.signature(model.forward).parameters
    options = {"auxiliary": auxiliary} if knows_auxiliary else {}
    modes = {module: module.training for module in model.modules()}
    counter, pools = _Counter(), _AdaptivePools()
    with torch.inference_mode(False), torch.enable_grad():
        parameters = {name: meta.empty_like(parameter) for name, parameter in model.named_parameters()}
        buffers = {name: meta.empty_like(buffer) for name, buffer in model.named_buffers()}
        floating = [parameter for parameter in parameters.values() if parameter.is_floating_point()]
        for parameter in floating:  # frozen ones too: the graph behind "out" shall name all that it uses
            parameter.requires_grad_()
        dtype = floating[0].dtype if floating else torch.float32
        image = torch.empty(1, 3, *image_size, dtype=dtype, device="meta")
        try:
            model.eval()
            with pools, counter:
                output = torch.func.functional_call(model, parameters | buffers, (image,), options)
        finally:
            for module, training in modes.items():
                module.training = training

    tensors = list(_tensors(output if auxiliary else _logits(output)))
    macs = counter.flops // 2
    if convention == "conv+bn":
        macs += counter.batch_norm
    elif convention == "fvcore":
        macs += counter.batch_norm + counter.affine + counter.interpolation + pools.elements
    return Cost(params=sum(parameter.numel() for parameter in _used(tensors, floating)), macs=macs)


class _Counter(TorchDispatchMode):
    """Counts below autograd, however an operation was called: flops by the formulas of torch's
    FlopCounterMode (two per multiply-add), and values that batch norms and interpolations put out."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.batch_norm = self.affine = self.interpolation = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = meta.run(func, args, kwargs)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        name = func.name()
        if "batch_norm" in name:
            self.batch_norm += out[0].numel()
            self.affine += out[0].numel() if args[1] is not None else 0
        elif "upsample_bilinear2d" in name:
            self.interpolation += 4 * out.numel()
        elif "upsample_nearest2d" in name:
            self.interpolation += out.numel()
        return out


class _AdaptivePools(TorchFunctionMode):
    """Counts input values of adaptive average pooling; above autograd, as below, pooling to 1x1 is a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.adaptive_avg_pool2d:
            self.elements += args[0].numel()
        return func(*args, **(kwargs or {}))


def _logits(output) -> Tensor:
    out = output.get("out") if isinstance(output, dict) else output
    if not isinstance(out, Tensor):
        kind = f"a dict with {list(output)}" if isinstance(output, dict) else type(output).__name__
        raise ValueError(
            f"Expected a tensor or a dict with the logits under 'out' from the model, got {kind}."
        )
    return out


def _tensors(output):
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (dict, list, tuple)):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)


def _used(outputs: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
    """Those of ``parameters`` that the outputs depend on, found by walking the graph back from them."""
    found, seen = set(), set()
    todo = [output.grad_fn for output in outputs]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # AccumulateGrad: a leaf
            found.add(id(node.variable))
        todo.extend(function for function, _ in node.next_functions)
    return [parameter for parameter in parameters if id(parameter) in found]
