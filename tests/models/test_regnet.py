"""Dilated RegNetY-600MF: size, cost, receptive field, dilations, the Y block's shortcut."""

import pytest
import torch
from torch import nn

from segkit.measure import bound, compose, cost, largest_path, receptive_field
from segkit.models.peers.regnet import DilatedRegNetY, YBlock
from segkit.models.regseg import DBlock


def on_meta(**options):
    with torch.device("meta"):
        return DilatedRegNetY(**{"num_classes": 19, **options})


def test_size_and_work():
    ours = cost(on_meta(), (1024, 2048))
    assert (ours.params, f"{ours.macs / 1e9:.2f}") == (5_688_995, "50.09")


def test_field_is_479():
    """The table prints 607."""
    model = on_meta()
    field = receptive_field(model, at="backbone", output=2)
    assert (field.size, field.stride) == ((479, 479), (16, 16))
    layers = largest_path(model, at="backbone", output=2)
    assert compose(layers).size == 479
    assert all(entry.holds for entry in bound(layers))


def test_dilations_of_the_row():
    """8*(1,1) + 3*(2,2), of all blocks at H/16."""
    backbone = on_meta().backbone
    found = [tuple(conv.dilation[0] for conv in block.branches) for block in backbone.stage16]
    assert found == [*8 * [(1,)], *3 * [(2,)]]
    assert [len(stage) for stage in (backbone.stage4, backbone.stage8)] == [1, 3]


def test_strided_shortcut_does_not_pool():
    torch.manual_seed(0)
    block = YBlock(16, 32, stride=2).eval()
    nn.init.zeros_(block.conv3[1].weight)  # the main path: nothing
    x = torch.randn(1, 16, 5, 8)
    with torch.no_grad():
        conv, norm = block.shortcut
        expected = torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], x[:, :, ::2, ::2])
        torch.testing.assert_close(block(x), (expected / (1 + norm.eps) ** 0.5).relu())


def test_other_blocks_are_d_blocks_of_one_branch():
    torch.manual_seed(0)
    ours, theirs = YBlock(32, 32, dilation=2).eval(), DBlock(32, 32, (2, 2)).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 32, 6, 7)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("size", [(16, 16), (17, 45)])
def test_any_size(size):
    model = on_meta(num_classes=7).eval()
    x = torch.empty(2, 3, *size, device="meta")
    assert model(x)["out"].shape == (2, 7, *size)
    assert model(x, full_size=False)["out"].shape == (2, 7, *(-(-side // 8) for side in size))
    assert [m.shape[1] for m in model.backbone(x)] == list(model.backbone.channels) == [48, 112, 608]


def test_other_decoders():
    model = on_meta(decoder="regseg").eval()
    assert model.output_stride == 4
    assert model(torch.empty(2, 3, 32, 33, device="meta"))["out"].shape == (2, 19, 32, 33)


def test_every_parameter_learns_at_odd_size():
    torch.manual_seed(0)
    model = DilatedRegNetY(num_classes=5)
    model(torch.randn(2, 3, 33, 41))["out"].square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_recomputation_changes_nothing():
    results = []
    for labels in (None, "stem,unit:16,block:4"):
        torch.manual_seed(0)
        model = DilatedRegNetY(num_classes=3, recompute=labels)
        out = model(torch.randn(2, 3, 33, 35))["out"]
        out.square().mean().backward()
        results.append((out, *[p.grad for p in model.parameters()], *model.buffers()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"decoder": "fpn"}, "decoder='fpn'"),
        ({"recompute": "unit:2"}, "No 'unit:2' in this network: unit has 4, 8, 16"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta(**options)


def test_too_small_images():
    with pytest.raises(ValueError, match="64x15 pixels are too small"):
        on_meta()(torch.empty(2, 3, 64, 15, device="meta"))


def test_nothing_is_pretrained():
    with pytest.raises(ValueError, match="no ImageNet weights for DilatedRegNetY"):
        on_meta().load_imagenet()
