"""ENet: sizes and costs, its bottlenecks by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkit.measure import cost, peak_memory
from segkit.models import build
from segkit.models.peers.enet import Bottleneck, ENet

CITYSCAPES = (1024, 2048)


@pytest.mark.parametrize(
    ("num_classes", "params", "gmacs"), [(19, 364_311, "15.688"), (20, 364_376, "15.722")]
)
def test_counts(num_classes, params, gmacs):
    ours = cost(build("enet", num_classes=num_classes, device="meta"), CITYSCAPES)
    assert ours.params == params
    assert f"{ours.macs / 1e9:.3f}" == gmacs


def test_memory():
    """Four images of 1024x2048 (VNet's Table 3); the logits go once the loss is there."""
    model = build("enet", device="meta")

    def step(model, images, labels):
        return F.cross_entropy(model(images)["out"], labels)

    assert round(peak_memory(model, 4, CITYSCAPES, step=step).total / 2**20) == 12226


def test_resolutions():
    model = build("enet", device="meta").eval()
    shapes = {}
    for name in ("initial_activation", "down1", "down2", "up4", "up5"):
        module = model.get_submodule(name)
        module.register_forward_hook(lambda module, inputs, output, name=name: shapes.update({name: output}))
    assert model(torch.empty(1, 3, 64, 96, device="meta"))["out"].shape == (1, 19, 64, 96)
    found = {name: tuple((out[0] if isinstance(out, tuple) else out).shape) for name, out in shapes.items()}
    assert found == {
        "initial_activation": (1, 16, 32, 48),
        "down1": (1, 64, 16, 24),
        "down2": (1, 128, 8, 12),
        "up4": (1, 64, 16, 24),
        "up5": (1, 16, 32, 48),
    }


def only_the_skip_path(bottleneck):
    """Lets nothing through the main path, and no negative value through the end."""
    bottleneck.main = nn.Conv2d(
        bottleneck.main[0].in_channels, bottleneck.main[-2].num_features, 1, bias=False
    )
    nn.init.zeros_(bottleneck.main.weight)
    return bottleneck.eval()


def test_downsampling_pools_and_adds_maps_of_zeros():
    bottleneck = Bottleneck(2, 8, down=True)
    assert bottleneck.main[0].kernel_size == bottleneck.main[0].stride == (2, 2)
    x = torch.arange(16.0).view(1, 1, 4, 4).repeat(1, 2, 1, 1)
    bottleneck = only_the_skip_path(bottleneck)
    bottleneck.main.stride = (2, 2)
    out, indices = bottleneck(x)
    assert torch.equal(out[:, :2], torch.tensor([[5.0, 7.0], [13.0, 15.0]]).expand(1, 2, 2, 2))
    assert out.shape == (1, 8, 2, 2)
    assert not out[:, 2:].any()
    assert torch.equal(indices, out[:, :2].long())  # here each value is its own place


def test_upsampling_unpools_to_the_places_of_the_maxima():
    bottleneck = Bottleneck(8, 4, middle="up")
    bottleneck.project = nn.Conv2d(8, 4, 1)
    bottleneck.main = nn.Upsample(scale_factor=2)  # of zeros
    nn.init.zeros_(bottleneck.project.weight)
    nn.init.ones_(bottleneck.project.bias)
    x = torch.zeros(1, 8, 2, 2)
    bottleneck.main = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), bottleneck.main)
    indices = torch.tensor([[5, 2], [8, 15]]).expand(1, 4, 2, 2).contiguous()
    out = bottleneck(x, indices)
    assert out.shape == (1, 4, 4, 4)
    assert out[0, 0].flatten().nonzero().flatten().tolist() == [2, 5, 8, 15]
    assert (out[out > 0] == 1).all()


def test_kinds_of_bottlenecks():
    """Section 4 and Table 1: dilations 2, 4, 8, 16 between plain and asymmetric ones, twice."""
    model = build("enet", device="meta")
    kinds = []
    for unit in model.stage2:
        middle = unit.main[3]
        kinds.append("5" if middle.kernel_size == (1, 5) else middle.dilation[0])
        assert sum(m.bias is not None for m in unit.main if isinstance(m, nn.Conv2d)) == 1
    assert kinds == 2 * [1, 2, "5", 4, 1, 8, "5", 16]
    rates = [m.p for m in model.modules() if isinstance(m, nn.Dropout2d)]
    assert rates == 5 * [0.01] + 17 * [0.1] + 5 * [0]
    activations = [type(m) for m in model.modules() if isinstance(m, (nn.PReLU, nn.ReLU))]
    assert activations == activations.count(nn.PReLU) * [nn.PReLU] + activations.count(nn.ReLU) * [nn.ReLU]
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


def step(model, x):
    torch.manual_seed(1)  # of the dropout
    out = model(x)["out"]
    out.square().mean().backward()
    return out.detach()


@pytest.mark.parametrize("recompute", ["unit", "unit:2,unit:4"])
def test_recomputing_changes_nothing(recompute):
    torch.manual_seed(0)
    plain, other = ENet(num_classes=3), ENet(num_classes=3, recompute=recompute)
    other.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 40)
    assert torch.equal(step(plain, x), step(other, x))
    for (name, ours), theirs in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name
    for (name, ours), theirs in zip(plain.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((64, 60), "64x60 pixels do not fit.*divisible by 8.*to 64x64"),
        ((65, 97), "to 64x96"),
        ((4, 64), "4x64 pixels are too small"),
    ],
)
def test_wrong_sizes(size, message):
    with pytest.raises(ValueError, match=message):
        build("enet", device="meta")(torch.empty(1, 3, *size, device="meta"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"recompute": "stem"}, "It has unit"),
        ({"recompute": "unit:3"}, "unit has 1, 2, 4, 5"),
        ({"weights": "imagenet"}, "no ImageNet weights for ENet"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        build("enet", device="meta", **options)
