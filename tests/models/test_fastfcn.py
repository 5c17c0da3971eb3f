"""FastFCN: the counts of all rows of Tables 1 and 2, dilated net and strided net, options, refusals."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from segkit.measure import cost
from segkit.models import MODELS, build
from segkit.models.blocks import ConvNormReLU
from segkit.models.fastfcn import DeepStemResNet, FastFCN, LateralFusion
from segkit.models.jpu import JointPyramidUpsampling, resize

# Parameters and G multiply-adds at 59 classes and 512x512, the auxiliary head and all outputs included.
# Those of ASPP and PSP with bilinear and FPN, which the tables leave out, are our own; "": not counted.
COUNTS = {
    "r50-enc-none": (36_047_825, "156.46"),
    "r50-enc-bilinear": (36_047_825, "70.85"),
    "r50-enc-fpn": (43_915_217, "65.21"),
    "r50-enc-jpu": (47_394_769, "66.51"),
    "r50-aspp-none": (42_147_382, "180.42"),
    "r50-aspp-bilinear": (42_147_382, "94.81"),
    "r50-aspp-fpn": (48_049_718, "82.73"),
    "r50-aspp-jpu": (61_882_934, "124.84"),
    "r50-psp-none": (49_110_838, "193.96"),
    "r50-psp-bilinear": (49_110_838, "108.35"),
    "r50-psp-fpn": (48_325_430, "83.34"),
    "r50-psp-jpu": (68_846_390, "138.37"),
    "r101-enc-none": (55_039_953, "234.04"),
    "r101-enc-bilinear": (55_039_953, "90.25"),
    "r101-enc-fpn": (62_907_345, "84.61"),
    "r101-enc-jpu": (66_386_897, "85.91"),
    "r101-aspp-none": (61_139_510, "258.00"),
    "r101-aspp-bilinear": (61_139_510, ""),
    "r101-aspp-fpn": (67_041_846, ""),
    "r101-aspp-jpu": (80_875_062, "144.23"),
    "r101-psp-none": (68_102_966, "271.54"),
    "r101-psp-bilinear": (68_102_966, ""),
    "r101-psp-fpn": (67_317_558, ""),
    "r101-psp-jpu": (87_838_518, "157.77"),
}
BACKBONES = {"r50": 23_631_808, "r101": 42_623_936}
HEADS = {"enc": 10_041_046, "aspp": 16_140_603, "psp": 23_104_059}  # on 2048 maps, first kernel 3x3
AUXILIARY = 2_374_971
JPU = 19_735_552
PRESENCE = 512 * 59 + 59


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def on_meta(head="enc", upsampling="jpu", depth=50, **options):
    with torch.device("meta"):
        return FastFCN(depth, head=head, upsampling=upsampling, **{"num_classes": 5, **options})


def tiny(head="enc", upsampling="jpu", **options):
    """So small that it runs faster for real than on the meta device."""
    torch.manual_seed(0)
    return FastFCN(50, head=head, upsampling=upsampling, **{"num_classes": 5, "width": 1, **options})


def images(batch=2, size=(33, 65)):
    return torch.randn(batch, 3, *size)


def test_all_names_are_counted():
    assert {f"fastfcn-{name}" for name in COUNTS} == {name for name in MODELS if name.startswith("fastfcn")}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    model = build(f"fastfcn-{name}", num_classes=59, device="meta")
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    params, macs = COUNTS[name]
    assert count(model) == params
    if macs:
        found = cost(model, (512, 512), auxiliary=True)
        assert (found.params, f"{found.macs / 1e9:.2f}") == (params, macs)

    depth, head, upsampling = name.split("-")
    assert count(model.backbone) == BACKBONES[depth]
    assert count(model.aux) == AUXILIARY
    if upsampling == "jpu":
        assert count(model.up) == JPU
        assert count(model.head) == (1_652_438 if head == "enc" else HEADS[head])
    elif upsampling != "fpn":
        assert (count(model.up), count(model.head)) == (0, HEADS[head])


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("r50-enc-none", 33_672_854, "146.74"),
        ("r50-enc-jpu", 45_019_798, "64.08"),
        ("r50-aspp-jpu", 59_507_963, "122.41"),
        ("r50-psp-none", 46_735_867, "184.23"),
    ],
)
def test_counts_without_auxiliary_head(name, params, macs):
    """The way to "out" spares the presence logits too, which are part of the head."""
    presence = PRESENCE if "enc" in name else 0
    found = cost(build(f"fastfcn-{name}", num_classes=59, device="meta"), (512, 512))
    assert (found.params, f"{found.macs / 1e9:.2f}") == (params - presence, macs)
    assert count(build(f"fastfcn-{name}", num_classes=59, device="meta", auxiliary_head=False)) == params


@pytest.mark.parametrize(
    ("name", "options", "params", "macs"),
    [
        ("r50-enc-none", {"lateral": True}, 43_915_217, "188.67"),
        ("r101-enc-none", {"lateral": True}, 62_907_345, "266.25"),
        ("r50-enc-bilinear", {"upsampling": "bilinear-late"}, 36_047_825, "33.36"),
        ("r101-enc-bilinear", {"upsampling": "bilinear-late"}, 55_039_953, "52.76"),
    ],
)
def test_counts_of_options(name, options, params, macs):
    found = cost(
        build(f"fastfcn-{name}", num_classes=59, device="meta", **options), (512, 512), auxiliary=True
    )
    assert (found.params, f"{found.macs / 1e9:.2f}") == (params, macs)


def test_torchvisions_stem_is_torchvisions_resnet():
    with torch.device("meta"):
        ours = DeepStemResNet(50, stem="torchvision").state_dict()
        theirs = torchvision.models.resnet50(weights=None).state_dict()
    shapes = {key.removeprefix("stem."): value.shape for key, value in ours.items()}
    assert shapes == {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert sum(v.numel() for k, v in theirs.items() if k.startswith("fc.")) == 2_049_000  # never counted
    assert count(on_meta(stem="torchvision")) < count(on_meta())


def randomized(dilated):
    """A ResNet-50 of width 4 in eval mode, with other statistics in every batch norm than those it begins
    with; always the same."""
    torch.manual_seed(0)
    net = DeepStemResNet(50, dilated=dilated, width=4).double().eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.5)
            norm.running_mean.normal_(std=0.5)
            norm.running_var.uniform_(0.5, 1.5)
    return net


@pytest.mark.parametrize("size", [(96, 128), (97, 131), (65, 65)])
def test_strided_maps_are_the_first_phases_of_the_dilated_ones(size):
    """Equations 2 and 3 at work: with the same weights, y_s is y_d subsampled."""
    dilated, strided = randomized(True), randomized(False)
    assert all(
        torch.equal(a, b)
        for a, b in zip(dilated.state_dict().values(), strided.state_dict().values(), strict=True)
    )
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        (d1, d2, d3, d4), (s1, s2, s3, s4) = dilated(x), strided(x)
    assert d2.shape[2:] == d3.shape[2:] == d4.shape[2:] == tuple(-(-side // 8) for side in size)
    assert torch.equal(d1, s1) and torch.equal(d2, s2)
    for whole, part, step in ((d3, s3, 2), (d4, s4, 4)):
        phase = whole[..., ::step, ::step]
        assert part.abs().max() > 0.1
        assert (phase - part).abs().max() <= 1e-12 * part.abs().max()
        assert (
            whole[..., 1::step, ::step][..., : part.shape[2] - 1, :] - part[..., :-1, :]
        ).abs().max() > 0.1


def test_where_the_dilation_is():
    dilated, strided = DeepStemResNet(101, dilated=True, width=1), DeepStemResNet(101, width=1)
    found = [
        [[(u.conv2.stride[0], u.conv2.dilation[0]) for u in stage] for stage in (net.layer3, net.layer4)]
        for net in (dilated, strided)
    ]
    assert found == [
        [[(1, 1), *22 * [(1, 2)]], [(1, 2), *2 * [(1, 4)]]],
        [[(2, 1), *22 * [(1, 1)]], [(2, 1), *2 * [(1, 1)]]],
    ]
    for net in (dilated, strided):
        assert all(u.conv2.padding == u.conv2.dilation for s in (net.layer1, net.layer4) for u in s)
        maps = net(images())
        assert [m.shape[1] for m in maps] == net.channels == [4, 8, 16, 32]
        assert [m.shape[3] for m in maps] == [-(-65 // stride) for stride in net.strides]


@pytest.mark.parametrize(
    ("head", "upsampling"),
    [
        *(("enc", upsampling) for upsampling in ("none", "bilinear", "bilinear-late", "fpn", "jpu")),
        *(("aspp", "bilinear"), ("aspp", "fpn"), ("psp", "fpn"), ("psp", "jpu")),
    ],
)
def test_outputs(head, upsampling):
    model = tiny(head, upsampling)
    out = model(images())
    presence = ["presence"] if head == "enc" else []
    assert list(out) == ["out", "aux", *presence]
    assert out["out"].shape == (2, 5, 33, 65)
    assert list(out["aux"]) == ["fcn"]
    assert out["aux"]["fcn"].shape == ((2, 5, 5, 9) if upsampling == "none" else (2, 5, 3, 5))
    if presence:
        assert out["presence"].shape == (2, 5)
    assert list(model(images(), auxiliary=False)) == ["out"]
    model.eval()
    assert list(model(images(1), auxiliary=True)) == ["out", "aux", *presence]
    (small,) = model(images(1), full_size=False).values()
    assert small.shape == (1, 5, *(-(-side // model.output_stride) for side in (33, 65)))
    assert model.output_stride == (32 if upsampling == "bilinear-late" else 8)
    assert model.minimum_size == (8 if upsampling == "none" else 32)


def test_bilinear_is_before_the_head_and_late_after_it():
    torch.manual_seed(0)
    model, late = tiny("enc", "bilinear").eval(), tiny("enc", "bilinear-late").eval()
    late.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        coarse = model.backbone(x)[-1]
        early = model.head(resize(coarse, (8, 12)))[0]
        assert torch.equal(model(x, full_size=False)["out"], early)
        expected = F.interpolate(early, (64, 96), mode="bilinear", align_corners=True)
        assert torch.equal(model(x)["out"], expected)
        assert torch.equal(late(x, full_size=False)["out"], model.head(coarse)[0])


@pytest.mark.parametrize("sizes", [((9, 12), (5, 6), (3, 3)), ((9, 12), (9, 12), (9, 12))])
def test_lateral_fusion_by_hand(sizes):
    """The second: on a dilated backbone, where it is the released code's own."""
    torch.manual_seed(0)
    module = LateralFusion((3, 4, 5), 2, halving=sizes[0] != sizes[1]).eval()
    fine, middle, coarse = maps = [torch.randn(2, c, *s) for c, s in zip((3, 4, 5), sizes, strict=True)]
    with torch.no_grad():
        parts = module.reduce(coarse), module.connect[0](fine), module.connect[1](middle)
        parts = [F.interpolate(p, sizes[0], mode="bilinear", align_corners=True) for p in parts]
        torch.testing.assert_close(module(maps), module.fusion(torch.cat(parts, dim=1)))
    kernels = [conv.kernel_size[0] for conv in module.modules() if isinstance(conv, nn.Conv2d)]
    assert kernels == [3, 1, 1, 3]


def test_the_heads_first_convolution():
    kernels = {name: tiny("enc", name).head.reduce for name in ("none", "bilinear", "jpu", "fpn")}
    assert isinstance(kernels.pop("fpn"), nn.Identity)
    assert isinstance(tiny("enc", "none", lateral=True).head.reduce, nn.Identity)
    assert all(isinstance(block, ConvNormReLU) for block in kernels.values())
    found = {name: block[0].kernel_size[0] for name, block in kernels.items()}
    assert found == {"none": 3, "bilinear": 3, "jpu": 1}
    assert isinstance(tiny().up, JointPyramidUpsampling)


@pytest.mark.parametrize("name", ["r50-enc-jpu", "r50-aspp-none", "r50-psp-fpn"])
def test_width_scales_every_convolution(name):
    """A quarter of the width: a quarter of the channels everywhere but at images, classes and codes."""
    full, quarter = (
        build(f"fastfcn-{name}", num_classes=59, device="meta", width=width) for width in (64, 16)
    )
    for whole, part in zip(full.modules(), quarter.modules(), strict=True):
        if isinstance(whole, nn.Conv2d):
            pairs = [(whole.in_channels, part.in_channels), (whole.out_channels, part.out_channels)]
            assert all(b == a / 4 or a == b in (3, 59) for a, b in pairs), (whole, part)
        elif isinstance(whole, (nn.BatchNorm2d, nn.BatchNorm1d)):
            assert part.num_features == whole.num_features / 4 or part.num_features == 32


def test_first_weights():
    """Of the backbone as released, normal with fan-out; PyTorch's own elsewhere."""
    torch.manual_seed(0)
    model = FastFCN(50, head="enc", upsampling="jpu", num_classes=5, width=8)
    for conv in (model.backbone.stem.conv1[6], model.backbone.layer3[0].conv2):
        std = (2 / (9 * conv.out_channels)) ** 0.5
        assert conv.weight.std().item() == pytest.approx(std, rel=0.05)
    conv = model.up.embed[2][0]
    bound = (9 * conv.in_channels) ** -0.5
    assert 0.99 * bound < conv.weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("head", "upsampling", "recompute"),
    [
        ("enc", "jpu", "block,stem"),
        ("psp", "fpn", "unit,stem,tu,spp"),
        ("aspp", "none", "block:3,tu:aux,spp"),
    ],
)
def test_recomputation_changes_nothing(head, upsampling, recompute):
    """Gradients and statistics to the last bit; dropout draws the same maps again."""
    results = []
    for labels in (None, recompute):
        torch.manual_seed(0)
        model = FastFCN(50, head=head, upsampling=upsampling, num_classes=3, width=2, recompute=labels)
        output = model(torch.randn(2, 3, 65, 97))
        loss = output["out"].square().mean() + output["aux"]["fcn"].square().mean()
        if head == "enc":
            loss = loss + output["presence"].square().mean()
        loss.backward()
        results.append(([p.grad for p in model.parameters()], list(model.buffers())))
    for before, after in zip(*results, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_no_places_for_what_has_no_weights():
    with pytest.raises(ValueError, match="No 'tu:up' in this network: tu has aux"):
        tiny(upsampling="none", recompute="tu:up")


@pytest.mark.parametrize(("head", "path"), [("aspp", "head.pool"), ("psp", "head.ppm.levels.1")])
def test_one_image_cannot_be_trained_on(head, path):
    model = tiny(head)
    with pytest.raises(ValueError, match=rf"single image: \w+Head takes the mean.*get_submodule\('{path}'\)"):
        model(images(1))
    model.get_submodule(path).eval()
    assert model(images(1))["out"].shape == (1, 5, 33, 65)
    assert tiny(head).eval()(images(1))["out"].shape == (1, 5, 33, 65)


@pytest.mark.parametrize("head", ["enc", "aspp", "psp"])
def test_one_image_per_process_can_be_trained_on(head, processes):
    """Where norms take their statistics over all of them."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(tiny(head))
    assert model(images(1))["out"].shape == (1, 5, 33, 65)
    assert model(images(1, (32, 32)))["out"].shape == (1, 5, 32, 32)
    processes[0] = 1
    with pytest.raises(ValueError, match="Cannot train FastFCN on a single image"):
        model(images(1, (32, 32)))


@pytest.mark.parametrize("head", ["enc", "aspp", "psp"])
def test_a_single_image_costs_no_walk_over_the_network(head, visited):
    """What such a walk takes, a millisecond, would count in what is timed."""
    model = tiny(head).eval()
    visited.clear()
    with torch.no_grad():
        model(images(1))
    assert len(visited) <= 5


@pytest.mark.parametrize(("upsampling", "side"), [("jpu", 32), ("none", 8)])
def test_one_small_image_cannot_be_trained_on(upsampling, side):
    """Encoding trains on one image, if that leaves more than one cell; its norm over codes does not count."""
    model = tiny("enc", upsampling)
    with pytest.raises(ValueError, match=f"single image of {side}x{side} pixels: at stride {side}"):
        model(images(1, (side, side)))
    assert model(images(1, (side, side + 1)))["out"].shape == (1, 5, side, side + 1)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    assert model(images(1, (side, side)))["out"].shape == (1, 5, side, side)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 18}, "No FastFCN with ResNet-18; there are 50, 101"),
        ({"head": "fcn"}, "head='fcn'; choose one of enc, aspp, psp"),
        (
            {"upsampling": "nearest"},
            "upsampling='nearest'; choose one of none, bilinear, fpn, jpu, bilinear-l",
        ),
        ({"stem": "7x7"}, "stem='7x7': choose 'deep'"),
        ({"width": 0}, "width=0: an integer of at least 1"),
        ({"width": 16.0}, "width=16.0"),
        ({"lateral": True}, "lateral=True with upsampling='jpu'"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"recompute": "td"}, "No segments labelled 'td'.*It has unit, block, stem, tu, spp"),
        ({"recompute": "block:5"}, "No 'block:5' in this network: block has 1, 2, 3, 4"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta(**options)


@pytest.mark.parametrize(("upsampling", "least"), [("jpu", 32), ("none", 8)])
def test_too_small_images(upsampling, least):
    with pytest.raises(ValueError, match=f"{least - 1}x64 pixels are too small"):
        tiny(upsampling=upsampling)(images(2, (least - 1, 64)))


def test_imagenet_weights_fill_the_backbone(monkeypatch):
    for draw in ("normal_", "uniform_"):  # weights that will be replaced need not be drawn
        monkeypatch.setattr(torch.Tensor, draw, lambda tensor, *args, **kwargs: tensor)
    model = FastFCN(50, head="enc", upsampling="fpn", stem="torchvision", num_classes=5)
    shapes = {key.removeprefix("stem."): v.shape for key, v in model.backbone.state_dict().items()}
    state = {key: torch.full(shape, i) for i, (key, shape) in enumerate(shapes.items())}
    state |= {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *args, **kwargs: state)
    assert model.pretrained_parameters() == []
    model.load_imagenet()
    for i, (key, value) in enumerate(model.backbone.state_dict().items()):
        assert (value == i).all(), key
    assert {id(p) for p in model.pretrained_parameters()} == {id(p) for p in model.backbone.parameters()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"resnet50 do not fit the deep stem.*stem='torchvision'.*weights='none'"),
        ({"stem": "torchvision", "width": 16}, "are 64 wide, and this one has width=16"),
        ({"stem": "torchvision"}, "meta device holds no weights"),
    ],
)
def test_imagenet_weights_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        build("fastfcn-r50-enc-jpu", weights="imagenet", device="meta", **options)
