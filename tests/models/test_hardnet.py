"""FC-HarDNet-70: size and work, the rule of its links and widths, a block by hand, recomputation."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segkit.measure import cost, peak_memory
from segkit.models.peers.hardnet import BLOCKS, MULTIPLIER, FCHarDNet, HarmonicBlock, links, width


def on_meta(**options):
    with torch.device("meta"):
        return FCHarDNet(**{"num_classes": 19, **options})


def test_size_and_work():
    """RegSeg's Table 9 has 4.12 M and 35.6 G, the latter as fvcore counts."""
    model = on_meta()
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    conv, fvcore = (cost(model, (1024, 2048), convention=convention) for convention in ("conv", "fvcore"))
    assert conv.params == sum(p.numel() for p in model.parameters()) == 4_119_257
    assert (conv.macs, fvcore.macs) == (35_217_426_432, 35_627_520_000)


def test_seventy_convolutions():
    convolutions = [m for m in on_meta().modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 70
    assert {c.kernel_size for c in convolutions} == {(3, 3), (1, 1)}
    assert [c.bias is not None for c in convolutions] == 69 * [False] + [True]


@given(st.integers(1, 4096))
@settings(deadline=None)
def test_links_are_the_papers(layer):
    """Section 3.1: layer l to l - 2^n if 2^n divides l, for n >= 0 and l - 2^n >= 0."""
    expected = [layer - 2**n for n in range(14) if layer % 2**n == 0 and layer - 2**n >= 0]
    assert links(layer) == expected  # the nearest first
    power = 1
    while 2 * power < layer:
        power *= 2
        # once layer 2^n is there, the layers 1 to 2^n - 1 are read no more
        assert not any(0 < source < power for source in links(layer))


@given(st.integers(1, 256), st.integers(1, 64), st.integers(4, 12))
@settings(deadline=None)
def test_widths_are_the_papers_to_the_nearest_even_number(layer, growth, quarters):
    """k m^n for the largest n with 2^n dividing l (Section 3.1), for multipliers that a float has exactly."""
    n = max(n for n in range(9) if layer % 2**n == 0)
    exact = growth * Fraction(quarters, 4) ** n
    maps = width(layer, growth, quarters / 4)
    assert maps % 2 == 0
    assert -1 < maps - exact <= 1  # of two that are as near, the larger


@given(st.integers(1, 17), st.integers(1, 9), st.integers(1, 16), st.sampled_from([1.0, 1.5, 1.7, 2.0]))
@settings(deadline=None, max_examples=12)
def test_block_of_any_size_fits_together(layers, channels, growth, multiplier):
    with torch.device("meta"):
        block = HarmonicBlock(channels, layers, growth, multiplier=multiplier)
        out = block(torch.empty(1, channels, 2, 3))
    assert len(block.layers) == layers
    assert out.shape == (1, block.channels, 2, 3)


@pytest.mark.parametrize(
    ("block", "widths"),
    [  # k m^n for m = 1.7: 10, 17, 28.9; 16, 27.2, 46.24; 18, 30.6, 52.02, 88.43; and so on
        (0, [10, 18, 10, 28]),
        (1, [16, 28, 16, 46]),
        (2, [18, 30, 18, 52, 18, 30, 18, 88]),
        (3, [24, 40, 24, 70, 24, 40, 24, 118]),
        (4, [32, 54, 32, 92, 32, 54, 32, 158]),
    ],
)
def test_widths_of_this_network(block, widths):
    layers, growth, _ = BLOCKS[block]
    assert [width(layer, growth, MULTIPLIER) for layer in range(1, layers + 1)] == widths
    model = on_meta()
    assert [layer[0].out_channels for layer in model.blocks[block].layers] == widths
    if block < 4:  # the decoder mirrors the encoder
        assert [layer[0].out_channels for layer in model.up_blocks[3 - block].layers] == widths


def test_block_by_hand():
    torch.manual_seed(0)
    block = HarmonicBlock(3, 4, 2).eval()
    x = torch.randn(2, 3, 5, 6)

    def layer(number, *inputs):
        conv, norm, _ = block.layers[number - 1]
        return norm(conv(torch.cat(inputs, dim=1))).clamp(min=0)

    with torch.no_grad():
        first = layer(1, x)
        second = layer(2, first, x)
        third = layer(3, second)
        fourth = layer(4, third, second, x)
        assert torch.allclose(block(x), torch.cat([first, third, fourth], dim=1), atol=1e-6)
    assert block.channels == 2 + 2 + 6  # 2 * 1.7^2 = 5.78


def test_resolutions():
    model, sizes = on_meta().eval(), []
    for module in (model.stem, *model.blocks, *model.up_blocks):
        module.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    model(torch.empty(2, 3, 256, 515, device="meta"))
    down = [(48, 64, 129), (48, 64, 129), (78, 32, 64), (160, 16, 32), (214, 8, 16), (286, 4, 8)]
    assert sizes == [*down, *down[4:0:-1]]


@pytest.mark.parametrize("size", [(65, 97), (127, 64)])
def test_any_size(size):
    model, x = on_meta(num_classes=7).eval(), torch.empty(2, 3, *size, device="meta")
    assert model(x)["out"].shape == (2, 7, *size)
    assert model(x, full_size=False)["out"].shape == (2, 7, -(-size[0] // 4), -(-size[1] // 4))


def test_every_parameter_learns_at_odd_size():
    torch.manual_seed(0)
    model = FCHarDNet(num_classes=5)
    output = model(torch.randn(2, 3, 69, 133))
    assert list(output) == ["out"]  # in train mode too
    out = output["out"]
    assert out.isfinite().all()
    out.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_state_dict_round_trip():
    torch.manual_seed(0)
    model, other = FCHarDNet(num_classes=3).eval(), FCHarDNet(num_classes=3).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(model(x)["out"], other(x)["out"])
        other.load_state_dict(model.state_dict())
        assert torch.equal(model(x)["out"], other(x)["out"])


@pytest.mark.parametrize("recompute", ["unit,stem,td,tu", "unit:2,block:9,td:1,tu:6,tu:logits"])
def test_recomputation_changes_nothing(recompute):
    results = []
    for labels in (None, recompute):
        torch.manual_seed(0)
        model = FCHarDNet(num_classes=3, recompute=labels).double()
        x = torch.randn(2, 3, 61, 65, dtype=torch.float64)
        out = model(x)["out"]
        out.square().mean().backward()
        results.append((out.detach(), [p.grad for p in model.parameters()], list(model.buffers())))
    (out, gradients, buffers), (out_again, again, buffers_again) = results
    assert torch.equal(out, out_again)
    assert all(torch.equal(a, b) for a, b in zip(buffers, buffers_again, strict=True))
    for a, b in zip(gradients, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_recomputation_saves_memory():
    plain, most = (
        peak_memory(on_meta(recompute=recompute), 1, (256, 512)).total
        for recompute in (None, "block,stem,td,tu")
    )
    assert most < 0.6 * plain


def test_exports():
    torch.manual_seed(0)
    model = FCHarDNet(num_classes=3, recompute="unit,stem,td,tu").eval()
    x = torch.randn(1, 3, 61, 65)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        assert torch.allclose(program.module()(x)["out"], model(x)["out"], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"recompute": "spp"}, "No segments labelled 'spp'.*It has unit, block, stem, td, tu"),
        ({"recompute": "td:6"}, "No 'td:6' in this network: td has 1, 2, 3, 4, 5"),
        ({"recompute": "unit:1,block"}, "covers 'unit' twice"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta(**options)


@pytest.mark.parametrize("size", [(60, 128), (128, 60), (1, 1)])
def test_too_small_images(size):
    with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]} pixels are too small.*at least 61x61"):
        on_meta().eval()(torch.empty(1, 3, *size, device="meta"))


def test_smallest_images_that_fit_leave_one_value():
    model = on_meta().eval()
    seen = []
    model.blocks[-1].register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[-2:])))
    assert model(torch.empty(1, 3, 61, 61, device="meta"))["out"].shape == (1, 19, 61, 61)
    assert seen == [(1, 1)]


def test_what_is_not_a_batch_of_images():
    with pytest.raises(TypeError, match=r"torch\.uint8 tensor"):
        on_meta()(torch.empty(1, 3, 64, 64, dtype=torch.uint8, device="meta"))
    with pytest.raises(ValueError, match=r"got \(1, 4, 64, 64\)"):
        on_meta()(torch.empty(1, 4, 64, 64, device="meta"))


def test_one_small_image_cannot_be_trained_on():
    model = FCHarDNet(num_classes=2)
    with pytest.raises(ValueError, match=r"single image of 124x61 pixels.*at least two images.*model\.eval"):
        model(torch.randn(1, 3, 124, 61))
    assert model(torch.randn(1, 3, 125, 61))["out"].isfinite().all()  # two values: the bound is no stricter
    assert model(torch.randn(2, 3, 61, 61))["out"].isfinite().all()
    assert model.eval()(torch.randn(1, 3, 61, 61))["out"].isfinite().all()


def test_no_imagenet_weights():
    model = on_meta()
    with pytest.raises(ValueError, match="no ImageNet weights for FC-HarDNet; use weights='none'"):
        model.load_imagenet()
    assert model.pretrained_parameters() == []
