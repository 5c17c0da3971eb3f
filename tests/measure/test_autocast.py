"""CudaAutocast: the types that each listed operator returns, and where its lists come from."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from segkit.measure.autocast import FLOAT32, LOWER, PROMOTE, CudaAutocast


def _arguments(device="meta"):
    """A full and a half tensor of each shape that the samples need."""

    def make(*shape, dtype=torch.float32):
        return torch.full(shape, 0.5, device=device, dtype=dtype)

    return make


def samples(device="meta"):
    """One call for every name in the lists, on arguments that the policy has to change."""
    make = _arguments(device)
    half = {"dtype": torch.bfloat16}
    labels = torch.zeros(2, 5, dtype=torch.int64, device=device)
    image, volume, row = make(2, 4, 6, 6), make(2, 4, 6, 6, 6), make(2, 4, 6)
    square, vector = make(4, 4), make(4)
    batch = make(3, 4, 4)
    soft = make(2, 4, 5, **half)
    lower = {
        "conv1d": lambda: F.conv1d(row, make(3, 4, 3)),
        "conv2d": lambda: F.conv2d(image, make(3, 4, 3, 3), make(3)),
        "conv3d": lambda: F.conv3d(volume, make(3, 4, 3, 3, 3)),
        "conv_transpose1d": lambda: F.conv_transpose1d(row, make(4, 3, 3)),
        "conv_transpose2d": lambda: F.conv_transpose2d(image, make(4, 3, 3, 3)),
        "conv_transpose3d": lambda: F.conv_transpose3d(volume, make(4, 3, 3, 3, 3)),
        "linear": lambda: F.linear(square, square, vector),
        "prelu": lambda: F.prelu(image, vector),
        "einsum": lambda: torch.einsum("ij,jk->ik", square, square),
        "matmul": lambda: torch.matmul(square, square),
        "__matmul__": lambda: square @ square,
        "__rmatmul__": lambda: square.__rmatmul__(square),
        "mm": lambda: torch.mm(square, square),
        "mv": lambda: torch.mv(square, vector),
        "bmm": lambda: batch.bmm(batch),
        "addmm": lambda: torch.addmm(square, square, square),
        "addmv": lambda: torch.addmv(vector, square, vector),
        "addbmm": lambda: torch.addbmm(square, batch, batch),
        "baddbmm": lambda: torch.baddbmm(batch, batch, batch),
        "scaled_dot_product_attention": lambda: F.scaled_dot_product_attention(batch, batch, batch),
    }
    float32 = {
        "softmax": lambda: soft.softmax(1),
        "log_softmax": lambda: F.log_softmax(soft, 1),
        "cross_entropy": lambda: F.cross_entropy(soft, labels),
        "nll_loss": lambda: F.nll_loss(soft, labels),
        "binary_cross_entropy_with_logits": lambda: F.binary_cross_entropy_with_logits(soft, make(2, 4, 5)),
        "mse_loss": lambda: F.mse_loss(soft, soft),
        "l1_loss": lambda: F.l1_loss(soft, soft),
        "smooth_l1_loss": lambda: F.smooth_l1_loss(soft, soft),
        "huber_loss": lambda: F.huber_loss(soft, soft),
        "kl_div": lambda: F.kl_div(soft, soft, reduction="sum"),
        "layer_norm": lambda: F.layer_norm(soft, (5,), make(5), make(5)),
        "group_norm": lambda: F.group_norm(soft, 2, vector, vector),
        "cosine_similarity": lambda: F.cosine_similarity(soft, soft),
        "softplus": lambda: F.softplus(soft),
        "exp": lambda: soft.exp(),
        "expm1": lambda: torch.expm1(soft),
        "log": lambda: soft.log(),
        "log1p": lambda: soft.log1p(),
        "log2": lambda: soft.log2(),
        "log10": lambda: soft.log10(),
        "pow": lambda: soft.pow(2),
        "__pow__": lambda: soft**2,
        "rsqrt": lambda: soft.rsqrt(),
        "reciprocal": lambda: soft.reciprocal(),
        "sum": lambda: soft.sum((1, 2)),
        "prod": lambda: soft.prod(1),
        "cumsum": lambda: soft.cumsum(1),
        "logsumexp": lambda: soft.logsumexp(1),
        "norm": lambda: torch.norm(soft, dim=1),
        "cdist": lambda: torch.cdist(soft, soft),
        "interpolate": lambda: F.interpolate(make(1, 2, 4, 4, **half), scale_factor=2, mode="bilinear"),
    }
    index = torch.zeros(4, 4, dtype=torch.int64, device=device)
    square16 = make(4, 4, **half)
    promote = {
        "addcmul": lambda: torch.addcmul(square, square16, square16),
        "addcdiv": lambda: torch.addcdiv(square16, square, square16),
        "bilinear": lambda: F.bilinear(square16, square, make(2, 4, 4, **half)),
        "grid_sample": lambda: F.grid_sample(make(1, 2, 4, 4, **half), make(1, 3, 3, 2), align_corners=False),
        "scatter_add": lambda: torch.scatter_add(square, 0, index, square16),
        "index_put": lambda: torch.index_put(square, (index[0],), square16),
    }
    return lower, float32, promote


def test_every_listed_operator_is_sampled():
    lower, float32, promote = samples()
    assert set(lower) == LOWER and set(float32) == FLOAT32 and set(promote) == PROMOTE
    assert not LOWER & FLOAT32 and not LOWER & PROMOTE and not FLOAT32 & PROMOTE


@pytest.mark.parametrize("name", sorted(LOWER))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_runs_in_the_lower_precision(name, dtype):
    with CudaAutocast(dtype):
        assert samples()[0][name]().dtype == dtype


@pytest.mark.parametrize("name", sorted(FLOAT32 | PROMOTE))
def test_runs_in_float32(name):
    _, float32, promote = samples()
    call = {**float32, **promote}[name]
    with CudaAutocast():
        assert call().dtype == torch.float32


def test_the_lists_are_those_of_the_installed_pytorch():
    header = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    if not header.exists():
        pytest.skip("this PyTorch comes without its headers")
    text = header.read_text()

    def names(macro):
        body = re.search(rf"#define {macro}\(_\)(.*?)\n\n", text, re.DOTALL)
        return set(re.findall(r"_\(\s*(\w+)", body.group(1)))

    wrapped = {
        "__matmul__": "matmul",
        "__rmatmul__": "matmul",
        "__pow__": "pow",
        "interpolate": "upsample_bilinear2d",
    }
    wrapped |= {"cross_entropy": "nll_loss", "grid_sample": "grid_sampler"}
    theirs = names("AT_FORALL_FP32") | names("AT_FORALL_FP32_SET_OPT_DTYPE") | {"norm"}
    assert {wrapped.get(name, name) for name in LOWER} <= names("AT_FORALL_LOWER_PRECISION_FP")
    assert {wrapped.get(name, name) for name in FLOAT32} <= theirs
    assert {wrapped.get(name, name) for name in PROMOTE} <= names("AT_FORALL_PROMOTE")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_types_as_the_real_autocast():
    for calls in samples("cuda"):
        for name, call in calls.items():
            with torch.autocast("cuda", torch.bfloat16):
                real = call()
            with CudaAutocast():
                imitated = call()
            assert real.dtype == imitated.dtype, name
            torch.testing.assert_close(real, imitated)


def test_same_values_as_cpu_autocast_where_the_policies_agree():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(64, 5)
    )
    x = torch.randn(4, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = net(x)
    with CudaAutocast():
        ours = net(x)
    assert ours.dtype == torch.bfloat16 and torch.equal(ours, theirs)


def test_parameters_are_cast_once_until_the_backward_pass():
    layer = nn.Linear(4, 4)
    with CudaAutocast() as mode:
        y = layer(layer(torch.ones(2, 4)))
        assert len(mode.casts) == 2
        loss = y.sum()
        loss.backward()
        assert not mode.casts
    assert layer.weight.grad.dtype == torch.float32


def test_recomputed_segments_are_cast_too():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    x = torch.randn(2, 4)
    gradients = []
    for recompute in (False, True):
        layer.zero_grad()
        with CudaAutocast():
            y = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
            y.sum().backward()
        gradients.append([p.grad.clone() for p in layer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_what_is_left_alone():
    make = _arguments()
    with CudaAutocast():
        assert (
            F.conv2d(make(1, 2, 4, 4, dtype=torch.float64), make(2, 2, 1, 1, dtype=torch.float64)).dtype
            == torch.float64
        )
        assert torch.arange(4).sum().dtype == torch.int64
        assert make(2, 2, dtype=torch.bfloat16).sum(dtype=torch.float16).dtype == torch.float16
        assert (make(2) + make(2, dtype=torch.bfloat16)).dtype == torch.float32
        assert torch.cat([make(2), make(2, dtype=torch.bfloat16)]).dtype == torch.float32
        assert F.interpolate(make(1, 1, 4, 4, dtype=torch.bfloat16), 2, mode="area").dtype == torch.bfloat16
    assert (make(2, 2) @ make(2, 2)).dtype == torch.float32
