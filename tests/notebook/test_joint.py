"""FastFCN taken apart: what the functions of notebook 08 compute, against what is known."""

import json
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segkit import models, papers
from segkit.bench import jpu as bench
from segkit.data.labels import CITYSCAPES19
from segkit.evaluation.boundary import TrimapIoU
from segkit.measure import cost, peak_memory
from segkit.models.fastfcn import DeepStemResNet
from segkit.models.jpu import JointPyramidUpsampling
from segkit.notebook import joint
from segkit.papers import fastfcn_checks

# From dilated to strided


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 12), st.sampled_from([1, 3, 5]), st.integers(1, 3))
def test_a_signal_is_taken_apart(length, kernel, rate):
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(1, 1, length, generator=generator, dtype=torch.float64)
    weight = torch.randn(1, 1, kernel, generator=generator, dtype=torch.float64)
    apart = joint.taken_apart(x, weight, rate=rate)
    merged = [None] * length
    for start, phase in enumerate(apart.phases):
        merged[start::rate] = phase
    assert merged == pytest.approx(apart.dilated)
    assert apart.regular[::rate] == pytest.approx(apart.strided)
    assert apart.signal == x.flatten().tolist()


@pytest.mark.parametrize("size", [(64, 96), (65, 71)])
def test_the_strided_maps_are_in_the_dilated_ones(size):
    found = joint.twins(width=2, size=size)
    assert [(twin.stage, twin.step) for twin in found] == [
        ("Conv2", 1),
        ("Conv3", 1),
        ("Conv4", 2),
        ("Conv5", 4),
    ]
    assert all(twin.error <= 1e-12 for twin in found)
    assert found[3].dilated == (1, 64, *(-(-side // 8) for side in size))
    assert found[3].strided == (1, 64, *(-(-side // 32) for side in size))


def test_twins_do_not_disturb_random_numbers_and_differ_by_seed(monkeypatch):
    state = torch.get_rng_state()
    joint.twins(width=1, size=(33, 33))
    assert torch.equal(torch.get_rng_state(), state)
    # a network whose weights are others does not have the same maps
    monkeypatch.setattr(DeepStemResNet, "load_state_dict", lambda self, state: None)
    assert joint.twins(width=1, size=(33, 33))[3].error > 0.1


def test_offsets_are_those_of_the_paper_s_sizes():
    for coarse in (15, 16):  # images of 480 and 512
        found = joint.offsets(coarse, aligned=True)
        assert len(found) == 4 * (coarse - 1) + 1 and found[0] == 0
        assert f"{-min(found):.2f}" == "0.71" and min(found) == found[-1]
        assert joint.offsets(coarse, aligned=False)[2:] == pytest.approx([-0.375] * (4 * coarse - 5))
    assert joint.offsets(17, 65, aligned=True) == pytest.approx([0] * 65, abs=1e-12)  # 513


# The JPU


def test_the_jpu_step_by_step():
    with torch.device("meta"):
        steps = joint.steps_of(JointPyramidUpsampling(), [(64, 64), (32, 32), (16, 16)])
    assert sum(step.params for step in steps) == 19_735_552
    assert [step.shape for step in steps[:7]] == [
        (512, 64, 64),
        (1024, 32, 32),
        (2048, 16, 16),
        (512, 64, 64),
        (512, 32, 32),
        (512, 16, 16),
        (1536, 64, 64),
    ]
    assert [step.name for step in steps[7:11]] == [f"separable, dilation {d}" for d in (1, 2, 4, 8)]
    assert steps[-1] == joint.Step("concatenated", (2048, 64, 64), 0)


def test_a_jpu_fits_other_backbones():
    dense = joint.fitted("densenet", width=512)
    assert dense.maps == ((512, 64, 64), (1024, 32, 32), (1024, 16, 16)) and dense.out == (2048, 64, 64)
    assert dense.params == 19_735_552 - 9 * 512 * 1024  # of the coarsest level's convolution
    assert dense.gmacs == pytest.approx(30.0228 - 9 * 512 * 1024 * 16 * 16 / 1e9, abs=1e-4)
    far = joint.fitted("regseg", width=64, size=(96, 160))
    assert far.maps == ((48, 24, 40), (128, 12, 20), (320, 6, 10)) and far.out == (256, 24, 40)
    joined = 3 * 64
    separable = 4 * (9 * joined + 2 * joined + joined * 64 + 2 * 64)
    assert far.params == 9 * 64 * (48 + 128 + 320) + 3 * 2 * 64 + separable


# What is spent where


def test_parts_add_up_to_what_the_whole_network_takes():
    model = "r50-enc-jpu"
    found = joint.by_part(model)
    assert tuple(found) == joint.PARTS
    whole, counted = joint.whole(model), cost(joint.network(model), joint.IMAGE, auxiliary=True)
    assert (whole.params, whole.macs) == (counted.params, counted.macs)
    assert whole.kept == fastfcn_checks._kept_by(f"fastfcn-{model}") / fastfcn_checks.BATCH
    assert found["upsampling"].params == 19_735_552
    gmacs = {part: round(one.macs / 1e9, 2) for part, one in found.items()}
    assert gmacs == {
        "Conv1 to Conv3": 16.55,
        "Conv4": 7.65,
        "Conv5": 4.23,
        "upsampling": 30.02,
        "head": 5.63,
        "auxiliary head": 2.43,
    }
    dilated = joint.by_part("r50-enc-none")
    assert dilated["upsampling"] == joint.Spent() and dilated["Conv4"].params == found["Conv4"].params
    assert round(sum(one.kept for one in dilated.values()) / joint.MIB) == 1124


def test_the_release_without_its_options_works_at_a_thirty_second():
    late = joint.whole("r50-enc-bilinear-late")
    assert round(late.macs / 1e9, 2) == 33.36 and round(late.kept / joint.MIB) == 543


def test_what_two_parts_keep_counts_for_the_first_and_nothing_stays_behind():
    first, second = nn.Conv2d(3, 4, 1, bias=False, device="meta"), nn.Sequential(nn.ReLU(), nn.ReLU())
    network = nn.Sequential(first, second).eval()
    found = joint.spent(network, {"conv": first, "relus": second}, (8, 6))
    pixels = 8 * 6
    assert found["conv"] == joint.Spent(12, 12 * pixels, 4 * 3 * pixels)  # its input
    assert found["relus"] == joint.Spent(0, 0, 2 * 4 * 4 * pixels)  # each keeps its output
    assert found["rest"] == joint.Spent()
    assert not network.training and not first._forward_hooks and not first._forward_pre_hooks
    assert sum(found.values(), joint.Spent()).macs == 12 * pixels


def test_blocks_take_four_and_sixteen_times_as_much_but_the_first_ones():
    found = joint.blocks("r101")
    assert [(b.stage, b.number) for b in found] == [("Conv4", i) for i in range(23)] + [
        ("Conv5", i) for i in range(3)
    ]
    work = [b.dilated.macs / b.strided.macs for b in found]
    assert work[1:23] == [4.0] * 22 and work[24:] == [16.0] * 2
    assert (round(work[0], 2), round(work[23], 2)) == (3.17, 12.69)
    kept = [b.dilated.kept / b.strided.kept for b in found]
    assert kept[1:23] == pytest.approx([4.0] * 22, abs=0.01)
    for stage, factor in (("Conv4", 3.94), ("Conv5", 14.48)):
        dilated, strided = (
            sum(getattr(b, way).macs for b in found if b.stage == stage) for way in ("dilated", "strided")
        )
        assert round(dilated / strided, 2) == factor
        whole = joint.by_part("r101-enc-none")[stage].macs
        assert dilated == whole


def test_the_peak_is_that_of_the_kit(monkeypatch):
    tiny = nn.Conv2d(3, 4, 1, device="meta")
    monkeypatch.setattr(joint, "network", {"tiny": tiny}.__getitem__)
    found = joint.peak("tiny", 2, (16, 8))
    expected = peak_memory(tiny, 2, (16, 8), optimizer="sgd")
    assert (found.total, found.by_kind) == (expected.total, expected.by_kind)


# The ablation


def test_the_table_has_ours_beside_the_papers(tmp_path):
    (tmp_path / "jpu.json").write_text('{"rows": [{"model": "fastfcn-r50-enc-jpu", "median": 1.234}]}')
    claims = papers.load("fastfcn")
    wanted = {f"fastfcn.table2.r50-enc-{up}.fps" for up in ("none", "jpu")}
    claims = [claim for claim in claims if claim.id in wanted or ".table1." in claim.id]
    rows = joint.ablation(claims, folder=tmp_path)
    assert [(row.upsampling, row.fps, row.miou) for row in rows] == [
        ("none", 18.77, 49.91),
        ("jpu", 37.56, 51.05),
    ]
    dilated, jpu = rows
    assert jpu.spent.params > dilated.spent.params and jpu.peak.total < dilated.peak.total
    table = joint.ablation_table(rows).splitlines()
    assert table[-1].split() == [
        *("R50", "Encoding", "JPU", "47,394,769", "66.51", "929", "1.23"),
        *(f"{jpu.peak.total / 2**30:.2f}", "37.56", "78.98", "51.05"),
    ]
    assert len({len(line) for line in table[1:]}) == 1 and table[-2].split()[6] == "-"
    ratios = joint.times_less(rows)
    assert {measure: round(by["R50 Encoding"], 2) for measure, by in ratios.items()} == {
        "parameters": 0.76,
        "multiply-adds": 2.35,
        "activations kept": 1.21,
        "peak of a step": round(dilated.peak.total / jpu.peak.total, 2),
        "printed FPS": 2.0,
    }


# Times


def test_a_pair_is_timed_in_turns(monkeypatch):
    monkeypatch.setattr(bench, "build", partial(models.build, width=2))
    found = joint.pair_times(size=(32, 32), rounds=2)
    assert list(found) == ["none", "jpu"] and found["none"].ratio == 1
    assert all(len(one.times) == 2 for one in found.values())


def test_records_are_read(tmp_path):
    assert "segkit.bench jpu" in joint.recorded(tmp_path)
    record = {
        "command": "python -m segkit.bench jpu",
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"processor": "Some CPU", "threads": 1},
        "rows": [
            {"model": "fastfcn-r50-enc-none", "median": 2.0, "speed_ratio": 1.0, "paper_speed_ratio": None},
            {"model": "fastfcn-r50-enc-jpu", "median": 1.0, "speed_ratio": 2.0, "paper_speed_ratio": 2.001},
        ],
    }
    (tmp_path / "jpu.json").write_text(json.dumps(record))
    head, none, jpu = joint.recorded(tmp_path).splitlines()
    assert head.endswith("2026-01-02, Some CPU, threads: 1")
    assert none.split() == ["r50-enc-none", "2000.0", "ms,", "speed", "1.00"]
    assert jpu.split() == ["r50-enc-jpu", "1000.0", "ms,", "speed", "2.00,", "paper", "2.00"]


# Runs


def test_the_runs_differ_by_the_upsampling_alone():
    made = [joint.setting(up, seed=3).settings() for up in joint.UPSAMPLINGS]
    for up, how in zip(joint.UPSAMPLINGS, made, strict=True):
        assert how.pop("model") == f"fastfcn-r50-enc-{up}"
    assert all(how == made[0] for how in made[1:])
    assert made[0]["weights"] == "none" and made[0]["seed"] == 3 and made[0]["dataset"] == "streets"
    large = joint.setting("jpu", dataset="pascal_context", width=64)
    assert (large.dataset, large.crop, large.weights) == ("pascal_context", (480, 480), "none")
    with pytest.raises(ValueError, match="'bilinear', 'fpn'"):
        joint.setting("nearest")


class Two:
    """Two images of road with a square of sky; labels of a border are ignored."""

    space, split, names = CITYSCAPES19, "val", ["a", "b"]

    def __len__(self):
        return 2

    def __getitem__(self, i):
        labels = torch.zeros(16, 24, dtype=torch.uint8)
        labels[4:12, 8 + i : 16] = 10
        labels[0] = 255
        return {
            "image": torch.full((3, 16, 24), 20 * i, dtype=torch.uint8),
            "labels": labels,
            "name": self.names[i],
        }


class AllRoad(nn.Module):
    num_classes, minimum_size = 19, 1

    def forward(self, x, *, auxiliary=None):
        out = torch.zeros(x.shape[0], 19, *x.shape[2:])
        out[:, 0] = 1
        return {"out": out}


def test_scores_near_boundaries_and_everywhere_come_from_one_pass():
    data = Two()
    found = joint.at_boundaries(AllRoad(), data, widths=(1, 3), shown=1)
    expected = TrimapIoU(19, (1, 3))
    for i in range(2):
        labels = data[i]["labels"][None]
        expected.update(torch.zeros_like(labels), labels)
    assert found.trimap == expected.miou() and found.share == expected.share()
    assert 0 < found.trimap[1] < found.trimap[3] < found.evaluation.miou < 0.5
    assert len(found.predictions) == 1 and found.predictions[0].shape == (16, 24)
