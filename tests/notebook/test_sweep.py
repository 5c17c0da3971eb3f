"""Notebook 02: steps taken apart, a toy against real checkpoints, exactness, measured files, figures."""

import io
import itertools
import json
import math

import pytest
import torch
from matplotlib.patches import Rectangle
from PIL import Image

from segkit import measure, memory, models, papers
from segkit.measure.peak import MIB
from segkit.memory import planner, recompute
from segkit.notebook import plots, sweep, sweep_plots

BATCH, SIZE = 2, (256, 256)


def simulate(segments=None, **options):
    net = models.build("ldn121-32-4", device="meta", recompute=segments)
    return measure.peak_memory(net, BATCH, SIZE, optimizer="amsgrad", **options)


@pytest.fixture(scope="module")
def plain():
    return simulate()


@pytest.fixture(scope="module")
def lean():
    return simulate(sweep.LEANEST)


# The tables ---------------------------------------------------------------------------------------


def test_rows_are_those_of_the_papers_tables_with_their_segments():
    claims = papers.load("ldn")
    for row in (*sweep.TABLE_12, *sweep.TABLE_13, sweep.WITH_TD):
        for column in ("memory", "max-batch", "fps"):
            assert claims[f"{row.claim}.{column}"].value > 0
        models.build(row.model, device="meta", recompute=row.recompute)
    assert [row.claim for row in sweep.TABLE_12] == [
        claim.id.removesuffix(".memory")
        for claim in claims
        if claim.id.startswith("ldn.table12.") and claim.id.endswith(".memory")
    ]
    assert len(sweep.TABLE_13) == 7


# A step -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        ("aten._log_softmax_backward_data", "log_softmax"),
        ("aten.native_batch_norm", "batch norm"),
        ("aten.native_batch_norm_backward", "batch norm"),
        ("aten.threshold_backward", "ReLU"),
        ("aten.convolution_backward", "convolution"),
        ("aten.max_pool2d_with_indices", "max pool2d with indices"),
    ],
)
def test_operators_in_words(operator, words):
    assert sweep.spoken(operator) == words


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("backbone.conv0", "stem"),
        ("backbone", "stem"),
        ("backbone.denseblock3.denselayer12.norm1", "DB3"),
        ("backbone.transition2.conv", "TD2"),
        ("backbone.layer4.0.conv1", "layer 4"),
        ("spp.levels.0.conv", "SPP"),
        ("up.2.blend.0.norm", "TU3"),
        ("up", "TU"),
        ("aux.level8.conv", "aux"),
        ("logits.norm", "logits"),
        ("(step)", "loss"),
        ("(model)", "loss"),
        ("(input)", "input"),
    ],
)
def test_places(path, place):
    assert sweep.place_of(path) == place


def test_every_module_of_the_network_has_a_place(plain):
    names = {sweep.place_of(path) for path in plain.timeline.modules}
    blocks = {f"{kind}{i}" for kind in ("DB", "TD", "TU") for i in (1, 2, 3)} | {"DB4"}
    assert names == blocks | {"stem", "SPP", "aux", "logits", "loss", "optimizer"}


def test_the_peak_in_words(plain):
    assert sweep.where(plain) == "loss, backward: log_softmax"


def test_what_is_alive_is_ranked_and_adds_up(plain):
    everything = sweep.largest_alive(plain, 1000)
    sizes = [size for *_, size in everything]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == pytest.approx(plain.total / MIB)
    assert sweep.largest_alive(plain, 2) == everything[:2]
    maps = 3 * 19 * BATCH * SIZE[0] * SIZE[1] * 4 / MIB
    (temporaries,) = (size for place, kind, size in everything if (place, kind) == ("loss", "temporaries"))
    assert temporaries == pytest.approx(maps, rel=0.02)


@pytest.mark.parametrize("step", [None, memory.chunked_step])
@pytest.mark.parametrize("segments", [None, "unit,stem,td,tu", "block,stem,td,tu"])
def test_parts_explain_the_peak(segments, step):
    peak = simulate(segments, step=step)
    base, parts = sweep.parts_of(peak)
    assert base + max(part.before + part.need for part in parts) == peak.total
    assert [part.before for part in parts] == [0, *itertools.accumulate(part.kept for part in parts[:-1])]
    assert [part.name for part in parts][:3] == ["stem", "DB1", "TD1"] and parts[-1].name == "loss"


def test_the_planner_chooses_from_as_many_plans_as_are_counted():
    net = models.build("ldn121-32-4", device="meta")
    search = planner._Search(net, BATCH, SIZE)
    choices = [[len(place) for place in search.choices(chosen)] for chosen in search.modifiers]
    assert sweep.count_plans(net) == (sum(map(math.prod, choices)), max(map(max, choices)))


def test_without_early_stop_segments_are_rebuilt_to_their_end():
    stopped, to_the_end = simulate("cat1x1"), sweep.without_early_stop(simulate, "cat1x1")
    net = models.build("ldn121-32-4", device="meta").backbone
    pixels = {b: BATCH * SIZE[0] * SIZE[1] // 4 ** (b + 1) for b in (1, 2, 3, 4)}
    macs = sum(
        unit.conv1.weight.numel() * pixels[b]
        for b in pixels
        for unit in getattr(net, f"denseblock{b}").values()
    )
    assert stopped.recomputed_macs == 0 and to_the_end.recomputed_macs == macs
    assert simulate("cat1x1").recomputed_macs == 0, "it is switched on again"


# The toy and the unit -----------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "every"), [(9, 1), (9, 3), (9, 9), (64, 8), (10, 4), (7, 2)])
def test_the_toy_counts_what_real_checkpoints_keep(layers, every):
    moments = sweep.toy_step(layers, every)
    assert max(moment.live for moment in moments) == sweep.chain_live(layers, every)
    assert len(moments) == layers + 1
    for layer, moment in zip(range(layers, 0, -1), moments[1:], strict=True):
        assert layer in moment.kept | moment.rebuilt, "its own input is there"
        assert not moment.kept & moment.rebuilt


def test_what_is_kept_of_a_unit():
    def own(label):
        return [(s.channels, s.source) for s in sweep.kept_of_unit(label, 96, 24) if s.source != "input"]

    bottleneck = [(96, "convolution"), (96, "BN-ReLU")]
    assert own(None) == [(96, "concatenation"), (96, "BN-ReLU"), *bottleneck]
    assert own("3x3") == [(96, "concatenation"), (96, "BN-ReLU"), *bottleneck[:1]]
    assert own("cat1x1") == bottleneck
    assert own("cat1x1,3x3") == bottleneck[:1]
    assert own("unit") == []


# Exactness ----------------------------------------------------------------------------------------


def test_recomputed_steps_are_bit_equal():
    assert sweep.trained_alike(sweep.LEANEST) == sweep.Twin(gradients=True, state=True, difference=0)


def test_a_trace_would_be_seen(monkeypatch):
    class Nothing:
        def __init__(self, module):
            pass

        __enter__ = __exit__ = lambda *_: None

    monkeypatch.setattr(recompute, "Freeze", Nothing)
    assert sweep.trained_alike("unit") == sweep.Twin(gradients=True, state=False, difference=0)


def test_other_weights_would_be_seen():
    def louder(model, images, labels):
        return 1.5 * model(images)["out"].square().mean()

    def usual(model, images, labels):
        return model(images)["out"].square().mean()

    twin = sweep.trained_alike("stem", step=louder, plain_step=usual, dtype=torch.float64)
    assert not twin.gradients and twin.difference == pytest.approx(0.5)


def test_comparing_steps_leaves_the_random_numbers_alone():
    state = torch.get_rng_state()
    sweep.trained_alike("stem")
    assert torch.equal(state, torch.get_rng_state())


# Measured files -----------------------------------------------------------------------------------

RECORD = {
    "machine": {"processor": "A processor", "threads": 1, "cores": 2, "load_at_start": 0.25},
    "versions": {"torch": "2.14.1+cpu"},
    "date": "2026-11-21T03:42:10+00:00",
}


def test_measurements_are_found_by_the_package_or_said_to_be_missing(tmp_path):
    assert sweep.measured("memory.json", folder=tmp_path) is None
    with pytest.raises(FileNotFoundError, match="bench plans --out data/measured"):
        sweep.needed("plans.json", folder=tmp_path)
    (tmp_path / "plans.json").write_text(json.dumps(RECORD))
    assert sweep.needed("plans.json", folder=tmp_path) == RECORD
    with pytest.raises(ValueError, match="no measurement 'plan"):
        sweep.measured("plan.json", folder=tmp_path)


def test_origin():
    words = "A processor, 1 of 2 cores, load 0.2 at the start; torch 2.14.1; 2026-11-21"
    assert sweep.origin(RECORD) == words
    gpu = {**RECORD, "machine": {"gpu": "A GPU"}}
    assert sweep.origin(gpu) == "A GPU; torch 2.14.1; 2026-11-21"


def test_largest_batches():
    row = {"model": "m", "crop": 448, "plan": "all", "batch_by_gib": {"8": 3, "12": 5}}
    assert sweep.largest_batches({"largest_batch": [row]}) == {("m", 448, "all"): {8: 3, 12: 5}}


def test_the_card_when_the_last_large_segment_is_taken(lean):
    card = sweep.fullest(lean)
    ends = [begin + size for begin, size, _ in card.pieces]
    assert [begin for begin, _, _ in card.pieces] == [0, *ends[:-1]]
    assert ends[-1] == sum(card.reserved) == sum(map(card.sum, ("in use", "free", "asked")))
    assert lean.total / 2 < sum(card.reserved) * MIB <= lean.reserved
    # Nothing that was free before would have done.
    begins = list(itertools.accumulate(card.reserved, initial=0))
    (asked,) = ((begin, size) for begin, size, kind in card.pieces if kind == "asked")
    new = max(begin for begin in begins if begin <= asked[0])
    assert all(size < asked[1] for begin, size, kind in card.pieces if kind == "free" and begin < new)
    assert new == begins[-2]


# Figures ------------------------------------------------------------------------------------------

TABLE = [
    ("baseline", 11265.0, 11103.0, True),
    ("(cat 1x1 3x3) (stem) (TD) (UP)", None, 2187.0, True),
    ("x", 10.0, 9000.0, False),
]


def every_figure(plain, lean):
    yield sweep_plots.hills({"plain": plain})
    yield sweep_plots.hills({"plain": plain, "lean": lean})
    yield sweep_plots.around(plain)
    yield sweep_plots.around(lean)
    yield sweep_plots.toy_dots({"all": sweep.toy_step(9, 1), "threes": sweep.toy_step(9, 3)})
    units = {label or "none": sweep.kept_of_unit(label, 64, 32) for label in sweep.UNIT_LABELS}
    yield sweep_plots.unit_labels(units, 64, 32)
    yield sweep_plots.dumbbells(TABLE, xlabel="peak memory, MiB")
    yield sweep_plots.memory_against_work(
        [("baseline", 11103, 0, 0), ("(block) (stem) (TD) (UP)", 3737, 0.26, 0.33)],
        [(11265, 0), (3902, 0.35)],
    )
    yield sweep_plots.memory_against_work([("baseline", 11103, 0, 0)], [])
    yield sweep_plots.way_down(
        [("the first", 2187, 132.6), ("+ more", 1848, 132.6), ("+ other", 1848, 112.7)]
    )
    yield sweep_plots.places(*sweep.parts_of(lean))
    yield sweep_plots.frontiers(
        {"a": [(0, 11103), (8, 3000)], "b": [(0, 9000)]},
        [("(cat 1x1)", 0, 6565), ("(block) …", 209, 3737)],
        [(134, 1228)],
    )
    yield sweep_plots.side_by_side(
        [
            ("plain", 11103, 1.0, True),
            ("torchvision, memory_efficient=True", 6565, 0.9, False),
            ("c", None, None, False),
        ]
    )
    yield sweep_plots.predicted_and_measured(
        [("ldn121-32-4 6x768 fp32", 11103, 11200, 0), ("ldn121-32-4 unit 6x768 fp32", 2187, 2400, 180)]
    )
    yield sweep_plots.memory_map(sweep.fullest(lean))
    yield explorer({8: 23, 12: 35, 24: 71, 80: 239}, 27)


def explorer(batches, paper):
    figure = plots.new_figure(1.9, width=4.5)
    figure.set_layout_engine("none")
    sweep_plots.draw_batches(figure, batches, paper, 700)
    return figure


def test_every_figure_has_room_for_its_texts(plain, lean, recwarn, assert_room):
    for figure in every_figure(plain, lean):
        picture = Image.open(io.BytesIO(plots.png(figure, small=False)))
        assert picture.width in (900, 450) and picture.height < 1000
        assert_room(figure)
    assert not [str(warning.message) for warning in recwarn]


def test_the_map_shows_every_piece(lean):
    card = sweep.fullest(lean)
    figure = sweep_plots.memory_map(card, width=100)
    drawn = sum(
        path.get_extents().width
        for collection in figure.axes[0].collections
        for path in collection.get_paths()
        if path.get_extents().height > 0 and path.get_extents().width > 0
    )
    assert drawn == pytest.approx(sum(card.reserved))
    assert f"in use: {card.sum('in use'):,.0f} MiB" in [
        text.get_text() for legend in figure.legends for text in legend.get_texts()
    ]


def texts(figure):
    return {text.get_text() for axis in figure.axes for text in axis.texts} | {
        axis.get_title() for axis in figure.axes
    }


def bars(axis):
    return [(patch.get_x(), patch.get_width()) for patch in axis.patches if isinstance(patch, Rectangle)]


def test_hills_share_a_scale_and_flag_their_peaks(plain, lean):
    figure = sweep_plots.hills({"plain": plain, "lean": lean})
    above, below = figure.axes
    assert above.get_ylim() == below.get_ylim() and above.get_xlim() == below.get_xlim()
    for axis, peak in ((above, plain), (below, lean)):
        (flag,) = (line for line in axis.lines if line.get_marker() == "v")
        assert flag.get_ydata()[0] == pytest.approx(peak.total / MIB)
        assert f"peak: {peak.total / MIB:,.0f} MiB\n{sweep.where(peak)}" in texts(figure)
        drawn = max(path.vertices[:, 1].max() for kind in axis.collections for path in kind.get_paths())
        assert drawn == pytest.approx(peak.total / MIB), "the highest moment is among those drawn"


def test_the_bars_around_the_peak_have_it_in_bold(plain):
    figure = sweep_plots.around(plain, before=3, after=2)
    (axis,) = figure.axes
    (bold,) = (text for text in axis.texts if text.get_weight() == "bold")
    assert bold.get_text() == f"{plain.total / MIB:,.0f}  peak"
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert len(names) == 6 and names[3] == sweep.where(plain)


def test_the_toy_says_how_many_are_alive():
    figure = sweep_plots.toy_dots({"all": sweep.toy_step(4, 1), "pairs": sweep.toy_step(4, 2)})
    alive = [[text.get_text() for text in axis.texts if text.get_text() != "alive"] for axis in figure.axes]
    assert alive == [["4", "4", "3", "2", "1"], ["2", "3", "2", "2", "1"]]
    dots = [[len(group.get_offsets()) for group in axis.collections] for axis in figure.axes]
    assert dots == [[14, 6], [8, 2, 10]], "kept, computed again, not there"


def test_units_say_what_they_keep():
    units = {label or "none": sweep.kept_of_unit(label, 64, 32) for label in sweep.UNIT_LABELS}
    figure = sweep_plots.unit_labels(units, 64, 32)
    shown = [text.get_text() for text in figure.axes[0].texts if text.get_text().isdigit()]
    assert shown == ["384", "256", "256", "128", "0"]
    boxes = [(x - 0.17, x + width + 0.17) for x, width in bars(figure.axes[0])]
    assert boxes == [pytest.approx(span) for span in [(3, 5), (0, 3), (0, 3), (3, 5), (0, 5)]]


def test_tables_say_paper_ours_and_the_difference():
    figure = sweep_plots.dumbbells(TABLE, xlabel="peak memory, MiB")
    assert {"11,265 | 11,103  (-1.4%)", "2,187"} <= texts(figure)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "ours, outside the tolerance" in labels
    agreeing = sweep_plots.dumbbells(TABLE[:2], xlabel="x")
    assert len(agreeing.legends[0].get_texts()) == 2


def test_the_way_down_says_what_each_measure_takes_off():
    figure = sweep_plots.way_down([("a", 2187, 132.6), ("b", 1848, 132.6), ("c", 1848, 112.7)])
    assert {"−339", "±0", "1,848 MiB", "112.7 GMAC again"} <= texts(figure)


def test_places_stack_to_the_peak(lean):
    base, parts = sweep.parts_of(lean)
    figure = sweep_plots.places(base, parts)
    (axis,) = figure.axes
    tops = [patch.get_y() + patch.get_height() for patch in axis.patches]
    assert max(tops) == pytest.approx(lean.total / MIB)
    assert f"peak: {lean.total / MIB:,.0f} MiB" in texts(figure)


def test_methods_are_colored_by_exactness():
    figure = sweep_plots.side_by_side([("a", 100.0, 1.0, True), ("b", 50.0, 1.5, False)])
    for axis in figure.axes:
        first, second = (patch.get_facecolor() for patch in axis.patches)
        assert first != second
    assert {"100", "50", "1.00", "1.50"} <= texts(figure)


def test_the_explorer_draws_the_papers_batch():
    figure = explorer({8: 23, 12: 35}, 27)
    assert {"35", "black: the paper's 27 on its card of 12 GB"} <= texts(figure)
    bare = explorer({8: 2, 12: 3}, None)
    assert not bare.axes[0].collections and bare.axes[0].get_title() == ""
