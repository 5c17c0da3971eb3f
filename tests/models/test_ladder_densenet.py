"""The ladder's parts, its counts against the paper's tables, and ImageNet weights."""

import os
import pickle

import pytest
import torch
import torchvision
from torch import nn

from segkit.measure import cost
from segkit.models import build
from segkit.models.blocks import BN_MOMENTUM, BNReLUConv
from segkit.models.ladder_densenet import SpatialPyramid, TransitionUp

ALL_MODELS = os.environ.get("SEGKIT_ALL_MODELS") == "1"

# Printed values: parameters in 10^6, FLOP in 10^9 for 1024 x 1024 (Tables 2, 3, 4, 6 and 10); the rows that
# agree.
PRINTED = {
    "dn121-32": (8.2, 56.1),
    "ldn121-64-4": (9.5, 66.5),
    "ldn121-32-4": (9.0, 75.4),
    "ldn121-128-4": (9.9, 66.2),
    "ldn121-64-4-dws": (8.7, 54.2),
    "ldn121-64-4-nospp": (10.2, 66.7),
    "ldn121-64-4-pspnet-spp": (10.6, 66.9),
    "ldn169-32-4": (15.6, 88.8),
    "ldn161-64-4": (30.0, 138.7),  # printed in Table 4 as LDN169 64 -> 4
    "ladder-resnet18-32-4": (13.3, 55.7),
    "ladder-resnet50-32-4": (26.9, 109.0),
    "ladder-resnet101-32-4": (45.9, 186.7),
    "ddn121-8": (8.2, 147.8),
    "lddn121-8-4": (8.6, 174.8),
    "lddn121-16-4": (8.9, 87.0),
}
# What a separate count of the same networks gave, to the digits that it was noted with: (10^6, 10^9).
COUNTED = {
    "dn121-32": ("8.200", "56.10"),
    "ldn121-64-4": ("9.510", "66.455"),
    "ldn121-32-4": ("9.016", "75.363"),
    "ldn121-128-4": ("9.937", "66.200"),
    "ldn121-64-4-dws": ("8.714", "54.229"),
    "ldn121-64-4-nospp": ("10.160", "66.684"),
    "ldn121-64-4-pspnet-spp": ("10.593", "66.892"),
    "ldn169-32-4": ("15.564", "88.757"),
    "ldn169-64-4": ("16.09", "71.5"),
    "ldn161-64-4": ("30.053", "138.717"),
    "ladder-resnet18-32-4": ("13.264", "55.740"),
    "ladder-resnet50-32-4": ("26.904", "109.094"),
    "ladder-resnet101-32-4": ("45.896", "186.779"),
    "ladder-dpn68-32-4": ("13.678", "67.0"),
    "ddn121-8": ("8.233", "147.785"),
    "lddn121-8-4": ("8.637", "174.72"),
    "lddn121-16-4": ("8.883", "87.065"),
    "ldn121-32-2": ("9.386", "123.4"),
    "ldn121-64-4-s4": ("9.543", "74.37"),
}
# The same with the standard backbone, to which ImageNet weights fit.
COUNTED_STANDARD = {
    "ldn121-64-4": ("9.59", "71.0"),
    "ldn169-32-4": ("15.65", "93.3"),
    "ldn161-64-4": ("30.24", "148.9"),
    "lddn121-8-4": ("8.69", "177.9"),
}


def check_counts(ours, counted):
    for value, text in zip((ours.params / 1e6, ours.macs / 1e9), counted, strict=True):
        decimals = len(text.partition(".")[2])
        assert f"{value:.{decimals}f}" == text


@pytest.mark.parametrize("name", COUNTED)
def test_counts_on_the_papers_backbone(name):
    options = {} if name.startswith("ladder-") else {"paper_count": True}
    ours = cost(build(name, device="meta", **options), (1024, 1024), convention="conv+bn")
    check_counts(ours, COUNTED[name])
    if name in PRINTED:
        params, flop = PRINTED[name]
        assert ours.params / 1e6 == pytest.approx(params, abs=0.06)
        assert ours.macs / 1e9 == pytest.approx(flop, rel=0.0015)


@pytest.mark.parametrize("name", COUNTED_STANDARD if ALL_MODELS else ["ldn121-64-4", "lddn121-8-4"])
def test_counts_on_the_standard_backbone(name):
    check_counts(cost(build(name, device="meta"), (1024, 1024), convention="conv+bn"), COUNTED_STANDARD[name])


def test_no_aux_row_is_the_same_network():
    """Table 10 counts the NoAux model as 9.5 M too: auxiliary heads are no part of the counts."""
    model = build("ldn121-64-4", device="meta")
    heads = sum(p.numel() for p in model.aux.parameters())
    assert cost(model, (256, 256)).params == sum(p.numel() for p in model.parameters()) - heads


def test_context_features_are_48_times_smaller_than_the_image():
    """Section 4.2."""
    model = build("ldn121-64-4", device="meta")
    shapes = {}
    model.spp.register_forward_hook(lambda module, inputs, output: shapes.update(c=output[0].shape))
    model(torch.empty(2, 3, 512, 1024, device="meta"))
    assert 3 * 512 * 1024 / shapes["c"][1:].numel() == 48


@pytest.mark.parametrize(
    ("size", "grids"),
    [
        ((16, 32), [(8, 16), (4, 8), (2, 4), (1, 2)]),
        ((16, 16), [(8, 8), (4, 4), (2, 2), (1, 1)]),
        ((16, 8), [(8, 4), (4, 2), (2, 1), (1, 1)]),
        ((3, 6), [(3, 6), (3, 6), (2, 4), (1, 2)]),  # clamped to the map
        ((2, 2), [(2, 2), (2, 2), (2, 2), (1, 1)]),
    ],
)
def test_grid_cells_are_square(size, grids):
    with torch.device("meta"):
        fused, levels = SpatialPyramid(1024, 256)(torch.empty(2, 1024, *size))
    assert fused.shape == (2, 256, *size)
    assert [tuple(level.shape) for level in levels] == [(2, 128, *grid) for grid in grids]


def test_pspnet_grids_ignore_the_shape_of_the_image():
    with torch.device("meta"):
        pyramid = SpatialPyramid(1024, 512, grids=(6, 3, 2, 1), square_cells=False, level=256)
        _, levels = pyramid(torch.empty(2, 1024, 8, 16))
    assert [tuple(level.shape[2:]) for level in levels] == [(6, 6), (3, 3), (2, 2), (1, 1)]


def test_pooling_averages_the_cells():
    pyramid = SpatialPyramid(4, 4, grids=(1,), projected=2, level=1).eval()
    pyramid.levels[0] = nn.Identity()  # let the pooled maps through
    pyramid.fuse = nn.Identity()
    x = torch.randn(1, 4, 4, 8)
    with torch.no_grad():
        fused, (pooled,) = pyramid(x)
        projected = pyramid.project(x)
    assert torch.allclose(
        pooled,
        torch.stack([projected[..., :4].mean((2, 3)), projected[..., 4:].mean((2, 3))], -1)[:, :, None],
    )
    assert fused.shape == (1, 4, 4, 8)
    assert torch.equal(fused[:, :2], projected)


def test_transition_up_by_hand():
    """Upsample, project the skip, sum, reduce, 3x3 (Section 4.3)."""
    torch.manual_seed(0)
    block = TransitionUp(256, 40, 128).eval()
    x, skip = torch.randn(1, 256, 3, 4), torch.randn(1, 40, 5, 7)

    def bn_relu_conv(unit, x):
        return nn.functional.conv2d(
            unit.norm(x).clamp(min=0), unit.conv.weight, padding=unit.conv.kernel_size[0] // 2
        )

    with torch.no_grad():
        up = nn.functional.interpolate(x, size=(5, 7), mode="bilinear", align_corners=False)
        reduced = bn_relu_conv(block.blend[0], up + bn_relu_conv(block.project, skip))
        expected = bn_relu_conv(block.blend[1], reduced)
        assert torch.allclose(block(x, skip), expected, atol=1e-6)

        residual = TransitionUp(256, 40, 128, residual=True).eval()
        residual.load_state_dict(block.state_dict(), strict=False)
        assert torch.allclose(residual(x, skip), expected + bn_relu_conv(residual.shortcut, up), atol=1e-6)


def test_separable_block_has_no_reducer():
    block = TransitionUp(256, 512, 128, separable=True)
    assert [m.weight.shape for m in block.blend.modules() if isinstance(m, nn.Conv2d)] == [
        (256, 1, 3, 3),
        (128, 256, 1, 1),
    ]


def test_initialization():
    torch.manual_seed(0)
    model = build("ldn121-32-4")
    weight = model.up[0].project.conv.weight  # 1024 -> 256, 1x1: Kaiming, fan-in
    assert weight.std().item() == pytest.approx((2 / 1024) ** 0.5, rel=0.02)
    weight = model.logits.conv.weight  # 128 -> 19: Xavier
    assert weight.std().item() == pytest.approx((2 / (128 + 19)) ** 0.5, rel=0.1)
    assert not model.logits.conv.bias.any()
    assert all(m.momentum == BN_MOMENTUM == 0.05 for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_only_logits_have_a_bias():
    for name in ("ldn121-64-4", "lddn121-8-4", "ladder-dpn68-32-4"):
        model = build(name, device="meta")
        biased = {
            key.removesuffix(".conv.bias") for key, p in model.named_parameters() if key.endswith("conv.bias")
        }
        assert biased == {"logits", *(f"aux.{head}" for head in model.aux)}, name
        assert isinstance(model.logits, BNReLUConv)


# ImageNet weights: a stand-in file in torch's cache, in place of the download.


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    def save(name):
        torch.manual_seed(5)
        state = torchvision.models.get_model(name, weights=None).state_dict()
        state = {key: value + 0.25 if value.is_floating_point() else value for key, value in state.items()}
        url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
        torch.save(state, folder / url.rpartition("/")[2])
        return {key.removeprefix("features."): value for key, value in state.items()}

    return save


@pytest.mark.parametrize(
    ("name", "backbone"), [("ldn121-64-4", "densenet121"), ("ladder-resnet18-32-4", "resnet18")]
)
def test_imagenet_weights_fill_the_whole_backbone(hub, name, backbone):
    state = hub(backbone)
    model = build(name, weights="imagenet")
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert {id(p) for p in model.pretrained_parameters()} == {id(p) for p in model.backbone.parameters()}
    assert build(name, weights="none", device="meta").pretrained_parameters() == []


@pytest.mark.parametrize(
    "broken", [OSError("no route to host"), RuntimeError("invalid hash"), pickle.UnpicklingError("bad file")]
)
def test_missing_imagenet_weights_say_how_to_go_on(monkeypatch, broken):
    def fail(*args, **kwargs):
        raise broken

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(
        RuntimeError, match=r"weights for resnet18: .*Download http.*resnet18.*pth by hand.*weights='none'"
    ):
        build("ladder-resnet18-32-4", weights="imagenet")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ldn121-64-4", {"paper_count": True}, "do not fit the backbone of paper_count=True"),
        ("ladder-dpn68-32-4", {}, "no ImageNet weights for DPN68"),
        ("ldn121-64-4", {"device": "meta"}, "meta device holds no weights"),
    ],
)
def test_imagenet_weights_that_cannot_be(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, weights="imagenet", **options)
