"""Meta kernels: what they give has the sizes, types and strides of PyTorch's own."""

import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from segkit.measure import meta
from segkit.measure.meta import FastMeta


def network():
    layers = [nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*layers, nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize("training", [False, True])
def test_a_pass_has_the_same_sizes_and_runs_the_kernels(training, monkeypatch):
    ran = []
    for func, kernel in meta.KERNELS.items():
        monkeypatch.setitem(meta.KERNELS, func, lambda *args, f=func, k=kernel: ran.append(f) or k(*args))
    model = network().to("meta").train(training)
    x = torch.empty(2, 3, 8, 12, device="meta", requires_grad=True)
    expected = model(x)
    assert not ran  # outside of it all is PyTorch's
    with FastMeta():
        out = model(x)
        out.sum().backward()
    assert (out.shape, out.dtype, out.stride()) == (expected.shape, expected.dtype, expected.stride())
    assert x.grad.shape == x.shape
    assert {func.overloadpacket.__name__ for func in ran} >= {"native_batch_norm", "upsample_bilinear2d"}


def test_tensors_with_values_are_computed_as_ever():
    torch.manual_seed(0)
    model, x = network().eval(), torch.rand(1, 3, 8, 8)
    expected = model(x)
    with FastMeta():
        assert torch.equal(model(x), expected)


aten = torch.ops.aten


def new(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


@st.composite
def maps(draw):
    """(B, C, H, W) on the meta device, two types: contiguous, channels last, part of more, turned, spread."""
    batch, channels = draw(st.tuples(st.integers(1, 3), st.integers(1, 6)))
    height, width = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    x = new(batch, channels, height, width, dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])))
    layout = draw(
        st.sampled_from(["contiguous", "contiguous", "channels last", "slice", "crop", "turned", "spread"])
    )
    if layout == "channels last":
        return x.to(memory_format=torch.channels_last)
    if layout == "slice":
        return new(batch, channels + 2, height, width, dtype=x.dtype)[:, 1:-1]
    if layout == "crop":
        return new(batch, channels, height + 2, width + 1, dtype=x.dtype)[..., 1:-1, 1:]
    if layout == "spread":
        return new(batch, channels, 1, 1, dtype=x.dtype).expand_as(x)
    return x.transpose(2, 3) if layout == "turned" else x


def same(x, draw):
    """Another one of the same shape; now and then of another layout, type or size."""
    how = draw(st.sampled_from(["same", "same", "contiguous", "type", "size", "gate"]))
    if how == "gate":
        return new(*x.shape[:2], 1, 1, dtype=x.dtype)
    if how == "type":
        return torch.empty_like(x, dtype=torch.bfloat16)
    if how == "size":
        return torch.empty_like(x[..., :1])
    return torch.empty_like(
        x, memory_format=torch.contiguous_format if how == "contiguous" else torch.preserve_format
    )


def convolutions(draw):
    x, transposed = draw(maps()), draw(st.booleans())
    groups = draw(st.sampled_from([1, 1, x.shape[1]]))
    shape = x.shape[1], draw(st.integers(1, 4)) * groups // (groups if transposed else 1)
    shape = shape if transposed else (shape[1], x.shape[1] // groups)
    weight = new(*shape, *draw(st.tuples(st.integers(1, 4), st.integers(1, 4))), dtype=x.dtype)
    if draw(st.booleans()):
        weight = weight.to(memory_format=torch.channels_last)
    pairs = st.lists(st.integers(1, 3), min_size=2, max_size=2)
    padding = draw(st.lists(st.integers(0, 2), min_size=2, max_size=2))
    return x, weight, [draw(pairs), padding, draw(pairs), transposed, [0, 0], groups]


def forward(draw):
    x, weight, rest = convolutions(draw)
    outputs = weight.shape[1] * rest[-1] if rest[3] else weight.shape[0]
    bias = draw(st.sampled_from([None, new(outputs, dtype=x.dtype), new(outputs)]))
    return x, weight, bias, *rest


def backward(draw):
    x, weight, rest = convolutions(draw)
    try:
        gradient = same(aten.convolution(x, weight, None, *rest), draw)
    except RuntimeError:  # the kernel is larger than the image
        assume(False)
    outputs = weight.shape[1] * rest[-1] if rest[3] else weight.shape[0]
    return gradient, x, weight, [outputs], *rest, draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))


def concatenation(draw):
    parts = [draw(maps())]
    parts += [same(parts[0], draw) for _ in range(draw(st.integers(0, 2)))]
    return parts[draw(st.sampled_from([0, 0, 0, 1])) :], draw(st.integers(-5, 4))


def normed(draw):
    x = draw(maps())
    assume(x.numel() > x.shape[1])  # PyTorch's divides by the number of values less one
    weight, bias, mean, variance = (new(x.shape[1]) for _ in range(4))
    if draw(st.booleans()):
        weight = bias = None
    return x, weight, bias, mean, variance, True, 0.1, 1e-5


def normed_backward(draw):
    x, weight, _, mean, variance, _, _, eps = normed(draw)
    saved, wanted = [new(x.shape[1]) for _ in range(2)], [True, weight is not None, weight is not None]
    return torch.empty_like(x), x, weight, mean, variance, *saved, draw(st.booleans()), eps, wanted


def two(draw):
    x = draw(maps())
    return x, same(x, draw)


def either_way(draw):
    return two(draw)[:: draw(st.sampled_from([1, -1]))]


def reduced(draw):
    return draw(maps()), draw(st.lists(st.integers(-5, 4), max_size=3)), draw(st.booleans())


def resized(draw):
    return draw(maps()), draw(st.lists(st.integers(1, 20), min_size=2, max_size=2)), draw(st.booleans())


def parameters(draw):
    return [draw(maps()) for _ in range(draw(st.integers(1, 3)))]


def in_place(*rest, others=1):
    def arguments(draw):
        first = parameters(draw)
        return first, *([torch.empty_like(x) for x in first] for _ in range(others)), *rest

    return arguments


def divided(draw):
    first = parameters(draw)
    return first, [2.0] * len(first)


def corrected(draw):
    first = parameters(draw)
    return first, first, first, [2.0] * len(first)


ARGUMENTS = {
    aten.native_batch_norm.default: normed,
    aten.native_batch_norm_backward.default: normed_backward,
    aten.convolution.default: forward,
    aten.convolution_backward.default: backward,
    aten.cat.default: concatenation,
    aten._log_softmax.default: lambda draw: (draw(maps()), draw(st.integers(-5, 4)), False),
    aten._log_softmax_backward_data.default: lambda draw: (*two(draw), 1, torch.float32),
    aten.sigmoid.default: lambda draw: (draw(maps()),),
    aten.div.Scalar: lambda draw: (draw(maps()), draw(st.sampled_from([2, 0.5]))),
    aten.sigmoid_backward.default: either_way,
    aten.threshold_backward.default: lambda draw: (*either_way(draw), 0),
    aten.add.Tensor: either_way,
    aten.mul.Tensor: either_way,
    aten.sub.Tensor: either_way,
    aten.mean.dim: reduced,
    aten.sum.dim_IntList: reduced,
    aten._prelu_kernel.default: lambda draw: ((x := draw(maps())), new(1, x.shape[1], 1, 1)),
    aten._prelu_kernel_backward.default: lambda draw: (*(pair := two(draw)), new(1, pair[1].shape[1], 1, 1)),
    aten.upsample_bilinear2d.default: resized,
    aten.upsample_bicubic2d.default: resized,
    aten._foreach_sqrt.default: lambda draw: (parameters(draw),),
    aten._foreach_add_.List: in_place(),
    aten._foreach_mul_.Scalar: in_place(0.9, others=0),
    aten._foreach_lerp_.Scalar: in_place(0.1),
    aten._foreach_maximum_.List: in_place(),
    aten._foreach_div_.ScalarList: divided,
    aten._foreach_addcmul_.Scalar: in_place(0.1, others=2),
    aten._foreach_addcdiv_.ScalarList: corrected,
}


def laid_out(values):
    """Shape, type, bytes and strides (of more than one element) of all tensors in a result."""
    if isinstance(values, torch.Tensor):
        strides = [step for n, step in zip(values.shape, values.stride(), strict=True) if n > 1]
        return values.shape, values.dtype, strides, values.untyped_storage().nbytes()
    return [laid_out(value) for value in values] if isinstance(values, (tuple, list)) else values


@pytest.mark.parametrize("func", meta.KERNELS, ids=str)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_results_are_laid_out_as_pytorchs(func, data):
    """In whatever layout; what PyTorch refuses is refused with its words."""
    arguments = ARGUMENTS[func](data.draw)
    try:
        expected = laid_out(func(*arguments))
    except (RuntimeError, IndexError, ValueError) as error:
        with pytest.raises(type(error), match=re.escape(str(error).splitlines()[0])):
            meta.run(func, arguments, {})
    else:
        assert laid_out(meta.run(func, arguments, {})) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # the second is not the weight's
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_prelu_is_laid_out_as_pytorchs(memory_format, dtype):
    x = torch.empty(2, 6, 5, 7, dtype=dtype, device="meta").to(memory_format=memory_format)
    gradient, weight = torch.empty_like(x), torch.empty(1, 6, 1, 1, device="meta")
    forward, backward = torch.ops.aten._prelu_kernel.default, torch.ops.aten._prelu_kernel_backward.default
    pairs = [(meta.run(forward, (x, weight), {}), forward(x, weight))]
    pairs += zip(meta.run(backward, (gradient, x, weight), {}), backward(gradient, x, weight), strict=True)
    for ours, theirs in pairs:
        assert (ours.shape, ours.dtype, ours.stride()) == (theirs.shape, theirs.dtype, theirs.stride())


def test_batch_norm_in_eval_mode_keeps_no_statistics():
    """As on CUDA; PyTorch's kernel for meta tensors keeps some."""
    x, running = new(2, 6, 5, 7), new(6)
    arguments = x, running, running, running, running, False, 0.1, 1e-5
    out, *saved = meta.run(aten.native_batch_norm.default, arguments, {})
    assert laid_out(out) == laid_out(x) and [tensor.numel() for tensor in saved] == [0, 0]
