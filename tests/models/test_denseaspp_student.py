from inspect import signature

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segkit.measure import cost, peak_memory, receptive_field
from segkit.memory import plan
from segkit.models import MODELS, build
from segkit.models.denseaspp_student import (
    AtrousLayer,
    DenselyConnectedASPP,
    DenseNetFeatures,
    ParallelASPP,
    StudentDenseASPP,
)

BEST = {"dilations": (3, 6, 12, 18, 24), "growth": 64, "squeeze": 256}  # model #4


def on_meta(number=4, *, num_classes=20, **options):
    return build(f"denseaspp-student{number}", num_classes=num_classes, device="meta", **options)


def small(**options):
    """The laptop's: the small backbone up to its second block, and a narrow head."""
    return StudentDenseASPP(
        **{
            "num_classes": 3,
            "dilations": (1, 2, 3),
            "growth": 4,
            "squeeze": 8,
            "backbone": "small",
            "taken": 2,
            **options,
        }
    )


def trained(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("number", "params", "field", "channels", "classes"),
    [
        (1, 662_420, 61, 512, 20),
        (2, 1_266_580, 61, 1024, 20),
        (3, 1_266_580, 121, 1024, 20),
        (4, 2_252_820, 127, 1024, 20),
        (5, 2_748_179, 145, 1024, 19),
    ],
)
def test_table_1(number, params, field, channels, classes):
    model = on_meta(number, num_classes=classes)
    assert (trained(model), model.channels) == (params, channels)
    assert receptive_field(model.head, channels=channels).size == (field, field)
    assert signature(MODELS[f"denseaspp-student{number}"]).parameters["num_classes"].default == classes
    assert build(f"denseaspp-student{number}", device="meta").num_classes == 19  # whatever the report's


def test_the_norm_that_model_5_has_more():
    assert trained(on_meta(5)) - trained(on_meta(5, norm_out=False)) == 6 * 2 * 64


def test_work_of_the_best_model():
    model = on_meta(4)
    whole, backbone = cost(model, (512, 1024)), cost(model.backbone, (512, 1024))
    assert f"{whole.macs / 1e9:.2f} {(whole.macs - backbone.macs) / 1e9:.2f}" == "84.74 18.34"
    assert (whole.params, backbone.params) == (2_252_820, 6_953_856)


def test_memory_of_the_best_model():
    """4932 MiB is a step that forgets the logits; ours keeps them, 8 x 20 x 512 x 1024 floats: 320 MiB."""
    model = on_meta(4)

    def forgetful(model, images, labels):
        return nn.functional.cross_entropy(model(images)["out"], labels)

    peaks = [peak_memory(model, 8, (512, 1024), step=step).total / 2**20 for step in (forgetful, None)]
    assert [round(peak) for peak in peaks] == [4932, 5252]


def test_recomputing_the_head_saves_memory():
    def peak(recompute):
        return peak_memory(small(recompute=recompute), 8, (64, 128)).total

    assert peak("spp,tu") < 0.8 * peak(None)


def test_a_plan_leaves_a_frozen_backbone_out():
    few = {"dilations": (1, 2)}
    peak = peak_memory(small(**few), 8, (64, 128)).total
    chosen = plan(small(**few), 0.9 * peak / 2**30, 8, (64, 128)).recompute
    assert {token.partition(":")[0] for token in chosen.split(",")} <= {"spp", "tu"}


@pytest.mark.parametrize(
    ("backbone", "channels", "params"),
    [
        ("densenet201", 1920, 3_426_580),
        ("mobilenetv3", 960, 2_168_980),
        ("convnext", 768, 1_917_460),
        ("small", 88, 1_026_660),
    ],
)
def test_other_backbones(backbone, channels, params):
    model = on_meta(4, backbone=backbone).eval()
    assert (model.channels, trained(model)) == (channels, params)
    if backbone == "densenet201":  # as #4 but for the number of units
        return
    size = (model.minimum_size + 1, 2 * model.minimum_size + 7)
    cells = tuple((side + 3) // 8 for side in size)
    x = torch.empty(1, 3, *size, device="meta")
    assert model.features(x).shape == (1, channels, *cells)
    assert model(x)["out"].shape == (1, 20, *size)


# ---- the heads ------------------------------------------------------------------------------------------


def head_of(kind=DenselyConnectedASPP, channels=5, **options):
    torch.manual_seed(0)
    return kind(channels, **{"dilations": (1, 2, 4), "growth": 3, **options})


@pytest.mark.parametrize("options", [{}, {"squeeze": 4}, {"squeeze": 4, "norm_out": True}])
def test_dense_layers_see_all_before_them_in_the_order_old_new(options):
    head = head_of(**options)
    x = torch.randn(2, 5, 6, 7)
    with torch.no_grad():
        expected = x
        for layer in head.layers:
            expected = torch.cat([expected, layer(expected)], dim=1)
        out = head(x)
        assert torch.allclose(out, expected, atol=1e-6)
        assert [tap.shape[1] for tap in head.taps(x)] == [5, 3, 3, 3]
        assert torch.allclose(torch.cat(head.taps(x), dim=1), expected, atol=1e-6)
    assert head.channels_out == out.shape[1] == 14


def test_parallel_layers_see_the_input_only():
    head = head_of(ParallelASPP)
    x = torch.randn(2, 5, 6, 7)
    with torch.no_grad():
        expected = torch.cat([x, *(layer(x) for layer in head.layers)], dim=1)
        assert torch.equal(head(x), expected)
    assert {layer.norm1.num_features for layer in head.layers} == {5}


def test_atrous_layer_norms_its_input_first():
    torch.manual_seed(0)
    layer = AtrousLayer(4, growth=2, dilation=2, squeeze=3)
    x = torch.randn(2, 4, 5, 5)
    before = x.clone()

    def normed(x):
        return (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), False, keepdim=True) + 1e-5).sqrt()

    expected = layer.conv(normed(layer.reduce(normed(x).relu())).relu())
    assert torch.allclose(layer(x), expected, atol=1e-5)
    assert torch.equal(x, before)  # the ReLU works on the norm's output
    assert not any(m.bias is not None for m in layer.modules() if isinstance(m, nn.Conv2d))


@settings(max_examples=12, deadline=None)
@given(st.sets(st.integers(1, 24), min_size=1, max_size=4).map(sorted).map(tuple))
def test_fields_add_up_where_layers_are_dense(dilations):
    """Section 4.1: K = K1 + K2 - 1, so 1 + 2 sum(d); side by side it is the largest layer's own."""
    for kind, field in (
        (DenselyConnectedASPP, 1 + 2 * sum(dilations)),
        (ParallelASPP, 1 + 2 * max(dilations)),
    ):
        with torch.device("meta"):
            head = kind(2, dilations=dilations, growth=1)
        assert receptive_field(head, channels=2).size == (field, field)


def test_how_much_of_the_field_is_touched():
    plain = head_of(ParallelASPP, dilations=(6, 12, 18, 24))
    assert receptive_field(plain, channels=5).coverage == 33 / 49**2  # 8 taps each, and the center
    dense = head_of(dilations=(3, 6, 12, 18, 24))
    assert receptive_field(dense, channels=5).coverage == pytest.approx(0.1146, abs=5e-5)


@pytest.mark.parametrize("kind", [DenselyConnectedASPP, ParallelASPP])
def test_removed_layers_leave_zeros(kind):
    head = head_of(kind).eval()
    x = torch.randn(2, 5, 6, 7)
    with torch.no_grad():
        whole = head(x)
        for m in range(4):
            out = head(x, layers=m)
            assert torch.equal(out[:, : 5 + 3 * m], whole[:, : 5 + 3 * m])
            assert out.shape == whole.shape
            assert not out[:, 5 + 3 * m :].any()
            assert len(head.taps(x, m)) == m + 1


class Top(nn.Module):
    """The last atrous layer that is left."""

    def __init__(self, head, layers):
        super().__init__()
        self.head, self.layers = head, layers

    def forward(self, x):
        return self.head.taps(x, self.layers)[-1]


def test_fields_of_what_is_left():
    head = head_of(dilations=BEST["dilations"])
    fields = [receptive_field(Top(head, m), channels=5).size[0] for m in (5, 4, 3, 2, 1, 0)]
    assert fields == [127, 79, 43, 19, 7, 1]


# ---- the network ----------------------------------------------------------------------------------------


def test_features_are_torchvisions_with_poolings_removed():
    torch.manual_seed(0)
    theirs = torchvision.models.densenet121(weights=None).features.eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics and affine parameters that matter
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    x, state = torch.randn(1, 3, 48, 64), theirs.state_dict()
    with torch.no_grad():
        for taken, last in ((2, "denseblock2"), (3, "denseblock3"), (4, "norm5")):
            ours = DenseNetFeatures(121, taken=taken).eval()
            ours.load_state_dict({key: state[key] for key in ours.state_dict()})
            if taken == 4:
                for block, rate in ((theirs.denseblock3, 2), (theirs.denseblock4, 4)):
                    for layer in block.values():
                        layer.conv2.dilation = layer.conv2.padding = (rate, rate)
                theirs.transition2.pool = theirs.transition3.pool = nn.Identity()
            expected = x
            for name, module in theirs.named_children():
                expected = module(expected)
                if name == last:
                    break
            assert torch.allclose(ours(x), expected, atol=1e-5, rtol=1e-4), taken
    assert expected.min() < 0  # no ReLU after norm5


def test_a_frozen_backbone_stays_as_it_is():
    torch.manual_seed(0)
    model = small()
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    assert model.train().training
    assert model.head.training
    assert not any(module.training for module in model.backbone.modules())
    x = torch.randn(2, 3, 24, 24)
    assert model.features(x).grad_fn is None
    model(x)["out"].square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1).step()
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad) == name.startswith("backbone."), name
    assert not model.eval().head.training


def test_gradients_of_an_image_pass_a_frozen_backbone():
    model, x = small(), torch.randn(2, 3, 24, 24, requires_grad=True)
    model(x)["out"].square().mean().backward()
    assert x.grad.any()
    assert all(p.grad is None for p in model.backbone.parameters())


def test_a_backbone_that_is_not_frozen_learns():
    torch.manual_seed(0)
    model = small(frozen=False, taken=4)
    model(torch.randn(2, 3, 24, 40))["out"].square().mean().backward()
    assert all(p.grad.any() for p in model.parameters())
    assert model.backbone.norm5.training


@pytest.mark.parametrize("taken", [2, 3])
def test_features_computed_before(taken):
    torch.manual_seed(0)
    model = small(taken=taken).eval()
    x = torch.randn(2, 3, 37, 50)
    with torch.no_grad():
        kept = model.features(x)
        assert kept.shape == (2, model.channels, 5, 6)
        again = model(None, features=kept, image_size=(37, 50))["out"]
        assert torch.equal(again, model(x)["out"])
        coarse = model(None, features=kept, full_size=False, layers=1)["out"]
        assert torch.equal(coarse, model(x, full_size=False, layers=1)["out"])
        expected = model.classifier(model.head(kept, layers=1))
        assert torch.allclose(coarse, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ({}, "spp,tu"),
        ({"head": "parallel", "norm_out": True}, "spp:2"),
        ({"frozen": False, "taken": 4}, "unit,stem,td,spp,tu"),
        ({"frozen": False, "taken": 3}, "cat,nested,block:3"),
    ],
)
def test_recomputation_changes_nothing(options, labels):
    results = []
    for recompute in (None, labels):
        torch.manual_seed(0)
        model = small(**options, recompute=recompute).double()
        model(torch.randn(2, 3, 40, 40, dtype=torch.float64))["out"].square().mean().backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        results.append([*gradients, *model.buffers()])
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-8, atol=1e-12)


def test_exports():
    torch.manual_seed(0)
    model, x = small(dilations=(2,)).eval(), torch.randn(1, 3, 33, 41)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        assert torch.allclose(program.module()(x)["out"], model(x)["out"], atol=1e-5)


# ---- ImageNet weights: a stand-in file in torch's cache, in place of the download --------------------------


def test_imagenet_weights_fill_the_backbone(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    state = torchvision.models.mobilenet_v3_large(weights=None).state_dict()
    url = torchvision.models.MobileNet_V3_Large_Weights.IMAGENET1K_V1.url
    torch.save(state, folder / url.rpartition("/")[2])
    model = StudentDenseASPP(**BEST, backbone="mobilenetv3")
    assert model.pretrained_parameters() == []
    model.load_imagenet()
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, state[f"features.{key}"]), key
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert {id(p) for p in model.pretrained_parameters()} == {id(p) for p in model.backbone.parameters()}


def test_missing_weights_say_how_to_go_on(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(RuntimeError, match=r"mobilenet_v3_large: no route.*Download http.*weights='none'"):
        StudentDenseASPP(**BEST, backbone="mobilenetv3").load_imagenet()


def test_weights_that_cannot_be():
    with pytest.raises(ValueError, match=r"no ImageNet weights for the backbone 'small'.*densenet121"):
        small().load_imagenet()
    with pytest.raises(ValueError, match="meta device holds no weights"):
        on_meta(1).load_imagenet()


# ---- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"dilations": (6, 3)}, r"dilations=\(6, 3\): 3 after 6 does not increase"),
        ({"dilations": ()}, "give the dilation of each atrous layer"),
        ({"growth": 0}, "growth=0: a number of maps"),
        ({"squeeze": 2.5}, "squeeze=2.5: a number of maps"),
        ({"backbone": "resnet50"}, "Unknown backbone='resnet50'; choose one of densenet121.*convnext"),
        ({"head": "sparse"}, "Unknown head='sparse'; choose one of dense, parallel"),
        ({"taken": 1}, "taken=1: for small it is 2, 3 or 4"),
        ({"backbone": "convnext", "taken": 3}, "taken=3: for convnext it is 4 only"),
        ({"recompute": "unit,spp"}, "the backbone is frozen.*Leave out unit; spp and tu remain"),
        ({"recompute": "skip"}, "No segments labelled 'skip'"),
        ({"recompute": "spp:4"}, "No 'spp:4' in this network: spp has 1, 2, 3"),
        (
            {"backbone": "convnext", "taken": 4, "recompute": "unit", "frozen": False},
            "No segments labelled 'unit' in this network.*It has spp, tu",
        ),
    ],
)
def test_wrong_options(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize("layers", [-1, 4, 1.5, True])
def test_wrong_layers(layers):
    with pytest.raises(ValueError, match=r"layers=.*has 3 atrous layers.*0 to 3"):
        head_of()(torch.zeros(1, 5, 4, 4), layers=layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give either images"),
        ({"x": torch.zeros(2, 3, 32, 32), "features": torch.zeros(2, 96, 4, 4)}, "Give either images"),
        ({"features": torch.zeros(2, 96, 4, 4)}, r"image_size=None: features do not tell.*\(H, W\)"),
        ({"features": torch.zeros(2, 96, 4, 4), "image_size": 32}, "image_size=32"),
        ({"features": torch.zeros(2, 96, 4, 4), "image_size": (32, 0)}, r"image_size=\(32, 0\)"),
        ({"features": [1.0]}, "got list"),
        (
            {"features": torch.zeros(2, 96, 4, 4), "image_size": (40, 32)},
            "Features of 4x4 cells are not those of images of 40x32 pixels, which have 5x4; give the size",
        ),
        (
            {"features": torch.zeros(2, 96, 4, 4), "image_size": (32, 37), "full_size": False},
            "4x4 cells .* images of 32x37 pixels, which have 4x5",
        ),
        ({"features": torch.zeros(1, 96, 1, 1), "image_size": (8, 12)}, "Cannot train on the features of a"),
        ({"features": torch.zeros(1, 96, 1, 1), "full_size": False}, "one value per channel, .* batch norm"),
        ({"features": torch.zeros(2, 95, 4, 4)}, r"\(B, 96, h, w\), got \(2, 95, 4, 4\).*another backbone"),
    ],
)
def test_wrong_features(options, message):
    with pytest.raises(ValueError, match=message):
        small()(**{"x": None, **options})


def test_a_cell_of_features_that_can_be_used():
    model, cells = small(), torch.zeros(2, 96, 1, 1)
    assert model(None, features=cells, image_size=(12, 5))["out"].shape == (2, 3, 12, 5)
    assert model(None, features=torch.zeros(1, 96, 1, 2), full_size=False)["out"].shape == (1, 3, 1, 2)
    model.head.eval()
    assert model(None, features=cells[:1], image_size=(5, 12))["out"].shape == (1, 3, 5, 12)


def test_one_cell_per_process_can_be_trained_on(processes):
    model = nn.SyncBatchNorm.convert_sync_batchnorm(small())
    assert model(torch.zeros(1, 3, 12, 12))["out"].shape == (1, 3, 12, 12)
    assert model(None, features=torch.zeros(1, 96, 1, 1), full_size=False)["out"].shape == (1, 3, 1, 1)
    processes[0] = 1
    with pytest.raises(ValueError, match="Cannot train on a single image"):
        model(torch.zeros(1, 3, 12, 12))


def test_images_cost_no_walk_over_the_network(visited):
    model = small().eval()
    visited.clear()
    with torch.no_grad():
        model(None, features=model.features(torch.zeros(1, 3, 24, 24)), image_size=(24, 24))
        model(torch.zeros(1, 3, 24, 24))
    assert not visited


@pytest.mark.parametrize(
    ("options", "least"),
    [({"taken": 2}, 8), ({"taken": 3}, 16), ({"taken": 4}, 8), ({"backbone": "convnext", "taken": 4}, 32)],
)
def test_too_small_images(options, least):
    with torch.device("meta"):
        model = small(**options)
        with pytest.raises(
            ValueError, match=rf"{least - 1}x64 pixels are too small.*at least {least}x{least}"
        ):
            model(torch.empty(2, 3, least - 1, 64))
        with pytest.raises(ValueError, match="pixels are too small"):
            model.features(torch.empty(2, 3, least - 1, 64))
        assert model(torch.empty(2, 3, least, least))["out"].shape == (2, 3, least, least)


@pytest.mark.parametrize(
    ("options", "largest"),
    [
        ({"taken": 2}, 12),
        ({"taken": 3, "frozen": False}, 28),
        ({"taken": 4}, 12),
        ({"backbone": "mobilenetv3", "taken": 4}, 32),
        ({"backbone": "convnext", "taken": 4}, 63),
    ],
)
def test_a_single_cell_cannot_be_trained_on(options, largest):
    with torch.device("meta"):
        model = small(**options)
        x = torch.empty(1, 3, largest, largest)
        with pytest.raises(ValueError, match=r"Cannot train .*single image.*one value per channel"):
            model(x)
        coarsest = []
        model.backbone.register_forward_hook(lambda *given: coarsest.append(given[-1].shape[2:].numel()))
        assert model(torch.empty(1, 3, largest, largest + 1))["out"].shape == (1, 3, largest, largest + 1)
        assert model.eval()(x)["out"].shape == (1, 3, largest, largest)
        assert coarsest == [2, 1]
