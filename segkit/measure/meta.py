"""Meta kernels for the operators that take most of the time: sizes only, without general code's many checks.

PyTorch's own meta kernels for these go through general Python code, a tenth of a millisecond to 20 ms a call,
most of the time of a step. A kernel here returns NotImplemented for what it does not cover, which PyTorch's
kernel then does.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten


def _empty(shape: Sequence[int], of: Tensor) -> Tensor:
    return torch.empty(shape, dtype=of.dtype, device="meta")


def empty_like(tensor: Tensor) -> Tensor:
    """As `torch.empty_like` on the meta device, whose general code takes 20 times as long."""
    return _empty(tensor.shape, tensor) if tensor.is_contiguous() else torch.empty_like(tensor, device="meta")


def _batch_norm(x, weight, bias, mean, variance, training, momentum, eps):
    if not x.is_contiguous():
        return NotImplemented
    dtype = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
    statistics = x.shape[1] if training else 0
    return _empty(x.shape, x), *(torch.empty(statistics, dtype=dtype, device="meta") for _ in range(2))


def _batch_norm_backward(
    gradient, x, weight, mean, variance, saved_mean, saved_invstd, training, eps, wanted
):
    if not x.is_contiguous() or weight is None:
        return NotImplemented
    return (
        _empty(x.shape, x) if wanted[0] else None,
        _empty(weight.shape, weight) if wanted[1] else None,
        _empty(weight.shape, weight) if wanted[2] else None,
    )


def _convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    on_maps = (x.dim(), weight.dim(), len(stride), len(padding), len(dilation)) == (4, 4, 2, 2, 2)
    if transposed or not on_maps or not _are_alike(x, weight, *([] if bias is None else [bias])):
        return NotImplemented
    if not x.shape[1] == groups * weight.shape[1] > 0 or weight.shape[0] % groups:
        return NotImplemented
    (_, _, *sides), (channels, _, *kernel) = x.shape, weight.shape
    height, width = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(sides, kernel, stride, padding, dilation, strict=True)
    )
    return _empty((x.shape[0], channels, height, width), x) if min(height, width) > 0 else NotImplemented


def _convolution_backward(gradient, x, weight, bias_size, *rest):
    if not _are_alike(x, weight) or not gradient.is_meta or gradient.dtype != x.dtype:
        return NotImplemented
    wanted = rest[-1]
    return (
        _empty(x.shape, x) if wanted[0] else None,
        _empty(weight.shape, weight) if wanted[1] else None,
        _empty(bias_size, gradient) if wanted[2] else None,
    )


def _cat(tensors, dim=0):
    rank = tensors[0].dim() if tensors else 0
    if not -rank <= dim < rank:
        return NotImplemented
    dim %= rank
    first, shape, total = tensors[0], tensors[0].shape, 0
    for tensor in tensors:
        own = tensor.shape
        fits = own[:dim] == shape[:dim] and own[dim + 1 :] == shape[dim + 1 :] and len(own) == rank
        if not fits or tensor.dtype != first.dtype or not _is_usual(tensor):
            return NotImplemented
        total += own[dim]
    return _empty((*shape[:dim], total, *shape[dim + 1 :]), first)


def _log_softmax(x, dim, half_to_float):
    covered = not half_to_float and -x.dim() <= dim < x.dim() and _are_alike(x)
    return _empty(x.shape, x) if covered else NotImplemented


def _log_softmax_backward(gradient, output, dim, dtype):
    covered = gradient.shape == output.shape and dtype == output.dtype and _are_alike(gradient, output)
    return _empty(output.shape, output) if covered else NotImplemented


def _on_one(x, *rest):
    return _empty(x.shape, x) if x.is_floating_point() and _is_plain(x) else NotImplemented


def _on_two(a, b, *rest):
    if not isinstance(b, Tensor) or not b.is_meta or a.dtype != b.dtype:
        return NotImplemented
    if a.shape == b.shape:
        return _empty(a.shape, a) if _is_plain(a) and _is_plain(b) else NotImplemented
    small, large = sorted((a, b), key=Tensor.numel)  # a gate for each channel, say, and its map
    fits = small.dim() == large.dim() and all(
        n in (1, m) for n, m in zip(small.shape, large.shape, strict=True)
    )
    return _empty(large.shape, a) if fits and _are_alike(a, b) else NotImplemented


def _over(x, dims, keepdim=False):
    """A mean or a sum."""
    if not x.is_floating_point() or not dims or not all(-x.dim() <= d < x.dim() for d in dims):
        return NotImplemented
    gone = {d % x.dim() for d in dims}
    if len(gone) < len(dims) or not _is_plain(x):
        return NotImplemented
    return _empty([1 if d in gone else n for d, n in enumerate(x.shape) if keepdim or d not in gone], x)


def _prelu(x, weight):
    covered = weight.is_meta and x.dtype == weight.dtype and _is_plain(x)
    return _empty(x.shape, x) if covered else NotImplemented


def _prelu_backward(gradient, x, weight):
    covered = weight.is_meta and gradient.dtype == x.dtype == weight.dtype and gradient.shape == x.shape
    if not (covered and _is_plain(gradient) and _is_plain(x)):
        return NotImplemented
    return _empty(x.shape, x), _empty(x.shape, x)  # the weight's: autograd sums it up


def _upsample(x, size, align_corners, *scales):
    return _empty((*x.shape[:2], *size), x) if _are_alike(x) else NotImplemented


def _on_each(tensors, *rest):
    return [empty_like(tensor) for tensor in tensors]


def _in_place_on_each(tensors, *rest):
    return None


KERNELS: dict[object, Callable] = {
    _aten.native_batch_norm.default: _batch_norm,
    _aten.native_batch_norm_backward.default: _batch_norm_backward,
    _aten.convolution.default: _convolution,
    _aten.convolution_backward.default: _convolution_backward,
    _aten.cat.default: _cat,
    _aten._log_softmax.default: _log_softmax,
    _aten._log_softmax_backward_data.default: _log_softmax_backward,
    _aten.sigmoid.default: _on_one,
    _aten.div.Scalar: _on_one,
    _aten.sigmoid_backward.default: _on_two,
    _aten.threshold_backward.default: _on_two,
    _aten.add.Tensor: _on_two,
    _aten.mul.Tensor: _on_two,
    _aten.sub.Tensor: _on_two,
    _aten.mean.dim: _over,
    _aten.sum.dim_IntList: _over,
    _aten._prelu_kernel.default: _prelu,
    _aten._prelu_kernel_backward.default: _prelu_backward,
    _aten.upsample_bilinear2d.default: _upsample,
    _aten.upsample_bicubic2d.default: _upsample,  # PyTorch's imports its compiler, for seconds
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

    A mode that counts operators (FlopCounterMode) goes inside it: one around it would not hear of those that
    have a kernel here.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def _is_plain(tensor: Tensor) -> bool:
    """Whether strides fall from the first dimension to the last, as in a contiguous tensor or its slices."""
    return all(a >= b for a, b in pairwise(tensor.stride()))


def _is_usual(tensor: Tensor) -> bool:
    """Whether each sample's strides are those of a contiguous tensor, which rules out channels last."""
    expected = 1
    for n, step in zip(reversed(tensor.shape[1:]), reversed(tensor.stride()[1:]), strict=True):
        if step != expected:
            return False
        expected *= n
    return True


def _are_alike(*tensors: Tensor) -> bool:
    """Whether tensors have one type and are contiguous, none channels last as well (1x1 maps can be both)."""
    dtype = tensors[0].dtype
    return all(x.is_meta and x.dtype == dtype and x.is_contiguous() and _is_usual(x) for x in tensors)


def _is_meta(value) -> bool:
    return value.is_meta if isinstance(value, Tensor) else all(tensor.is_meta for tensor in value)
