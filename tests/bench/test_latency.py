"""The benchmark of forward passes: which networks, ratios within the papers' tables, the record, errors."""

import json
import math
import statistics
from dataclasses import replace

import pytest
import torch
from torch import nn

from segkit import models
from segkit.bench import latency as bench
from segkit.measure import Latency

PAPERS = ("paper_per_second", "paper_speed_ratio")


@pytest.fixture(autouse=True)
def few_models(monkeypatch):
    """Two of the tables' names, with networks that take no time."""

    def tiny(*, num_classes, recompute=None):
        class Tiny(nn.Conv2d):
            def forward(self, x, *, auxiliary=None):
                if min(x.shape[2:]) < 8:
                    raise ValueError("Images of at least 8x8 pixels, please")
                return {"out": super().forward(x)}

        return Tiny(3, num_classes, 1)

    known = {"ddrnet23": tiny, "regseg": tiny, "vnet": tiny, "unknown to the tables": tiny}
    monkeypatch.setattr(models, "MODELS", known)
    monkeypatch.setattr(bench, "MODELS", known)


def run(folder, *arguments):
    assert bench.main([*arguments, "--rounds", "3", "--out", str(folder)]) == 0
    return json.loads((folder / "latency.json").read_text())


def test_the_networks_of_the_tables_that_there_are():
    assert bench.default_models() == ["vnet", "regseg", "ddrnet23"]


def test_the_record(tmp_path, capsys):
    found = run(tmp_path, "--image-size", "16x24", "--batch", "2", "--precision", "bf16")
    assert [row["model"] for row in found["rows"]] == ["vnet", "regseg", "ddrnet23"]
    for row in found["rows"]:
        lower, upper = row["quartiles"]
        assert 0 < row["minimum"] <= lower <= row["median"] <= upper
        assert row["per_second"] == pytest.approx(2 / row["median"])
    assert found["rows"][0]["ratio"] == 1
    assert found["image_size"] == [16, 24] and found["num_classes"] == 19
    assert found["precision"] == "bf16" and found["rounds"] == 3 and found["batch_size"] == 2
    assert found["command"].startswith("python -m segkit.bench latency --image-size 16x24")
    assert math.isfinite(found["machine"]["load_at_start"])
    # of VNet's there is one network only
    assert list(found["tables"]) == ["regseg.table8", "regseg.table9", "regseg.table10"]
    printed = capsys.readouterr().out
    assert "speeds within regseg.table10, to regseg: here\n" in printed


def test_default_size_on_a_cpu_is_smaller(tmp_path):
    found = run(tmp_path, "--models", "ddrnet23")
    assert found["image_size"] == [256, 512] and found["tables"] == {}


def test_the_papers_ratios_are_beside_ours_in_their_setting_only(tmp_path, capsys, monkeypatch):
    tables = {name: replace(table, image_size=(8, 16)) for name, table in bench.TABLES.items()}
    tables["regseg.table8"] = replace(tables["regseg.table8"], image_size=(8, 12))
    monkeypatch.setattr(bench, "TABLES", tables)
    for size, classes, batch, papers in (
        ("8x16", "19", "1", {"regseg.table9", "regseg.table10"}),
        ("8x12", "11", "1", {"regseg.table8"}),
        ("8x12", "19", "1", set()),
        ("8x16", "11", "1", set()),
        ("8x16", "19", "2", set()),
    ):
        setting = ("--image-size", size, "--num-classes", classes, "--batch", batch)
        found = run(tmp_path, "--models", "regseg", "ddrnet23", *setting)["tables"]
        printed = capsys.readouterr().out.split("\nspeeds within ")[1:]
        assert {name for name, table in found.items() if table["comparable"]} == papers
        for (name, table), shown in zip(found.items(), printed, strict=True):
            heading, ours, theirs, *note = shown.rstrip().splitlines()
            assert heading.startswith(f"{name}, to regseg: here")
            assert table["image_size"] == list(tables[name].image_size)
            for row in table["rows"]:
                assert row["speed_ratio"] > 0 and row["per_second"] > 0
            if name in papers:
                assert heading.endswith("and in the paper on a T4 in mixed precision") and not note
                assert "note" not in table and table["rows"][0]["paper_per_second"] > 0
                assert ours.endswith("1.000 1.000")
                assert theirs.endswith(" 1.000" if name == "regseg.table10" else " - (quoted by the paper)")
            else:
                assert {row[key] for row in table["rows"] for key in PAPERS} == {None}
                assert note == [f"  {table['note']}"]
                assert f"the paper timed 1x3x{'x'.join(map(str, table['image_size']))} with " in table["note"]
                assert f"here it was {batch}x3x{size} with {classes} classes" in table["note"]
                assert ours.split() == ["regseg", "1.000"] and len(theirs.split()) == 2


def test_the_networks_have_the_classes_that_are_named(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(
        bench, "build", lambda name, **options: built.append(options) or models.build(name, **options)
    )
    found = run(tmp_path, "--models", "vnet", "--image-size", "8x8", "--num-classes", "11")
    assert built[-1] == {"num_classes": 11} and found["num_classes"] == 11


def test_models_that_are_named(tmp_path):
    found = run(tmp_path, "--models", "ddrnet23", "unknown to the tables", "ddrnet23", "--image-size", "8x8")
    assert [row["model"] for row in found["rows"]] == ["ddrnet23", "unknown to the tables"]


def test_ratios_within_a_table():
    found = {
        "vnet": Latency((0.1, 0.1, 0.3)),
        "enet": Latency((0.2, 0.4, 0.3)),
        "regseg": Latency((0.5, 1.0, 0.25)),
        "lraspp-mobilenetv3": Latency((0.25, 0.25, 0.25)),
    }
    tables = bench.by_table(found, (1024, 2048), 19)
    assert list(tables) == ["vnet.table2", "regseg.table9"]
    vnet, enet = tables["vnet.table2"]["rows"]
    assert vnet["speed_ratio"] == vnet["paper_speed_ratio"] == 1
    assert enet["paper_speed_ratio"] == pytest.approx(22 / 37.4)
    assert enet["speed_ratio"] == pytest.approx(1 / statistics.median([2, 4, 1]))
    assert enet["per_second"] == pytest.approx(1 / 0.3)
    regseg, lraspp = tables["regseg.table9"]["rows"]
    assert lraspp["paper_per_second"] is None and lraspp["paper_speed_ratio"] is None
    assert lraspp["speed_ratio"] == pytest.approx(2) and regseg["paper_speed_ratio"] == 1


def test_quoted_speeds_have_no_ratio():
    found = {name: Latency((0.5,)) for name in ("ddrnet23", "fc-hardnet70", "regseg")}
    rows = bench.by_table(found, (1024, 2048), 19)["regseg.table9"]["rows"]
    assert [(row["model"], row["paper_per_second"], row["paper_speed_ratio"]) for row in rows] == [
        ("regseg", 30, 1),
        ("ddrnet23", 37.1, None),
        ("fc-hardnet70", 53, None),
    ]
    del found["regseg"]  # then the ratios are to a quoted one
    rows = bench.by_table(found, (1024, 2048), 19)["regseg.table9"]["rows"]
    assert [row["paper_speed_ratio"] for row in rows] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "regsag"], "Did you mean regseg"),
        (["--image-size", "0x8"], "--image-size 0x8: give at least one pixel a side"),
        (["--image-size", "large"], "'large' is not HEIGHTxWIDTH"),
        (["--image-size", "4x4"], "Images of at least 8x8 pixels, please"),
        (["--rounds", "-1"], "'-1' is not a whole number of at least 1"),
        (["--num-classes", "0"], "'0' is not a whole number of at least 1"),
        (["--batch", "0"], "'0' is not a whole number of at least 1"),
        (["--precision", "int8"], "invalid choice: 'int8'"),
        (["--device", "cuda"], "there is no CUDA device; --device cpu times the networks here"),
    ],
)
def test_bad_options(arguments, message, assert_refused):
    assert_refused(bench.main, arguments, message)


def test_the_random_state_stays():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    bench.main(["--models", "vnet", "--image-size", "8x8", "--rounds", "1"])
    assert torch.equal(torch.get_rng_state(), state)
