"""Reversible stacks taken apart: what the functions of notebook 04 compute, against what is known."""

import math

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from segkit import models
from segkit.data.labels import CITYSCAPES19
from segkit.measure import cost
from segkit.memory import ReversibleSequence
from segkit.models.vnet import ContextualPyramidPooling, asymmetric
from segkit.notebook import plots, reverse, reverse_plots

# Round-off


def test_undoing_is_exact_up_to_the_type_of_the_streams():
    errors = reverse.drift((1, 4))
    assert list(errors) == ["float32", "float16", "bfloat16"]
    for at in (1, 4):
        assert errors["float32"][at] < 1e-4 < errors["float16"][at] < errors["bfloat16"][at]
    assert all(line[4] > line[1] for line in errors.values())


def test_streams_in_float64_come_back():
    functions, x = reverse.units(5, maps=4), reverse.streams(maps=4, size=(5, 7))
    kept = reverse.forward(functions, *x, torch.float64)
    back = reverse.undo(functions, *kept[-1], torch.float64)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(back, x, strict=True))


def test_the_units_by_hand_are_the_kits():
    functions, x = reverse.units(3, maps=4), reverse.streams(maps=4, size=(6, 6))
    by_hand = torch.cat(reverse.forward(functions, *x, torch.float64)[-1], 1)
    with torch.no_grad():
        stack = ReversibleSequence(reverse.units(3, maps=4))(torch.cat(x, 1))
    assert torch.allclose(by_hand, stack, rtol=0, atol=1e-13)


def test_gradients_by_hand_are_autograds():
    functions, x = reverse.units(3, maps=4), reverse.streams(maps=4, size=(6, 6))
    kept = reverse.forward(functions, *x, torch.float64)
    stack = ReversibleSequence(reverse.units(3, maps=4))
    stack.reversible = False
    stack(torch.cat(x, 1)).backward(torch.cat(reverse.streams(maps=4, size=(6, 6), seed=1), 1))
    for rebuild in (False, True):
        found = reverse._gradients(functions, kept, torch.float64, rebuild)
        for mine, parameter in zip(found, stack.parameters(), strict=True):
            assert torch.allclose(mine, parameter.grad, rtol=1e-9, atol=1e-9)


def test_gradients_from_half_precision_streams_are_wrong_ones():
    errors = reverse.gradient_drift((3,))
    assert errors["float32"][3] < 1e-5
    assert 1e-3 < errors["float16"][3] < errors["bfloat16"][3] < 1


def test_batch_norms_count_every_evaluation():
    found = reverse.norm_updates()
    assert [counter for counter, _ in found.values()] == [1, 2, 3, 1]
    for counter, factor in found.values():
        assert factor == pytest.approx(1 - 0.9**counter)


# Memory


def test_each_way_to_train_has_the_same_network():
    sizes = {sum(p.numel() for p in reverse.vnet(method, 2).parameters()) for method in reverse.METHODS}
    assert len(sizes) == 1
    with pytest.raises(ValueError, match="'per stage'"):
        reverse.vnet("per stack")


def test_one_function_a_stage_is_flat_and_the_others_are_not():
    peaks = {m: [reverse.vnet_peak(m, depth) for depth in (1, 2)] for m in reverse.METHODS}
    assert peaks["per stage"][1] < 1.005 * peaks["per stage"][0] < 3.0 * 1024
    for method in ("checkpoint", "per unit"):
        assert 1.1 < peaks[method][1] / peaks[method][0] < 1.3
    assert peaks["plain"][1] - peaks["plain"][0] == pytest.approx(1728, rel=1e-3)
    assert reverse.vnet_peak("per stage", loss="chunked") < 1.7 * 1024
    with pytest.raises(ValueError, match="'chunked'"):
        reverse.vnet_peak("plain", loss="half")


def test_the_parts_of_a_peak_add_up_and_the_loss_is_three_score_maps():
    peak = reverse.step_peak(reverse.vnet("per stage"))
    parts = reverse.at_the_peak(peak)
    assert sum(parts.values()) == pytest.approx(peak.total / reverse.MIB)
    assert parts["loss at full resolution"] == pytest.approx(3 * 608, rel=1e-3)


def test_a_stack_alone():
    grows = (
        reverse.stack_peak("one Function a unit", 4).total
        - reverse.stack_peak("one Function a unit", 2).total
    )
    flat = reverse.stack_peak("ours", 4).total - reverse.stack_peak("ours", 2).total
    one_map = 4 * 4 * 128 * 128 * 256
    assert grows == pytest.approx(2 * one_map, rel=0.02)
    assert 0 <= flat < 0.02 * one_map
    assert reverse.unit_parameters() == sum(p.numel() for p in asymmetric(64, 1).parameters())


def test_a_record_is_shown():
    assert "segkit.bench reversible" in reverse.recorded_line(None)
    assert reverse.recorded_peaks(None, {"memcnn": "memcnn"}) == {} and reverse.recorded_table(None) == ""
    full = {
        "units": 6,
        "way": "ours",
        "peak": 2**20,
        "ratio": 1.25,
        "norm_updates": 1,
        "gradient_error": 1e-14,
    }
    record = {
        "command": "python -m segkit.bench reversible",
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"processor": "Some CPU", "threads": 2},
        "versions": {"torch": "2.0"},
        "rows": [
            full,
            full | {"units": 12, "peak": 2**21},
            {"units": 12, "way": "memcnn", "note": "missing"},
        ],
    }
    assert "2026-01-02, Some CPU, threads: 2, torch 2.0" in reverse.recorded_line(record)
    assert reverse.recorded_peaks(record, {"a": "ours", "b": "memcnn"}) == {"a": {6: 1.0, 12: 2.0}}
    head, ours, memcnn = reverse.recorded_table(record).splitlines()
    assert head.startswith("12 units") and ours.split() == ["ours", "2", "1.25", "1", "1e-14"]
    assert memcnn.split() == ["memcnn", "-", "-", "-", "-"]
    assert len(head) == len(ours) == len(memcnn)


# The network


def test_the_parts_of_vnet_add_up():
    parts, model = reverse.anatomy((64, 128)), models.build("vnet", device="meta")
    whole = cost(model, (64, 128))
    assert sum(p.params for p in parts.values()) == whole.params == 162_291
    assert sum(p.macs for p in parts.values()) == whole.macs


def test_an_ordinary_downsampler_and_cpp_have_the_same_shapes():
    x = torch.randn(2, 8, 9, 13)
    for module in (reverse.Downsampler(8, 32), ContextualPyramidPooling(8, 32)):
        assert module(x).shape == (2, 32, 5, 7)


@pytest.mark.parametrize(("i", "o", "usual", "ours"), [(8, 32, 1824, 288), (32, 128, 28032, 3456)])
def test_weights_of_the_downsamplers(i, o, usual, ours):
    params, weights, macs = reverse.weights_and_macs(reverse.Downsampler(i, o), i, (16, 16))
    assert (params, weights) == (usual, 9 * i * (o - i))
    assert macs == weights * 8 * 8
    assert reverse.weights_and_macs(ContextualPyramidPooling(i, o), i, (16, 16))[0] == ours


def test_asymmetric_convolutions_save_a_third():
    usual = reverse.weights_and_macs(reverse.square(16), 16, (8, 8))
    ours = reverse.weights_and_macs(asymmetric(16, 1), 16, (8, 8))
    assert 3 * ours[1] == 2 * usual[1] and 3 * ours[2] == 2 * usual[2]


# Mistakes


def test_memory_that_is_used_again():
    relu = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        reverse.step_after(relu, reverse.Overwrites)
    reverse.step_after(nn.Conv2d(3, 8, 1), reverse.Overwrites)  # which does not keep its output
    reverse.step_after(relu, ReversibleSequence)


# What small images lose


class Two:
    """Two images of 8x8: half road (0), half building (2), with a thing of class 13 in each."""

    space = CITYSCAPES19

    def __len__(self):
        return 2

    def __getitem__(self, i):
        labels = torch.zeros(8, 8, dtype=torch.uint8)
        labels[:, 4:] = 2
        instances = torch.where(labels == 0, 7, 11).int()
        side = (1, 4)[i]
        labels[1 : 1 + side, 1 : 1 + side] = 13
        instances[1 : 1 + side, 1 : 1 + side] = 26_000 + i
        return {"labels": labels, "instances": instances}


def test_things_are_told_from_the_rest():
    ids, areas = reverse.objects(Two()[1]["instances"])
    assert ids.tolist() == [26_001] and areas.tolist() == [16]


def test_small_things_vanish_in_small_images():
    assert torch.equal(reverse.shrink(Two()[1]["labels"], 1.0), Two()[1]["labels"])
    miou, found = reverse.best_when_resized(Two(), 0.5)
    assert 0.3 < miou < 1
    assert sum(found.count().values()) == 2
    exact, all_found = reverse.best_when_resized(Two(), 1.0)
    assert exact == 1.0 and {s for s in all_found.mean().values() if not math.isnan(s)} == {1.0}


def test_found_counts_each_thing_once():
    found, labels = reverse.Found(), torch.zeros(20, 20, dtype=torch.int64)
    instances = torch.zeros(20, 20, dtype=torch.int32)
    instances[:2, :2], instances[5:15, 5:15] = 24_000, 24_001
    prediction = labels.clone()
    prediction[0, 0] = prediction[5:15, 5:10] = 1
    found.update_from({"labels": labels, "instances": instances}, prediction)
    assert found.count() == {"small": 1, "medium": 1, "large": 0}
    assert found.mean()["small"] == 0.75 and found.mean()["medium"] == 0.5
    assert math.isnan(found.mean()["large"])


def test_crops_cut_large_things():
    counts = reverse.cut_by_crops(Two(), (8, 8), crops=3)
    assert sum(shown for shown, _ in counts.values()) == 6 and not any(cut for _, cut in counts.values())
    counts = reverse.cut_by_crops(Two(), (3, 3), crops=30)
    shown, cut = (sum(c[i] for c in counts.values()) for i in (0, 1))
    assert 0 < cut < shown  # the thing of one pixel is never cut, the other one (4x4) always


# Figures


def texts(figure):
    return [t.get_text() for axis in figure.axes for t in axis.texts]


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (lambda: reverse_plots.unit_diagrams(), "$G$"),
        (
            lambda: reverse_plots.errors_against_depth(
                {"float32": {1: 1e-6, 9: 1e-4}, "bfloat16": {1: 0.01, 9: 1.0}},
                ylabel="error",
                marked={"nine": 9},
                limit=1,
                limit_text="all of it",
            ),
            "nine",
        ),
        (
            lambda: reverse_plots.peaks_against_depth(
                {"plain": {1: 10.0, 2: 20.0}},
                xlabel="units",
                recorded={"memcnn": {1: 5.0, 2: 9.0}},
                card=True,
            ),
            "memcnn: 9",
        ),
        (lambda: reverse_plots.stacked({"a": {"x": 10.0, "y": 20.0, "z": 1.0}}), "31"),
        (
            lambda: reverse_plots.parts_of_network({"a": (1440, 7 * 10**8, False), "b": (288, 10**7, True)}),
            "1,440",
        ),
        (lambda: reverse_plots.usual_and_ours({"a": ((900, 9_000_000), (600, 6_000_000))}), "600 (-33%)"),
        (lambda: reverse_plots.table_dots({"a": (100.0, 200), "b": (300.0, None)}, above=250), ">250"),
        (lambda: reverse_plots.speed_against_work({"VNet": (6.4, 37.4), "ENet": (15.7, 22)}), "VNet"),
        (
            lambda: reverse_plots.scores_of_runs(
                {"resized": {"mIoU": 0.2, "large": 0.4}, "full": {"mIoU": 0.3, "large": 0.5}},
                ceiling={"mIoU": 0.8},
            ),
            "30",
        ),
        (lambda: reverse_plots.cut_and_lost({"small": 0.1}, {"small": 0.3}, ["small: below 30 px"]), "10 %"),
    ],
)
def test_figures_show_their_numbers(figure, expected):
    made = figure()
    assert expected in texts(made)
    assert plots.png(made, small=False).startswith(b"\x89PNG")


def test_three_views_of_a_picture():
    image = torch.randint(0, 256, (3, 16, 32), dtype=torch.uint8)
    figure = reverse_plots.three_views(image, crop=(4, 8, 8, 16), factor=0.5)
    crop, small, full = (axis.images[0].get_array() for axis in figure.axes)
    picture = image.permute(1, 2, 0).numpy()
    assert (full == picture).all() and small.shape == (8, 16, 3)
    assert (crop[4:12, 8:24] == picture[4:12, 8:24]).all() and crop[0].min() >= 190


@pytest.mark.parametrize(("total", "fits"), [(2000.0, True), (14_000.0, False)])
def test_the_explorers_bar_says_whether_it_fits(total, fits):
    figure = Figure(figsize=(9, 2))
    reverse_plots.draw_step(figure, {"parameters": 1.0, "activations": total - 1, "gradients": 0.0})
    (axis,) = figure.axes
    assert f"{total:,.0f} MiB" in texts(figure)
    line = next(line for line in axis.lines if line.get_xdata()[0] == reverse_plots.CARD)
    assert (line.get_color() == plots.GREEN) == fits
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["activations"]
