"""Meta kernels: what they give has the sizes, types and strides of PyTorch's own."""

import pytest
import torch
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
