"""What holds for every model: it builds on meta, keeps the output contract, trains, refuses bad input."""

import os

import numpy as np
import pytest
import torch

from segkit.models import MODELS, build

ALL_MODELS = os.environ.get("SEGKIT_ALL_MODELS") == "1"

# of the auxiliary heads, in forward order; "": the network has none
AUXILIARY = {
    "dn121-32": "spp8 spp4 spp2 spp1",
    "ldn121-64-4": "spp8 spp4 spp2 spp1 level64 level32 level16 level8",
    "ldn121-32-4": "spp8 spp4 spp2 spp1 level32 level16 level8",
    "ldn121-128-4": "spp4 spp2 spp1 level128 level64 level32 level16 level8",
    "ldn121-32-2": "spp8 spp4 spp2 spp1 level32 level16 level8 level4",
    "ldn121-16-2": "spp8 spp4 spp2 spp1 level16 level8 level4",
    "ldn121-64-4-s4": "spp8 spp4 spp2 spp1 level64 level32 level16 level8",
    "ldn121-64-4-nospp": "level64 level32 level16 level8",
    "ldn121-64-4-pspnet-spp": "spp6 spp3 spp2 spp1 level64 level32 level16 level8",
    "ddn121-8": "spp8 spp4 spp2 spp1",
    "lddn121-8-4": "spp8 spp4 spp2 spp1 level8",
    "lddn121-16-4": "spp8 spp4 spp2 spp1 level16 level8",
    "ladder-resnet18-32-4": "spp8 spp4 spp2 spp1 level32 level16 level8",
    "vnet": "",
    "vnet-018": "",
    "enet": "",
    "espnet": "",
    "erfnet": "encoder",
    "segnet": "",
    "pspnet-r50": "res4",
    "pspnet-r101": "res4",
    **{name: "" for name in MODELS if name.startswith("regseg")},
    "regnety-600mf": "",
    "ddrnet23": "",
    "lraspp-mobilenetv3": "",
    "fc-hardnet70": "",
    "swiftnet-rn18": "",
    **{name: "" for name in MODELS if name.startswith("denseaspp")},
    **{name: "fcn" for name in MODELS if name.startswith("fastfcn-")},
}


def one_of_each_kind(*names):
    """Parametrize over these models; with --all-models over all, but of FastFCN over these only."""
    every = {name for name in MODELS if not name.startswith("fastfcn-")} | set(names)
    return pytest.mark.parametrize("name", sorted(every) if ALL_MODELS else names)


def narrow(name):
    """Options that make a wide network's steps cheap: the same code with fewer channels."""
    return {"width": 8} if name.startswith("fastfcn-") else {}


ONE_OF_EACH_CLASS = (
    *("ladder-resnet18-32-4", "vnet", "enet", "espnet", "erfnet", "segnet", "pspnet-r50", "regseg"),
    *("regnety-600mf", "ddrnet23", "lraspp-mobilenetv3", "fc-hardnet70", "swiftnet-rn18"),
    *("denseaspp121", "denseaspp-student1", "fastfcn-r50-enc-jpu"),
)


def odd_size(model):
    """A small (H, W) that nothing divides but what the network demands to divide it.

    It is wide enough for more than one cell in the coarsest SPP grid.
    """
    divisor = getattr(model, "size_divisor", 1)
    return model.minimum_size + divisor, 2 * model.minimum_size + 5 * divisor


def test_names_are_the_documented_ones():
    documented = {
        "dn121-32",
        *(f"ldn121-{rates}" for rates in ("64-4", "32-4", "128-4", "32-2", "16-2")),
        *(f"ldn121-64-4-{variant}" for variant in ("s4", "dws", "nospp", "pspnet-spp")),
        *(f"ldn{depth}-{rates}" for depth in (169, 161) for rates in ("32-4", "64-4")),
        *(f"ladder-{backbone}-32-4" for backbone in ("resnet18", "resnet50", "resnet101", "dpn68")),
        "ddn121-8",
        "lddn121-8-4",
        "lddn121-16-4",
        *("vnet", "vnet-018", "enet", "espnet", "erfnet", "segnet", "pspnet-r50", "pspnet-r101"),
        *("regseg", "regnety-600mf", *(f"regseg-row{row}" for row in range(1, 10))),
        *(f"regseg-{fusion}" for fusion in ("sum1x1", "concat1x1", "concat3x3", "concat-yblock")),
        *("regseg-lraspp", "regseg-sfnet", "regseg-bisenet"),
        *("ddrnet23", "lraspp-mobilenetv3", "fc-hardnet70", "swiftnet-rn18"),
        *(f"denseaspp{depth}" for depth in (121, 161, 169, 201)),
        *(f"denseaspp-student{number}" for number in range(1, 6)),
        *(
            f"fastfcn-{depth}-{head}-{upsampling}"
            for depth in ("r50", "r101")
            for head in ("enc", "aspp", "psp")
            for upsampling in ("none", "bilinear", "fpn", "jpu")
        ),
    }
    assert documented <= set(MODELS)


def check_shapes(name, output, batch, num_classes, size):
    height, width = size
    assert output["out"].shape == (batch, num_classes, height, width)
    if AUXILIARY.get(name) == "":
        assert list(output) == ["out"]
        return
    presence = ["presence"] if name.startswith("fastfcn-") and "-enc-" in name else []
    assert list(output) == ["out", "aux", *presence]
    if presence:
        assert output["presence"].shape == (batch, num_classes)
    if name in AUXILIARY:
        assert list(output["aux"]) == AUXILIARY[name].split()
    for head, logits in output["aux"].items():
        assert logits.shape[:2] == (batch, num_classes)
        if head.startswith("level"):  # halving rounds some sizes up and some down
            stride = int(head.removeprefix("level"))
            assert abs(logits.shape[2] - height / stride) < 1, head
            assert abs(logits.shape[3] - width / stride) < 1, head


def test_runs_on_meta_at_odd_size(other_name):
    model = build(other_name, num_classes=7, device="meta").eval()
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    size = odd_size(model)
    output = model(torch.empty(1, 3, *size, device="meta"), auxiliary=True)
    check_shapes(other_name, output, 1, 7, size)


def test_builds_on_meta(small_name):
    model = build(small_name, device="meta")
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))


def test_auxiliary_outputs_in_train_mode_unless_told_otherwise():
    model, x = build("ladder-resnet18-32-4", device="meta"), torch.empty(2, 3, 64, 64, device="meta")
    assert list(model(x)) == ["out", "aux"]
    assert list(model(x, auxiliary=False)) == ["out"]
    model.eval()
    assert list(model(x)) == ["out"]
    assert list(model(x, auxiliary=True)) == ["out", "aux"]


def test_runs_and_every_trainable_parameter_learns_at_odd_size(small_name):
    torch.manual_seed(0)
    model = build(small_name, num_classes=5, **narrow(small_name))
    size = odd_size(model)
    out = model(torch.randn(2, 3, *size))
    check_shapes(small_name, out, 2, 5, size)
    assert out["out"].isfinite().all()
    heads = [out["out"], *out.get("aux", {}).values(), *([out["presence"]] if "presence" in out else [])]
    loss = sum(logits.square().mean() for logits in heads)
    loss.backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # of a backbone that is frozen by design
            assert parameter.grad is None, f"{name} is frozen and has a gradient"
            continue
        assert parameter.grad is not None, f"no gradient for {name}"
        assert parameter.grad.isfinite().all(), f"gradient of {name} is not finite"
        assert parameter.grad.any(), f"gradient of {name} is zero"


@one_of_each_kind("ldn121-64-4", *ONE_OF_EACH_CLASS)
def test_state_dict_round_trip(name):
    torch.manual_seed(0)
    model, other = (build(name, num_classes=5, **narrow(name)).eval() for _ in range(2))
    side = max(64, model.minimum_size)
    x = torch.randn(1, 3, side, side)
    with torch.no_grad():
        expected = model(x)["out"]
        assert not torch.equal(other(x)["out"], expected)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(x)["out"], expected)


@pytest.mark.parametrize(
    ("name", "recompute"),
    [
        ("ladder-resnet18-32-4", "block,stem,tu"),
        ("vnet", None),
        ("enet", "unit"),
        ("espnet", "unit"),
        ("erfnet", "unit,stem,td,tu"),
        ("segnet", "block,tu"),
        *(
            pytest.param(*more, marks=pytest.mark.skipif(not ALL_MODELS, reason="with --all-models"))
            for more in (
                ("ldn121-64-4", "block,stem,tu"),
                ("pspnet-r50", "block,stem,tu"),
                ("fastfcn-r50-enc-jpu", "block,stem,tu"),
            )
        ),
    ],
)
def test_exports(name, recompute):
    torch.manual_seed(0)
    model = build(name, num_classes=5, recompute=recompute, **narrow(name)).eval()
    x = torch.randn(1, 3, *((64, 96) if hasattr(model, "size_divisor") else (65, 97)))
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        assert torch.allclose(program.module()(x)["out"], model(x)["out"], atol=1e-5)


def test_device_and_dtype():
    model = build("ladder-resnet18-32-4", dtype=torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert (
        build("ladder-resnet18-32-4", device="meta", dtype=torch.bfloat16).logits.conv.weight.dtype
        == torch.bfloat16
    )
    assert next(model.parameters()).device.type == "cpu"


def test_same_seed_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build("ladder-dpn68-32-4").state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@one_of_each_kind(*ONE_OF_EACH_CLASS)
def test_classes_are_a_number(name):
    for wrong in (2.5, "19", True, None, 0, -1):
        with pytest.raises(ValueError, match=rf"num_classes={wrong!r}.*an integer of at least"):
            build(name, num_classes=wrong, device="meta")
    model = build(name, num_classes=np.int64(7), device="meta")
    assert type(model.num_classes) is int
    model.eval()
    assert model(torch.empty(1, 3, *odd_size(model), device="meta"))["out"].shape[1] == 7


def test_unknown_name_lists_near_ones():
    with pytest.raises(ValueError, match=r"'ldn121-64to4'.*Did you mean .*ldn121-64-4.*All names"):
        build("ldn121-64to4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"papercount": True}, "no option 'papercount'. Did you mean paper_count"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"weights": "cityscapes"}, "weights='cityscapes': choose 'none'"),
        ({"spp": "aspp"}, "spp='aspp'"),
        ({"spp_grids": (4, 4)}, "different numbers of rows"),
        ({"spp_grids": ()}, "different numbers of rows"),
        ({"upsample_to": 3}, r"upsample_to=3: this backbone has maps at \[4, 8, 16, 32, 64\]"),
        ({"split": (5,)}, r"split=\(5,\)"),
        ({"dilations": (1, 1)}, r"dilations=\(1, 1\)"),
        ({"recompute": "units"}, "No segments labelled 'units' in this network. Did you mean 'unit'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        build("ldn121-64-4", device="meta", **options)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), TypeError, "torch.uint8 tensor; normalize"),
        ([1.0], TypeError, "got list"),
        (torch.zeros(3, 64, 64), ValueError, r"\(B, 3, H, W\), got \(3, 64, 64\)"),
        (torch.zeros(2, 1, 64, 64), ValueError, r"got \(2, 1, 64, 64\)"),
        (torch.zeros(2, 3, 64, 63), ValueError, "64x63 pixels are too small.*at least 64x64"),
    ],
)
def test_wrong_images(images, error, message):
    with pytest.raises(error, match=message):
        build("ldn121-64-4", device="meta")(images)


@pytest.mark.parametrize("size", [(32, 32), (64, 64)])
def test_batch_of_one_with_a_single_cell(size):
    """The map itself or the coarsest grid has one cell, of which batch norm in training makes nothing."""
    model = build("ladder-resnet18-32-4", device="meta")
    x = torch.empty(1, 3, *size, device="meta")
    with pytest.raises(ValueError, match="at least two images"):
        model(x)
    assert model(x.expand(2, -1, -1, -1))["out"].shape == (2, 19, *size)
    assert model.eval()(x)["out"].shape == (1, 19, *size)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("pspnet-r50", (65, 97)),
        ("regseg", (16, 16)),
        ("regseg-row2", (16, 16)),
        ("regseg-sfnet", (33, 47)),
        ("regseg-bisenet", (33, 47)),
        ("regnety-600mf", (16, 16)),
        ("ddrnet23", (64, 64)),
        ("ddrnet23", (128, 200)),
        ("lraspp-mobilenetv3", (16, 16)),
        ("fc-hardnet70", (61, 124)),
        ("swiftnet-rn18", (32, 32)),
        ("denseaspp121", (12, 12)),
    ],
)
def test_what_refuses_a_single_image_asks_the_norms(name, size):
    """Frozen norms take their running statistics, whatever the model's own mode is."""
    model, x = build(name, num_classes=5, device="meta"), torch.empty(1, 3, *size, device="meta")
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with pytest.raises(ValueError, match=r"Cannot train .*single image.*one value per channel"):
        model(x)
    for norm in norms:
        norm.eval()
    assert model.training
    assert model(x)["out"].shape == (1, 5, *size)
    model.eval()
    for norm in norms:
        norm.train()
    with pytest.raises(ValueError, match=r"Cannot train .*single image.*one value per channel"):
        model(x)


def test_wide_batch_of_one_trains():
    out = build("ladder-resnet18-32-4", device="meta")(torch.empty(1, 3, 64, 128, device="meta"))
    assert out["aux"]["spp1"].shape == (1, 19, 1, 2)
