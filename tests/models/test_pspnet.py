import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkit.measure import cost, max_batch, peak_memory
from segkit.models.peers.pspnet import PSPNet, PyramidPooling

GIB = 2**30


def on_meta(depth=50, **options):
    with torch.device("meta"):
        return PSPNet(depth, **{"num_classes": 19, **options})


def for_one_image(depth, **options):
    model = on_meta(depth, **options)
    model.ppm.levels["1"].eval()
    return model


@pytest.mark.parametrize(
    ("depth", "params", "macs"), [(101, 65_707_475, "2117.3"), (50, 46_715_347, "1489.4")]
)
def test_size_and_work(depth, params, macs):
    model = on_meta(depth)
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    without = cost(model, (1025, 2049))
    assert (without.params, f"{without.macs / 1e9:.1f}") == (params, macs)
    head = sum(p.numel() for p in model.aux.parameters())
    assert head == 2_364_691
    assert cost(model, (1025, 2049), auxiliary=True).params == params + head
    assert sum(p.numel() for p in model.parameters()) == params + head


def test_one_image_does_not_fit_on_12_gib():
    """VNet's Table 3: PSPNet fails at batch 1. So it does with ResNet-101, and not with ResNet-50."""
    peak = peak_memory(for_one_image(101), 1, (1024, 2048)).total
    assert 16 * GIB < peak < 17 * GIB
    assert peak_memory(for_one_image(50), 1, (1024, 2048)).total < 12 * GIB


def test_recomputed_bottlenecks_bring_it_below_12_gib():
    units = peak_memory(for_one_image(101, recompute="unit"), 1, (1024, 2048)).total
    most = peak_memory(for_one_image(101, recompute="unit,stem,spp,tu"), 1, (1024, 2048)).total
    assert most < units < 12 * GIB
    assert units < peak_memory(for_one_image(101, recompute="unit:4"), 1, (1024, 2048)).total < 12 * GIB


def test_one_image_cannot_be_trained_on():
    model, x = on_meta(), torch.empty(1, 3, 65, 97, device="meta")
    with pytest.raises(ValueError, match=r"single image.*1x1 pooling bin.*ppm\.levels\['1'\]\.eval\(\)"):
        model(x)
    assert model(x.expand(2, -1, -1, -1))["out"].shape == (2, 19, 65, 97)
    model.ppm.levels["1"].eval()
    assert model(x)["out"].shape == (1, 19, 65, 97)
    assert on_meta().eval()(x)["out"].shape == (1, 19, 65, 97)
    assert on_meta(bins=(2, 3))(x)["out"].shape == (1, 19, 65, 97)
    assert max_batch(on_meta(), (65, 97), 1.0) >= 2  # starts from two images then


def test_one_image_per_process_can_be_trained_on(processes):
    model, x = nn.SyncBatchNorm.convert_sync_batchnorm(on_meta()), torch.empty(1, 3, 65, 97, device="meta")
    assert model(x)["out"].shape == (1, 19, 65, 97)
    processes[0] = 1
    with pytest.raises(ValueError, match="Cannot train PSPNet on a single image"):
        model(x)


def test_a_single_image_costs_no_walk_over_the_network(visited):
    model = on_meta().eval()
    visited.clear()
    model(torch.empty(1, 3, 65, 97, device="meta"))
    assert len(visited) <= 5


def test_norm_in_eval_mode_uses_its_running_statistics():
    torch.manual_seed(0)
    pyramid = PyramidPooling(8, (1, 2))
    pyramid.levels["1"].eval()
    _, conv, norm, _ = pyramid.levels["1"]
    norm.running_mean.normal_()
    x = torch.randn(1, 8, 4, 6)
    before = norm.state_dict(keep_vars=False)["running_mean"].clone()
    out = pyramid(x)
    assert torch.equal(norm.running_mean, before)
    expected = F.relu((conv(x.mean((2, 3), keepdim=True)) - before[:, None, None]) / (1 + norm.eps) ** 0.5)
    assert torch.allclose(out[:, 8:12], expected.expand(-1, -1, 4, 6), atol=1e-6)


def test_pyramid_keeps_its_input_and_averages_its_grids():
    torch.manual_seed(0)
    pyramid = PyramidPooling(8, (1, 2, 3, 6)).eval()
    x = torch.randn(2, 8, 12, 18)
    with torch.no_grad():
        out = pyramid(x)
        assert out.shape == (2, 16, 12, 18)
        assert torch.equal(out[:, :8], x)
        for i, n in enumerate((1, 2, 3, 6)):
            _, conv, norm, _ = pyramid.levels[str(n)]
            cells = F.avg_pool2d(x, (12 // n, 18 // n))
            level = F.interpolate(norm(conv(cells)).clamp(min=0), (12, 18), mode="bilinear")
            assert torch.allclose(out[:, 8 + 2 * i : 10 + 2 * i], level, atol=1e-5), n


def test_backbone_is_dilated():
    model = on_meta()
    for stage, rate in ((model.res2, 1), (model.res3, 1), (model.res4, 2), (model.res5, 4)):
        assert {b.conv2.dilation for b in stage} == {b.conv2.padding for b in stage} == {(rate, rate)}
    maps = model.stem(torch.empty(2, 3, 65, 129, device="meta"))
    sizes = [tuple(maps.shape[1:])]
    for stage in (model.res2, model.res3, model.res4, model.res5):
        maps = stage(maps)
        sizes.append(tuple(maps.shape[1:]))
    assert sizes == [(128, 17, 33), (256, 17, 33), (512, 9, 17), (1024, 9, 17), (2048, 9, 17)]


@pytest.mark.parametrize("size", [(65, 97), (9, 21), (64, 128)])
def test_output_at_any_size(size):
    model = on_meta(num_classes=7)
    output = model(torch.empty(2, 3, *size, device="meta"))
    assert list(output) == ["out", "aux"]
    assert output["out"].shape == (2, 7, *size)
    assert list(output["aux"]) == ["res4"]
    assert output["aux"]["res4"].shape == (2, 7, -(-size[0] // 8), -(-size[1] // 8))
    model.eval()
    small = model(torch.empty(1, 3, *size, device="meta"), full_size=False)
    assert {name: value.shape for name, value in small.items()} == {"out": output["aux"]["res4"][:1].shape}


def test_every_parameter_learns():
    torch.manual_seed(0)
    model = PSPNet(50, num_classes=5)
    output = model(torch.randn(3, 3, 33, 41))
    (output["out"].square().mean() + output["aux"]["res4"].square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_recomputation_changes_nothing():
    """Dropout draws the same maps again; statistics are updated once."""
    results = []
    for labels in (None, "unit,stem,spp,tu"):
        torch.manual_seed(0)
        model = PSPNet(50, num_classes=3, recompute=labels).double()
        x = torch.randn(2, 3, 33, 41, dtype=torch.float64)
        output = model(x)
        (output["out"].square().mean() + output["aux"]["res4"].square().mean()).backward()
        results.append(([p.grad for p in model.parameters()], list(model.buffers())))
    (gradients, buffers), (again, buffers_again) = results
    assert all(torch.equal(a, b) for a, b in zip(buffers, buffers_again, strict=True))
    for a, b in zip(gradients, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 18}, "No PSPNet with ResNet-18; there are 50, 101, 152"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"bins": (1, 1)}, r"bins=\(1, 1\)"),
        ({"recompute": "td"}, "No segments labelled 'td'.*It has unit, block, stem, spp, tu"),
        ({"recompute": "unit:1"}, "No 'unit:1' in this network: unit has 2, 3, 4, 5"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta(**options)


def test_too_small_images():
    with pytest.raises(ValueError, match="7x64 pixels are too small"):
        on_meta()(torch.empty(2, 3, 7, 64, device="meta"))


def test_torchvisions_weights_do_not_fit():
    model = on_meta()
    with pytest.raises(ValueError, match=r"resnet50 do not fit PSPNet's stem.*weights='none'"):
        model.load_imagenet()
    assert model.pretrained_parameters() == []
