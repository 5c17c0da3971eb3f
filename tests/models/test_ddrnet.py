import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkit.measure import cost, peak_memory
from segkit.models.peers.ddrnet import DAPPM, BilateralFusion, DDRNet, basic_blocks, bottleneck

PLACES = ["2", "3", "low4", "high4", "low5", "high5", "low6", "high6"]


def on_meta(**options):
    with torch.device("meta"):
        return DDRNet(**{"num_classes": 19, **options})


def small(**options):
    """An eighth of the maps, to be fast; DAPPM keeps its 128."""
    return DDRNet(**{"num_classes": 5, "width": 8, **options})


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_size_and_work():
    model = on_meta()
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    counted = cost(model, (1024, 2048))
    assert (counted.params, counted.macs) == (20_148_819, 143_060_500_480)
    assert parameters(model) == counted.params
    assert f"{cost(model, (1024, 2048), convention='fvcore').macs / 1e9:.2f}" == "143.68"
    assert cost(model, (1024, 2048), auxiliary=True) == counted  # there is no head to add


def test_auxiliary_head_adds_to_both():
    model = on_meta(auxiliary_head=True)
    assert cost(model, (1024, 2048)).params == 20_148_819
    counted = cost(model, (1024, 2048), auxiliary=True)
    assert f"{counted.macs / 1e9:.2f}" == "147.97"
    assert parameters(model.aux) == 150_419
    # 20,299,366 in the authors' release, whose two convolutions of the stem have 64 biases each
    assert counted.params == parameters(model) == 20_299_366 - 2 * 64


def test_slim_size():
    assert parameters(on_meta(width=32)) == 5_695_923


def test_resolutions_and_widths_of_the_branches():
    model, shapes = DDRNet(num_classes=19).eval(), {}
    for place, stage in model.stages.items():
        stage.register_forward_hook(
            lambda module, inputs, output, place=place: shapes.__setitem__(place, tuple(output.shape[1:]))
        )
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 128))
    assert shapes == {
        "2": (64, 16, 32),
        "3": (128, 8, 16),
        "low4": (256, 4, 8),
        "high4": (128, 8, 16),
        "low5": (512, 2, 4),
        "high5": (128, 8, 16),
        "low6": (1024, 1, 2),
        "high6": (256, 8, 16),
    }
    assert list(shapes) == list(model.stages) == PLACES


def test_only_what_a_fusion_or_the_end_adds_to_is_not_rectified():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    for units, rectified in (
        (basic_blocks(4, 4), (True, True)),
        (basic_blocks(4, 8, stride=2, relu=False), (True, False)),
        ([bottleneck(4, stride=2)], (False,)),
    ):
        y = x
        for unit, relu in zip(units, rectified, strict=True):
            y = unit(y)
            assert bool((y >= 0).all()) == relu
    model = on_meta()
    ends = {place: stage[-1].relu for place, stage in model.stages.items()}
    assert ends == {place: place in ("2", "3") for place in PLACES}


def test_residual_unit_adds_its_input_or_a_projection():
    torch.manual_seed(0)
    first, second = (unit.eval() for unit in basic_blocks(4, 8, stride=2))
    x = torch.randn(1, 4, 9, 7)
    with torch.no_grad():
        y = first(x)
        assert y.shape == (1, 8, 5, 4)
        projected = first.shortcut[0](x) / math.sqrt(1 + first.shortcut[1].eps)  # a fresh norm in eval mode
        assert torch.allclose(y, F.relu(first.main(x) + projected), atol=1e-5)
        assert torch.equal(second(y), F.relu(second.main(y) + y))


@pytest.mark.parametrize("halvings", [1, 2])
def test_fusion_goes_both_ways_at_once(halvings):
    """Each branch gets what the other was before the fusion; neither sum is rectified."""
    torch.manual_seed(0)
    fusion = BilateralFusion(4 * 2**halvings, 4, halvings=halvings).eval()
    high = torch.randn(1, 4, 13, 9)
    size = (13, 9)
    for _ in range(halvings):
        size = tuple(-(-side // 2) for side in size)
    low = torch.randn(1, 4 * 2**halvings, *size)
    with torch.no_grad():
        new_low, new_high = fusion(low, high)
        up = F.interpolate(fusion.compress(low.clamp(min=0)), (13, 9), mode="bilinear")
        assert torch.allclose(new_high, high + up, atol=1e-6)
        down = high.clamp(min=0)
        convolutions = [module for module in fusion.down if isinstance(module, nn.Conv2d)]
        assert len(convolutions) == halvings
        for i, convolution in enumerate(convolutions):
            down = (down.clamp(min=0) if i else down).contiguous()
            down = F.conv2d(down, convolution.weight, stride=2, padding=1) / math.sqrt(1 + 1e-5)
        assert torch.allclose(new_low, low + down, atol=1e-5)
    assert (new_low < 0).any()
    assert (new_high < 0).any()


def test_dappm_aggregates_from_the_map_itself_to_the_whole():
    torch.manual_seed(0)
    dappm = DAPPM(6, 4, 3).eval()
    for module in dappm.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.weight.data.uniform_(0.5, 1.5)
    x = torch.randn(2, 6, 19, 26)

    def norm_relu_conv(layers, maps):
        norm, _, conv = layers
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        maps = (maps - norm.running_mean[:, None, None]) * scale[:, None, None]
        return F.conv2d(maps.clamp(min=0), conv.weight, padding=conv.weight.shape[-1] // 2)

    def mean(side, stride):
        """Average over windows; outside of the map there are zeros, and they count."""
        window = torch.full((6, 1, side, side), 1 / side**2)
        return F.conv2d(x, window, stride=stride, padding=side // 2, groups=6)

    pooled = {
        "5": mean(5, 2),
        "9": mean(9, 4),
        "17": mean(17, 8),
        "whole": x.mean((2, 3), keepdim=True),
    }
    with torch.no_grad():
        y = [norm_relu_conv(dappm.levels["1"], x)]
        for name, maps in pooled.items():
            pyramid = norm_relu_conv(dappm.levels[name][1], maps)
            pyramid = F.interpolate(pyramid, (19, 26), mode="bilinear")
            y.append(norm_relu_conv(dappm.process[name], pyramid + y[-1]))
        expected = norm_relu_conv(dappm.compress, torch.cat(y, 1)) + norm_relu_conv(dappm.shortcut, x)
        assert torch.allclose(dappm(x), expected, atol=1e-5)
    assert [tuple(maps.shape[2:]) for maps in pooled.values()] == [(10, 13), (5, 7), (3, 4), (1, 1)]


def test_initial_weights_are_kaimings_fan_out():
    torch.manual_seed(0)
    model = DDRNet(num_classes=19)
    for conv in (model.stages["low5"][1].main[0], model.fuse5.down[3], model.dappm.shortcut[2]):
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.02)


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (127, 64), (129, 193)])
def test_output_at_any_size(size):
    model = small(num_classes=7, auxiliary_head=True)
    x = torch.randn(2, 3, *size)
    output = model(x)
    assert list(output) == ["out", "aux"]
    assert output["out"].shape == (2, 7, *size)
    assert list(output["aux"]) == ["high4"]
    assert output["aux"]["high4"].shape == (2, 7, -(-size[0] // 8), -(-size[1] // 8))
    model.eval()
    assert {name: value.shape for name, value in model(x).items()} == {"out": (2, 7, *size)}
    small_logits = model(x, full_size=False)
    assert {name: value.shape for name, value in small_logits.items()} == {
        "out": output["aux"]["high4"].shape
    }
    assert model(x, auxiliary=True)["aux"]["high4"].shape == output["aux"]["high4"].shape
    without = small()
    assert list(without(x)) == list(without(x, auxiliary=True)) == ["out"]


def test_logits_are_upsampled_to_the_image():
    torch.manual_seed(0)
    model = small().eval()
    x = torch.randn(1, 3, 65, 91)
    with torch.no_grad():
        coarse = model(x, full_size=False)["out"]
        assert coarse.shape == (1, 5, 9, 12)
        assert torch.equal(model(x)["out"], F.interpolate(coarse, (65, 91), mode="bilinear"))


def test_every_parameter_learns_at_odd_size():
    torch.manual_seed(0)
    model = DDRNet(num_classes=5, auxiliary_head=True)
    output = model(torch.randn(2, 3, 65, 97))
    (output["out"].square().mean() + output["aux"]["high4"].square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_state_dict_round_trip():
    torch.manual_seed(0)
    model, other = small().eval(), small().eval()
    x = torch.randn(1, 3, 65, 91)
    with torch.no_grad():
        assert not torch.equal(model(x)["out"], other(x)["out"])
        other.load_state_dict(model.state_dict())
        assert torch.equal(model(x)["out"], other(x)["out"])


@pytest.mark.parametrize("recompute", ["unit,stem,spp,tu", "block,stem,spp,tu", "block:low5,unit:2,tu:aux"])
def test_recomputation_changes_nothing(recompute):
    results = []
    for labels in (None, recompute):
        torch.manual_seed(0)
        model = small(auxiliary_head=True, recompute=labels).double()
        output = model(torch.randn(2, 3, 65, 91, dtype=torch.float64))
        (output["out"].square().mean() + output["aux"]["high4"].square().mean()).backward()
        results.append(([p.grad for p in model.parameters()], list(model.buffers())))
    (gradients, buffers), (again, buffers_again) = results
    assert all(torch.equal(a, b) for a, b in zip(buffers, buffers_again, strict=True))
    for a, b in zip(gradients, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_recomputation_saves_memory():
    plain, units = (
        peak_memory(small(recompute=recompute).to("meta"), 2, (512, 1024)).total
        for recompute in (None, "unit,stem,spp,tu")
    )
    assert units < 0.7 * plain


def test_every_choice_of_segments_is_offered():
    model = on_meta(auxiliary_head=True)
    offered = {(label, place) for label, place, _ in model.segment.offers}
    assert offered == {(label, place) for label in ("unit", "block") for place in PLACES} | {
        ("stem", ""),
        ("spp", ""),
        ("tu", "logits"),
        ("tu", "aux"),
    }


def test_exports():
    torch.manual_seed(0)
    model = small(recompute="block,stem,spp,tu").eval()
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        assert torch.allclose(program.module()(x)["out"], model(x)["out"], atol=1e-5)


@pytest.mark.parametrize(
    ("size", "branches"),
    [
        ((64, 65), "5 9 17 whole"),
        ((128, 128), "5 9 17 whole"),
        ((128, 129), "9 17 whole"),
        ((256, 200), "9 17 whole"),
        ((257, 64), "17 whole"),
        ((512, 512), "17 whole"),
        ((64, 513), "whole"),
    ],
)
def test_one_image_cannot_be_trained_on(size, branches):
    """What is named, and only that, has to go into eval mode for the step to be possible."""
    model, x = small(), torch.randn(1, 3, *size)
    branches = branches.split()
    with pytest.raises(
        ValueError, match=rf"single image of {size[0]}x{size[1]} .*{', '.join(branches)} hold"
    ):
        model(x)
    assert model(x.expand(2, -1, -1, -1))["out"].shape == (2, 5, *size)
    for name in branches[1:]:
        model.dappm.levels[name].eval()
    with pytest.raises(
        ValueError, match=rf"branches {branches[0]} hold.*levels\['{branches[0]}'\]\.eval\(\)"
    ):
        model(x)
    model.dappm.levels[branches[0]].eval()
    assert model(x)["out"].shape == (1, 5, *size)
    assert model.eval()(x)["out"].shape == (1, 5, *size)


def test_one_image_of_one_cell_cannot_be_trained_on_at_all():
    model, x = small(), torch.randn(1, 3, 64, 64)
    for level in model.dappm.levels.values():
        level.eval()
    with pytest.raises(
        ValueError, match=r"64x64 pixels: its deepest maps hold one value.*take a larger image"
    ):
        model(x)
    assert model.eval()(x)["out"].shape == (1, 5, 64, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"width": 0}, "width=0: give a number of maps"),
        ({"width": 6.5}, "width=6.5"),
        ({"recompute": "td"}, "No segments labelled 'td'.*It has unit, block, stem, spp, tu"),
        ({"recompute": "unit:4"}, "No 'unit:4' in this network: unit has 2, 3, low4"),
        ({"recompute": "tu:aux"}, "No 'tu:aux' in this network: tu has logits"),
        ({"recompute": "block,unit"}, "covers 'unit' twice"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta(**options)


def test_too_small_images():
    with pytest.raises(ValueError, match=r"63x80 pixels are too small.*at least 64x64"):
        on_meta()(torch.empty(2, 3, 63, 80, device="meta"))
    with pytest.raises(TypeError, match="normalize"):
        on_meta()(torch.empty(2, 3, 64, 64, device="meta", dtype=torch.uint8))


def test_layers_alone_would_run_on_a_pixel():
    model = small()
    model.minimum_size = 1
    assert model(torch.randn(2, 3, 1, 1))["out"].shape == (2, 5, 1, 1)
    assert model.eval()(torch.randn(1, 3, 1, 1))["out"].shape == (1, 5, 1, 1)


def test_there_are_no_imagenet_weights():
    model = on_meta()
    with pytest.raises(ValueError, match=r"no ImageNet weights for DDRNet; use weights='none'"):
        model.load_imagenet()
    assert model.pretrained_parameters() == []
