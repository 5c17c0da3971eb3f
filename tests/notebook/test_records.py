"""Measured files and shipped weights, as the notebooks read them."""

import json

import pytest

from segkit.notebook import plots, records


def test_a_real_run_is_read_and_shown(tmp_path):
    scores = {"miou": 0.5, "pixel_accuracy": 0.8, "iou_by_class": {"pole": 0.1, "road": 0.9, "gone": None}}
    run = {
        "trained_with": "python -m segkit.train vnet_camvid",
        "epochs": {"loss": [2.0, 1.0, 0.5, 0.4], "lr": [4.0, 3.0, 2.0, 1.0]},
        "steps": 1234,
        "date": "2026-01-02T03:04:05+00:00",
        "versions": {"torch": "2.0"},
        "result": {"split": "test", "evaluation": scores},
    }
    (tmp_path / "vnet_camvid.json").write_text(json.dumps(run))
    lines = records.long_run(records.read("vnet_camvid.json", tmp_path)).splitlines()
    assert lines[0] == run["trained_with"] and lines[1].startswith("4 epochs, 1,234 steps, 2026-01-02")
    assert lines[2].startswith("loss 2.00 in the first epoch, 0.400 in the last")
    assert lines[2].endswith("it fell by 20.0%")
    at_rest = run | {"epochs": {"loss": [2.0, 1.0, 0.5, 0.51]}}
    assert records.long_run(at_rest).splitlines()[2].endswith("it rose by 2.0%")
    assert lines[3:] == ["test: mIoU 50.0%, pixel accuracy 80.0%", "road 90%, pole 10%"]
    left, right = plots.long_run(run["epochs"]["loss"], run["epochs"]["lr"]).axes
    assert list(left.lines[0].get_xdata()) == [1, 2, 3, 4] and "nats" in left.get_ylabel()
    assert list(right.lines[0].get_ydata()) == run["epochs"]["lr"]


def test_a_record_says_where_it_is_from(tmp_path):
    assert records.read("dblock.json", tmp_path) is None
    record = {"date": "2026-01-02T03:04:05+00:00", "machine": {"processor": "Some CPU", "threads": 2}}
    (tmp_path / "dblock.json").write_text(json.dumps(record))
    assert records.read("dblock.json", tmp_path) == record
    assert records.where(record) == "2026-01-02, Some CPU, threads: 2"
    assert records.where(record | {"machine": {"gpu": "Some GPU"}}) == "2026-01-02, Some GPU"


def test_weights_that_are_missing_say_what_to_do(tmp_path):
    shipped = tmp_path / "net_streets.pt"
    with pytest.raises(FileNotFoundError, match=r"net_streets.pt is missing.*\n  first\n  second"):
        records.weights("", shipped, "first\n  second")
    with pytest.raises(FileNotFoundError, match=r"no weights at no.pt: .*runs/net_streets-12345678/final.pt"):
        records.weights("no.pt", shipped, "")
    shipped.touch()
    assert records.weights("", shipped, "") == records.weights(str(shipped), shipped, "") == shipped
