"""DenseASPP taken apart: what the functions of notebook 07 compute, against what is known."""

import itertools
import json
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from segkit import models, papers
from segkit.data.labels import CITYSCAPES19
from segkit.evaluation.metrics import ConfusionMatrix
from segkit.measure.receptive_field import compose, coverage
from segkit.models.denseaspp_student import StudentDenseASPP
from segkit.notebook import aspp
from segkit.train import _parser
from segkit.training import recipe

increasing = st.sets(st.integers(1, 9), min_size=1, max_size=4).map(sorted)


# What a head sees


@given(increasing)
def test_scales_are_the_sums_of_all_subsets(dilations):
    subsets = itertools.chain.from_iterable(
        itertools.combinations(dilations, n) for n in range(len(dilations) + 1)
    )
    assert aspp.scales(dilations) == sorted({1 + 2 * sum(subset) for subset in subsets})
    assert aspp.scales(dilations)[-1] == compose(dilations).size


def test_scales_of_the_papers_heads():
    assert len(aspp.scales(aspp.BEST)) == 22 and len(aspp.scales(aspp.FILLED)) == 28
    assert aspp.parallel_scales(aspp.PARALLEL) == [1, 13, 25, 37, 49]


@settings(max_examples=4, deadline=None)
@given(increasing)
def test_a_dense_head_sees_what_its_layers_one_after_the_other_see(dilations):
    found = aspp.head(dilations)
    assert found.size == compose(dilations).size == found.taps[-1]
    assert found.coverage == pytest.approx(coverage(dilations))
    assert list(found.taps) == [compose(dilations[: i + 1]).size for i in range(len(dilations))]


def test_a_parallel_head_sees_each_layer_alone():
    found = aspp.head(aspp.PARALLEL, dense=False)
    assert found.taps == (13, 25, 37, 49) and found.size == 49
    assert int(found.mask.sum()) == 8 * 4 + 1  # the middle is in all of them


@pytest.mark.parametrize(
    ("dilations", "size", "share"),
    [((3, 6, 9, 12), 61, 0.1185), ((6, 12, 18, 24), 121, 0.0301), (aspp.BEST, 127, 0.1146)],
)
def test_the_papers_heads_have_holes(dilations, size, share):
    found = aspp.head(dilations)
    assert (found.size, found.coverage) == (size, pytest.approx(share, abs=5e-5))


def test_the_filled_head_has_none():
    found = aspp.head(aspp.FILLED)
    assert (found.size, found.coverage) == (127, 1)
    assert sum(aspp.FILLED) == sum(aspp.BEST)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 9999), st.sampled_from([1, 3, 5]))
def test_holes_fill_up_as_a_square_is_laid_on_each_cell(seed, side):
    mask = torch.rand(7, 7, generator=torch.Generator().manual_seed(seed)) < 0.3
    square = F.conv_transpose2d(mask[None, None].double(), torch.ones(1, 1, side, side, dtype=torch.double))
    assert aspp.filled_up(mask, [side]) == [pytest.approx((square > 0).double().mean().item())]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.tuples(st.integers(1, 8), st.integers(1, 8)))
def test_taps_inside_by_counting(dilation, grid):
    ones, kernel = torch.ones(1, 1, *grid), torch.ones(1, 1, 3, 3)
    inside = F.conv2d(ones, kernel, padding=dilation, dilation=dilation)
    assert aspp.taps_inside(dilation, grid) == pytest.approx(inside.mean().item() / 9)


def test_the_image_is_seen_without_holes():
    model = small()
    below, above = aspp.image_field(model, features=True), aspp.image_field(model)
    assert above.size[0] - below.size[0] == 8 * 2 * sum(model.head.dilations)
    assert below.coverage == above.coverage == 1


# Table 1


@pytest.fixture(scope="module")
def table():
    return aspp.table_1(papers.load("denseaspp"))


def test_table_1_comes_out(table):
    rows = list(table.values())
    assert [row.params for row in rows] == [662_420, 1_266_580, 1_266_580, 2_252_820, 2_748_179]
    assert [row.head.size for row in rows] == [61, 61, 121, 127, 145]
    assert [row.growth for row in rows] == [32, 32, 32, 64, 64]
    assert [row.channels for row in rows] == [512, 1024, 1024, 1024, 1024]
    assert [row.squeeze for row in rows] == [None, None, None, 256, 256]
    assert [row.classes for row in rows] == [20, 20, 20, 20, 19]
    assert [row.val for row in rows] == [31.6, 29.9, 41.4, 54.0, 39.5]
    assert rows[3].gmacs == pytest.approx(84.74, abs=0.01)


# The trained network


def small(**options):
    torch.manual_seed(0)
    options = {"dilations": (1, 2, 3), "growth": 4, "num_classes": 19, **options}
    return StudentDenseASPP(backbone="small", frozen=False, **options).eval()


def test_the_shipped_network_is_what_its_command_makes():
    model, space = aspp.trained()
    assert space.name == "cityscapes20" and model.head.dilations == aspp.BEST
    assert (model.backbone_name, model.frozen, model.head.growth) == ("small", False, 16)
    assert aspp.WEIGHTS.stat().st_size < 2e6 and not model.training


def test_the_commands_that_make_it_are_commands():
    train, ship = aspp.TRAIN.split(), aspp.SHIP.split()
    assert train[:4] == ["python", "-m", "segkit.train", "denseaspp_streets"]
    parsed = _parser(recipe("denseaspp_streets")).parse_args(train[3:])
    assert (parsed.epochs, parsed.crop, parsed.flip) == (8, (256, 512), 0.5)
    assert ship == ["python", "-m", "segkit.training.export", train[-1], "data/weights/" + aspp.WEIGHTS.name]


def test_another_network_is_refused():
    with pytest.raises(TypeError, match="holds a VNet"):
        aspp.trained(str(aspp.WEIGHTS.parent / "vnet_streets.pt"))


def test_weights_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(aspp, "WEIGHTS", tmp_path / "denseaspp_streets.pt")
    with pytest.raises(
        FileNotFoundError, match=r"segkit\.train denseaspp_streets[^\0]*segkit\.training\.export"
    ):
        aspp.trained()
    with pytest.raises(FileNotFoundError, match="name a checkpoint"):
        aspp.trained("nowhere.pt")


def test_a_new_head_has_a_frozen_copy_of_the_backbone():
    source = small()
    before = torch.get_rng_state()
    one, other = (aspp.with_new_head(source, "DenseASPP", seed=seed) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.frozen and not any(p.requires_grad for p in one.backbone.parameters())
    x = torch.rand(1, 3, 32, 40)
    assert torch.equal(one.features(x), source.features(x).detach())
    assert one.head.dilations == aspp.BEST and one.num_classes == 19
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    parallel = aspp.with_new_head(source, "ASPP")
    assert not parallel.head.dense and parallel.head.dilations == aspp.PARALLEL


def test_heads_are_trained_on_whole_pictures_that_can_be_kept():
    how = aspp.head_recipe((64, 128), cache_features=True, epochs=2, seed=3)
    assert how.cache_features and how.crop == (64, 128) and (how.epochs, how.seed) == (2, 3)
    assert how.dataset_options["num_classes"] == 20 and how.val_split == ""


def test_training_is_quiet_for_a_while(caplog):
    log = logging.getLogger("segkit")
    with pytest.raises(KeyError), aspp.quiet():
        log.warning("how much room features take")
        raise KeyError
    assert not caplog.records
    log.warning("again")
    assert [record.message for record in caplog.records] == ["again"]


def test_a_record_is_read(tmp_path):
    assert "segkit.bench features" in aspp.recorded_features(tmp_path)
    record = {
        "command": "python -m segkit.bench features",
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"processor": "Some CPU", "threads": 1},
        "model": "denseaspp-student4",
        "image_size": [128, 256],
        "epoch": {"backbone each step": {"median": 4.2}, "features from disk": {"median": 2.1}},
        "faster": 2.0,
        "macs": {"promised": 2.2},
    }
    (tmp_path / "features.json").write_text(json.dumps(record))
    head, plain, kept, last = aspp.recorded_features(tmp_path).splitlines()
    assert head.endswith("2026-01-02, Some CPU, threads: 1, denseaspp-student4, 128x256")
    assert plain.split()[-4:] == ["4.20", "s", "an", "epoch"] and kept.split()[-4] == "2.10"
    assert last == "2.00 times as fast; the multiply-adds promise 2.20"


# Similarity


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999), st.integers(0, 3), st.integers(0, 4))
def test_similarity_is_the_cosine(seed, row, column):
    maps = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(seed))
    found = aspp.similarity(maps, (row, column))
    expected = F.cosine_similarity(maps, maps[:, row, column, None, None], dim=0)
    assert torch.allclose(found, expected, atol=1e-6) and found[row, column] == pytest.approx(1, abs=1e-5)
    assert torch.allclose(aspp.similarity(3 * maps, (row, column)), found, atol=1e-6)


@pytest.mark.parametrize("cell", [(-1, 0), (4, 0), (0, 5)])
def test_a_cell_that_is_not_there(cell):
    with pytest.raises(ValueError, match="rows 0 to 3, columns 0 to 4"):
        aspp.similarity(torch.ones(2, 4, 5), cell)


def test_means_inside_and_outside_of_a_class():
    heat = torch.tensor([[1.0, 0.5, 0.0], [0.2, -0.4, 9.0]])
    labels = torch.tensor([[7, 7, 2], [3, 3, 255]])
    assert aspp.apart(heat, labels, 7) == pytest.approx((0.75, -0.2 / 3))


def test_a_cells_label_is_that_of_its_middle():
    labels = torch.zeros(16, 24, dtype=torch.uint8)
    labels[4, 12], labels[12, 20] = 5, 6
    assert aspp.cell_labels(labels).tolist() == [[0, 5, 0], [0, 0, 6]]


def test_the_middle_is_far_from_the_rim():
    assert aspp.middle(np.ones((5, 9), bool)) == (2, 2)
    mask = np.zeros((9, 9), bool)
    mask[0, :] = mask[3:8, 4:9] = True
    assert aspp.middle(mask) == (5, 6)
    lone = np.zeros((3, 3), bool)
    lone[2, 0] = True
    assert aspp.middle(lone) == (2, 0)


def test_points_lie_in_their_classes():
    labels = torch.zeros(6, 8, dtype=torch.int64)
    labels[3:, 4:] = 13
    labels[0, 7] = 2
    found = aspp.points(labels, [15, 13, 2, 0], count=3)
    assert [label for *_, label in found] == [13, 2, 0]
    assert all(labels[row, column] == label for row, column, label in found)
    with pytest.raises(ValueError, match="3 of these classes are in the picture; 4 are needed"):
        aspp.points(labels, [15, 13, 2, 0], count=4)


# Objects


def picture():
    labels = torch.zeros(8, 16, dtype=torch.uint8)
    instances = torch.full((8, 16), 7, dtype=torch.int32)
    labels[2:4, 2:6], instances[2:4, 2:6] = 13, 26_000
    labels[2:4, 8:10], instances[2:4, 8:10] = 13, 26_001  # the second car in two pieces
    labels[2:4, 12:13], instances[2:4, 12:13] = 13, 26_001
    labels[6, 0], instances[6, 0] = 11, 24_000
    return labels, instances


def test_objects_are_instances_whatever_their_pieces():
    labels, instances = picture()
    found = aspp.objects(labels, instances)
    assert sorted(zip(found.labels.tolist(), found.areas.tolist(), strict=True)) == [
        (11, 1),
        (13, 6),
        (13, 8),
    ]
    assert np.array_equal(np.bincount(found.map[found.map >= 0]), found.areas)
    assert (found.map[instances.numpy() == 7] == -1).all()
    large = aspp.objects(labels, instances, least=7)
    assert large.areas.tolist() == [8] and set(np.unique(large.map)) == {-1, 0}


# Removal


class Streets:
    """Two pictures of 40x56 with objects, random but always the same."""

    space = CITYSCAPES19

    def __len__(self):
        return 2

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        labels = torch.zeros(40, 56, dtype=torch.uint8)
        instances = torch.full((40, 56), 7, dtype=torch.int32)
        labels[8:24, 8:40], instances[8:24, 8:40] = 13, 26_000
        labels[30:33, 5:8], instances[30:33, 5:8] = 11, 24_000
        labels[:4] = 255
        image = torch.randint(0, 256, (3, 40, 56), generator=generator, dtype=torch.uint8)
        return {"image": image, "labels": labels, "instances": instances}


def test_answers_without_top_layers_are_the_models_own():
    model, scenes = small(), Streets()
    found = aspp.without_top_layers(model, scenes, CITYSCAPES19, keep=[1])
    assert len(found) == 4
    for removed, answers in enumerate(found):
        matrix = ConfusionMatrix(19)
        for i in range(2):
            sample = scenes[i]
            with torch.no_grad():
                logits = model(aspp.prepared(sample["image"], model), layers=3 - removed)["out"]
            prediction = logits.argmax(1)
            matrix.update(prediction, sample["labels"][None])
            inside = sample["labels"] == 13
            (car,) = np.flatnonzero(answers.objects[i].labels == 13)
            assert answers.hits[i][car] == int((prediction[0][inside] == 13).sum())
        assert torch.equal(answers.predictions[1], prediction[0]) and list(answers.predictions) == [1]
        assert torch.equal(answers.matrix, matrix.matrix)
        assert torch.equal(answers.iou.nan_to_num(9), matrix.iou().nan_to_num(9))


def test_without_its_layers_nothing_but_the_input_decides():
    model = small()
    torch.nn.init.zeros_(model.classifier.weight[:, : model.channels])
    *_, none = aspp.without_top_layers(model, Streets(), CITYSCAPES19)
    answered = none.matrix.sum(0) > 0
    assert (
        answered.sum() == 1 and answered[model.classifier.bias.argmax()]
    )  # the largest bias wins everywhere


def test_found_by_area():
    labels, instances = picture()
    one = aspp.objects(labels, instances)
    hits = np.array([{1: 1, 6: 3, 8: 2}[area] for area in one.areas.tolist()])
    answers = aspp.Answers(torch.zeros(19, 19), [one], [hits], {})
    assert answers.found([2, 7]) == [1.0, 0.5, 0.25]
    assert aspp.counted([one], [2, 7]) == [1, 1, 1]


# Ranks


def test_rank_correlation():
    assert aspp.rank_correlation([1, 2, 30], [0.1, 0.2, 0.3]) == pytest.approx(1)
    assert aspp.rank_correlation([1, 2, 3], [9, 5, 1]) == pytest.approx(-1)
    assert aspp.rank_correlation([1, 2, 2, 4], [1, 3, 3, 2]) == pytest.approx(1 / 3)  # ties share ranks
    with pytest.raises(ValueError, match="each needs a partner"):
        aspp.rank_correlation([1, 2], [1])
    with pytest.raises(ValueError, match="all equal"):
        aspp.rank_correlation([1, 1], [1, 2])


def test_prepared_uses_the_networks_own_normalization():
    image = torch.full((3, 4, 4), 255, dtype=torch.uint8)
    own = SimpleNamespace(image_mean=(0.5, 0.5, 0.5), image_std=(0.25, 0.25, 0.25))
    assert torch.allclose(aspp.prepared(image, own), torch.full((1, 3, 4, 4), 2.0))
    assert aspp.prepared(image, SimpleNamespace()).shape == (1, 3, 4, 4)


def test_the_students_are_in_the_kit():
    assert {f"denseaspp-student{number}" for number in aspp.SIZES} <= set(models.MODELS)
    assert math.prod(aspp.SIZES[4]) == 512 * 1024
