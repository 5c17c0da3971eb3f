"""The drawing functions: what they write into a figure, and how a figure is shown."""

import io

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from PIL import Image

from segkit.data.labels import CITYSCAPES19, LabelSpace
from segkit.notebook import plots

SPACE = LabelSpace("three", ("road", "sky", "pole"), ((128, 64, 128), (70, 130, 180), (153, 153, 153)))


def widths(axis):
    return [patch.get_width() for patch in axis.patches if isinstance(patch, Rectangle)]


@pytest.fixture
def scene():
    generator = np.random.default_rng(0)
    truth = np.zeros((16, 32), np.uint8)
    truth[:8], truth[:, 20], truth[15] = 1, 2, 255
    image = generator.integers(0, 256, (3, 16, 32), dtype=np.uint8)
    return torch.from_numpy(image), torch.from_numpy(truth)


def every_figure(scene):
    image, truth = scene
    steps = [{"step": i, "loss": 3 - i, "parts": {"main": 1.0, "spp1": 2.0, "level8": 3.0}} for i in (1, 2)]
    names = {"stem": 1e4, "DB1": 3e5}
    yield plots.image_grid([image, SPACE.color(truth.numpy())], ["image", "labels"])
    yield plots.label_legend(SPACE)
    yield plots.class_frequencies(SPACE, [90, 10, 0])
    yield plots.per_class_iou(SPACE, [0.9, 0.5, np.nan], [0.9, 0.1, 0])
    yield plots.curves(steps, [{"step": 2, "miou": 0.5}], {"all road": 0.1})
    yield plots.head_losses(steps)
    yield plots.bars_pair(names, names)
    yield plots.ladder_ribbon([("DB1", 64, 8), ("SPP", 128, 4), ("TU", 64, 8)], [("DB1", "TU")])
    yield plots.prediction_strip(image, {"1/8": truth}, truth, SPACE)
    yield plots.prediction_strip(image, {"1/8": truth, "1/4": truth}, truth, SPACE)


def test_every_figure_is_a_png_of_notebook_width_with_room_for_its_texts(scene, recwarn, assert_room):
    for figure in every_figure(scene):
        picture = Image.open(io.BytesIO(plots.png(figure)))
        assert picture.format == "PNG" and picture.width == 900 and picture.height < 1200
        assert "Software" not in picture.info
        assert_room(figure)
    assert not [str(warning.message) for warning in recwarn], (
        "a glyph that the font lacks, a layout that failed"
    )


def test_the_same_figure_gives_the_same_bytes(scene):
    image, truth = scene
    first, second = (plots.png(plots.prediction_strip(image, {"1/8": truth}, truth, SPACE)) for _ in range(2))
    assert first == second


def test_photographs_are_reduced_and_still_like_themselves():
    noise = np.random.default_rng(0).integers(0, 256, (128, 256, 3), dtype=np.uint8)
    smooth = np.broadcast_to(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], (128, 256, 3))
    figures = [plots.image_grid([noise, smooth]) for _ in range(2)]
    small, large = plots.png(figures[0]), plots.png(figures[1], small=False)
    assert len(small) < 0.6 * len(large)
    a, b = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float) for data in (small, large))
    assert np.abs(a - b).mean() < 16


def test_every_class_keeps_its_color_beside_a_photograph():
    noise = np.random.default_rng(0).integers(0, 256, (128, 256, 3), dtype=np.uint8)
    labels = np.arange(CITYSCAPES19.num_classes).repeat(400).reshape(76, 100)
    data = plots.png(plots.image_grid([noise, CITYSCAPES19.color(labels)]))
    shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).reshape(-1, 3)
    assert set(CITYSCAPES19.palette) <= set(map(tuple, shown.tolist()))


def test_show_gives_png_and_alternative_text(monkeypatch, scene):
    calls = []
    monkeypatch.setattr(plots, "display", lambda data, **options: calls.append((data, options)))
    assert plots.show(plots.label_legend(SPACE), alt="The color of three classes.") is None
    ((data, options),) = calls
    assert data["text/plain"] == "The color of three classes."
    assert data["image/png"].startswith(b"\x89PNG")
    assert options == {"metadata": {"image/png": {"alt": "The color of three classes."}}, "raw": True}
    with pytest.raises(ValueError, match="write a sentence"):
        plots.show(plots.label_legend(SPACE), alt="plot")


def test_image_grid_takes_both_layouts_and_refuses_others(scene):
    image, _ = scene
    figure = plots.image_grid([image, image.permute(1, 2, 0), image], ["a", "b", "c"], columns=2)
    drawn = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert len(drawn) == 3 and np.array_equal(drawn[0], drawn[1])
    with pytest.raises(ValueError, match=r"uint8 .* not float32 \(3, 16, 32\)"):
        plots.image_grid([image.float()])


def test_class_frequencies_are_sorted_and_in_percent(texts):
    figure = plots.class_frequencies(SPACE, [10, 990, 0])
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["sky", "road", "pole"]
    assert widths(axis) == [99, 1, 0]
    assert axis.get_xscale() == "log" and "%" in axis.get_xlabel() and axis.yaxis_inverted()
    assert {"99 %", "1 %", "none"} <= set(texts(figure))


def test_per_class_iou_orders_by_frequency_and_means_over_what_is_there(texts):
    figure = plots.per_class_iou(SPACE, [0.5, 0.9, None], [1, 99, 0])
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["sky", "road", "pole"]
    assert left.yaxis_inverted() and right.yaxis_inverted()
    assert widths(right) == [90, 50, 0]
    assert "how well; dashed: mIoU 70.0 %" in texts(figure) and "not there" in texts(figure)


def test_curves_draw_loss_score_and_baselines():
    steps = [{"step": s, "loss": 1 / s} for s in range(1, 9)]
    epochs = [{"step": 4, "miou": 0.1}, {"step": 6}, {"step": 8, "miou": 0.2}]
    left, right = plots.curves(steps, epochs, {"all road": 0.017}).axes
    assert np.array_equal(left.lines[0].get_xydata(), [[s, 1 / s] for s in range(1, 9)])
    assert np.array_equal(right.lines[0].get_xydata(), [[4, 10], [8, 20]])
    assert right.lines[1].get_linestyle() == "--" and right.lines[1].get_ydata()[0] == pytest.approx(1.7)
    assert (left.get_ylabel(), right.get_ylabel()) == ("training loss, nats", "validation mIoU, %")
    assert "all road: 1.7 %" in [text.get_text() for text in right.get_legend().get_texts()]


def test_head_losses_are_grouped_averaged_and_in_one_scale():
    steps = [{"step": s, "parts": {"main": s, "spp4": 2.0, "level32": 5.0, "level8": s}} for s in range(1, 8)]
    main, pyramid, ladder = plots.head_losses(steps, smooth=3).axes
    assert np.allclose(main.lines[0].get_xydata(), [[s, s - 1] for s in range(3, 8)])
    assert [line.get_label() for line in pyramid.lines] == ["spp4"]
    assert [line.get_label() for line in ladder.lines] == ["level32", "level8"]
    assert main.get_ylim() == ladder.get_ylim() and main.get_ylim()[1] > 6
    assert len(plots.head_losses(steps[:2]).axes) == 3, "fewer steps than the window"


def test_bars_pair_in_millions_and_billions(texts):
    figure = plots.bars_pair({"DB1": 1e6, "DB4": 3e6}, {"DB1": 20e9, "DB4": 5e9})
    left, right = figure.axes
    assert (widths(left), widths(right)) == ([1, 3], [20, 5])
    assert {"1 M, 25 %", "20 GMAC, 80 %", "parameters, M", "multiply-adds, GMAC"} <= set(texts(figure))
    with pytest.raises(ValueError, match=r"parameters has the parts \['a'\], macs has \['b'\]"):
        plots.bars_pair({"a": 1}, {"b": 1})


def test_ladder_ribbon_has_the_boxes_of_the_network(texts):
    stages = [("DB1", 64, 32), ("DB2", 128, 16), ("SPP", 32, 16), ("TU", 16, 32)]
    figure = plots.ladder_ribbon(stages, [("DB1", "TU")])
    (axis,) = figure.axes
    boxes = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    assert [box.get_width() for box in boxes] == [64, 128, 32, 16]
    assert [box.get_y() + box.get_height() for box in boxes] == [32, 16, 16, 32]
    colors = [matplotlib.colors.to_hex(box.get_facecolor()) for box in boxes]
    assert colors == [color.lower() for color in [plots.BLUE] * 3 + [plots.ORANGE]]
    assert len(axis.lines) == 1 and axis.get_yscale() == "log"
    assert "DB2\n128" in texts(figure)


def test_error_map_and_the_share_of_wrong_pixels(scene, texts):
    image, truth = scene
    prediction = truth.clone()
    prediction[:4] = 0  # 4 of the 15 labelled rows
    errors = plots.error_map(prediction, truth, SPACE)
    red = np.array(matplotlib.colors.to_rgb(plots.RED)) * 255
    assert np.allclose(errors[0, 0], red, atol=1) and (errors[15] == 0).all() and (errors[10, 0] == 225).all()
    figure = plots.prediction_strip(image, {"1/8": prediction, "1/4": truth}, truth, SPACE)
    assert {"image", "truth", "1/8", "27 % wrong", "1/4", "0 % wrong", "road", "sky", "pole"} <= set(
        texts(figure)
    )
    for view, title in (("error", "wrong pixels: 27 % (orange)"), ("prediction", "prediction, 27 % wrong")):
        figure = plots.new_figure(2)
        figure.set_layout_engine("none")
        plots.draw_prediction(figure, image, prediction, truth, SPACE, view=view)
        assert title in texts(figure)


def test_one_style_for_all():
    assert matplotlib.rcParams["font.family"] == ["DejaVu Sans"]
    assert len(set(plots.COLORS)) == len(plots.COLORS) == 10
