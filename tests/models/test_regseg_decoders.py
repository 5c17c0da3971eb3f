"""Table 5's decoders: sizes and costs, what each computes by hand, every size, what they refuse."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkit.measure import cost
from segkit.models.regseg import DECODERS, RegSeg
from segkit.models.regseg_decoders import FlowAlignment

CHANNELS = (48, 128, 320)

# The decoder's parameters and the model's, multiply-adds in 1e9 at 1024x2048: conv, fvcore.
COUNTS = {
    "regseg": (174_947, 3_334_951, "38.3532", "39.0772"),
    "sum3x3": (208_019, 3_368_023, "35.2033", "35.8791"),
    "concat-yblock": (135_035, 3_295_039, "32.4518", "33.1507"),
    "concat3x3": (232_403, 3_392_407, "36.0086", "36.6781"),
    "sum1x1": (76_947, 3_236_951, "30.9083", "31.5841"),
    "concat1x1": (68_563, 3_228_567, "30.6399", "31.3094"),
    "lraspp": (87_078, 3_247_082, "29.9143", "30.5759"),
    "sfnet": (245_075, 3_405_079, "33.7761", "34.4698"),
    "bisenet": (766_003, 3_926_007, "43.2564", "43.9369"),
}

every_decoder = pytest.mark.parametrize("name", DECODERS)


def on_meta(name, **options):
    with torch.device("meta"):
        return RegSeg(num_classes=options.pop("num_classes", 19), decoder=name, **options)


def made(name):
    """A decoder in float64 and eval mode, with batch norms that do something; and maps of odd sizes."""
    torch.manual_seed(0)
    decoder = DECODERS[name]((4, 6, 8), num_classes=3).double().eval()
    for norm in decoder.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
    sizes = zip((4, 6, 8), ((17, 21), (9, 11), (5, 6)), strict=True)
    return decoder, [torch.randn(2, c, *size, dtype=torch.float64) for c, size in sizes]


def up(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def mean(x):
    return x.mean((2, 3), keepdim=True)


def test_all_of_table_5():
    assert set(DECODERS) == set(COUNTS)


@every_decoder
def test_counts(name):
    decoder, params, conv, fvcore = COUNTS[name]
    model = on_meta(name)
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    assert sum(p.numel() for p in model.decoder.parameters()) == decoder
    ours = cost(model, (1024, 2048))
    assert (ours.params, f"{ours.macs / 1e9:.4f}") == (params, conv)
    macs = cost(model, (1024, 2048), convention="fvcore").macs
    # fvcore takes four for each sampled value, which our convention does not count
    sampled = 4 * 64 * 128 * 256 if name == "sfnet" else 0
    assert f"{(macs + sampled) / 1e9:.4f}" == fvcore


@every_decoder
@pytest.mark.parametrize("size", [(16, 16), (17, 45)])
def test_any_size(name, size):
    model = on_meta(name, num_classes=7, dilations=((1, 2),)).eval()
    x = torch.empty(2, 3, *size, device="meta")
    assert model(x)["out"].shape == (2, 7, *size)
    stride = model.output_stride
    assert stride == (4 if name == "regseg" else 8)
    assert model(x, full_size=False)["out"].shape == (2, 7, *(-(-side // stride) for side in size))


@every_decoder
def test_every_parameter_learns(name):
    torch.manual_seed(0)
    decoder = DECODERS[name](CHANNELS, num_classes=5)
    maps = [
        torch.randn(2, c, *size, requires_grad=True)
        for c, size in zip(CHANNELS, ((9, 14), (5, 7), (3, 4)), strict=True)
    ]
    decoder(*maps).square().mean().backward()
    for parameter_name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name
    assert [m.grad is not None for m in maps] == [name == "regseg", True, True]


@every_decoder
def test_state_dict_round_trip(name):
    one, maps = made(name)
    other = DECODERS[name]((4, 6, 8), num_classes=3).double().eval()
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        assert torch.equal(one(*maps), other(*maps))


def test_regsegs_by_hand():
    """Section 3.4, Figure 5; the coarse maps come first in the concatenation."""
    decoder, (x4, x8, x16) = made("regseg")
    with torch.no_grad():
        x = decoder.conv8(up(decoder.head16(x16), (9, 11)) + decoder.head8(x8))
        x = torch.cat([up(x, (17, 21)), decoder.head4(x4)], dim=1)
        expected = decoder.logits(decoder.conv4(x))
        torch.testing.assert_close(decoder(x4, x8, x16), expected)


@pytest.mark.parametrize("name", ["sum3x3", "sum1x1", "concat3x3", "concat1x1", "concat-yblock"])
def test_sums_and_concatenations_by_hand(name):
    """Section 4.5."""
    decoder, (x4, x8, x16) = made(name)
    with torch.no_grad():
        a, b = decoder.head8(x8), up(decoder.head16(x16), (9, 11))
        x = a + b if name.startswith("sum") else torch.cat([a, b], dim=1)
        torch.testing.assert_close(decoder(x4, x8, x16), decoder.logits(decoder.conv(x)))


def test_lraspp_by_hand():
    decoder, (x4, x8, x16) = made("lraspp")
    with torch.no_grad():
        gate = torch.sigmoid(F.conv2d(mean(x16), decoder.gate[1].weight))
        x = up(decoder.head16(x16) * gate, (9, 11))
        expected = decoder.logits16(x) + decoder.logits8(x8)
        torch.testing.assert_close(decoder(x4, x8, x16), expected)


def test_bisenets_by_hand():
    decoder, (x4, x8, x16) = made("bisenet")
    nearest = torch.arange(9) * 5 // 9, torch.arange(11) * 6 // 11
    with torch.no_grad():
        refined = decoder.refine(x16)
        attention = torch.sigmoid(decoder.attention[1](mean(refined)))
        x = refined * attention + decoder.context[1](mean(x16))
        x = decoder.head16(x[:, :, nearest[0]][:, :, :, nearest[1]])
        x = decoder.fuse(torch.cat([x8, x], dim=1))
        expected = decoder.logits(decoder.conv(x + decoder.squeeze_excite(x)))
        torch.testing.assert_close(decoder(x4, x8, x16), expected)


def test_flow_alignment_by_hand():
    """Every pixel's place from the grid and the flow; four neighbors, nothing outside of the map."""
    torch.manual_seed(0)
    module = FlowAlignment(4).double()
    module.flow.weight.data *= 8  # to look beyond the border too
    fine = torch.randn(1, 4, 7, 5, dtype=torch.float64)
    coarse = torch.randn(1, 4, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        both = torch.cat([up(module.reduce_coarse(coarse), (7, 5)), module.reduce_fine(fine)], dim=1)
        flow = module.flow(both)[0]
        expected = torch.zeros(1, 4, 7, 5, dtype=torch.float64)
        for i in range(7):
            for j in range(5):
                # in [-1, 1]: grid from center to center, sampling from border to border
                x = -1 + 2 * j / 4 + flow[0, i, j] / 5
                y = -1 + 2 * i / 6 + flow[1, i, j] / 7
                column, row = ((x + 1) * 3 - 1) / 2, ((y + 1) * 4 - 1) / 2
                for r in range(4):
                    for c in range(3):
                        weight = (1 - abs(row - r)).clamp(min=0) * (1 - abs(column - c)).clamp(min=0)
                        expected[0, :, i, j] += weight * coarse[0, :, r, c]
        torch.testing.assert_close(module(fine, coarse), expected)


def test_sfnets_by_hand():
    decoder, (x4, x8, x16) = made("sfnet")
    with torch.no_grad():
        levels = [
            up(level[1](F.adaptive_avg_pool2d(x16, int(n))), (5, 6)) for n, level in decoder.levels.items()
        ]
        assert list(decoder.levels) == ["1", "2", "3", "6"]
        coarse = decoder.head16(torch.cat([x16, *levels], dim=1))
        fine = decoder.head8(x8)
        fine = decoder.conv8(fine + decoder.align(fine, coarse))
        # corners aligned: rows and columns are spread from the first to the last pixel
        rows = torch.linspace(0, 4, 9, dtype=torch.float64)[:, None] - torch.arange(5)
        columns = torch.linspace(0, 5, 11, dtype=torch.float64)[:, None] - torch.arange(6)
        weights = [(1 - t.abs()).clamp(min=0) for t in (rows, columns)]
        coarse = torch.einsum("yr,xc,bkrc->bkyx", *weights, coarse)
        expected = decoder.logits(decoder.conv(torch.cat([fine, coarse], dim=1)))
        torch.testing.assert_close(decoder(x4, x8, x16), expected)


def test_pooled_levels_have_no_relu():
    decoder, _ = made("sfnet")
    for level in decoder.levels.values():
        assert [type(layer) for layer in level[1]] == [nn.Conv2d, nn.BatchNorm2d]


def test_flow_alignment_in_half_precision():
    """The grid is kept in single precision, where two columns of a wide map differ."""
    torch.manual_seed(0)
    module = FlowAlignment(4)
    fine, coarse = torch.randn(1, 4, 2, 600), torch.randn(1, 4, 1, 300)
    with torch.no_grad():
        exact = module(fine, coarse)
        half = module.bfloat16()(fine.bfloat16(), coarse.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half - exact).abs().max() < 0.15


@pytest.mark.parametrize(("name", "parts"), [("sfnet", ["levels.1"]), ("bisenet", ["context", "attention"])])
def test_one_image_cannot_be_trained_on(name, parts):
    model, x = on_meta(name, dilations=((1, 2),)), torch.empty(1, 3, 33, 47, device="meta")
    with pytest.raises(ValueError, match=r"single image.*model\.decoder\..*\.eval\(\)"):
        model(x)
    assert model(x.expand(2, -1, -1, -1))["out"].shape == (2, 19, 33, 47)
    for part in parts:
        model.decoder.get_submodule(part).eval()
    assert model(x)["out"].shape == (1, 19, 33, 47)
    assert model.eval()(x)["out"].shape == (1, 19, 33, 47)


def test_sfnets_exports():
    decoder, maps = made("sfnet")
    with torch.no_grad():
        program = torch.export.export(decoder, tuple(maps), strict=False)
        torch.testing.assert_close(program.module()(*maps), decoder(*maps))
