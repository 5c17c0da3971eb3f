"""SwiftNetRN-18: size and work, its encoder against torchvision's, ImageNet weights, recomputation."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from segkit.measure import cost, peak_memory
from segkit.models.peers.swiftnet import SwiftNet


def on_meta(**options):
    with torch.device("meta"):
        return SwiftNet(**{"num_classes": 19, **options})


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_size_and_work():
    """RegSeg's Table 9 has 11.8 M and 104 G."""
    model = on_meta()
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    counted = cost(model, (1024, 2048))
    assert counted.params == count(model) == 11_797_071
    assert counted.macs == 103_566_133_248
    parts = (model.encoder, model.spp, *model.up, model.logits)
    assert [count(part) for part in parts] == [11_176_512, 116_476, 180_992, 164_352, 156_032, 2707]


def test_encoder_has_torchvisions_names():
    with torch.device("meta"):
        theirs = torchvision.models.resnet18(weights=None).state_dict()
    ours = on_meta().encoder.state_dict()
    assert {name: t.shape for name, t in ours.items()} == {
        name: t.shape for name, t in theirs.items() if not name.startswith("fc.")
    }


def test_norms_momentum():
    """The release's: 0.005 in pyramid pooling, PyTorch's 0.1 elsewhere."""
    model = on_meta()
    pyramid = {id(m) for m in model.spp.modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.momentum == (0.005 if id(module) in pyramid else 0.1), name


def test_norm_relu_convolution_after_the_encoder():
    """The upsampling modules and logits by hand."""
    torch.manual_seed(0)
    model = SwiftNet(num_classes=5).eval()
    up = model.up[0]
    x, skip = torch.randn(2, 128, 3, 4), torch.randn(2, 256, 5, 8)
    with torch.no_grad():
        for module in (up, model.logits):
            for norm in module.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.running_mean.normal_()
                    norm.running_var.uniform_(0.5, 2)
        lateral = up.project.conv(up.project.norm(skip).clamp(min=0))
        total = F.interpolate(x, (5, 8), mode="bilinear", align_corners=False) + lateral
        (blend,) = up.blend
        expected = blend.conv(blend.norm(total).clamp(min=0))
        assert blend.conv.kernel_size == (3, 3)
        assert torch.allclose(up(x, skip), expected, atol=1e-5)
        head = model.logits
        assert torch.allclose(head(expected), head.conv(head.norm(expected).clamp(min=0)), atol=1e-5)


def test_pyramids_grids():
    """Rows 8, 4 and 2, and columns that make cells square."""
    model, sizes = on_meta().eval(), []
    for level in model.spp.levels:
        level.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    model(torch.empty(1, 3, 512, 1024, device="meta"))
    assert sizes == [(42, 8, 16), (42, 4, 8), (42, 2, 4)]


@pytest.mark.parametrize("size", [(32, 32), (64, 128), (65, 97), (33, 95)])
def test_any_size(size):
    model, x = on_meta(num_classes=7).eval(), torch.empty(2, 3, *size, device="meta")
    assert model(x)["out"].shape == (2, 7, *size)
    assert model(x, full_size=False)["out"].shape == (2, 7, -(-size[0] // 4), -(-size[1] // 4))


def test_every_parameter_learns_at_odd_size():
    torch.manual_seed(0)
    model = SwiftNet(num_classes=5)
    output = model(torch.randn(2, 3, 65, 97))
    assert list(output) == ["out"]  # in train mode too
    out = output["out"]
    assert out.isfinite().all()
    out.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_state_dict_round_trip():
    torch.manual_seed(0)
    model, other = SwiftNet(num_classes=3).eval(), SwiftNet(num_classes=3).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(model(x)["out"], other(x)["out"])
        other.load_state_dict(model.state_dict())
        assert torch.equal(model(x)["out"], other(x)["out"])


@pytest.mark.parametrize("recompute", ["unit,stem,spp,tu", "block:4,unit:2,skip:1,blend:2,tu:3,tu:logits"])
def test_recomputation_changes_nothing(recompute):
    results = []
    for labels in (None, recompute):
        torch.manual_seed(0)
        model = SwiftNet(num_classes=3, recompute=labels).double()
        x = torch.randn(2, 3, 33, 49, dtype=torch.float64)
        out = model(x)["out"]
        out.square().mean().backward()
        results.append((out.detach(), [p.grad for p in model.parameters()], list(model.buffers())))
    (out, gradients, buffers), (out_again, again, buffers_again) = results
    assert torch.equal(out, out_again)
    assert all(torch.equal(a, b) for a, b in zip(buffers, buffers_again, strict=True))
    for a, b in zip(gradients, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_recomputation_saves_memory():
    plain, one, most = (
        peak_memory(on_meta(recompute=recompute), 2, (512, 1024)).total
        for recompute in (None, "block:1", "block,stem,spp,tu")
    )
    assert most < one < plain


def test_exports():
    torch.manual_seed(0)
    model = SwiftNet(num_classes=3, recompute="unit,stem,spp,tu").eval()
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        assert torch.allclose(program.module()(x)["out"], model(x)["out"], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"recompute": "td"}, "No segments labelled 'td'.*It has unit, block, stem, spp, tu, skip, blend"),
        ({"recompute": "tu:4"}, "No 'tu:4' in this network: tu has 1, 2, 3, logits"),
        ({"recompute": "tu,blend"}, "covers 'blend' twice"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta(**options)


def test_too_small_images():
    with pytest.raises(ValueError, match=r"31x64 pixels are too small.*at least 32x32"):
        on_meta().eval()(torch.empty(1, 3, 31, 64, device="meta"))


def test_one_small_image_cannot_be_trained_on():
    model = SwiftNet(num_classes=2)
    with pytest.raises(ValueError, match=r"single image of 32x32 pixels.*at least two images.*model\.eval"):
        model(torch.randn(1, 3, 32, 32))
    for size in ((33, 32), (32, 33)):  # two values: the bound is no stricter
        assert model(torch.randn(1, 3, *size))["out"].isfinite().all()
    assert model(torch.randn(2, 3, 32, 32))["out"].isfinite().all()
    assert model.eval()(torch.randn(1, 3, 32, 32))["out"].isfinite().all()


@pytest.fixture
def resnet_weights(monkeypatch):
    """Other values of the right shapes, in place of the download."""
    generator = torch.Generator().manual_seed(5)
    with torch.device("meta"):
        shapes = torchvision.models.resnet18(weights=None).state_dict()
    state = {
        name: torch.randn(value.shape, generator=generator) / 10
        for name, value in shapes.items()
        if not name.endswith("num_batches_tracked")  # the file's batch norms did not count them yet
    }
    for name, value in state.items():
        if name.endswith("running_var"):
            value.copy_(value.abs() + 0.5)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *a, **k: dict(state))
    return state


def test_imagenet_weights_fill_the_whole_encoder(resnet_weights):
    model = SwiftNet(num_classes=3)
    assert model.pretrained_parameters() == []
    model.load_imagenet()
    ours = {
        name: value
        for name, value in model.encoder.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert set(resnet_weights) - set(ours) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, resnet_weights[name]) for name, value in ours.items())
    assert {id(p) for p in model.pretrained_parameters()} == {id(p) for p in model.encoder.parameters()}


def test_encoder_with_loaded_weights_computes_what_resnet18_does(resnet_weights):
    """Its sums are torchvision's stages before their last ReLU."""
    model = SwiftNet(num_classes=3)
    model.load_imagenet()
    model.eval()
    theirs = torchvision.models.resnet18(weights=None).eval()
    theirs.load_state_dict(resnet_weights, strict=False)
    x = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        sums = model.encoder(x)
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for total, layer in zip(
            sums, (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4), strict=True
        ):
            y = layer(y)
            assert y.any()
            assert (total < 0).any()
            assert torch.allclose(total.clamp(min=0), y, rtol=1e-4, atol=1e-5)


def test_encoder_learns_what_resnet18_does(resnet_weights):
    """The same gradients, although the ReLUs stand elsewhere."""
    model = SwiftNet(num_classes=3)
    model.load_imagenet()
    ours = model.encoder.double()
    theirs = torchvision.models.resnet18(weights=None).double()
    theirs.load_state_dict({name: value.double() for name, value in resnet_weights.items()}, strict=False)
    x = torch.randn(2, 3, 33, 65, dtype=torch.float64)
    ours(x)[-1].relu().square().sum().backward()
    y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(y)))).square().sum().backward()
    for name, parameter in ours.named_parameters():
        expected = theirs.get_parameter(name).grad
        assert (parameter.grad - expected).abs().max() <= 1e-9 * expected.abs().max(), name


def test_missing_imagenet_weights_say_how_to_go_on(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(RuntimeError, match=r"resnet18: no route to host.*Download http.*weights='none'"):
        SwiftNet(num_classes=2).load_imagenet()
    with pytest.raises(ValueError, match="meta device holds no weights"):
        on_meta().load_imagenet()
