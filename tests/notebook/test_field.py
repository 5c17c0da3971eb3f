"""What notebook 05 holds its instruments against: lists, branches, Table 4, the kit's models, gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segkit.data import streets
from segkit.data.labels import CITYSCAPES19
from segkit.data.transforms import normalize
from segkit.evaluation.inference import load_model
from segkit.measure.receptive_field import compose, coverage, receptive_field
from segkit.models.regseg import DILATIONS
from segkit.models.vnet import VNet
from segkit.notebook import field
from segkit.train import _parser
from segkit.training import recipe

# Step by step


def test_the_ruler():
    assert [field.across(side) for side in (224, 1024, 2048)] == [447, 2047, 4095]
    with pytest.raises(ValueError, match="side=0"):
        field.across(0)


@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(1, 5)), max_size=6))
def test_steps_are_composed_one_after_the_other(layers):
    found = field.steps(layers)
    for i, step in enumerate(found):
        whole = compose(layers[: i + 1])
        assert (step.size, step.stride) == (whole.size, whole.stride)
        assert (step.layer.kernel, step.layer.stride, step.layer.dilation) == layers[i]
    assert len(found) == len(layers)


def test_lines_grow_to_the_whole():
    assert [line.sum().item() for line in field.lines([1, 3, 9])] == [3, 9, 27]
    assert [line.tolist().count(True) for line in field.lines([9, 3, 1])] == [3, 9, 27]
    assert [len(line) for line in field.lines([9, 3, 1])] == [19, 25, 27]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(1, 3), max_size=2), min_size=1, max_size=3))
def test_branches_by_brute_force(branches):
    torch.manual_seed(0)
    network, size = field.Branches(branches), (13, 15)
    seen = receptive_field(network, image_size=size, channels=1)
    (top, bottom), (left, right) = seen.box
    probed = torch.zeros(size, dtype=torch.bool)
    probed[top : bottom + 1, left : right + 1] = seen.mask
    assert torch.equal(field.moved(network, size), probed)


@pytest.mark.parametrize(
    ("dilations", "size", "share", "whole", "holds"),
    [
        ((2, 2, 2), 13, 49 / 169, False, False),
        ((1, 2, 5), 17, 1, True, True),
        ((9, 3, 1), 27, 1, True, False),
    ],
)
def test_three_convolutions(dilations, size, share, whole, holds):
    found = field.three(*dilations)
    assert (found.size, found.whole, found.holds) == (size, whole, holds)
    assert found.coverage == pytest.approx(share) and found.coverage == coverage(dilations)
    assert found.mask.shape == (size, size)


def test_the_widest_whole_field_of_three():
    dilations, size, tried = field.widest_whole(10)
    assert (dilations, size) == ((1, 3, 9), 27)
    assert tried == 10 * 11 * 12 // 6


def test_aspp_alone_is_sparse():
    seen = receptive_field(field.ASPP(), channels=1)
    assert seen.size == (49, 49)
    assert seen.mask.sum().item() == 1 + 4 * 8  # the middle is common to all


# RegSeg


@pytest.mark.parametrize(("row", "size"), [(1, 3807), (6, 2207), (8, 3263)])
def test_rows_of_table_4(row, size):
    found = field.table4_row(row)
    assert found.formula == found.field.size[0] == size == 63 + 32 * sum(max(d) for d in DILATIONS[row])
    assert [(entry.layer.dilation, entry.size, entry.stride) for entry in found.broken] == (
        [(4, 63, 16)] if row == 8 else []
    )


def test_row_10_by_hand():
    assert compose(field.row_10()).size == 479
    assert compose([*field.row_10()[:6], *11 * [1], *3 * [2]]).size == 607


def test_other_rows_are_refused():
    with pytest.raises(ValueError, match="row=10: RegSeg's rows of Table 4 are 1 to 9"):
        field.backbone(10)


# The kit


@pytest.mark.parametrize(
    ("label", "size", "gmac", "pools"),
    [("ResNet-50", 427, 85.4, 0), ("VNet", 559, 3.18, 0), ("PSPNet R50", 503, 736.4, 4)],
)
def test_networks_of_the_kit(label, size, gmac, pools):
    members = {name: how for group in field.KIT.values() for name, how in group.items()}
    build, where = members[label]
    seen = field.see(build(), **where)
    assert (seen.field, seen.coverage, seen.pools) == (size, 1.0, pools)
    assert seen.gmac == pytest.approx(gmac, rel=2e-3)


def test_every_network_of_the_kit_can_be_built():
    for members in field.KIT.values():
        for build, where in members.values():
            assert next(build().parameters()).is_meta and set(where) <= {"at", "output"}


def test_a_split_block_sees_farther():
    assert field.ladder_fields(["ldn121-32-4", "ldn121-64-4"]) == {"ldn121-32-4": 2071, "ldn121-64-4": 3511}


# By gradient


@pytest.mark.parametrize(("count", "extent"), [(1, 3), (9, 9), (36, 17)])
def test_the_gradient_of_equal_taps_lies_in_the_root(count, extent):
    found = field.equal_taps(count)
    assert found.extent == (extent, extent)
    assert extent == pytest.approx(2.69 * count**0.5, abs=1)
    assert found.map.shape == (2 * count + 3, 2 * count + 3)


def test_pictures_are_the_scenes_of_the_validation_set():
    pictures = field.pictures(2, size=(32, 64), seed=3)
    assert pictures.dtype == torch.uint8 and pictures.shape == (2, 3, 32, 64)
    assert torch.equal(pictures[:1], field.pictures(1, size=(32, 64), seed=3))
    assert not torch.equal(pictures, field.pictures(2, size=(32, 64), seed=4))


def test_the_weights_that_ship():
    model = field.trained()
    assert isinstance(model, VNet) and not model.training and model.num_classes == 19
    assert field.WEIGHTS.stat().st_size < 500_000
    labels = model((torch.rand(1, 3, 32, 64) - 0.5) * 4)["out"].argmax(1)
    assert labels.shape == (1, 32, 64)


def test_they_have_learned():
    """Of the pixels of a scene that was not trained on, most get their class."""
    model, space = load_model(field.WEIGHTS)
    assert space == CITYSCAPES19
    scene = streets.render(size=(256, 512), seed=0, split="val", index=0)
    road, building, sky = 7, 11, 23  # ids in label files
    with torch.no_grad():
        image = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None]
        found = model(normalize(image))["out"].argmax(1)[0].numpy()
    for label_id, index in ((road, 0), (building, 2), (sky, 10)):
        assert (found[scene.label_ids == label_id] == index).mean() > 0.7


def test_missing_weights_say_how_to_make_them(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="name a checkpoint"):
        field.trained(str(tmp_path / "nowhere.pt"))
    monkeypatch.setattr(field, "WEIGHTS", tmp_path / "vnet_streets.pt")
    with pytest.raises(FileNotFoundError) as error:
        field.trained()
    assert field.TRAIN in str(error.value) and field.SHIP in str(error.value)
    assert "data/weights/vnet_streets.pt is missing" in str(error.value) and str(tmp_path) not in str(
        error.value
    )


def test_the_commands_that_make_them_are_commands():
    train, ship = field.TRAIN.split(), field.SHIP.split()
    assert train[:4] == ["python", "-m", "segkit.train", "vnet_streets"]
    parsed = _parser(recipe("vnet_streets")).parse_args(train[3:])
    assert (parsed.epochs, parsed.crop) == (20, (256, 512))
    assert ship[:3] == ["python", "-m", "segkit.training.export"]
    assert ship[3:] == [train[-1], "data/weights/" + field.WEIGHTS.name]


def test_an_untrained_network_has_the_same_shape_and_its_own_weights():
    model = VNet(num_classes=5)
    first, again, other = (field.untrained(model, seed=seed) for seed in (0, 0, 1))
    assert first.num_classes == 5 and not first.training
    assert torch.equal(first.logits.weight, again.logits.weight)
    assert not torch.equal(first.logits.weight, other.logits.weight)
    with pytest.raises(TypeError, match="got Linear"):
        field.untrained(nn.Linear(1, 1))


def test_gradients_of_the_winning_class_stay_within_the_field():
    torch.manual_seed(0)
    model = VNet(num_classes=3, alpha=0, beta=0).eval()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    found = field.weighed(model, images)
    seen = receptive_field(model, image_size=(64, 96))
    (top, bottom), (left, right) = seen.box
    assert found.map[top : bottom + 1, left : right + 1].sum().item() == pytest.approx(1)
    assert found.extent[0] <= seen.size[0] and found.extent[1] <= seen.size[1]
    out = {"out": torch.tensor([[[[1.0]], [[3.0]], [[2.0]]]])}
    assert field.winner(out).tolist() == [[[[3.0]]]]
