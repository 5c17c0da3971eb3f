"""The Encoding, ASPP and PSP heads: sizes, and what each computes by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from segkit.measure import peak_memory
from segkit.models.fastfcn import FastFCN
from segkit.models.fastfcn_heads import ASPPHead, Encoding, EncodingHead, PSPHead

HEADS = {"enc": EncodingHead, "aspp": ASPPHead, "psp": PSPHead}


def count(module):
    return sum(p.numel() for p in module.parameters())


def made(head, channels=16, **options):
    """A head in float64 and eval mode, with batch norms that do something; and maps."""
    torch.manual_seed(0)
    head = HEADS[head](channels, num_classes=5, width=1, **options).double().eval()
    for norm in head.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 1.5)
    return head, torch.randn(2, channels, 8, 11, dtype=torch.float64)


def expanded(encoding, x):
    """EncNet's Equations 1 and 2 as they stand, with the difference of every position and codeword."""
    x = x.flatten(2).mT[:, :, None]  # (B, N, 1, D)
    difference = x - encoding.codewords  # (B, N, K, D)
    weights = (encoding.scale * difference.square().sum(3)).softmax(2)  # (B, N, K)
    return (weights[..., None] * difference).sum(1)


@pytest.mark.parametrize(
    ("head", "options", "params"),
    [
        ("enc", {"kernel": 1}, 1_652_438),
        ("enc", {}, 10_041_046),
        ("aspp", {}, 16_140_603),
        ("psp", {}, 23_104_059),
    ],
)
def test_size(head, options, params):
    with torch.device("meta"):
        module = HEADS[head](2048, num_classes=59, **options)
    assert count(module) == params
    convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert [conv.out_channels for conv in convs if conv.bias is not None] == [59]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_encoding_in_matrix_form_is_the_expanded_one(channels, codes, height, seed):
    torch.manual_seed(seed)
    encoding = Encoding(channels, codes).double()
    x = torch.randn(2, channels, height, 3, dtype=torch.float64, requires_grad=True)
    leaves = [x, encoding.codewords, encoding.scale]
    results = [encoding(x), expanded(encoding, x)]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(result.pow(3).sum(), leaves) for result in results]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-11)


def test_encoding_is_two_matrix_products():
    encoding = Encoding(16, 32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoding(torch.randn(1, 16, 5, 7))
    assert counter.get_total_flops() // 2 == 2 * 35 * 32 * 16


def near(channels=64, codes=8, spread=0.02):
    """An encoding, and features close to its codewords, which are far from 0: |x - c| is far below |x|."""
    torch.manual_seed(0)
    encoding = Encoding(channels, codes)
    nn.init.normal_(encoding.codewords)
    chosen = encoding.codewords.detach()[torch.arange(35) % codes].T.reshape(1, channels, 5, 7)
    return encoding, chosen + spread * torch.randn(2, channels, 5, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encoding_under_autocast_loses_nothing(dtype):
    """The differences of large numbers that it consists of would be noise in bfloat16."""
    encoding, x = near()
    x = x.to(dtype).requires_grad_()
    leaves = [x, encoding.codewords, encoding.scale]
    with torch.autocast("cpu", torch.bfloat16), FlopCounterMode(display=False) as counter:
        found = encoding(x)
    assert found.dtype == torch.float32
    assert counter.get_total_flops() // 2 == 2 * 2 * 35 * 8 * 64
    gradients = torch.autograd.grad(found.square().sum(), leaves)

    exact = copy.deepcopy(encoding).double()
    x = x.detach().double().requires_grad_()
    expected = expanded(exact, x)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
    exacts = torch.autograd.grad(expected.square().sum(), [x, exact.codewords, exact.scale])
    rounding = 1e-3 if dtype == torch.float32 else 2**-8
    for a, b in zip(gradients, exacts, strict=True):
        assert (a.double() - b).norm() <= rounding * b.norm()


def test_encoding_in_half_precision_weights():
    """A whole network in bfloat16: rounded are what comes in and what goes out, not what is between."""
    encoding, x = near()
    encoding, x = encoding.bfloat16(), x.bfloat16()
    with torch.no_grad():
        found = encoding(x)
        assert found.dtype == torch.bfloat16
        expected = expanded(copy.deepcopy(encoding).double(), x.double())
        torch.testing.assert_close(found.double(), expected, rtol=2**-7, atol=1e-4)
        head = EncodingHead(16, num_classes=5, width=1).bfloat16().eval()
        logits, presence = head(torch.randn(1, 16, 4, 4).bfloat16(), True)
    assert logits.dtype == presence.dtype == torch.bfloat16


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_of_an_encoding_is_predicted(precision):
    """The meta device, on which it is predicted, knows no autocast."""
    with torch.device("meta"):
        encoding = Encoding(16, 32)
        assert encoding(torch.empty(2, 16, 5, 7)).shape == (2, 32, 16)
    model = FastFCN(50, head="enc", upsampling="jpu", num_classes=5, width=1)
    assert peak_memory(model, 2, (64, 64), precision=precision).total > 0


def test_encodings_first_values():
    torch.manual_seed(0)
    encoding = Encoding(512, 32)
    bound = (32 * 512) ** -0.5
    assert 0.99 * bound < encoding.codewords.abs().max() <= bound
    assert encoding.scale.min() >= -1 and encoding.scale.max() < 0


@pytest.mark.parametrize("kernel", [1, 3, None])
def test_encoding_head_by_hand(kernel):
    head, x = made("enc", channels=8 if kernel is None else 16, kernel=kernel, codes=6)
    with torch.no_grad():
        logits, presence = head(x, True)
        if kernel is not None:
            conv, norm, _ = head.reduce
            assert conv.kernel_size == (kernel, kernel)
            x = norm(F.conv2d(x, conv.weight, padding=kernel // 2)).clamp(min=0)
        conv, norm, _, encoding = head.encode
        codes = expanded(encoding, norm(F.conv2d(x, conv.weight)).clamp(min=0))  # (2, 6, 8)
        codes = head.norm_of_codes(codes).clamp(min=0).mean(1)
        gate = 1 / (1 + (-(codes @ head.gate.weight.T + head.gate.bias)).exp())
        x = (x + x * gate[..., None, None]).clamp(min=0)
        classifier = head.logits[1]
        torch.testing.assert_close(logits, F.conv2d(x, classifier.weight, classifier.bias))
        torch.testing.assert_close(presence, codes @ head.presence.weight.T + head.presence.bias)
        assert presence.shape == (2, 5)
        assert head(x if kernel is None else made("enc")[1])[1] is None  # not asked for


def test_encoding_head_trains_on_one_image():
    """The norm over codes sees D values of each codeword even then."""
    torch.manual_seed(0)
    head = EncodingHead(16, num_classes=5, width=1)
    logits, presence = head(torch.randn(1, 16, 4, 4), True)
    (logits.square().mean() + presence.square().mean()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_aspp_by_hand():
    head, x = made("aspp")
    with torch.no_grad():
        parts = []
        for (conv, norm, _), rate in zip(head.branches, (0, 12, 24, 36), strict=True):
            parts.append(norm(F.conv2d(x, conv.weight, padding=rate, dilation=max(rate, 1))).clamp(min=0))
        _, conv, norm, _ = head.pool
        mean = norm(F.conv2d(x.mean((2, 3), keepdim=True), conv.weight)).clamp(min=0)
        parts.append(mean.expand(-1, -1, 8, 11))
        expected = head.logits(head.project(torch.cat(parts, dim=1)))
        assert [m.p for m in head.modules() if isinstance(m, nn.Dropout2d)] == [0.5, 0.1]
        logits, presence = head(x, True)
    torch.testing.assert_close(logits, expected)
    assert presence is None


def test_psp_by_hand():
    head, x = made("psp")
    with torch.no_grad():
        parts = [x]
        for n in (1, 2, 3, 6):
            _, conv, norm, _ = head.ppm.levels[str(n)]
            cells = norm(F.conv2d(F.adaptive_avg_pool2d(x, n), conv.weight)).clamp(min=0)
            parts.append(F.interpolate(cells, (8, 11), mode="bilinear", align_corners=True))
        logits, presence = head(x, True)
        torch.testing.assert_close(logits, head.logits(torch.cat(parts, dim=1)))
    assert presence is None


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_learns(head):
    torch.manual_seed(0)
    module = HEADS[head](16, num_classes=5, width=2)
    logits, presence = module(torch.randn(3, 16, 14, 15), True)
    loss = logits.square().mean() + (0 if presence is None else presence.square().mean())
    loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name
