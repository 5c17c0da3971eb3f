"""Equations 2 and 3 of the FastFCN paper: exact for any length, kernel and rate, in 1-D and 2-D."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segkit.notebook.phases import conv_then_reduce, merge, split, split_conv_merge

quickly = settings(max_examples=60, deadline=None)
axes = st.integers(1, 2)
small = st.integers(1, 4)
convolution = {1: F.conv1d, 2: F.conv2d}


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@st.composite
def problems(draw, rate=small):
    """Values, weights, a rate and the p of each axis's padding, such that a dilated kernel fits."""
    n, rate = draw(axes), draw(rate)
    kernel = draw(st.lists(st.integers(1, 5), min_size=n, max_size=n))
    p = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    size = [
        draw(st.integers(max(1, rate * (k - 1) + 1 - 2 * rate * q), 19))
        for k, q in zip(kernel, p, strict=True)
    ]
    return normal(2, 3, *size), normal(4, 3, *kernel, seed=1), rate, p


@quickly
@given(problems())
def test_dilated_is_split_regular_merge(problem):
    x, weight, rate, p = problem
    padding = tuple(rate * q for q in p)
    dilated = convolution[x.dim() - 2](x, weight, padding=padding, dilation=rate)
    close(split_conv_merge(x, weight, rate=rate, padding=padding), dilated)


@quickly
@given(problems(rate=st.just(1)), small)
def test_strided_is_regular_then_reduced(problem, stride):
    x, weight, _, p = problem
    strided = convolution[x.dim() - 2](x, weight, padding=tuple(p), stride=stride)
    close(conv_then_reduce(x, weight, stride=stride, padding=p), strided)


@quickly
@given(st.integers(1, 17), st.integers(1, 17), axes, st.integers(1, 6))
def test_merge_undoes_split(height, width, n, rate):
    x = normal(2, 3, *(height, width)[:n])
    phases = split(x, rate)
    assert len(phases) == rate**n and sum(phase.numel() for phase in phases) == x.numel()
    assert torch.equal(merge(phases, rate), x)


def test_by_default_an_odd_kernel_keeps_the_size():
    x, weight = normal(1, 3, 11), normal(4, 3, 5, seed=1)
    close(split_conv_merge(x, weight, rate=3), F.conv1d(x, weight, padding=6, dilation=3))
    close(conv_then_reduce(x, weight, stride=2), F.conv1d(x, weight, padding=2, stride=2))
    x, weight = normal(1, 3, 7, 9), normal(4, 3, 3, 3, seed=1)
    assert split_conv_merge(x, weight, rate=2).shape == (1, 4, 7, 9)
    assert conv_then_reduce(x, weight, stride=2).shape == (1, 4, 4, 5)


def test_gradients_are_the_same():
    x, weight = normal(1, 3, 6, 7), normal(4, 3, 3, 3, seed=1)
    assert torch.autograd.gradcheck(
        lambda x, w: split_conv_merge(x, w, rate=2), (x.requires_grad_(), weight.requires_grad_())
    )
    ours = torch.autograd.grad(split_conv_merge(x, weight, rate=2).square().sum(), (x, weight))
    theirs = torch.autograd.grad(F.conv2d(x, weight, padding=2, dilation=2).square().sum(), (x, weight))
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)


@pytest.mark.parametrize("size", [(11,), (12, 9)])
@pytest.mark.parametrize("rate", [2, 4])
def test_in_a_chain_merge_and_split_cancel(size, rate):
    """Equation 2: S (C_r ...)^n M, with what works point by point between; the phases never meet."""
    n = len(size)
    conv, x = convolution[n], normal(2, 3, *size)
    weights = [normal(3, 3, *n * (3,), seed=i) for i in range(1, 4)]
    pointwise, bias = normal(3, 3, *n * (1,), seed=7), normal(3, seed=8)

    def layer(x, weight, dilation):
        y = conv(x, weight, bias, padding=dilation, dilation=dilation)
        return x + conv(F.relu(y), pointwise)

    dilated, phases = x, split(x, rate)
    for weight in weights:
        dilated = layer(dilated, weight, rate)
        phases = [layer(phase, weight, 1) for phase in phases]
    close(merge(phases, rate), dilated)

    # Equation 3: the strided net starts from the first phase and never sees the others
    first = normal(3, 3, *n * (3,), seed=9)
    strided = conv(x, first, padding=1, stride=rate)
    dilated = conv(x, first, padding=1)
    for weight in weights:
        strided, dilated = layer(strided, weight, 1), layer(dilated, weight, rate)
    close(split(dilated, rate)[0], strided)


def test_batch_norm_in_training_needs_all_phases_at_once():
    """Stacked on the batch, phases have the whole map's statistics; one by one each has its own."""
    x, weight = normal(2, 3, 12, 8), normal(4, 3, 3, 3, seed=1)
    norm = nn.BatchNorm2d(4).double()
    expected = norm(F.conv2d(x, weight, padding=2, dilation=2))
    phases = [F.conv2d(phase, weight, padding=1) for phase in split(x, 2)]
    close(merge(norm(torch.cat(phases)).chunk(4), 2), expected)
    apart = merge([norm(phase) for phase in phases], 2)
    assert (apart - expected).abs().max() > 0.1
    close(merge([norm.eval()(phase) for phase in phases], 2), norm(merge(phases, 2)))


def test_reflection_mixes_the_phases():
    x, weight = normal(2, 3, 12), normal(4, 3, 3, seed=1)
    dilated = F.conv1d(F.pad(x, (2, 2), mode="reflect"), weight, dilation=2)
    ours = merge([F.conv1d(F.pad(phase, (1, 1), mode="reflect"), weight) for phase in split(x, 2)], 2)
    assert ours.shape == dilated.shape
    close(ours[..., 2:-2], dilated[..., 2:-2])
    assert (ours - dilated).abs().max() > 0.5


def test_a_phases_padding_is_a_share_of_the_dilated_ones():
    """With the dilated convolution's own padding, phases come out longer, and elsewhere."""
    x, weight = normal(2, 3, 12), normal(4, 3, 3, seed=1)
    dilated = F.conv1d(x, weight, padding=2, dilation=2)
    phases = [F.conv1d(phase, weight, padding=2) for phase in split(x, 2)]
    assert merge(phases, 2).shape[-1] == dilated.shape[-1] + 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w: split_conv_merge(x, w, rate=2, padding=1), r"padding=\(1,\) at rate 2.*such as 2"),
        (lambda x, w: split_conv_merge(x, w, rate=9, padding=0), "kernel of 3 at rate 9 spans 19 values"),
        (lambda x, w: split_conv_merge(x, w, rate=0), "rate=0: an integer of at least 1"),
        (lambda x, w: split_conv_merge(x, w, rate=2, padding=(2, 2)), "one for each of 1 axes"),
        (lambda x, w: conv_then_reduce(x, w, stride=1.5), r"stride=1\.5"),
        (lambda x, w: conv_then_reduce(x, w, stride=2, padding=-1), "padding=-1"),
        (lambda x, w: conv_then_reduce(x[:, :1], w, stride=2), r"do not fit .* expected \(D, 1, k\)"),
        (lambda x, w: conv_then_reduce(x[0], w, stride=2), r"\(B, C, L\) or .* got \(3, 11\)"),
        (lambda x, w: split(x, True), "rate=True"),
        (lambda x, w: merge(split(x, 2), 3), "2 phases cannot be merged at rate 3"),
        (lambda x, w: merge([], 1), "0 phases"),
        (lambda x, w: merge(split(x, 2)[::-1], 2), "are not those of one map"),
    ],
)
def test_what_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call(normal(2, 3, 11), normal(4, 3, 3, seed=1))
