"""ESPNet: sizes and costs, its spatial pyramid by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkit.measure import cost, peak_memory
from segkit.models import build
from segkit.models.peers.espnet import ESP, ESPNet

CITYSCAPES = (1024, 2048)


@pytest.mark.parametrize(
    ("num_classes", "params", "gmacs"), [(19, 363_462, "18.681"), (20, 365_109, "19.121")]
)
def test_counts(num_classes, params, gmacs):
    ours = cost(build("espnet", num_classes=num_classes, device="meta"), CITYSCAPES)
    assert ours.params == params
    assert f"{ours.macs / 1e9:.3f}" == gmacs


def test_fewer_modules():
    """q=3, the default of the authors' class, is not the network of the tables."""
    assert cost(build("espnet", q=3, device="meta"), (64, 64)).params == 201_542


def test_memory():
    """Four images of 1024x2048 (VNet's Table 3); the logits go once the loss is there."""
    model = build("espnet", device="meta")

    def step(model, images, labels):
        return F.cross_entropy(model(images)["out"], labels)

    assert round(peak_memory(model, 4, CITYSCAPES, step=step).total / 2**20) == 8171


@pytest.mark.parametrize(("channels", "widths"), [(128, (28, 25, 25, 25, 25)), (19, (7, 3, 3, 3, 3))])
def test_branches(channels, widths):
    branches = ESP(channels, channels).branches
    assert tuple(b.out_channels for b in branches) == widths
    assert (
        [b.dilation for b in branches] == [b.padding for b in branches] == [(d, d) for d in (1, 2, 4, 8, 16)]
    )


def test_fusion_by_hand():
    torch.manual_seed(0)
    module = ESP(12, 12, residual=True)
    module.activation = nn.Identity()
    x = torch.randn(1, 12, 9, 11)
    with torch.no_grad():
        reduced = F.conv2d(x, module.reduce.weight)
        d1, d2, d4, d8, d16 = (
            F.conv2d(reduced, branch.weight, padding=d, dilation=d)
            for branch, d in zip(module.branches, (1, 2, 4, 8, 16), strict=True)
        )
        sums = [d1, d2, d2 + d4, d2 + d4 + d8, d2 + d4 + d8 + d16]
        assert torch.allclose(module(x), x + torch.cat(sums, dim=1), atol=1e-6)


def test_image_is_fed_in_at_each_resolution():
    model = ESPNet(num_classes=5).eval()
    seen = {}
    for name in ("norm1", "norm2"):
        module = model.get_submodule(name)
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: inputs[0]}))
    x = torch.randn(1, 3, 16, 24)
    with torch.no_grad():
        model(x)
    half = F.avg_pool2d(x, 3, stride=2, padding=1)
    assert seen["norm1"].shape == (1, 19, 8, 12)
    assert torch.equal(seen["norm1"][:, 16:], half)
    assert seen["norm2"].shape == (1, 131, 4, 6)
    assert torch.equal(seen["norm2"][:, 128:], F.avg_pool2d(half, 3, stride=2, padding=1))


def step(model, x):
    out = model(x)["out"]
    out.square().mean().backward()
    return out.detach()


@pytest.mark.parametrize("recompute", ["unit", "unit:3"])
def test_recomputing_changes_nothing(recompute):
    torch.manual_seed(0)
    plain, other = ESPNet(num_classes=5, q=2), ESPNet(num_classes=5, q=2, recompute=recompute)
    other.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 40)
    assert torch.equal(step(plain, x), step(other, x))
    for (name, ours), theirs in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name
    for (name, ours), theirs in zip(plain.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(
    ("size", "message"),
    [((64, 60), "64x60 pixels do not fit.*divisible by 8.*to 64x64"), ((4, 64), "4x64 pixels are too small")],
)
def test_wrong_sizes(size, message):
    with pytest.raises(ValueError, match=message):
        build("espnet", device="meta")(torch.empty(1, 3, *size, device="meta"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 4}, "num_classes=4.*at least 5"),
        ({"q": -1}, "q=-1"),
        ({"recompute": "stem"}, "It has unit"),
        ({"weights": "imagenet"}, "no ImageNet weights for ESPNet"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        build("espnet", device="meta", **options)
