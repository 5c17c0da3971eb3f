import copy
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from segkit.measure import CONVENTIONS, Cost, cost
from segkit.models import build


class Small(nn.Module):
    """Every kind of counted layer once, an auxiliary head, a frozen layer and one that nothing uses."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)  # 3*8*9 = 216 weights
        self.norm = nn.BatchNorm2d(8)  # 16
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)  # 8*2*9 + 8 = 152
        self.plain_norm = nn.BatchNorm2d(8, affine=False)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)  # 8*4*4 + 4 = 132
        self.linear = nn.Linear(8, 4)  # 36
        self.head = nn.Conv2d(8, 5, 1)  # 45, auxiliary
        self.unused = nn.Linear(7, 7)
        self.grouped.requires_grad_(False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, *, auxiliary=None):
        auxiliary = self.training if auxiliary is None else auxiliary
        x = self.norm(self.conv(x))  # (B, 8, H/2, W/2)
        y = self.dropout(self.plain_norm(self.grouped(x)))
        context = self.linear(F.adaptive_avg_pool2d(y, 1).flatten(1))  # (B, 4)
        grid = F.adaptive_avg_pool2d(y, (2, 2))
        out = self.up(y) + context[:, :, None, None]
        out = F.interpolate(out, scale_factor=2, mode="bilinear") + grid.mean()
        out = F.interpolate(out, scale_factor=2, mode="nearest")
        return {"out": out, "aux": {"head": self.head(x)}} if auxiliary else {"out": out}


H, W = 8, 12
HALF = H * W // 4
CONV = (
    HALF * 216 + HALF * 144 + HALF * 128 + 32
)  # of the two convolutions, the transposed one, the linear layer


def test_conventions_by_hand():
    model = Small()
    assert cost(model, (H, W)) == Cost(params=216 + 16 + 152 + 132 + 36, macs=CONV)
    norms = 2 * 8 * HALF
    assert cost(model, (H, W), convention="conv+bn").macs == CONV + norms
    pools = 2 * 8 * HALF
    bilinear, nearest = 4 * 4 * (2 * H * 2 * W), 4 * (4 * H * 4 * W)
    # two per value of the affine norm, one per value of the other
    assert (
        cost(model, (H, W), convention="fvcore").macs
        == CONV + 2 * 8 * HALF + 8 * HALF + pools + bilinear + nearest
    )


def test_auxiliary_heads_on_request():
    model = Small()
    without, with_heads = cost(model, (H, W)), cost(model, (H, W), auxiliary=True)
    assert with_heads.params - without.params == 45
    assert with_heads.macs - without.macs == HALF * 40


def test_a_module_that_returns_a_tensor():
    assert cost(nn.Conv2d(3, 4, 1), (5, 7)) == Cost(params=16, macs=5 * 7 * 12)


def test_shared_parameters_count_once():
    first = nn.Conv2d(3, 3, 1, bias=False)
    second = nn.Conv2d(3, 3, 1, bias=False)
    second.weight = first.weight
    assert cost(nn.Sequential(first, second), (2, 2)) == Cost(params=9, macs=2 * 4 * 9)


def test_matrix_products_and_attention_count():
    class Attention(nn.Module):
        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)  # (B, 6, 3)
            return tokens @ tokens.transpose(1, 2)  # 6 * 6 * 3

    assert cost(Attention(), (2, 3)) == Cost(params=0, macs=108)


def test_model_is_left_as_it_was():
    torch.manual_seed(0)
    model = Small()
    model.norm.eval()  # a mode of its own
    before = copy.deepcopy(model.state_dict())
    pointers = [p.data_ptr() for p in model.parameters()]
    trained = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    rng = torch.get_rng_state()
    with torch.no_grad():
        cost(model, (H, W))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert [p.requires_grad for p in model.parameters()] == trained
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)


def test_model_is_left_as_it_was_after_an_error():
    model = build("ladder-resnet18-32-4")
    with pytest.raises(ValueError, match="16x16 pixels are too small"):
        cost(model, (16, 16))
    assert model.training
    assert not any(p.is_meta for p in model.parameters())


def test_same_on_meta_on_cpu_and_in_inference_mode():
    torch.manual_seed(0)
    expected = cost(build("ladder-resnet18-32-4", device="meta"), (64, 128), convention="conv+bn")
    model = build("ladder-resnet18-32-4", dtype=torch.bfloat16).requires_grad_(False)
    assert cost(model, (64, 128), convention="conv+bn") == expected
    with torch.inference_mode():
        assert cost(model, (64, 128), convention="conv+bn") == expected


@pytest.mark.parametrize("name", ["ldn121-64-4", "ladder-dpn68-32-4"])
def test_equals_torchs_counter(name):
    model = build(name, device="meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 96, 160, device="meta"))
    assert 2 * cost(model, (96, 160)).macs == counter.get_total_flops()


def test_recomputation_in_training_does_not_change_the_cost():
    plain, lean = (build("ladder-resnet18-32-4", device="meta", recompute=r) for r in (None, "block,stem,tu"))
    assert cost(lean, (64, 64)) == cost(plain, (64, 64))


def test_any_row_in_under_three_seconds():
    model = build("ldn169-32-4", device="meta")  # the one with the most layers
    cost(model, (1024, 1024))  # the first run imports
    start = time.process_time()
    cost(model, (1024, 1024))
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    "image_size", [1024, (1024,), (1, 3, 64, 64), (64, 0), (64, 64.0), (True, 64), "64x64", None]
)
def test_wrong_image_size(image_size):
    with pytest.raises(ValueError, match=r"image_size=.*give \(H, W\)"):
        cost(Small(), image_size)


def test_unknown_convention():
    with pytest.raises(
        ValueError, match="Unknown convention 'flops'; choose one of 'conv', 'conv\\+bn', 'fvcore'"
    ):
        cost(Small(), (8, 8), convention="flops")
    assert CONVENTIONS == ("conv", "conv+bn", "fvcore")


def test_not_a_module():
    with pytest.raises(TypeError, match=r"takes a torch.nn.Module, not str"):
        cost("ldn121-64-4", (8, 8))


def test_output_without_logits():
    class Wrong(nn.Module):
        def forward(self, x):
            return {"logits": x}

    with pytest.raises(ValueError, match="a dict with \\['logits'\\]"):
        cost(Wrong(), (8, 8))
