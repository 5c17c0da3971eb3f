"""JPU: size, what it computes by hand, other pyramids, where its resizing puts a pixel, what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkit.models import build
from segkit.models.jpu import JointPyramidUpsampling, check_pyramid, resize


def on_meta(*args, **options):
    with torch.device("meta"):
        return JointPyramidUpsampling(*args, **options)


def count(module):
    return sum(p.numel() for p in module.parameters())


def pyramid(channels, *sizes, dtype=torch.float64, device=None):
    return [
        torch.empty(2, c, *size, device=device) if device else torch.randn(2, c, *size, dtype=dtype)
        for c, size in zip(channels, sizes, strict=True)
    ]


def test_size():
    jpu = on_meta()
    assert count(jpu) == 19_735_552
    assert [count(part) for part in jpu.embed] == [9 * c * 512 + 1024 for c in (512, 1024, 2048)]
    assert {count(branch) for branch in jpu.branches} == {9 * 1536 + 2 * 1536 + 1536 * 512 + 2 * 512}
    assert all(module.bias is None for module in jpu.modules() if isinstance(module, nn.Conv2d))
    maps = pyramid((512, 1024, 2048), (64, 64), (32, 32), (16, 16), device="meta")
    assert jpu(maps).shape == (2, 2048, 64, 64) and jpu.out_channels == 2048


def test_by_hand():
    """The coarsest map first, corners aligned, no ReLU between the two convolutions of a branch."""
    torch.manual_seed(0)
    jpu = JointPyramidUpsampling((3, 4, 5), 2).double().eval()
    for norm in jpu.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 1.5)

    def normed(x, norm):
        shape = (1, -1, 1, 1)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return (x - norm.running_mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)

    def aligned(x, height, width):
        """A matrix for each axis: places are spread evenly from the first to the last pixel."""
        sides = zip(x.shape[2:], (height, width), strict=True)
        places = [torch.linspace(0, n - 1, m, dtype=x.dtype) for n, m in sides]
        rows, columns = (
            (1 - (p[:, None] - torch.arange(n)).abs()).clamp(min=0)
            for p, n in zip(places, x.shape[2:], strict=True)
        )
        return rows @ x @ columns.T

    fine, middle, coarse = maps = pyramid((3, 4, 5), (9, 12), (5, 6), (3, 3))
    with torch.no_grad():
        f, m, c = (
            normed(F.conv2d(x, embed[0].weight, padding=1), embed[1]).clamp(min=0)
            for x, embed in zip((fine, middle, coarse), jpu.embed, strict=True)
        )
        joined = torch.cat([aligned(c, 9, 12), aligned(m, 9, 12), f], dim=1)
        out = []
        for branch, d in zip(jpu.branches, (1, 2, 4, 8), strict=True):
            depthwise, norm, pointwise, norm2, _ = branch
            x = F.conv2d(joined, depthwise.weight, padding=d, dilation=d, groups=6)
            out.append(normed(F.conv2d(normed(x, norm), pointwise.weight), norm2).clamp(min=0))
        torch.testing.assert_close(jpu(maps), torch.cat(out, dim=1), rtol=1e-12, atol=1e-12)


def test_every_parameter_learns():
    torch.manual_seed(0)
    jpu = JointPyramidUpsampling((3, 4, 5), 2, dilations=(1, 3))
    jpu(pyramid((3, 4, 5), (9, 12), (5, 6), (3, 3), dtype=torch.float32)).square().mean().backward()
    for name, parameter in jpu.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize(
    "sizes", [((9, 12), (5, 6), (3, 3)), ((9, 13), (4, 6), (2, 3)), ((1, 3), (1, 1), (1, 1))]
)
def test_odd_sizes_may_be_halved_up_or_down(sizes):
    jpu = JointPyramidUpsampling((3, 4, 5), 2)
    assert jpu(pyramid((3, 4, 5), *sizes, dtype=torch.float32)).shape == (2, 8, *sizes[0])


@pytest.mark.parametrize("name", ["regseg", "ldn121-32-4"])
def test_fits_other_backbones(name):
    backbone = build(name, device="meta").backbone.eval()
    maps = backbone(torch.empty(2, 3, 70, 100, device="meta"))[-3:]
    jpu = on_meta(tuple(backbone.channels[-3:]), 16)
    assert jpu(maps).shape == (2, 64, *maps[0].shape[2:])


def test_where_resizing_puts_a_pixel():
    """Pixel i of a map at stride 32 belongs at 4i at stride 8 (Section 3.3.2)."""

    def shift(n, resized, hi):
        ramp = torch.arange(n, dtype=torch.float64).expand(1, 1, n, n)
        return (resized(ramp, (hi, hi))[0, 0, 0, ::4] - ramp[0, 0, 0]).abs()

    def not_aligned(x, size):
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    assert shift(17, resize, 65).max() < 1e-12  # of an image of 513 pixels
    assert f"{shift(16, resize, 64).max():.2f}" == f"{shift(15, resize, 60).max():.2f}" == "0.71"  # 512; 480
    assert torch.allclose(shift(16, not_aligned, 64)[1:], torch.tensor(0.375, dtype=torch.float64))
    x = torch.randn(1, 2, 3, 4)
    assert resize(x, x.shape[2:]) is x


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((3, 4),), {}, r"in_channels=\(3, 4\): give the channels of three maps"),
        (((3, 4, 0),), {}, r"in_channels=\(3, 4, 0\): integers of at least 1"),
        ((512,), {}, "in_channels=512: integers"),
        (((3, 4, 5), 1.5), {}, "width=1.5: integers"),
        (((3, 4, 5), 2), {"dilations": ()}, r"dilations=\(\): integers"),
        (((3, 4, 5), 2), {"dilations": (1, True)}, r"dilations=\(1, True\)"),
    ],
)
def test_wrong_options(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        on_meta(*arguments, **options)


@pytest.mark.parametrize(
    ("channels", "sizes", "message"),
    [
        (
            (3, 4, 5),
            ((8, 8), (8, 8), (8, 8)),
            "these are 8x8, 8x8, 8x8: the middle one is not half.*not dilated",
        ),
        ((3, 4, 5), ((8, 8), (4, 4), (2, 3)), "8x8, 4x4, 2x3: the coarse one is not half"),
        ((3, 4, 5), ((2, 2), (4, 4), (8, 8)), "2x2, 4x4, 8x8: the middle one"),
        ((5, 4, 3), ((8, 8), (4, 4), (2, 2)), r"fine map is \(2, 5, 8, 8\).*with 3, 4, 5 channels"),
        ((3, 4, 7), ((8, 8), (4, 4), (2, 2)), r"coarse map is \(2, 7, 2, 2\), but \(B, 5, h, w\)"),
        ((3, 4), ((8, 8), (4, 4)), r"\[fine, middle, coarse\], got 2 things"),
    ],
)
def test_no_pyramid(channels, sizes, message):
    with pytest.raises(ValueError, match=message):
        on_meta((3, 4, 5), 2)(pyramid(channels, *sizes, device="meta"))


def test_no_maps():
    with pytest.raises(ValueError, match=r"three maps, .* got Tensor"):
        check_pyramid(torch.empty(3, 3, 8, 8), (3, 4, 5))
    with pytest.raises(ValueError, match=r"middle map is \(4, 4\)"):
        check_pyramid([torch.empty(2, 3, 8, 8), torch.empty(4, 4), torch.empty(2, 5, 2, 2)], (3, 4, 5))
