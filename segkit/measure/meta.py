"""Meta kernels for the operators that take most of the time: sizes only, without general code's many checks.

PyTorch's own meta kernels for these go through general Python code, 1 to 10 ms a call, half of the time of a
step. A kernel here returns NotImplemented for what it does not cover, which PyTorch's kernel then does.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten


def _batch_norm(x, weight, bias, mean, variance, training, momentum, eps):
    if not x.is_contiguous():
        return NotImplemented
    statistics = x.shape[1] if training else 0
    dtype = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
    return torch.empty_like(x), x.new_empty(statistics, dtype=dtype), x.new_empty(statistics, dtype=dtype)


def _batch_norm_backward(
    gradient, x, weight, mean, variance, saved_mean, saved_invstd, training, eps, wanted
):
    if not x.is_contiguous() or weight is None:
        return NotImplemented
    return (
        torch.empty_like(x) if wanted[0] else None,
        torch.empty_like(weight) if wanted[1] else None,
        torch.empty_like(weight) if wanted[2] else None,
    )


def _two_alike(a, b, *rest):
    if not isinstance(b, Tensor) or not b.is_meta or a.shape != b.shape or a.dtype != b.dtype:
        return NotImplemented
    return a.new_empty(a.shape) if _is_plain(a) and _is_plain(b) else NotImplemented


def _prelu(x, weight):
    covered = weight.is_meta and x.dtype == weight.dtype and _is_plain(x)
    return x.new_empty(x.shape) if covered else NotImplemented


def _prelu_backward(gradient, x, weight):
    covered = weight.is_meta and gradient.dtype == x.dtype == weight.dtype
    if not (covered and _is_plain(gradient) and _is_plain(x)):
        return NotImplemented
    return x.new_empty(x.shape), x.new_empty(x.shape)  # the weight's: autograd sums it up


def _upsample(x, size, align_corners, *scales):
    return x.new_empty((*x.shape[:2], *size)) if x.is_contiguous() else NotImplemented


def _on_each(tensors, *rest):
    return [torch.empty_like(tensor) for tensor in tensors]


def _in_place_on_each(tensors, *rest):
    return None


KERNELS: dict[object, Callable] = {
    _aten.native_batch_norm.default: _batch_norm,
    _aten.native_batch_norm_backward.default: _batch_norm_backward,
    _aten.threshold_backward.default: _two_alike,
    _aten.add.Tensor: _two_alike,
    _aten.mul.Tensor: _two_alike,
    _aten.sub.Tensor: _two_alike,
    _aten._prelu_kernel.default: _prelu,
    _aten._prelu_kernel_backward.default: _prelu_backward,
    _aten.upsample_bilinear2d.default: _upsample,
    # of the optimizers' updates
    _aten._foreach_sqrt.default: _on_each,
    _aten._foreach_add_.List: _in_place_on_each,
    _aten._foreach_mul_.Scalar: _in_place_on_each,
    _aten._foreach_lerp_.Scalar: _in_place_on_each,
    _aten._foreach_maximum_.List: _in_place_on_each,
    _aten._foreach_div_.ScalarList: _in_place_on_each,
    _aten._foreach_addcmul_.Scalar: _in_place_on_each,
    _aten._foreach_addcdiv_.ScalarList: _in_place_on_each,
}


def run(func, args: tuple, kwargs: dict):
    """The result of an operator on meta tensors."""
    kernel = KERNELS.get(func)
    if kernel is not None and _is_meta(args[0]) and not kwargs.keys() - {"alpha", "value"}:
        out = kernel(*args)
        if out is not NotImplemented:
            return out
    return func(*args, **kwargs)


class FastMeta(TorchDispatchMode):
    """Within it, operators on meta tensors go through `run`; for those who follow nothing else meanwhile.

    with FastMeta():
        out = model(torch.empty(1, 3, 512, 512, device="meta"))
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def _is_plain(tensor: Tensor) -> bool:
    """Whether strides fall from the first dimension to the last, as in a contiguous tensor or its slices."""
    strides = tensor.stride()
    return all(a >= b for a, b in pairwise(strides))


def _is_meta(value) -> bool:
    return value.is_meta if isinstance(value, Tensor) else all(tensor.is_meta for tensor in value)
