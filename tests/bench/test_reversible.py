"""The benchmark of reversible stacks: what it measures of each way, what it writes, and its verdicts."""

import json
import sys

import pytest
import torch
from torch import nn

from segkit.bench import reversible
from segkit.measure import peak_memory

OWN = ("plain", "ours", "one Function a unit", "checkpoint a unit")


@pytest.fixture(scope="module")
def small():
    """Without other people's packages, whatever is installed, and few channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "memcnn", None)
        patch.setitem(sys.modules, "revtorch", None)
        patch.setattr(reversible, "WIDTH", 8)
        yield


@pytest.fixture(scope="module")
def rows(small):
    """By way, at a depth at which every way of its own keeps another amount of memory."""
    found = reversible.Bench(3, "cpu", 2, (9, 12)).run(1, (2, (64, 64)))
    assert [row["way"] for row in found] == list(reversible.WAYS)
    return {row["way"]: row for row in found}


def test_every_way_is_measured(rows):
    for way in OWN:
        row = rows[way]
        assert row["units"] == 3 and "note" not in row
        assert sum(row["by_kind"].values()) == row["peak"]
        assert row["seconds"] > 0 and row["ratio"] > 0 and row["peak"] > 0
        assert row["gradient_error"] < 1e-12 and row["gradient_error_fp32"] < 1e-2
    assert rows["plain"]["gradient_error"] == 0 and rows["plain"]["ratio"] == 1
    assert rows["ours"]["gradient_error"] > 0  # really another computation
    peaks = {way: rows[way]["peak"] for way in OWN}
    assert min(peaks, key=peaks.get) == "ours" and max(peaks, key=peaks.get) == "plain"
    assert {way: rows[way]["norm_updates"] for way in OWN} == {
        "plain": 1,
        "ours": 1,
        "one Function a unit": 1,
        "checkpoint a unit": 2,
    }


def test_packages_that_are_missing_are_noted(rows):
    for way in ("memcnn", "revtorch"):
        assert rows[way].keys() == {"units", "way", "note"}
        assert f"{way} is not installed (pip install {way})" in rows[way]["note"]


def test_memory_is_that_of_the_stack(small):
    bench = reversible.Bench(1, "cpu", 1, (8, 8))
    bench.run(1, (2, (32, 32)))
    for way in OWN:
        found = bench.rows[way]["peak"]
        assert found == peak_memory(bench.models[way], 2, (32, 32), step=reversible.step).total


def test_the_same_units_everywhere(small):
    models = reversible.Bench(2, "cpu", 1, (8, 8)).models
    x = torch.randn(1, 3, 8, 8)
    expected = models["plain"](x)
    for way in OWN:
        torch.testing.assert_close(models[way](x), expected)
        assert sum(p.numel() for p in models[way].parameters()) == sum(
            p.numel() for p in models["plain"].parameters()
        )


@pytest.mark.parametrize(("package", "updates"), [("memcnn", 3), ("revtorch", 2)])
@pytest.mark.filterwarnings("ignore")
def test_other_peoples_packages(small, monkeypatch, package, updates):
    monkeypatch.delitem(sys.modules, package, raising=False)
    pytest.importorskip(package)
    monkeypatch.setattr(reversible, "WAYS", {way: reversible.WAYS[way] for way in ("plain", "ours", package)})
    ours, theirs = reversible.Bench(3, "cpu", 2, (9, 12)).run(1, (2, (64, 64)))[1:]
    assert theirs["norm_updates"] == updates and theirs["gradient_error"] < 1e-12
    assert "peak" in theirs or "cannot be followed" in theirs["note"]
    assert ours["peak"] < theirs.get("peak", float("inf"))


def test_code_that_fails_is_noted(small, monkeypatch):
    class Fails(nn.Module):
        def __init__(self, functions):
            super().__init__()
            self.functions = nn.ModuleList(functions)

        def forward(self, x):
            raise RuntimeError("not today")

    monkeypatch.setitem(reversible.WAYS, "revtorch", Fails)
    row = reversible.Bench(1, "cpu", 1, (8, 8)).run(1, (1, (8, 8)))[-1]
    assert row["note"] == "does not run: RuntimeError: not today" and "seconds" not in row


def test_summary():
    def row(units, way, peak, ratio):
        return {"units": units, "way": way, "peak": peak, "ratio": ratio} | (
            {"norm_updates": 1, "gradient_error": 1e-14} if way == "ours" else {}
        )

    rows = [
        row(6, "plain", 900, 1.0),
        row(6, "ours", 300, 1.3),
        row(6, "revtorch", 400, 1.25),
        {"units": 6, "way": "memcnn", "note": "not installed"},
        row(12, "plain", 1800, 1.0),
        row(12, "ours", 500, 1.2),
        row(12, "checkpoint a unit", 400, 1.5),
    ]
    six, twelve = reversible.summary(rows)
    assert six["lowest_peak"] == "ours" and six["fastest"] == "revtorch"
    assert six["slower"] == pytest.approx(0.04)
    assert twelve["lowest_peak"] == "checkpoint a unit" and twelve["fastest"] == "checkpoint a unit"
    assert twelve["slower"] == pytest.approx(-0.2) and twelve["norm_updates"] == 1


def test_command(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(reversible, "SIMULATED", (2, (64, 64)))
    arguments = ["--units", "1", "3", "--maps", "8x12", "--batch", "2", "--rounds", "1"]
    assert reversible.main([*arguments, "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["reversible.json"]
    result = json.loads((tmp_path / "reversible.json").read_text())
    assert result["command"].startswith("python -m segkit.bench reversible --units 1 3")
    assert result["timed"] == {
        "batch_size": 2,
        "map_size": [8, 12],
        "rounds": 1,
        "ratio": "of CPU time",
    }
    assert len(result["rows"]) == 2 * len(reversible.WAYS)
    assert [entry["units"] for entry in result["summary"]] == [1, 3]
    printed = capsys.readouterr().out
    assert printed.count("checkpoint a unit") >= 2 and "3 units: lowest peak ours" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--units", "0"], "'0' is not a whole number of at least 1"),
        (["--maps", "big"], "'big' is not HEIGHTxWIDTH"),
        (["--device", "cuda"], "--device cpu times the steps here"),
    ],
)
def test_wrong_arguments(arguments, message, assert_refused):
    assert_refused(reversible.main, arguments, message)
