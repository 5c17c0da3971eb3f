import copy
import itertools
import time
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

from segkit.measure.receptive_field import (
    Layer,
    bound,
    compose,
    coverage,
    effective,
    largest_path,
    receptive_field,
    support,
)
from segkit.measure.tracker import MeasurementError
from segkit.models import build
from segkit.models.regseg import DBlock


def small():
    """Dilated branches, gates and shortcuts beside one another: a field of 47 at stride 8."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        DBlock(16, 16, stride=2),
        DBlock(16, 16, stride=2),
        DBlock(16, 32, (1, 2)),
    )


# ---- the formula -----------------------------------------------------------------------------------------

LAYER = st.builds(Layer, kernel=st.integers(1, 5), stride=st.integers(1, 3), dilation=st.integers(1, 4))


def test_two_3x3_are_a_5x5_and_strides_count():
    assert compose([1, 1]).size == 5
    assert (compose([]).size, compose([]).stride) == (1, 1)
    assert (compose([(3, 2), 1, 2, 4]).size, compose([(3, 2), 1, 2, 4]).stride) == (31, 2)
    assert compose([Layer(3), Layer(2, Fraction(1, 2)), Layer(3)]).size == 5.0


@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 24)), min_size=1, max_size=6))
def test_the_formula_of_denseaspp_is_the_same(layers):
    spans = [(d - 1) * (k - 1) + k for k, d in layers]
    stacked = spans[0]
    for span in spans[1:]:
        stacked = stacked + span - 1
    assert compose([(k, 1, d) for k, d in layers]).size == stacked
    assert [Layer(k, 1, d).span for k, d in layers] == spans


class DenseASPP(nn.Module):
    def __init__(self, dilations):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(4 + 2 * i, 2, 3, padding=d, dilation=d) for i, d in enumerate(dilations)
        )

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(F.relu(x))], dim=1)
        return x


@pytest.mark.parametrize(
    ("dilations", "field"),
    [((3, 6, 9, 12), 61), ((6, 12, 18, 24), 121), ((3, 6, 12, 18, 24), 127), ((3, 6, 9, 12, 18, 24), 145)],
)
def test_denseaspp(dilations, field):
    head = DenseASPP(dilations)
    assert compose(dilations).size == field
    assert receptive_field(head, channels=4).size == (field, field)
    assert compose(largest_path(head, channels=4)).size == field


def test_coverage_of_denseaspp_on_its_own_grid():
    covered = [
        receptive_field(DenseASPP(d), channels=4).coverage
        for d in ((3, 6, 9, 12), (6, 12, 18, 24), (3, 6, 12, 18, 24), (1, 3, 8, 24, 27))
    ]
    assert [round(share, 3) for share in covered] == [0.119, 0.03, 0.115, 1.0]


def test_aspp_is_sparser_in_2d_than_its_rows_say():
    class ASPP(nn.Module):
        def __init__(self):
            super().__init__()
            self.branches = nn.ModuleList(nn.Conv2d(3, 2, 3, padding=d, dilation=d) for d in (6, 12, 18, 24))

        def forward(self, x):
            return sum(branch(x) for branch in self.branches)

    seen = receptive_field(ASPP())
    assert seen.size == (49, 49)
    assert seen.coverage == 33 / 49**2  # 1.4 %
    assert seen.mask.any(0).double().mean().item() ** 2 == pytest.approx(0.034, abs=5e-4)


def test_coverage():
    assert coverage([2, 2, 2]) == (7 / 13) ** 2  # 0.29
    assert coverage([1, 2, 5]) == coverage([1, 3, 9]) == coverage([9, 3, 1]) == 1.0
    assert coverage([24]) == 9 / 49**2  # 0.004
    assert support([(3, 2), 1]).shape == (7, 7)
    assert coverage([(1, 2), 1]) == (3 / 5) ** 2


@given(st.lists(LAYER, min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
def test_support_of_a_list_is_that_of_the_network(layers):
    network = nn.Sequential(
        *(nn.Conv2d(1, 1, la.kernel, stride=la.stride, dilation=la.dilation) for la in layers)
    )
    seen = receptive_field(network, channels=1)
    assert torch.equal(seen.mask, support(layers))
    assert seen.size == (compose(layers).size,) * 2
    assert seen.stride == (compose(layers).stride,) * 2
    assert seen.coverage == coverage(layers)
    assert compose(largest_path(network, channels=1)) == compose(layers)


def test_the_bound_heeds_the_order():
    assert [entry.ratio for entry in bound([1, 3, 9])] == [1, 3, 9]
    assert all(entry.holds for entry in bound([1, 3, 9]))
    assert [entry.holds for entry in bound([9, 3, 1])] == [False, True, True]
    entries = bound([(3, 2), 1, 2, 4])
    assert [(entry.size, entry.stride, entry.ratio) for entry in entries] == [
        (1, 1, 1.0),
        (3, 2, 1.5),
        (7, 2, 3.5),
        (15, 2, 7.5),
    ]


@pytest.mark.parametrize(("side", "field"), [(224, 447), (1024, 2047), (2048, 4095)])
def test_the_corner_sees_the_opposite_corner_from_twice_the_side_minus_one(side, field):
    assert field == 2 * side - 1
    for size, last in ((field, side - 1), (field - 2, side - 2)):
        layer = nn.Conv2d(1, 1, (1, size), padding=(0, size // 2), device="meta")
        seen = receptive_field(layer, image_size=(1, side), position=(0, 0), channels=1)
        assert seen.box[1] == (0, last)


# ---- networks that are known ------------------------------------------------------------------------------


def slim_resnet(units):
    """Layers of TensorFlow slim's ResNets, which stride in the last unit of a block, along the 3x3 path."""
    layers = [(7, 2), (3, 2)]
    for block, count in enumerate(units):
        layers += [(3, 1)] * (count - 1) + [(3, 2 if block < 3 else 1)]
    return layers


@pytest.mark.parametrize(
    ("name", "units", "field", "slim"),
    [("resnet50", (3, 4, 6, 3), 427, 483), ("resnet101", (3, 4, 23, 3), 971, 1027)],
)
def test_resnets(name, units, field, slim):
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    seen = receptive_field(model, at="layer4")
    assert seen.size == (field, field)
    assert seen.stride == (32, 32)
    assert seen.offset == (0, 0)
    assert seen.coverage == 1.0
    path = largest_path(model, at="layer4")
    assert compose(path).size == field
    assert (path[0].name, path[1].name, path[-1].name) == ("conv1", "maxpool", "layer4.2.conv2")
    assert compose(slim_resnet(units)).size == slim


@pytest.mark.parametrize(
    ("name", "field"),
    [("ldn121-32-4", 2071), ("ldn121-64-4", 3511), ("lddn121-8-4", 2047)],
)
def test_splitting_a_dense_block_extends_the_field_and_dilation_keeps_it(name, field):
    backbone = build(name, device="meta").backbone
    start = time.process_time()
    seen = receptive_field(backbone, output=-1)
    assert time.process_time() - start < 10
    assert seen.size == (field, field)
    assert compose(largest_path(backbone, output=lambda maps: maps[-1])).size == field


def test_pyramid_pooling_is_left_out_and_named():
    model = build("ladder-resnet18-32-4", device="meta")
    seen = receptive_field(model)
    assert seen.global_parts == ("spp",)
    assert not seen.include_global
    assert (seen.stride, seen.period) == ((1, 1), (32, 32))
    small = receptive_field(model, image_size=(128, 192), position=(0, 0), include_global=True)
    assert small.box == ((0, 127), (0, 191))
    assert small.mask.all()


@pytest.mark.parametrize(
    ("name", "at", "parts"),
    [
        ("convnext_tiny", "features.3", 0),  # layer norms and linear layers over channels
        ("shufflenet_v2_x0_5", "stage3", 0),  # channels split and shuffled
        ("mobilenet_v3_small", "features.6", 4),  # gates
        ("squeezenet1_0", "features", 0),
    ],
)
def test_networks_of_torchvision_by_formula_and_by_probe(name, at, parts):
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    seen = receptive_field(model, at=at)
    assert len(seen.global_parts) == parts
    assert seen.size[0] == seen.size[1] == compose(largest_path(model, at=at)).size


@pytest.mark.parametrize(
    ("name", "field", "period"),
    [
        ("enet", 1249, 8),  # pads channels, and unpools to where a max-pool found its maxima
        ("segnet", 404, 32),  # unpools five times
    ],
)
def test_networks_that_unpool(name, field, period):
    model = build(name, device="meta")
    seen = receptive_field(model)
    assert seen.size == (field, field)
    assert (seen.stride, seen.period) == ((1, 1), (period, period))
    assert seen.global_parts == ()
    assert compose(largest_path(model)).size >= 0.9 * field


# ---- what an upsampled pixel sees --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "size"),
    [("nearest", 7), ("bilinear", 7 + 4)],  # one cell; two, a stride of 4 apart
)
def test_an_upsampled_pixel_sees_one_cell_or_two(mode, size):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 2, 3, stride=2, padding=1), nn.Conv2d(2, 2, 3, 2, 1))

        def forward(self, x):
            return F.interpolate(self.layers(x), size=x.shape[-2:], mode=mode)

    seen = receptive_field(Net())
    assert receptive_field(Net(), at="layers").size == (7, 7)
    assert seen.size == (size, size)
    assert seen.stride == (1, 1)
    assert seen.period == (4, 4)
    # pixel 0 lies left of the first cell's center, so it blends it with one further left, at -4
    assert seen.offset == ((0, 0) if mode == "nearest" else (-2, -2))


def test_an_odd_factor_has_pixels_on_a_cell():
    up = nn.Upsample(scale_factor=3, mode="bilinear")
    sides = [receptive_field(up, image_size=(6, 6), position=(9, 9 + i)).size for i in range(3)]
    assert sides == [(2, 2), (2, 1), (2, 2)]
    assert receptive_field(up).size == (2, 2)


# ---- random networks against brute force ------------------------------------------------------------------


class Step(nn.Module):
    """One operator on four channels; some join branches."""

    def __init__(self, kind, kernel, stride, dilation, groups, body=None):
        super().__init__()
        self.kind, self.stride, self.body = kind, stride, body
        self.arguments = (kind, kernel, stride, dilation, groups, body)
        padding = dilation * (kernel - 1) // 2
        if kind in ("conv", "valid", "reflect", "groups", "d"):
            channels = 2 if kind == "d" else 4
            self.conv = nn.Conv2d(
                channels,
                channels,
                (kernel, 3) if kind == "groups" else kernel,
                stride,
                0 if kind == "valid" else (padding, dilation) if kind == "groups" else padding,
                dilation,
                groups if kind == "groups" else 1,
                padding_mode="reflect" if kind == "reflect" else "zeros",
            )
        elif kind == "up":
            self.conv = nn.ConvTranspose2d(4, 4, kernel, stride, dilation=dilation)
        elif kind == "wide":
            self.conv = nn.Conv2d(4, 16, 1, groups=4)

    def __repr__(self):  # what a failing example is made of
        return f"Step{self.arguments}"

    def forward(self, x):
        s = self.stride
        match self.kind:
            case "max":
                return F.max_pool2d(x, 3, s, 1)
            case "avg":
                return F.avg_pool2d(x, 2, s, ceil_mode=True)
            case "nearest" | "bilinear" | "bicubic":
                return F.interpolate(x, scale_factor=s + 1, mode=self.kind)
            case "to size":
                return F.interpolate(x, size=(x.shape[2] + s, 2 * x.shape[3] + 1), mode="bilinear")
            case "corners":
                return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            case "d":  # half of the channels as they are
                y = self.conv(x[:, 2:])
                left = F.interpolate(x[:, :2], size=y.shape[2:]) if y.shape[2:] != x.shape[2:] else x[:, :2]
                return torch.cat([left, y], dim=1)
            case "wide":
                return F.pixel_shuffle(self.conv(x), 2)
            case "narrow":
                return F.pixel_unshuffle(x[..., : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2], 2)[:, 2:14:3]
            case "shuffle":
                b, c, h, w = x.shape
                return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
            case "crop":
                return F.pad(x[:, :, 1:, ::s], (2, 0, 0, 1))
            case "last":
                return (x.permute(0, 2, 3, 1) * 2).permute(0, 3, 1, 2)
            case "gate":
                return (1 + x) * (1 + x.mean((2, 3), keepdim=True))
            case "residual":
                y = self.body(x)
                return y + (x if x.shape == y.shape else F.interpolate(x, size=y.shape[2:], mode="bilinear"))
            case "concat":
                y = self.body(x)
                z = F.interpolate(x, size=y.shape[2:])
                return torch.stack([y, z], dim=2).mean(2)
        return F.relu(self.conv(x), inplace=True)


KINDS = [
    "conv", "conv", "valid", "reflect", "groups", "d", "up", "max", "avg", "nearest", "bilinear", "to size",
    "corners", "wide", "narrow", "shuffle", "crop", "last",
]  # fmt: skip
PLAIN = st.builds(
    Step,
    st.sampled_from(KINDS),
    st.sampled_from([1, 3]),
    st.integers(1, 2),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
)
BODY = st.lists(PLAIN, min_size=1, max_size=2).map(lambda steps: nn.Sequential(*steps))
STEP = st.one_of(
    PLAIN,
    st.builds(
        Step, st.sampled_from(["residual", "concat"]), st.just(1), st.just(1), st.just(1), st.just(1), BODY
    ),
)


def positive(model):
    """The model in float64, with weights of one, so that nothing cancels and ReLU passes everything."""
    model = model.double().eval()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    return model


def brute_force(model, height, width, row, column):
    """Perturb each pixel by much more than there is, so that max-pools choose it, and look at one output."""
    images = torch.ones(height * width + 1, 4, height, width, dtype=torch.float64)
    places = torch.arange(height * width)
    images[places, :, places // width, places % width] = 1e4
    with torch.no_grad():
        out = model(images)[:, :, row, column]
    changed = ((out - out[-1:]).abs() > 1e-9 * out[-1:].abs()).any(1)
    return changed[:-1].reshape(height, width)


def check_against_brute_force(model, height, width, at_row, at_column, **options):
    model = positive(model)
    try:
        with torch.no_grad():
            rows, columns = model(torch.ones(1, 4, height, width, dtype=torch.float64)).shape[2:]
    except RuntimeError:
        assume(False)
    assume(0 < rows <= 60 and 0 < columns <= 60)
    row, column = int(at_row * rows), int(at_column * columns)
    expected = brute_force(model, height, width, row, column)
    where = {"image_size": (height, width), "position": (row, column), "channels": 4}
    if not expected.any():  # a pixel that sees padding only
        with pytest.raises(ValueError, match="does not depend"):
            receptive_field(model, **where, **options)
        return
    seen = receptive_field(model, **where, **options)
    (top, bottom), (left, right) = seen.box
    found = torch.zeros_like(expected)
    found[top : bottom + 1, left : right + 1] = seen.mask
    assert torch.equal(found, expected)
    assert seen.size == (bottom - top + 1, right - left + 1)
    assert seen.mask.any(0)[[0, -1]].all() and seen.mask.any(1)[[0, -1]].all()


SHARE = st.floats(0, 1, exclude_max=True)


@given(st.lists(STEP, min_size=1, max_size=4), st.integers(4, 13), st.integers(4, 13), SHARE, SHARE)
@example([Step(kind, 1, 1, 1, 1) for kind in ("narrow", "narrow", "shuffle")], 4, 4, 0.0, 0.0)  # a 1x1 map
@settings(max_examples=50, deadline=None)
def test_random_networks_against_brute_force(steps, height, width, row, column):
    check_against_brute_force(nn.Sequential(*steps), height, width, row, column)


@given(st.integers(1, 2), st.integers(4, 9), SHARE)
@settings(max_examples=6, deadline=None)
def test_bicubic_against_brute_force(factor, side, place):  # alone: its weights are of both signs
    check_against_brute_force(Step("bicubic", 1, factor, 1, 1), side, side, place, place)


@given(st.lists(STEP, max_size=2), st.lists(STEP, max_size=2), SHARE)
@settings(max_examples=12, deadline=None)
def test_networks_with_gates_against_brute_force(before, after, place):
    model = nn.Sequential(*before, Step("gate", 1, 1, 1, 1), *after)
    check_against_brute_force(model, 9, 8, place, place, include_global=True)


@given(st.lists(PLAIN, min_size=1, max_size=3))
@settings(max_examples=12, deadline=None)
def test_far_from_borders_is_what_a_large_image_has_in_its_middle(steps):
    assume(all(step.kind not in ("to size", "corners") for step in steps))  # those depend on the image's size
    model = nn.Sequential(*steps)
    seen = receptive_field(model, channels=4)
    assume(max(seen.period) <= 8)
    sizes = [0]
    row, column = (round(96 / stride) for stride in seen.stride)
    for i, j in itertools.product(range(seen.period[0]), range(seen.period[1])):
        place = {"image_size": (192, 192), "position": (row + i, column + j)}
        try:
            sizes.append(receptive_field(model, channels=4, **place).size[0])
        except ValueError as error:  # a transposed convolution with gaps
            assert "at this place" in str(error)
    assert seen.size[0] == max(sizes)


# ---- effective fields ------------------------------------------------------------------------------------


def test_ninety_percent_of_a_chain_of_equal_taps_lie_in_root_n():
    layers = [nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(36)]
    for layer in layers:
        nn.init.constant_(layer.weight, 1 / 9)
    seen = effective(nn.Sequential(*layers), torch.rand(2, 1, 95, 95))
    assert compose([1] * 36).size == 73
    assert seen.extent == (17, 17)  # 2.69 * sqrt(36) = 16.1
    assert seen.box == ((39, 55), (39, 55))
    assert seen.map.sum().item() == pytest.approx(1)
    assert seen.map.shape == (95, 95)
    rows = seen.map.sum(1)
    assert rows[39:56].sum() >= 0.9 > rows[40:56].sum()


def test_effective_lies_within_the_field_and_position_moves_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=3, dilation=3))
    images = torch.rand(3, 3, 48, 40)
    for position in ((0, 0), (-1, 3), None):
        weights = effective(model, images, position=position, share=0.999).map
        seen = receptive_field(model, image_size=(48, 40), position=position)
        (top, bottom), (left, right) = seen.box
        assert weights[top : bottom + 1, left : right + 1].sum().item() == pytest.approx(1)
        assert torch.equal(weights[top : bottom + 1, left : right + 1] > 0, seen.mask)


def test_effective_takes_networks_without_a_field():
    class Attention(nn.Module):
        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)
            return ((tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens).transpose(1, 2).reshape(x.shape)

    assert (effective(Attention(), torch.rand(1, 3, 6, 6)).map > 0).all()


# ---- the model is left as it was ---------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_model_is_left_as_it_was(fails):
    torch.manual_seed(0)
    model = small()
    model[3].eval()  # a mode of its own
    model[4].requires_grad_(False)
    model[2].register_forward_hook(lambda *_: None)
    before = copy.deepcopy(model.state_dict())
    pointers = [p.data_ptr() for p in model.parameters()]
    flags = [p.requires_grad for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    rng = torch.get_rng_state()
    if fails:
        with pytest.raises(ValueError):
            receptive_field(model, channels=5)
        with pytest.raises(ValueError):
            effective(model, torch.rand(1, 5, 64, 64, generator=torch.Generator().manual_seed(0)))
    else:
        receptive_field(model, at="3")
        largest_path(model)
        effective(model, torch.ones(1, 3, 64, 64))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)


# ---- outputs and errors ------------------------------------------------------------------------------------


class Outputs(nn.Module):
    def __init__(self, pick):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(2, 2, 3, stride=2, padding=1)
        self.pick = pick

    def forward(self, x):
        fine = self.first(x)
        coarse = self.second(fine)
        return self.pick(fine, coarse)


def test_outputs_are_chosen_by_key_index_function_or_submodule():
    mapping = Outputs(lambda fine, coarse: {"out": fine, "aux": {"head": coarse}})
    assert receptive_field(mapping).size == (3, 3)
    assert receptive_field(mapping, output=lambda found: found["aux"]["head"]).size == (5, 5)
    assert receptive_field(mapping, at="second").size == (5, 5)
    maps = Outputs(lambda fine, coarse: [fine, coarse])
    assert receptive_field(maps, output=0).size == (3, 3)
    assert receptive_field(maps, output=-1).size == (5, 5)
    with pytest.raises(ValueError, match=r"returns 2 outputs, numbered from 0; choose one by output="):
        receptive_field(maps)
    with pytest.raises(ValueError, match=r"a dict with 'out', 'aux'; output='logits' is no tensor of it"):
        receptive_field(mapping, output="logits")
    with pytest.raises(ValueError, match=r"numbered from 0; output=2"):
        receptive_field(maps, output=2)


def test_works_below_the_meta_device():
    with torch.device("meta"):
        model = small()
        assert receptive_field(model).size == (47, 47)
        assert receptive_field(model, image_size=(40, 40)).box == ((0, 39), (0, 39))


def test_asymmetric_kernels_have_pairs():
    seen = receptive_field(nn.Conv2d(3, 1, (5, 1), stride=(2, 1), padding=(1, 0)))
    assert (seen.size, seen.stride, seen.offset) == ((5, 1), (2, 1), (1, 0))
    assert compose(largest_path(nn.Conv2d(3, 1, (5, 1)), axis=1)).size == 1


def test_even_kernels_have_their_center_between_pixels():
    assert receptive_field(nn.AvgPool2d(2)).offset == (0.5, 0.5)


def test_group_norm_is_local_with_global_statistics():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4))
    seen = receptive_field(model)
    assert (seen.size, seen.global_parts) == ((3, 3), ("1", "2"))
    assert receptive_field(model, image_size=(9, 7), include_global=True).mask.shape == (9, 7)


def test_pooling_whose_window_grows_with_the_image_is_global():
    class Pyramid(nn.Module):
        def forward(self, x):
            pooled = F.avg_pool2d(x, (x.shape[2] // 2, x.shape[3] // 2))
            return x + F.interpolate(pooled, size=x.shape[2:])

    seen = receptive_field(Pyramid())
    assert (seen.size, seen.global_parts) == ((1, 1), ("(model)",))
    assert receptive_field(Pyramid(), image_size=(32, 32)).size == (1, 1)
    assert receptive_field(Pyramid(), image_size=(32, 32), include_global=True).size == (16, 16)


class Mixing(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.mix = nn.Linear(2048 * 2048, 1, bias=False, device="meta")

    def forward(self, x):
        x = self.conv(x)
        b, c, h, w = x.shape
        tokens = x.flatten(2)  # (B, 4, N)
        if self.kind == "linear":
            return self.mix(tokens)[..., None].expand(b, c, h, w)
        if self.kind == "attention":
            mixed = (tokens.transpose(1, 2) @ tokens).softmax(-1) @ tokens.transpose(1, 2)
            return mixed.transpose(1, 2).reshape(b, c, h, w)
        if self.kind == "fused attention":
            q = tokens.transpose(1, 2)[:, None]
            return F.scaled_dot_product_attention(q, q, q)[:, 0].transpose(1, 2).reshape(b, c, h, w)
        if self.kind == "grid_sample":
            return F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), align_corners=False)
        out = torch.zeros_like(x)
        out[:, :2] = x[:, :2]
        return out


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("linear", "a linear layer over space, which sees the whole image at once, in mix"),
        ("attention", "attention, which sees the whole image at once"),
        ("fused attention", "attention, which sees the whole image at once"),
        ("grid_sample", "grid_sample, which looks where the data tells it to"),
        ("parts", "a tensor that shares its memory with one that was written to in place"),
    ],
)
def test_networks_without_a_readable_field_say_why(kind, message):
    model = Mixing(kind)
    with pytest.raises(MeasurementError, match=message):
        receptive_field(model)
    with pytest.raises(MeasurementError, match=message):
        largest_path(model)
    assert receptive_field(model, at="conv").size == (3, 3)  # before that it is fine


def test_errors_of_networks():
    resnet = torchvision.models.resnet18()
    with pytest.raises(ValueError, match=r"no submodule 'layer5'; near ones or the first: layer4"):
        receptive_field(resnet, at="layer5")
    with pytest.raises(ValueError, match=r"\(1, 1000\).*no height and width"):
        receptive_field(resnet)
    with pytest.raises(ValueError, match=r"does not take an image of 16x16 pixels.*too small"):
        receptive_field(build("ladder-resnet18-32-4", device="meta"), image_size=(16, 16))
    with pytest.raises(ValueError, match=r"does not take an image of 4x4 pixels"):
        receptive_field(nn.Conv2d(3, 1, 5), image_size=(4, 4))
    with pytest.raises(ValueError, match="does not depend on the image"):
        receptive_field(Outputs(lambda fine, coarse: torch.zeros(1, 1, 4, 4, device="meta")))
    with pytest.raises(ValueError, match="never calls its submodule"):
        model = Outputs(None)
        model.forward = model.first.forward
        receptive_field(model, at="second")
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Upsample(scale_factor=8))
    with pytest.raises(ValueError, match=r"global pooling only \(0\).*include_global=True"):
        receptive_field(pooled)
    seen = receptive_field(pooled, image_size=(32, 24), include_global=True)  # as the error says
    assert (seen.size, seen.stride, seen.coverage) == ((32, 24), (4, 3), 1.0)


def test_errors_of_effective():
    images = torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match="No gradient path"):
        effective(Outputs(lambda fine, coarse: fine.detach()), images)
    dead = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    nn.init.constant_(dead[0].weight, -1.0)
    nn.init.constant_(dead[0].bias, -1.0)
    with pytest.raises(ValueError, match="zero everywhere"):
        effective(dead, images)
    with pytest.raises(ValueError, match="8x8"):
        effective(nn.Conv2d(3, 2, 9), images)
    with pytest.raises(ValueError, match=r"position=\(8, 0\): the output has 8x8 pixels"):
        effective(nn.Conv2d(3, 2, 1), images, position=(8, 0))
    with pytest.raises(ValueError, match=r"share=1\.5"):
        effective(nn.Conv2d(3, 2, 1), images, share=1.5)
    with pytest.raises(ValueError, match="not on 'meta'"):
        effective(nn.Conv2d(3, 2, 1, device="meta"), images)
    with pytest.raises(TypeError, match=r"torch\.uint8"):
        effective(nn.Conv2d(3, 2, 1), images.byte())
    with pytest.raises(ValueError, match=r"\(3, 8, 8\)"):
        effective(nn.Conv2d(3, 2, 1), images[0])


def test_errors_of_arguments():
    conv = nn.Conv2d(3, 2, 3)
    with pytest.raises(ValueError, match="dilation=0: a layer's dilation is an integer of at least 1"):
        compose([1, 0])
    with pytest.raises(ValueError, match=r"kernel=2\.5"):
        Layer(2.5)
    with pytest.raises(ValueError, match="stride=0"):
        bound([(3, 0)])
    with pytest.raises(TypeError, match="not 'conv'"):
        coverage(["conv"])
    with pytest.raises(TypeError, match=r"largest_path\(model\)"):
        compose(conv)
    with pytest.raises(ValueError, match="upsamples"):
        support([Layer(2, Fraction(1, 2))])
    with pytest.raises(TypeError, match=r"got list; for a list of layers use compose\(\)"):
        receptive_field([1, 2])
    with pytest.raises(ValueError, match=r"include_global=True.*give image_size"):
        receptive_field(conv, include_global=True)
    with pytest.raises(ValueError, match=r"position=\(0, 0\).*give image_size"):
        receptive_field(conv, position=(0, 0))
    with pytest.raises(ValueError, match=r"position=\(9, 0\): the output has 6x6 pixels"):
        receptive_field(conv, image_size=(8, 8), position=(9, 0))
    with pytest.raises(ValueError, match=r"image_size=64"):
        receptive_field(conv, image_size=64)
    with pytest.raises(ValueError, match="channels=0"):
        receptive_field(conv, channels=0)
    with pytest.raises(ValueError, match="axis=2"):
        largest_path(conv, axis=2)
