"""RegSeg: sizes and costs, the D block by hand, receptive fields of Table 4, any size, what it refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segkit.measure import bound, compose, cost, largest_path, receptive_field
from segkit.models.regseg import DILATIONS, DBlock, RegSeg, RegSegBackbone

FIELDS = {1: 3807, 2: 3743, 3: 3743, 4: 3295, 5: 3807, 6: 2207, 7: 4127, 8: 3263, 9: 3743}  # Table 4


def count(module):
    return sum(p.numel() for p in module.parameters())


def on_meta(**options):
    with torch.device("meta"):
        return RegSeg(**{"num_classes": 19, **options})


def stirred(module):
    """In eval mode, with batch norms that do something."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 1.5)
    return module.eval()


# ---- sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_size", "convention", "gmacs"),
    [
        ((1024, 2048), "conv", "38.3532"),
        ((1024, 2048), "fvcore", "39.0772"),  # Table 9's 39.1
        ((720, 960), "conv", "12.641"),
    ],
)
def test_counts(image_size, convention, gmacs):
    ours = cost(on_meta(), image_size, convention=convention)
    assert ours.params == 3_334_951
    assert f"{ours.macs / 1e9:.{len(gmacs) - 3}f}" == gmacs


def test_where_the_parameters_are():
    backbone = on_meta().backbone
    assert count(backbone.stem) == 928
    assert [count(block) for block in backbone.stage4] == [13_496]
    assert [count(block) for block in backbone.stage8] == [51_340, 60_320, 60_320]
    assert [count(block) for block in backbone.stage16] == [186_656, *12 * [202_560], 356_224]
    assert count(backbone) == 3_160_004


def test_batch_norm_parameters_which_the_paper_does_not_decay():
    model = on_meta()
    norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    assert (len(norms), sum(p.numel() for p in norms)) == (128, 26_832)
    assert len(list(model.parameters())) - len(norms) == 150


@pytest.mark.parametrize("dilations", [(1,), (1, 1), (1, 4), (1, 14), (1, 3, 6, 12)])
def test_parameters_do_not_depend_on_dilations(dilations):
    with torch.device("meta"):
        assert count(DBlock(256, 256, dilations)) == 202_560


def test_initialization_is_pytorchs_default():
    torch.manual_seed(0)
    model = RegSeg(num_classes=5)
    again = RegSeg(num_classes=5)
    torch.manual_seed(0)
    for module in again.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    again = dict(again.named_parameters())
    assert all(torch.equal(parameter, again[name]) for name, parameter in model.named_parameters())


# ---- the D block ----------------------------------------------------------------------------------------


def normed(x, norm):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def naive_d_block(block, x, dilations, stride):
    """Section 3.2 and Figures 3 and 4, group by group, channel means and pooling by hand."""
    h, w = x.shape[-2:]
    main = F.relu(normed(F.conv2d(x, block.conv1[0].weight), block.conv1[1]))
    groups = main.split(16, dim=1)
    weights = torch.cat([conv.weight for conv in block.branches]).split(16)
    parts = []
    for i, (group, weight) in enumerate(zip(groups, weights, strict=True)):
        d = dilations[i * len(dilations) // len(groups)]
        padded = F.pad(group, (d, d, d, d))
        taken = 0
        for row in range(3):
            for column in range(3):
                shifted = padded[:, :, row * d :, column * d :][:, :, :h:stride, :w:stride]
                taken = taken + torch.einsum("oi,bihw->bohw", weight[:, :, row, column], shifted)
        parts.append(taken)
    main = F.relu(normed(torch.cat(parts, dim=1), block.norm))
    _, squeeze, _, excite, _ = block.squeeze_excite.gate
    gate = main.mean((2, 3)) @ squeeze.weight[:, :, 0, 0].T + squeeze.bias
    gate = torch.sigmoid(F.relu(gate) @ excite.weight[:, :, 0, 0].T + excite.bias)
    main = normed(F.conv2d(main * gate[:, :, None, None], block.conv3[0].weight), block.conv3[1])
    if stride == 2:  # 2x2 windows, cut off at the border of odd sizes
        rows = [x[:, :, i : i + 2].mean(2) for i in range(0, h, 2)]
        x = torch.stack(rows, dim=2)
        columns = [x[:, :, :, j : j + 2].mean(3) for j in range(0, w, 2)]
        x = torch.stack(columns, dim=3)
    if not isinstance(block.shortcut, nn.Identity):
        _, conv, norm = [None, *block.shortcut.modules()][-3:]
        x = normed(F.conv2d(x, conv.weight), norm)
    return F.relu(main + x)


@pytest.mark.parametrize(
    ("widths", "dilations", "stride", "size"),
    [
        ((64, 64), (1,), 1, (5, 7)),
        ((64, 64), (1, 4), 1, (9, 6)),
        ((64, 64), (1, 3, 6, 12), 1, (8, 13)),
        ((64, 64), (2, 2), 1, (8, 7)),
        ((32, 64), (1, 2), 1, (5, 6)),  # like 256 -> 320: a convolution on the shortcut, no pooling
        ((32, 64), (1,), 2, (6, 8)),
        ((32, 64), (1, 3), 2, (7, 9)),
        ((64, 64), (1,), 2, (5, 1)),
    ],
)
def test_block_by_hand(widths, dilations, stride, size):
    torch.manual_seed(0)
    block = stirred(DBlock(*widths, dilations, stride=stride).double())
    x = torch.randn(2, widths[0], *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block(x), naive_d_block(block, x, dilations, stride))


def test_equal_dilations_do_not_split():
    """End of Section 3.2."""
    torch.manual_seed(0)
    one, two = DBlock(64, 64, (1,)), DBlock(64, 64, (1, 1))
    assert len(two.branches) == 1
    two.load_state_dict(one.state_dict())
    x = torch.randn(2, 64, 6, 7)
    outputs = [block(x) for block in (one, two)]
    assert torch.equal(*outputs)
    gradients = [
        torch.autograd.grad(y.square().sum(), block.parameters())
        for y, block in zip(outputs, (one, two), strict=True)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert torch.equal(one.eval()(x), two.eval()(x))


@pytest.mark.parametrize("parts", [2, 4])
def test_split_block_is_the_y_block_where_dilations_are_1(parts):
    torch.manual_seed(0)
    whole, split = (stirred(DBlock(128, 128, d).double()) for d in [(1,), (1, 2, 2, 2)[:parts]])
    for conv in split.branches:
        conv.dilation = conv.padding = (1, 1)
    weights = split.state_dict()
    kernels = [weights.pop(f"branches.{i}.weight") for i in range(parts)]
    whole.load_state_dict({**weights, "branches.0.weight": torch.cat(kernels)})
    x = torch.randn(2, 128, 6, 7, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(split(x), whole(x), rtol=0, atol=1e-12)


@given(st.integers(1, 33), st.integers(1, 33), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_strided_branch_and_shortcut_agree_at_any_size(height, width, dilation):
    with torch.device("meta"):
        block = DBlock(4, 32, (1, dilation), stride=2).eval()
        out = block(torch.empty(1, 4, height, width))
    assert out.shape == (1, 32, (height + 1) // 2, (width + 1) // 2)


def test_squeeze_is_a_quarter_of_the_blocks_input():
    with torch.device("meta"):
        squeeze = DBlock(128, 256).squeeze_excite.gate[1]
    assert (squeeze.in_channels, squeeze.out_channels) == (256, 32)


def test_integers_of_numpy_are_as_good():
    two, sixteen, width = np.array([2, 16, 64])
    block = DBlock(width, width, (np.int64(1), np.uint8(4)), stride=two, group_width=sixteen)
    assert block(torch.randn(2, 64, 5, 7)).shape == (2, 64, 3, 4)
    for conv in (*block.branches, block.squeeze_excite.gate[1]):
        numbers = (conv.in_channels, conv.out_channels, conv.groups, *conv.dilation, *conv.stride)
        assert {type(number) for number in numbers} == {int}


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((64, 64, (1, 0)), {}, r"dilations=\(1, 0\): give the dilation of each branch"),
        ((64, 64, ()), {}, r"dilations=\(\)"),
        ((64, 64, 4), {}, "dilations=4: give"),
        ((64, 64, (1, 1.5)), {}, r"dilations=\(1, 1\.5\)"),
        ((64, 40), {}, "channels_out=40 is not a multiple of group_width=16"),
        ((64, 64), {"group_width": 24}, "channels_out=64 is not a multiple of group_width=24"),
        ((64, 64), {"group_width": 0}, "group_width=0"),
        ((64, 64, (1, 2, 4)), {}, r"dilations=\(1, 2, 4\): 3 branches.*channels_out=64; .*multiple of 48"),
        ((64, 48, (1, 2)), {}, r"dilations=\(1, 2\): 2 branches of groups of 16.*channels_out=48; .* 32"),
        ((3, 64), {}, "channels_in=3: an integer of at least 4"),
        ((64, 64), {"stride": 3}, "stride=3: a D block has stride 1 or 2"),
        ((64.0, 64), {}, r"channels_in=64\.0: an integer"),
        (("64", 64), {}, "channels_in='64': an integer"),
        ((64, 64.0), {}, r"channels_out=64\.0, group_width=16: integers of at least 1"),
        ((64, -64), {}, "channels_out=-64, group_width=16: integers of at least 1"),
        ((64, 64), {"group_width": 16.0}, r"group_width=16\.0: integers"),
        ((64, 64), {"group_width": True}, "group_width=True: integers"),
        ((64, 64), {"stride": True}, "stride=True: a D block has stride 1 or 2"),
        ((64, 64), {"stride": 2.0}, r"stride=2\.0: a D block"),
        ((64, 64, (1, True)), {}, r"dilations=\(1, True\): give the dilation of each branch"),
    ],
)
def test_impossible_blocks(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        DBlock(*arguments, **options)


# ---- the backbone ---------------------------------------------------------------------------------------


def test_dilations_of_table_2():
    blocks = list(on_meta().backbone.stage16)
    found = [tuple(conv.dilation[0] for conv in block.branches) for block in blocks]
    assert found == [(1,), (1,), (1, 2), *4 * [(1, 4)], *7 * [(1, 14)]]
    assert all(conv.padding == conv.dilation for block in blocks for conv in block.branches)


def test_rows_of_table_4():
    assert list(DILATIONS) == list(range(1, 10))
    assert {len(row) for row in DILATIONS.values()} == {13}
    assert all(block[0] == 1 for row in DILATIONS.values() for block in row)
    assert {row: 63 + 32 * sum(map(max, blocks)) for row, blocks in DILATIONS.items()} == FIELDS


@pytest.mark.parametrize("row", FIELDS)
def test_fields_of_table_4(row):
    with torch.device("meta"):
        backbone = RegSegBackbone(DILATIONS[row])
    field = receptive_field(backbone, output=2)
    assert (field.size, field.stride, field.offset) == (2 * (FIELDS[row],), (16, 16), (0, 0))
    assert len(field.global_parts) == 18  # the blocks' gates
    assert field.global_parts[0] == "stage4.0.squeeze_excite.gate.0"
    if row in (4, 8):  # of about the same extent and dilations
        holes = ~field.mask
        # what breaks the bound of Section 3.1 leaves some near the edges, where few branches reach
        assert holes.sum() == (768 if row == 8 else 0)
        assert not holes[100:-100, 100:-100].any()
        assert not holes.all(0).any() and not holes.all(1).any()  # none by rows or columns alone


def test_the_corner_sees_all_rows_of_cityscapes_but_not_all_columns():
    field = receptive_field(on_meta().backbone, output=2, image_size=(1024, 2048), position=(0, 0))
    assert field.box == ((0, 1023), (0, 1903))  # 3807 pixels around it reach 1903 far


@pytest.mark.parametrize("row", FIELDS)
def test_row_8_alone_breaks_the_bound(row):
    """k/s >= r of Section 3.1: it misses by a pixel at its first block of stride 1."""
    strides = [2, 2, 2, 1, 1, 2]
    layers = [*((3, stride) for stride in strides), *(max(block) for block in DILATIONS[row])]
    assert compose(layers).size == FIELDS[row]
    broken = [(e.size, e.stride, e.layer.dilation) for e in bound(layers) if not e.holds]
    assert broken == ([(63, 16, 4)] if row == 8 else [])


def test_the_block_that_breaks_it_by_name():
    with torch.device("meta"):
        layers = largest_path(RegSegBackbone(DILATIONS[8]), output=2)
    assert compose(layers).size == FIELDS[8]
    assert [e.layer.name for e in bound(layers) if not e.holds] == ["stage16.1.branches.1"]


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (31, 50), (64, 47)])
def test_any_size(size):
    model = on_meta(num_classes=7).eval()
    x = torch.empty(1, 3, *size, device="meta")
    halved = {s: tuple(-(-side // s) for side in size) for s in (4, 8, 16)}
    maps = model.backbone(x)
    assert [tuple(m.shape) for m in maps] == [
        (1, c, *halved[s]) for c, s in zip((48, 128, 320), halved, strict=True)
    ]
    assert model.backbone.channels == (48, 128, 320)
    assert {name: value.shape for name, value in model(x).items()} == {"out": (1, 7, *size)}
    assert model(x, full_size=False)["out"].shape == (1, 7, *halved[4])
    assert model.output_stride == 4


def test_every_parameter_learns_at_odd_size():
    torch.manual_seed(0)
    model = RegSeg(num_classes=5)
    model(torch.randn(2, 3, 37, 51))["out"].square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_state_dict_round_trip():
    torch.manual_seed(0)
    one, other = RegSeg(num_classes=5).eval(), RegSeg(num_classes=5).eval()
    x = torch.randn(1, 3, 33, 41)
    with torch.no_grad():
        assert not torch.equal(one(x)["out"], other(x)["out"])
        other.load_state_dict(one.state_dict())
        assert torch.equal(one(x)["out"], other(x)["out"])


def test_exports():
    torch.manual_seed(0)
    model = RegSeg(num_classes=5, dilations=((1, 2), (1, 14)), recompute="unit,stem").eval()
    x = torch.randn(1, 3, 33, 41)
    with torch.no_grad():
        program = torch.export.export(model, (x,), strict=False)
        torch.testing.assert_close(program.module()(x)["out"], model(x)["out"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("recompute", ["stem,unit", "block", "unit:8,block:16"])
def test_recomputation_changes_nothing(recompute):
    results = []
    for labels in (None, recompute):
        torch.manual_seed(0)
        model = RegSeg(num_classes=3, dilations=((1,), (1, 4)), recompute=labels)
        out = model(torch.randn(2, 3, 33, 35))["out"]
        out.square().mean().backward()
        results.append((out, *[p.grad for p in model.parameters()], *model.buffers()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_places_of_recomputation():
    offers = on_meta().backbone.segment.offers
    assert [f"{label}:{place}" for label, place, _ in offers] == [
        "stem:",
        *(f"{label}:{place}" for place in (4, 8, 16) for label in ("unit", "block")),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"decoder": "fpn"}, "decoder='fpn'; choose one of regseg, sum3x3"),
        ({"dilations": ()}, r"dilations=\(\): give a tuple of dilations for each block"),
        ({"dilations": 14}, "dilations=14: give a tuple"),
        ({"dilations": (1, 14)}, "dilations=1: give the dilation of each branch"),
        ({"dilations": ((1,), (1, 2, 3))}, r"dilations=\(1, 2, 3\): 3 branches.*channels_out=320"),
        ({"recompute": "td"}, "No segments labelled 'td'.*It has stem, unit, block"),
        ({"recompute": "unit:1"}, "No 'unit:1' in this network: unit has 4, 8, 16"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta(**options)


def test_too_small_images():
    with pytest.raises(ValueError, match=r"15x64 pixels are too small.*at least 16x16"):
        on_meta()(torch.empty(2, 3, 15, 64, device="meta"))


def test_one_image_that_leaves_one_value_cannot_be_trained_on():
    model = on_meta(dilations=((1, 2),))
    x = torch.empty(1, 3, 16, 16, device="meta")
    with pytest.raises(ValueError, match=r"single image of 16x16 pixels.*one value per channel"):
        model(x)
    assert model(x.expand(2, -1, -1, -1))["out"].shape == (2, 19, 16, 16)
    assert model(torch.empty(1, 3, 16, 17, device="meta"))["out"].shape == (1, 19, 16, 17)
    assert model.eval()(x)["out"].shape == (1, 19, 16, 16)


def test_no_imagenet_weights():
    with pytest.raises(ValueError, match="no ImageNet weights for RegSeg"):
        on_meta().load_imagenet()
    assert on_meta().pretrained_parameters() == []
