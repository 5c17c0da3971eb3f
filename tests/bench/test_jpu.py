"""The benchmark of FastFCN's Table 2: which networks take turns, ratios, the record, errors."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from segkit import models, papers
from segkit.bench import jpu as bench
from segkit.measure import Latency


@pytest.fixture
def tiny(monkeypatch):
    """Networks of those names that take no time; returns what was asked for."""
    asked = []

    class Tiny(nn.Conv2d):
        def forward(self, x, *, auxiliary=None):
            return {"out": super().forward(x)}

    def build(name, **options):
        asked.append((name, options))
        return Tiny(3, 1, 1)

    monkeypatch.setattr(bench, "build", build)
    return asked


def run(folder, *arguments):
    assert bench.main([*arguments, "--rounds", "2", "--out", str(folder)]) == 0
    return json.loads((folder / "jpu.json").read_text())


def test_table_2_is_the_ledgers():
    printed = {
        f"fastfcn.table2.{group}-{up}.fps": bench.printed(group, up)
        for group in bench.TABLE_2
        for up in bench.UPSAMPLINGS
    }
    claims = {c.id: c.value for c in papers.load("fastfcn") if c.id.startswith("fastfcn.table2.")}
    assert {name: value for name, value in printed.items() if value is not None} == claims


def test_pairs_of_table_2_by_default(tmp_path, capsys, tiny):
    found = run(tmp_path, "--image-size", "32")
    assert [row["model"].removeprefix("fastfcn-") for row in found["rows"]] == [
        f"{group}-{up}" for group in bench.TABLE_2 for up in ("none", "jpu")
    ]
    assert all(options == {"num_classes": 59} for _, options in tiny)
    for row in found["rows"]:
        lower, upper = row["quartiles"]
        assert 0 < row["minimum"] <= lower <= row["median"] <= upper
        assert row["per_second"] == pytest.approx(1 / row["median"])
        assert row["paper_per_second"] is row["paper_speed_ratio"] is None
        assert found["speed_ratios"][row["model"].removeprefix("fastfcn-")] == row["speed_ratio"]
    assert {row["speed_ratio"] for row in found["rows"][::2]} == {1.0}
    assert not found["comparable"] and "left out" in found["note"]
    assert found["image_size"] == [32, 32] and found["auxiliary"] and found["rounds"] == 2
    assert found["command"] == f"python -m segkit.bench jpu --image-size 32 --rounds 2 --out {tmp_path}"
    assert capsys.readouterr().out.count(" ms") == 12


def test_the_papers_ratios_are_beside_ours_in_its_setting_only(tmp_path, capsys, monkeypatch, tiny):
    monkeypatch.setattr(bench, "IMAGE_SIZE", (40, 32))
    chosen = ("--backbones", "r101", "--heads", "enc", "psp", "--upsamplings", "none", "fpn", "jpu", "none")
    found = run(tmp_path, *chosen, "--image-size", "40x32")
    assert found["comparable"] and "note" not in found
    assert [(row["paper_per_second"], row["paper_speed_ratio"]) for row in found["rows"]] == [
        (10.51, 1.0),
        (32.40, pytest.approx(32.40 / 10.51)),
        (32.02, pytest.approx(3.0466, abs=1e-4)),
        (11.36, 1.0),
        (None, None),
        (23.87, pytest.approx(2.1012, abs=1e-4)),
    ]
    assert "the paper's 3.05" in capsys.readouterr().out
    for other in (("--image-size", "32x40"), ("--image-size", "40x32", "--only-out")):
        found = run(tmp_path, "--backbones", "r50", "--heads", "enc", *other)
        assert not found["comparable"] and found["rows"][1]["paper_speed_ratio"] is None
        assert found["auxiliary"] is ("--only-out" not in other)


def test_ratios_are_those_within_a_round():
    found = {"none": Latency((0.4, 0.9, 0.4)), "jpu": Latency((0.2, 0.3, 0.4), ratio=0.5)}
    none, jpu = bench.rows("r50-aspp", found, comparable=True)
    assert jpu["speed_ratio"] == 2 and jpu["speed_ratio_of_minima"] == pytest.approx(2)
    assert jpu["paper_speed_ratio"] == pytest.approx(20.67 / 15.99) and none["paper_speed_ratio"] == 1


@pytest.mark.parametrize("auxiliary", [True, False])
def test_all_outputs_are_timed_unless_told_otherwise(auxiliary, monkeypatch):
    monkeypatch.setattr(bench, "build", partial(models.build, width=1))
    outputs = []
    forward = bench._forward
    monkeypatch.setattr(bench, "_forward", lambda *a: outputs.append(forward(*a)))
    bench.measure("r50-enc", ("jpu",), (32, 48), rounds=1, warmup=0, auxiliary=auxiliary)
    assert set(outputs[0]) == ({"out", "aux", "presence"} if auxiliary else {"out"})
    assert outputs[0]["out"].shape == (1, 59, 32, 48)


def test_the_random_state_stays(tiny):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    bench.measure("r50-psp", ("none",), (32, 32), rounds=1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbones", "r18"], "invalid choice: 'r18'"),
        (["--upsamplings", "nearest"], "invalid choice: 'nearest'"),
        (["--image-size", "31x64"], "--image-size 31x64: give at least 32 pixels a side"),
        (["--image-size", "large"], "'large' is not HEIGHTxWIDTH"),
        (["--rounds", "0"], "'0' is not a whole number of at least 1"),
        (["--device", "cuda"], "there is no CUDA device; --device cpu times the networks here"),
    ],
)
def test_bad_options(arguments, message, assert_refused):
    assert_refused(bench.main, arguments, message)


def test_it_is_listed():
    from segkit.bench.__main__ import names

    assert "jpu" in names()
