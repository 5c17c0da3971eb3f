import pytest
import torch
import torch.nn.functional as F

from segkit.measure import cost, peak_memory
from segkit.models.peers.erfnet import Downsampler, ERFNet, NonBottleneck1D


def on_meta(**options):
    with torch.device("meta"):
        return ERFNet(**{"num_classes": 19, **options})


@pytest.mark.parametrize(("num_classes", "params"), [(19, 2_066_642), (20, 2_066_836)])
def test_size_is_the_releases(num_classes, params):
    model = on_meta(num_classes=num_classes)
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    assert sum(p.numel() for p in model.parameters()) == params


def test_work_and_the_encoders_classifier():
    model = on_meta()
    without, with_aux = (cost(model, (1024, 2048), auxiliary=auxiliary) for auxiliary in (False, True))
    assert (without.params, f"{without.macs / 1e9:.3f}") == (2_064_191, "106.417")
    assert with_aux.params - without.params == sum(p.numel() for p in model.aux.parameters()) == 2451
    assert with_aux.macs - without.macs == 128 * 19 * 128 * 256  # a 1x1 convolution at H/8


def test_training_memory():
    """13,256 MiB was counted for four images and a cross-entropy on the logits, which end with the loss."""

    def step(model, images, labels):
        return F.cross_entropy(model(images, auxiliary=False)["out"], labels)

    peak = peak_memory(on_meta(), 4, (1024, 2048), step=step)
    assert round(peak.total / 2**20) == 13256


def test_recomputation_saves_memory():
    plain, units, most = (
        peak_memory(on_meta(recompute=recompute), 1, (512, 1024)).total
        for recompute in (None, "unit", "unit,stem,td,tu")
    )
    assert most < units < plain / 2
    in_one_place = peak_memory(on_meta(recompute="unit:2"), 1, (512, 1024)).total
    assert units < in_one_place < plain


@pytest.mark.parametrize("recompute", ["unit,stem,td,tu", "block,tu", "unit:3,td:2,tu:logits"])
def test_recomputation_changes_nothing(recompute):
    """Dropout draws the same maps again; statistics are updated once."""
    results = []
    for labels in (None, recompute):
        torch.manual_seed(0)
        model = ERFNet(num_classes=3, recompute=labels).double()
        x = torch.randn(2, 3, 16, 24, dtype=torch.float64)
        output = model(x)
        (output["out"].square().mean() + output["aux"]["encoder"].square().mean()).backward()
        results.append(([p.grad for p in model.parameters()], list(model.buffers())))
    (gradients, buffers), (again, buffers_again) = results
    assert all(torch.equal(a, b) for a, b in zip(buffers, buffers_again, strict=True))
    for a, b in zip(gradients, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_every_parameter_learns():
    torch.manual_seed(0)
    output = (model := ERFNet(num_classes=5))(torch.randn(2, 3, 32, 48))
    assert {name: tuple(value.shape) for name, value in output["aux"].items()} == {"encoder": (2, 5, 4, 6)}
    assert output["out"].shape == (2, 5, 32, 48)
    (output["out"].square().mean() + output["aux"]["encoder"].square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_auxiliary_output_in_train_mode_unless_told_otherwise():
    model, x = on_meta(), torch.empty(1, 3, 64, 64, device="meta")
    assert list(model(x)) == ["out", "aux"]
    assert list(model(x, auxiliary=False)) == ["out"]
    model.eval()
    assert list(model(x)) == ["out"]
    assert list(model(x, auxiliary=True)) == ["out", "aux"]


def test_downsampler_concatenates_convolution_and_pooling():
    torch.manual_seed(0)
    block = Downsampler(4, 10).eval()
    x = torch.rand(1, 4, 6, 8)
    with torch.no_grad():
        out = block(x)
    assert out.shape == (1, 10, 3, 4)
    # a fresh norm only divides by sqrt(1 + eps); what it is given is positive
    assert torch.allclose(out[:, 6:], F.max_pool2d(x, 2) / (1 + 1e-3) ** 0.5)


def test_unit_is_residual_and_sees_as_far_as_its_dilation():
    torch.manual_seed(0)
    unit = NonBottleneck1D(8, dilation=3).eval()
    x = torch.rand(1, 8, 15, 15, requires_grad=True)
    unit(x)[0, :, 7, 7].sum().backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert (rows.min(), rows.max()) == (7 - 4, 7 + 4)  # 1 for the first pair, 3 for the second
    with torch.no_grad():
        for parameter in unit.main.parameters():
            parameter.zero_()
        assert torch.equal(unit(x), x)


def test_dropout_is_the_papers():
    model = on_meta()
    rates = [
        {m.p for m in stage.modules() if isinstance(m, torch.nn.Dropout2d)}
        for stage in (model.stage2, model.stage3, model.stage4, model.stage5)
    ]
    assert rates == [{0.03}, {0.3}, set(), set()]
    assert [unit.main[5].dilation[0] for unit in model.stage3] == [2, 4, 8, 16, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"recompute": "cat1x1"}, "No segments labelled 'cat1x1'.*It has unit, block, stem, td, tu"),
        ({"recompute": "unit:6"}, "No 'unit:6' in this network: unit has 2, 3, 4, 5"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta(**options)


def test_sizes_that_do_not_fit_and_one_that_does():
    model = on_meta()
    with pytest.raises(ValueError, match=r"65x97.*divisible by 8.*64x96"):
        model(torch.empty(1, 3, 65, 97, device="meta"))
    assert model(torch.empty(1, 3, 64, 96, device="meta"))["out"].shape == (1, 19, 64, 96)
    with pytest.raises(ValueError, match="at least 8x8"):
        model(torch.empty(1, 3, 4, 96, device="meta"))


def test_there_are_no_imagenet_weights():
    model = on_meta()
    with pytest.raises(ValueError, match="no ImageNet weights for ERFNet; use weights='none'"):
        model.load_imagenet()
    assert model.pretrained_parameters() == []
