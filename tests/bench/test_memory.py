"""The memory benchmark: its list of configurations, what it writes, and how it judges measurements."""

import json
from dataclasses import replace

import pytest
import torch

from segkit import models
from segkit.bench import memory
from segkit.measure.peak import peak_memory
from segkit.memory.recompute import Segments

SMALL = memory.Configuration("ladder-resnet18-32-4", 2, (64, 96), None, None)


def test_configurations():
    rows = memory.CONFIGURATIONS
    assert len(set(rows)) == len(rows) >= 20
    assert len({row.model for row in rows}) >= 8
    assert len({row.recompute for row in rows}) >= 6
    assert len({(row.batch_size, row.image_size) for row in rows}) >= 6
    assert {row.precision for row in rows} == {"fp32", "bf16"}
    for row in rows:
        assert row.model in models.MODELS
        assert Segments(row.recompute).chosen or row.recompute is None


def test_predictions_are_written(tmp_path, monkeypatch, capsys):
    rows = (SMALL, replace(SMALL, recompute="tu", precision="bf16"))
    monkeypatch.setattr(memory, "CONFIGURATIONS", rows)
    assert memory.main(["--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["memory_predicted.json"]
    result = json.loads((tmp_path / "memory_predicted.json").read_text())
    assert result["command"] == f"python -m segkit.bench memory --out {tmp_path}"
    assert result["device"] == "meta" and result["versions"]["torch"] == torch.__version__
    assert result["machine"]["processor"] and result["date"].endswith("+00:00")
    assert len(result["rows"]) == 2 and capsys.readouterr().out.count("predicted") == 2
    row = result["rows"][0]
    assert row["predicted"] == sum(row["by_kind"].values())
    assert row["predicted"] == peak_memory(models.build(SMALL.model), 2, (64, 96)).total
    assert row["recompute"] is None and row["image_size"] == [64, 96]
    assert "measured" not in row and "summary" not in result
    assert result["rows"][1]["predicted"] < row["predicted"]


def test_only(monkeypatch, capsys):
    monkeypatch.setattr(memory, "CONFIGURATIONS", (SMALL, replace(SMALL, model="ldn121-32-4")))
    assert memory.main(["--only", "resnet18"]) == 0
    assert "ldn121" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        memory.main(["--only", "vgg"])
    assert "no configuration contains 'vgg'" in capsys.readouterr().err


def test_without_a_gpu(assert_refused):
    assert_refused(memory.main, ["--device", "cuda"], "--device meta writes the predictions only")


def fake_peak(measured_over_predicted, workspace):
    """`peak_memory` as it would be on a GPU, with a made-up measurement (None: out of memory)."""

    def run(model, batch_size, image_size, *, optimizer, precision, device="meta"):
        predicted = peak_memory(model, batch_size, image_size, optimizer=optimizer, precision=precision)
        if device == "meta":
            return predicted
        if measured_over_predicted is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        measured = int(predicted.total * measured_over_predicted)
        return replace(
            predicted,
            measured=measured,
            measured_requested=measured - 3,
            measured_reserved=measured + 7,
            workspace={"aten.convolution": workspace},
        )

    return run


def test_rows_of_a_gpu(monkeypatch):
    monkeypatch.setattr(memory, "peak_memory", fake_peak(1.02, 5))
    row = memory.measure(SMALL, "cuda")
    assert row["error"] == pytest.approx(0.02, abs=1e-6)
    assert row["workspace"] == {"aten.convolution": 5} and "note" not in row
    assert (
        row["measured_requested"] == row["measured"] - 3 and row["measured_reserved"] == row["measured"] + 7
    )
    assert row["reserved"] >= row["predicted"]
    monkeypatch.setattr(memory, "peak_memory", fake_peak(None, 0))
    row = memory.measure(SMALL, "cuda")
    assert row["measured"] is None and row["error"] is None and "does not fit" in row["note"]
    assert row["predicted"] > 0
    assert memory.summary([row]) == {}


def test_summary():
    def row(precision, measured, workspace=0, unsplit=0):
        return {
            "precision": precision,
            "predicted": 1000,
            "measured": measured,
            "measured_requested": measured - unsplit,
            "error": measured / 1000 - 1,
            "workspace": {"aten.convolution": workspace} if workspace else {},
        }

    rows = [
        row("fp32", 1010),
        row("fp32", 1200, 180),
        row("fp32", 1300, 180),
        row("fp32", 900),
        row("fp32", 1300, 180, 90),
        row("bf16", 1100),
    ]
    result = memory.summary(rows)
    assert result["bf16"] == {"rows": 1, "largest_error": pytest.approx(0.1)}
    assert result["fp32"]["rows"] == 5 and result["fp32"]["largest_error"] == pytest.approx(0.3)
    outside = {entry["row"]: entry["explained"] for entry in result["fp32"]["outside_tolerance"]}
    assert outside == {1: True, 2: False, 3: False, 4: True}
