"""A finished run as a measured file."""

import json

import pytest

from segkit.bench import training
from segkit.training import recipe, train

COMMAND = "python -m segkit.train vnet_streets --epochs 2"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    where = tmp_path_factory.mktemp("run")
    how = recipe(
        "vnet_streets",
        epochs=2,
        dataset_options={"size": (32, 64), "train": 4, "val": 2},
        crop=(32, 64),
        batch_size=2,
    )
    return train(how, data_dir=where / "data", out_dir=where / "run", device="cpu")


def test_what_is_kept(run, tmp_path, capsys):
    assert training.main([str(run.folder), "--trained-with", COMMAND, "--out", str(tmp_path)]) == 0
    assert "vnet_streets: 2 epochs, 4 steps" in capsys.readouterr().out
    written = (tmp_path / "vnet_streets.json").read_text()
    found = json.loads(written)
    assert {"command", "date", "machine", "versions"} < found.keys()
    assert found["trained_with"] == COMMAND
    assert found["changes"].keys() == {"epochs", "dataset_options", "crop", "batch_size"}
    assert found["changes"]["epochs"] == 2 and found["steps"] == 4
    assert found["epochs"]["loss"] == [entry["loss"] for entry in run.epochs]
    assert found["epochs"]["miou"] == [entry["miou"] for entry in run.epochs]
    assert found["seconds"] == pytest.approx(sum(entry["seconds"] for entry in run.epochs))
    assert found["result"]["evaluation"]["miou"] == run.evaluation.miou
    assert '"matrix"' not in written


def test_errors(run, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"must begin with 'python -m segkit\.train vnet_streets'"):
        training.record(run.folder, "python -m segkit.train vnet_camvid")
    with pytest.raises(FileNotFoundError, match=r"no settings.json in .*name a run's folder"):
        training.record(tmp_path, COMMAND)
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"no result.json in .*--resume"):
        training.record(tmp_path, COMMAND)
    with pytest.raises(SystemExit):
        training.main([str(tmp_path), "--trained-with", COMMAND])
    assert "no result.json" in capsys.readouterr().err
