"""VNet: sizes and costs, its modules by hand, the reversible run against plain autograd, its memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkit.measure import cost, peak_memory
from segkit.memory.chunked import chunked_step
from segkit.memory.reversible import ReversibleSequence
from segkit.models import build
from segkit.models.vnet import ContextualPyramidPooling, VNet, asymmetric

CITYSCAPES = (1024, 2048)
GIB = 2**30


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "params", "gmacs"), [("vnet", 162_291, "6.359"), ("vnet-018", 177_779, "8.238")]
)
def test_counts(name, params, gmacs):
    ours = cost(build(name, device="meta"), CITYSCAPES)
    assert ours.params == params
    assert f"{ours.macs / 1e9:.3f}" == gmacs


def test_where_the_parameters_are():
    model = build("vnet", device="meta")
    parts = (model.stage1, model.down2, model.stage2, model.down3, model.stage3, model.logits)
    assert [count(part) for part in parts] == [1440, 288, 4896, 3456, 149_760, 2451]


@pytest.mark.parametrize(("depth", "params"), [(1, 162_291), (2, 316_947), (4, 626_259), (8, 1_244_883)])
def test_deeper(depth, params):
    assert count(build("vnet", alpha=depth, beta=2 * depth, device="meta")) == params


def test_table_2_has_it_2_25_times_smaller_than_espnet():
    """Section I; to the digits that both are printed with."""
    ratio = count(build("espnet", device="meta")) / count(build("vnet", device="meta"))
    assert f"{ratio:.1f}" == "2.2"


def test_asymmetric_convolution_saves_a_third():
    """Section III-2: 3x1 and 1x3 against one 3x3 of as many maps in and out."""
    pair = sum(p.numel() for p in asymmetric(64, 1).parameters() if p.dim() == 4)
    assert 1 - pair / nn.Conv2d(64, 64, 3, bias=False).weight.numel() == pytest.approx(1 / 3)


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_pooling_module_by_hand(size):
    torch.manual_seed(0)
    module = ContextualPyramidPooling(2, 5).eval()
    module.norm = nn.Identity()
    x = torch.randn(1, 2, *size)
    rows, columns = (size[0] + 1) // 2, (size[1] + 1) // 2
    expected = torch.zeros(1, 5, rows, columns)
    with torch.no_grad():
        for i in range(rows):
            for j in range(columns):
                expected[0, :3, i, j] = module.conv.weight[:, :, 0, 0] @ x[0, :, 2 * i, 2 * j]
                for reach in (1, 2, 3):  # windows of 3, 5 and 7 around the same pixel, within the image
                    top, left = max(0, 2 * i - reach), max(0, 2 * j - reach)
                    window = x[0, :, top : 2 * i + reach + 1, left : 2 * j + reach + 1]
                    expected[0, 3:, i, j] += window.mean((1, 2))
        expected = torch.where(expected > 0, expected, 0.25 * expected)  # PReLU as it is initialized
        assert torch.allclose(module(x), expected, atol=1e-6)


def test_v_module_is_the_printed_one():
    """Forward and Reverse of Section III-2, for the first unit of stage 2."""
    torch.manual_seed(0)
    unit = build("vnet").eval().stage2.units[0]
    x1, x2 = torch.randn(2, 1, 16, 6, 8).unbind()
    with torch.no_grad():
        y1, y2 = unit(x1, x2)
        z = x1 + unit.f(x2)
        assert torch.equal(y1, z)
        assert torch.equal(y2, x2 + z)
        reversed2 = y2 - y1
        reversed1 = y1 - unit.f(reversed2)
    assert torch.allclose(reversed2, x2, atol=1e-5)
    assert torch.allclose(reversed1, x1, atol=1e-5)


def test_one_stack_for_each_stage():
    model = build("vnet", alpha=2, beta=3, device="meta")
    for stage, channels, units, dilations in (
        (model.stage2, 16, 6, (1, 2, 4)),
        (model.stage3, 64, 9, (2, 4, 8)),
    ):
        assert isinstance(stage, ReversibleSequence)
        assert stage.reversible
        assert len(stage.units) == units
        for i, unit in enumerate(stage.units):
            d = dilations[i % 3]
            down, across = unit.f[0][0], unit.f[1][0]
            assert (down.kernel_size, down.padding, down.dilation) == ((3, 1), (d, 0), (d, d))
            assert (across.kernel_size, across.padding, across.dilation) == ((1, 3), (0, d), (d, d))
            assert down.in_channels == down.out_channels == across.out_channels == channels


def one_step(model, x):
    output = model(x)["out"]
    F.cross_entropy(output, torch.arange(output[:, 0].numel()).view_as(output[:, 0]) % 5).backward()
    return output.detach(), {name: p.grad for name, p in model.named_parameters()}


def pair(**options):
    """A reversible model and a copy of it that runs otherwise; float64, where no round-off hides a fault."""
    torch.manual_seed(0)
    one = build("vnet", num_classes=5, dtype=torch.float64, second=options.get("second", False))
    other = build("vnet", num_classes=5, dtype=torch.float64, **options)
    other.load_state_dict(one.state_dict())  # strict: the very same names
    return one, other


@pytest.mark.parametrize(
    "options",
    [{"reversible": False}, {"reversible": False, "second": True}, {"recompute": "unit"}],
    ids=str,
)
def test_reversible_run_learns_what_plain_autograd_learns(options):
    reversible, plain = pair(**options)
    assert reversible.stage3.reversible
    assert plain.stage3.reversible == ("recompute" in options)  # not used where its units are segments
    x = torch.randn(2, 3, 41, 57, dtype=torch.float64)
    out, gradients = one_step(reversible, x)
    expected_out, expected = one_step(plain, x)
    assert torch.equal(out, expected_out)
    for name, gradient in gradients.items():
        scale = expected[name].abs().max()
        assert (gradient - expected[name]).abs().max() <= 1e-10 * scale, name
    for name, buffer in reversible.named_buffers():  # batch norms have counted the step once
        assert torch.equal(buffer, plain.get_buffer(name)), name
    with torch.no_grad():
        assert torch.equal(reversible.eval()(x)["out"], plain.eval()(x)["out"])


def test_same_output_under_autocast():
    torch.manual_seed(0)
    reversible, units = build("vnet"), build("vnet", recompute="unit")
    units.load_state_dict(reversible.state_dict())
    x = torch.randn(2, 3, 32, 40)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(reversible(x)["out"], units(x)["out"])


@pytest.mark.parametrize("recompute", ["stem", "td", "td:3", "stem,td"])
def test_recomputing_the_rest_changes_nothing(recompute):
    one, other = pair(recompute=recompute)
    assert other.stage2.reversible
    x = torch.randn(2, 3, 32, 40, dtype=torch.float64)
    out, gradients = one_step(one, x)
    expected_out, expected = one_step(other, x)
    assert torch.equal(out, expected_out)
    assert all(torch.equal(gradients[name], expected[name]) for name in gradients)
    assert all(torch.equal(buffer, other.get_buffer(name)) for name, buffer in one.named_buffers())


def test_recomputing_units_of_one_stage_leaves_the_other_reversible():
    model = build("vnet", recompute="unit:2", device="meta")
    ran = []
    for stage in (model.stage2, model.stage3):
        stage.register_forward_hook(lambda stage, *_: ran.append(stage))
    model(torch.empty(1, 3, 16, 16, device="meta"))
    assert ran == [model.stage3]


def test_second_function_is_no_identity():
    model = build("vnet", second=True, device="meta")
    assert count(model) == 162_291 + 4896 + 149_760  # each V module twice
    plain = build("vnet", device="meta")
    assert cost(model, (64, 64)).macs > cost(plain, (64, 64)).macs


def test_logits_at_their_own_resolution():
    model = build("vnet", device="meta").eval()
    x = torch.empty(1, 3, 33, 50, device="meta")
    assert model(x, full_size=False)["out"].shape == (1, 19, 5, 7)
    assert model(x)["out"].shape == (1, 19, 33, 50)


def test_without_v_modules():
    model = build("vnet", alpha=0, beta=0)
    assert count(model) == 162_291 - 4896 - 149_760
    assert model(torch.randn(2, 3, 16, 16))["out"].isfinite().all()
    with pytest.raises(ValueError, match="No 'unit:2'"):
        build("vnet", alpha=0, recompute="unit:2")


def let_go(model, images, labels):
    """Cross-entropy at full resolution; the logits go once the loss is there."""
    return F.cross_entropy(model(images)["out"], labels)


def peak(*, step=let_go, depth=1, **options):
    model = build("vnet", alpha=depth, beta=2 * depth, device="meta", **options)
    return peak_memory(model, 4, CITYSCAPES, step=step).total


def test_memory_is_flat_in_depth():
    """Four images of 1024x2048 (Table 3)."""
    reversible = [peak(depth=depth) for depth in (1, 8)]
    assert max(reversible) <= 3 * GIB
    assert max(reversible) / min(reversible) < 1.005
    plain = [peak(depth=depth, reversible=False) for depth in (1, 8)]
    assert [round(total / 2**20) for total in plain] == [4737, 16837]
    assert plain[-1] / plain[0] > 3.5


def test_memory_with_the_loss_in_chunks():
    assert peak(step=chunked_step) <= 1.7 * GIB


def test_memory_with_everything_else_recomputed():
    assert peak(step=chunked_step, recompute="stem,td") < 0.6 * peak(step=chunked_step)


def test_reversible_beats_checkpointed_units():
    assert peak() < peak(recompute="unit") < peak(reversible=False)


def test_table_3_ranks_the_networks_so():
    """VNet < ESPNet < ENet at four images."""
    others = [peak_memory(build(name, device="meta"), 4, CITYSCAPES).total for name in ("espnet", "enet")]
    assert peak(step=None) < others[0] < others[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"alpha": -1}, "alpha=-1"),
        ({"widths": (8, 33, 128)}, r"widths=\(8, 33, 128\).*even"),
        ({"widths": (8, 128, 64)}, r"widths=\(8, 128, 64\).*more than the one before"),
        ({"widths": (8, 32)}, r"widths=\(8, 32\)"),
        ({"dilations": ((1, 2), ())}, r"dilations=\(\(1, 2\), \(\)\)"),
        ({"dilations": ((0,), (1,))}, r"dilations=\(\(0,\), \(1,\)\)"),
        ({"recompute": "block"}, "It has unit, stem, td"),
        ({"weights": "imagenet"}, "no ImageNet weights for VNet"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        build("vnet", device="meta", **options)


def test_nothing_is_pretrained():
    assert VNet(num_classes=2).pretrained_parameters() == []
