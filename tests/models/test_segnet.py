import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from segkit.measure import cost, peak_memory
from segkit.models.peers.segnet import Decoder, Encoder, SegNet


def on_meta(**options):
    with torch.device("meta"):
        return SegNet(**{"num_classes": 19, **options})


def test_size_and_work():
    model = on_meta()
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    counted = cost(model, (1024, 2048))
    assert counted.params == sum(p.numel() for p in model.parameters()) == 29_453_971
    assert round(counted.macs / 1e9) == 1302


def test_encoder_is_vgg16():
    with torch.device("meta"):
        theirs = torchvision.models.vgg16_bn(weights=None).features
    assert [p.shape for p in on_meta().encoder.parameters()] == [p.shape for p in theirs.parameters()]


def test_decoder_mirrors_the_encoder():
    model = on_meta(num_classes=11)
    there = [(c.in_channels, c.out_channels) for c in model.encoder.modules() if isinstance(c, nn.Conv2d)]
    back = [(c.out_channels, c.in_channels) for c in model.decoder.modules() if isinstance(c, nn.Conv2d)]
    assert back[:-1] == there[:0:-1]
    assert back[-1] == (11, 64)  # logits where the encoder has its image
    # a norm and a ReLU after each, but not after the logits
    assert [type(m) for m in model.decoder[-1].convolve][-2:] == [nn.ReLU, nn.Conv2d]


def test_training_memory():
    model = on_meta()
    peak = peak_memory(model, 1, (1024, 2048)).total
    assert 9 * 2**30 < peak < 12 * 2**30
    one, most = (
        peak_memory(on_meta(recompute=recompute), 1, (1024, 2048)).total
        for recompute in ("block:1", "block,tu")
    )
    assert most < peak / 2 < one < peak


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (33, 63), (47, 32)])
def test_any_size(size):
    model = on_meta(num_classes=7)
    output = model(torch.empty(2, 3, *size, device="meta"))
    assert list(output) == ["out"]  # in train mode too
    assert output["out"].shape == (2, 7, *size)


def test_every_parameter_learns_at_odd_size():
    torch.manual_seed(0)
    model = SegNet(num_classes=5)
    out = model(torch.randn(2, 3, 33, 65))["out"]
    assert out.isfinite().all()
    out.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_unpooling_puts_maxima_back():
    torch.manual_seed(0)
    encoder, decoder = Encoder(3, (4,)).eval(), Decoder(4, ())
    x = torch.randn(1, 3, 5, 7)
    with torch.no_grad():
        convolved = encoder.convolve(x)
        pooled, indices = encoder(x)
        assert torch.equal(pooled, F.max_pool2d(convolved, 2))
        back = decoder(pooled, indices, x.shape[-2:])
    assert back.shape == convolved.shape
    kept = back != 0
    assert torch.equal(back[kept], convolved[kept])
    assert torch.equal(F.max_pool2d(back, 2), pooled)
    assert not back[..., 4, :].any()  # the odd last row and column were not pooled
    assert not back[..., 6].any()


def test_recomputation_changes_nothing():
    results = []
    for labels in (None, "block,tu"):
        torch.manual_seed(0)
        model = SegNet(num_classes=3, recompute=labels).double()
        x = torch.randn(1, 3, 33, 40, dtype=torch.float64)
        model(x)["out"].square().mean().backward()
        results.append(([p.grad for p in model.parameters()], list(model.buffers())))
    (gradients, buffers), (again, buffers_again) = results
    assert all(torch.equal(a, b) for a, b in zip(buffers, buffers_again, strict=True))
    for a, b in zip(gradients, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"recompute": "stem"}, "No segments labelled 'stem'.*It has block, tu"),
        ({"recompute": "block:6"}, "No 'block:6' in this network: block has 1, 2, 3, 4, 5"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta(**options)


def test_too_small_images():
    with pytest.raises(ValueError, match=r"64x31 pixels are too small.*at least 32x32"):
        on_meta()(torch.empty(1, 3, 64, 31, device="meta"))


@pytest.fixture
def vgg_weights(monkeypatch):
    """Other values of the right shapes, in place of the download."""
    torch.manual_seed(5)
    with torch.device("meta"):
        shapes = torchvision.models.vgg16_bn(weights=None).state_dict()
    state = {
        key: torch.randn(value.shape)
        for key, value in shapes.items()
        if key.startswith("features.") and not key.endswith("num_batches_tracked")
    }
    monkeypatch.setattr(
        torchvision.models._api, "load_state_dict_from_url", lambda *a, **k: state | {"classifier.0.bias": 0}
    )
    return state


def test_imagenet_weights_fill_the_whole_encoder(vgg_weights):
    model = SegNet(num_classes=3)
    assert model.pretrained_parameters() == []
    model.load_imagenet()
    ours = [
        value for key, value in model.encoder.state_dict().items() if not key.endswith("num_batches_tracked")
    ]
    assert len(ours) == len(vgg_weights) == 13 * 6
    assert all(torch.equal(a, b) for a, b in zip(ours, vgg_weights.values(), strict=True))
    assert {id(p) for p in model.pretrained_parameters()} == {id(p) for p in model.encoder.parameters()}


def test_encoder_with_loaded_weights_computes_what_vgg16_does(vgg_weights):
    for key, value in vgg_weights.items():  # variances must be positive, maps of a like size
        value.copy_(value.abs() + 0.5 if "running_var" in key else value / 10)
    model = SegNet(num_classes=3)
    model.load_imagenet()
    model.eval()
    with torch.device("meta"):
        theirs = torchvision.models.vgg16_bn(weights=None).features
    theirs = theirs.to_empty(device="cpu").eval()
    theirs.load_state_dict(
        {key.removeprefix("features."): value for key, value in vgg_weights.items()}, strict=False
    )
    x = y = torch.randn(1, 3, 37, 64)
    with torch.no_grad():
        for encoder in model.encoder:
            x, _ = encoder(x)
        y = theirs(y)
    assert y.any()
    assert torch.equal(x, y)


def test_missing_imagenet_weights_say_how_to_go_on(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(RuntimeError, match=r"vgg16_bn: no route to host.*Download http.*weights='none'"):
        SegNet(num_classes=2).load_imagenet()
    with pytest.raises(ValueError, match="meta device holds no weights"):
        on_meta().load_imagenet()
