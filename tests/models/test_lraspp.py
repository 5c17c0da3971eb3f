import pytest
import torch
import torch.nn.functional as F
import torchvision
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from segkit.measure import cost, peak_memory
from segkit.models.peers.lraspp import LRASPPMobileNetV3


def on_meta(**options):
    with torch.device("meta"):
        return LRASPPMobileNetV3(**{"num_classes": 19, **options})


def torchvisions(num_classes):
    return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes)


def test_size_and_work_are_torchvisions():
    """torchvision's own function has the full tail."""
    model = on_meta()
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    counted = cost(model, (1024, 2048))
    assert (counted.params, counted.macs) == (3_221_198, 15_774_900_096)
    assert sum(p.numel() for p in model.parameters()) == counted.params
    with torch.device("meta"):
        assert cost(torchvisions(19), (1024, 2048)) == counted


def test_reduced_tail():
    counted = cost(on_meta(reduced_tail=True), (1024, 2048))
    assert (counted.params, counted.macs) == (1_746_878, 9_915_229_056)


def test_the_printed_size_needs_another_halving_and_the_printed_work_never_comes_out():
    """1.51 M parameters come with half the expansion in the first dilated unit too; 9.74 G do not."""
    from torchvision.models.mobilenetv3 import MobileNetV3, _mobilenet_v3_conf

    units, last = _mobilenet_v3_conf("mobilenet_v3_large", reduced_tail=True, dilated=True)
    units[12].expanded_channels //= 2
    model = on_meta(reduced_tail=True)
    with torch.device("meta"):
        model.stages[5][0] = MobileNetV3(units, last).features[13]
    counted = cost(model, (1024, 2048))
    assert counted.params == 1_505_550
    assert f"{counted.macs / 1e9:.3f}" == "9.318"


def test_computes_what_torchvisions_does():
    torch.manual_seed(0)
    model, theirs = LRASPPMobileNetV3(num_classes=5), torchvisions(5)
    ours = model.state_dict()
    for (name, value), other in zip(ours.items(), theirs.state_dict().values(), strict=True):
        assert value.shape == other.shape, name
        value.copy_(other)
    x = torch.randn(2, 3, 65, 97)
    assert torch.equal(model(x)["out"], theirs(x)["out"])
    model.eval(), theirs.eval()
    with torch.no_grad():
        assert torch.equal(model(x)["out"], theirs(x)["out"])


def test_resolutions_and_widths_of_the_stages():
    for reduced, last in ((False, 960), (True, 480)):
        model, shapes = LRASPPMobileNetV3(num_classes=5, reduced_tail=reduced), []
        for stage in model.stages:
            stage.register_forward_hook(
                lambda module, inputs, output, shapes=shapes: shapes.append(tuple(output.shape[1:]))
            )
        model(torch.randn(1, 3, 64, 128))
        assert shapes == [
            (16, 32, 64),
            (24, 16, 32),
            (40, 8, 16),
            (40, 8, 16),
            (112, 4, 8),
            (last, 4, 8),
        ]


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (16, 21), (33, 16)])
def test_any_size(size):
    model, x = LRASPPMobileNetV3(num_classes=7), torch.randn(2, 3, *size)
    for output in (model(x), model(x, auxiliary=True), model.eval()(x)):
        assert {name: value.shape for name, value in output.items()} == {"out": (2, 7, *size)}
    coarse = model(x, full_size=False)["out"]
    assert coarse.shape == (2, 7, -(-size[0] // 8), -(-size[1] // 8))


def test_logits_are_upsampled_to_the_image():
    torch.manual_seed(0)
    model = LRASPPMobileNetV3(num_classes=5).eval()
    x = torch.randn(1, 3, 65, 91)
    with torch.no_grad():
        coarse = model(x, full_size=False)["out"]
        assert torch.equal(model(x)["out"], F.interpolate(coarse, (65, 91), mode="bilinear"))


@pytest.mark.parametrize("reduced_tail", [False, True])
def test_every_parameter_learns_at_odd_size(reduced_tail):
    torch.manual_seed(0)
    model = LRASPPMobileNetV3(num_classes=5, reduced_tail=reduced_tail)
    out = model(torch.randn(2, 3, 65, 97))["out"]
    assert out.isfinite().all()
    out.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_state_dict_round_trip():
    torch.manual_seed(0)
    model, other = (LRASPPMobileNetV3(num_classes=5).eval() for _ in range(2))
    x = torch.randn(1, 3, 65, 91)
    with torch.no_grad():
        assert not torch.equal(model(x)["out"], other(x)["out"])
        other.load_state_dict(model.state_dict())
        assert torch.equal(model(x)["out"], other(x)["out"])


@pytest.mark.parametrize("recompute", ["unit,stem,tu", "block,stem,tu", "block:5,unit:2"])
def test_recomputation_changes_nothing(recompute):
    results = []
    for labels in (None, recompute):
        torch.manual_seed(0)
        model = LRASPPMobileNetV3(num_classes=3, recompute=labels).double()
        x = torch.randn(2, 3, 33, 40, dtype=torch.float64)
        model(x)["out"].square().mean().backward()
        results.append(([p.grad for p in model.parameters()], list(model.buffers())))
    (gradients, buffers), (again, buffers_again) = results
    assert all(torch.equal(a, b) for a, b in zip(buffers, buffers_again, strict=True))
    for a, b in zip(gradients, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_recomputation_saves_memory():
    plain, units = (
        peak_memory(on_meta(recompute=recompute), 2, (512, 1024)).total
        for recompute in (None, "unit,stem,tu")
    )
    assert units < 0.7 * plain


def test_exports():
    torch.manual_seed(0)
    model = LRASPPMobileNetV3(num_classes=5, recompute="block,stem,tu").eval()
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        assert torch.allclose(program.module()(x)["out"], model(x)["out"], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"recompute": "spp"}, "No segments labelled 'spp'.*It has unit, block, stem, tu"),
        ({"recompute": "unit:7"}, "No 'unit:7' in this network: unit has 1, 2, 3, 4, 5, 6"),
        ({"recompute": "tu:logits"}, "No 'tu:logits' in this network: tu takes no place"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta(**options)


def test_too_small_images():
    with pytest.raises(ValueError, match=r"64x15 pixels are too small.*at least 16x16"):
        on_meta()(torch.empty(1, 3, 64, 15, device="meta"))
    model = LRASPPMobileNetV3(num_classes=5)
    model.minimum_size = 1  # the layers themselves would run on a pixel
    assert model(torch.randn(2, 3, 1, 1))["out"].shape == (2, 5, 1, 1)


def test_one_image_of_one_cell_cannot_be_trained_on():
    model, x = LRASPPMobileNetV3(num_classes=5), torch.randn(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"single image of 16x16.*at least two images"):
        model(x)
    assert model(x.expand(2, -1, -1, -1))["out"].shape == (2, 5, 16, 16)
    assert model(torch.randn(1, 3, 16, 17))["out"].shape == (1, 5, 16, 17)
    assert model.eval()(x)["out"].shape == (1, 5, 16, 16)


@pytest.fixture
def mobilenet_weights(monkeypatch):
    """Other values of the right shapes, in place of the download."""
    torch.manual_seed(5)
    with torch.device("meta"):
        shapes = torchvision.models.mobilenet_v3_large(weights=None).state_dict()
    state = {
        key: torch.randn(value.shape)
        for key, value in shapes.items()
        if key.startswith("features.") and not key.endswith("num_batches_tracked")
    }
    monkeypatch.setattr(
        torchvision.models._api, "load_state_dict_from_url", lambda *a, **k: state | {"classifier.0.bias": 0}
    )
    return state


def test_imagenet_weights_fill_the_whole_backbone(mobilenet_weights):
    model = LRASPPMobileNetV3(num_classes=3)
    assert model.pretrained_parameters() == []
    model.load_imagenet()
    ours = [
        value
        for part in (model.stem, model.stages)
        for key, value in part.state_dict().items()
        if not key.endswith("num_batches_tracked")
    ]
    assert len(ours) == len(mobilenet_weights) == 262
    assert all(torch.equal(a, b) for a, b in zip(ours, mobilenet_weights.values(), strict=True))
    backbone = {id(p) for part in (model.stem, model.stages) for p in part.parameters()}
    assert {id(p) for p in model.pretrained_parameters()} == backbone
    assert len(backbone) + len(list(model.head.parameters())) == len(list(model.parameters()))


def test_imagenet_weights_do_not_fit_the_reduced_tail():
    with pytest.raises(ValueError, match=r"have the full tail; leave out reduced_tail or use weights='none'"):
        LRASPPMobileNetV3(num_classes=2, reduced_tail=True).load_imagenet()


def test_missing_imagenet_weights_say_how_to_go_on(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(RuntimeError, match=r"mobilenet_v3_large: no route to host.*weights='none'"):
        LRASPPMobileNetV3(num_classes=2).load_imagenet()
    with pytest.raises(ValueError, match="meta device holds no weights"):
        on_meta().load_imagenet()
