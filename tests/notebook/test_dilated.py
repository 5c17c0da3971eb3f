"""RegSeg taken apart: what the functions of notebook 06 compute, against what is known."""

import json
import math
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segkit import models, papers
from segkit.data.class_uniform import Centroids
from segkit.data.labels import CITYSCAPES19
from segkit.models.regseg import DBlock
from segkit.notebook import dilated
from segkit.training import recipe


@pytest.fixture(scope="module")
def claims():
    return papers.load("regseg")


# The D block


def test_each_half_puts_a_pixel_where_its_dilation_says():
    torch.manual_seed(0)
    found = dilated.footprints(DBlock(64, 64, (1, 4)), size=11)
    assert list(found) == [1, 4]
    for dilation, response in found.items():
        places = {(int(y) - 5, int(x) - 5) for y, x in response.nonzero()}
        taps = (-dilation, 0, dilation)
        assert places == {(y, x) for y in taps for x in taps}


def test_table_1s_blocks_cost_the_same():
    found = dilated.table_1()
    assert [ms for *_, ms in found.values()] == [1.0, 1.1, 1.2, 1.2]
    assert {params for params, *_ in found.values()} == {202_560}
    (macs,) = {macs for _, macs, _ in found.values()}
    pixels = 64 * 128
    assert macs == pixels * (2 * 256 * 256 + 9 * 16 * 256) + 2 * 256 * 64  # the last term is the gate's


def test_blocks_are_timed_in_turns():
    found = dilated.block_times(maps=(4, 6), rounds=2)
    assert len(found) == 4 and all(len(times.times) == 2 for times in found.values())
    assert next(iter(found.values())).ratio == 1


def test_threads_for_a_while():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), dilated.threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before


def test_a_record_is_read(tmp_path):
    assert "segkit.bench dblock" in dilated.recorded_blocks(tmp_path)
    record = {
        "command": "python -m segkit.bench dblock",
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"processor": "Some CPU", "threads": 1},
        "table1": [{"block": "Y block", "eval": {"median": 0.0123, "ratio": 1.0}, "paper_ratio": 1.0}],
    }
    (tmp_path / "dblock.json").write_text(json.dumps(record))
    head, row = dilated.recorded_blocks(tmp_path).splitlines()
    assert head.endswith("2026-01-02, Some CPU, threads: 1")
    assert row.split() == ["Y", "block", "12.3", "ms,", "ratio", "1.00,", "paper", "1.0"]


# The network


def test_the_assembly_is_table_2s():
    rows = dilated.assembly(models.build("regseg", device="meta"))
    assert sum(row.params for row in rows) == 3_334_951
    assert [(row.dilations, row.stride, row.channels, row.repeat) for row in rows] == [
        ((), 2, 32, 1),
        ((1,), 2, 48, 1),
        ((1,), 2, 128, 3),
        ((1,), 2, 256, 2),
        ((1, 2), 1, 256, 1),
        ((1, 4), 1, 256, 4),
        ((1, 14), 1, 256, 6),
        ((1, 14), 1, 320, 1),
        ((), 1, 19, 1),
    ]
    table = dilated.assembly_table(rows).splitlines()
    assert len(table) == len(rows) + 2 and table[-1].endswith("3,334,951")
    assert len({len(line) for line in table}) == 1


def test_blocks_of_different_dilations_are_rows_of_their_own():
    model = models.build("regseg", dilations=((1, 4), (1, 4), (1,), (1,)), device="meta")
    rows = [row for row in dilated.assembly(model) if row.name == "D block"]
    assert [(row.dilations, row.repeat) for row in rows[-4:]] == [
        ((1,), 1),
        ((1, 4), 2),
        ((1,), 1),
        ((1,), 1),
    ]


def test_the_two_conventions():
    found = dilated.conventions()
    assert found["RegSeg"]["conv"] == pytest.approx(38.3532, abs=1e-4)
    assert found["RegSeg"]["fvcore"] == pytest.approx(39.0772, abs=1e-4)
    assert found["DDRNet-23"]["conv"] == pytest.approx(143.0605, abs=1e-4)


def test_table_5s_decoders(claims):
    found = dilated.decoders(claims)
    assert [d.params for d in found.values()] == [
        *(174_947, 208_019, 135_035, 232_403, 76_947, 87_078, 245_075, 766_003),
    ]
    assert found["BiSeNet"].gmacs == pytest.approx(43.2564, abs=1e-4)
    scores = [d.score for d in found.values()]
    assert scores == sorted(scores, reverse=True) and scores[0] == 75.84 and scores[-1] == 74.68
    blocks = list(dilated.decoder_network("regseg", device="meta").backbone.stage16)
    assert [c.dilation[0] for c in blocks[-1].branches] == [1, 12]  # row 2 of Table 4, not RegSeg's own


def test_networks_with_all_decoders_are_timed_in_turns(claims):
    found = dilated.decoder_times((16, 32), rounds=2)
    assert list(found) == list(dilated.decoders(claims))
    assert found["Sec. 3.4"].ratio == 1 and all(len(times.times) == 2 for times in found.values())


# Sampling and schedule


class Few:
    """Four maps of 8x16: road everywhere, and in the last one a train of 2x2 in a corner."""

    space, split, names = CITYSCAPES19, "train", list("abcd")

    def __len__(self):
        return 4

    def __getitem__(self, i):
        labels = torch.zeros(8, 16, dtype=torch.uint8)
        if i == 3:
            labels[:2, :2] = CITYSCAPES19.classes.index("train")
        return {"image": None, "labels": labels, "name": self.names[i]}


def test_label_maps_are_kept_and_sampled():
    maps = dilated.LabelMaps(Few())
    assert len(maps) == 4 and torch.equal(maps.label_map(3), Few()[3]["labels"])
    others = [name for name in CITYSCAPES19.classes if name not in ("road", "train")]
    centroids = Centroids(maps, without=others)
    train = CITYSCAPES19.classes.index("train")
    plain, drawn = (dilated.sampled(maps, centroids, share, 4, epochs=20) for share in (0, 1))
    assert plain.pixels.sum() == pytest.approx(1) and plain.images[0] == 1
    assert plain.images[train] < 0.25 < 0.45 < drawn.images[train]  # half of them are drawn for trains
    again = dilated.sampled(maps, centroids, 1, 4, epochs=20)
    assert torch.equal(again.pixels, drawn.pixels)


def test_rates_are_warm_up_times_poly():
    how = recipe("regseg_cityscapes")
    found = dilated.rates(how, 371, [0, 3000, 370_999])
    assert found[0] == pytest.approx(0.005)
    assert found[1] == pytest.approx(0.05 * (1 - 3000 / 371_000) ** 0.9)
    assert 0 < found[2] < 1e-6


# Runs


def test_the_networks_differ_by_the_model_alone():
    made = [dilated.setting(network, seed=3) for network in dilated.NETWORKS]
    first = made[0].settings()
    assert first["val_split"] == "" and first["data_seed"] == 0 and first["seed"] == 3
    for how in made[1:]:
        differ = {key for key, value in how.settings().items() if value != first[key]}
        assert differ and differ <= {"model", "model_options"}
    assert dilated.setting("D blocks", crop=(64, 64)).crop == (64, 64)
    assert dilated.setting("D blocks", dataset="cityscapes").dataset == "cityscapes"
    with pytest.raises(ValueError, match="'DDRNet-23'"):
        dilated.setting("E blocks")


def test_y_blocks_have_no_dilation_and_as_many_parameters():
    options = dilated.NETWORKS["Y blocks"]["model_options"]
    y, d = models.build("regseg", device="meta", **options), models.build("regseg", device="meta")
    assert {m.dilation for m in y.modules() if isinstance(m, nn.Conv2d)} == {(1, 1)}
    assert sum(p.numel() for p in y.parameters()) == sum(p.numel() for p in d.parameters())


def made_run(losses, weight):
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(weight)
        layer.bias.zero_()
    return SimpleNamespace(steps=[{"loss": loss} for loss in losses], model=layer)


def test_equal_runs_are_equal_to_the_last_bit():
    one = made_run([1.0, 0.5], 2.0)
    assert dilated.same_bits(one, made_run([1.0, 0.5], 2.0))
    assert not dilated.same_bits(one, made_run([1.0, math.nextafter(0.5, 1)], 2.0))
    assert not dilated.same_bits(one, made_run([1.0, 0.5], math.nextafter(2.0, 3) + 1e-6))


def test_smoothing():
    assert dilated.smooth([1, 2, 3, 4], 2) == [1.5, 2.5, 3.5]
    assert dilated.smooth([1, 2, 3], 3) == [2]


def test_scores_leave_out_classes_that_are_not_there():
    matrix = torch.zeros(19, 19, dtype=torch.int64)
    matrix[0, 0], matrix[13, 0], matrix[0, 5] = 8, 2, 1
    iou = torch.full((19,), math.nan, dtype=torch.float64)
    iou[0], iou[13], iou[5] = 0.7, 0.0, 0.0
    result = SimpleNamespace(space=CITYSCAPES19, matrix=matrix, iou=iou, miou=0.25, reduced_miou=0.3)
    found = dilated.scores([SimpleNamespace(evaluation=result)] * 2)
    assert found == {"road": [0.7] * 2, "car": [0.0] * 2, "mIoU": [0.25] * 2, "mIoU^R": [0.3] * 2}


# What a difference proves


def test_tables_3_and_10(claims):
    table = dilated.table_3(claims)
    assert statistics.pstdev(table["mIoU"]) == pytest.approx(1.01, abs=0.005)
    assert statistics.pstdev(table["mIoU^R"]) == pytest.approx(0.11, abs=0.005)
    assert (min(table["train"]), max(table["train"])) == (35.77, 74.27)
    groups = dilated.table_10(claims)
    found = dilated.welch(groups["RegSeg"], groups["DDRNet-23"])
    assert (found.t, found.df, found.p) == pytest.approx((1.543, 2.15, 0.254), abs=1e-3)
    assert found.interval[0] < 0 < found.difference < found.interval[1]


@pytest.mark.parametrize(
    ("t", "df", "p"),  # from printed tables of Student's distribution
    [
        (1.0, 1, 0.5),
        (12.706, 1, 0.05),
        (4.303, 2, 0.05),
        (2.228, 10, 0.05),
        (3.169, 10, 0.01),
        (1.96, 1e6, 0.05),
    ],
)
def test_students_distribution(t, df, p):
    assert dilated.student_p(t, df) == pytest.approx(p, rel=2e-3)
    assert dilated.student_p(-t, df) == dilated.student_p(t, df)
    assert dilated._t_of(p, df) == pytest.approx(t, rel=2e-3)


def test_with_two_degrees_of_freedom_there_is_a_formula():
    for t in (0.0, 0.3, 1.5, 8.0):
        assert dilated.student_p(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-7)


values = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=2, max_size=6)


@settings(max_examples=25, deadline=None)
@given(values, values, st.floats(0.1, 10))
def test_welch_does_not_depend_on_unit_or_order(a, b, unit):
    if np.ptp(a) + np.ptp(b) < 1e-2:
        return
    one, other = dilated.welch(a, b), dilated.welch([unit * x + 7 for x in b], [unit * x + 7 for x in a])
    assert one.t == pytest.approx(-other.t, rel=1e-6, abs=1e-6)
    assert (one.df, one.p) == pytest.approx((other.df, other.p), rel=1e-6, abs=1e-6)
    assert (one.p < 0.05) == (one.interval[0] > 0 or one.interval[1] < 0) or one.p == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: dilated.welch([1.0], [1.0, 2.0]), "at least two values"),
        (lambda: dilated.welch([1.0, 1.0], [2.0, 2.0]), "neither group has any spread"),
        (lambda: dilated.student_p(1.0, 0.5), "df=0.5"),
    ],
)
def test_what_cannot_be_compared(call, part):
    with pytest.raises(ValueError, match=part):
        call()
