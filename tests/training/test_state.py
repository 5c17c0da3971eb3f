"""Checkpoints: atomic, safe to load, and with a fallback."""

import logging
import os
import pickle

import pytest
import torch

from segkit.training import state


def content(step):
    return {"step": step, "model": {"weight": torch.arange(1000.0) + step}, "nested": [(1, 2), {"a": None}]}


def test_round_trip(tmp_path):
    path = state.save(tmp_path / "a.pt", content(3))
    loaded = state.load(path)
    assert loaded["step"] == 3
    assert loaded["nested"] == [(1, 2), {"a": None}]
    assert torch.equal(loaded["model"]["weight"], content(3)["model"]["weight"])
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = state.save(tmp_path / "a.pt", content(1))

    def write_half_and_die(what, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", write_half_and_die)
    with pytest.raises(KeyboardInterrupt):
        state.save(path, content(2))
    assert state.load(path)["step"] == 1
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    state.write_text(tmp_path / "a.json", "old")

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        state.write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_written_bytes_are_synced_before_the_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append("replace") or replace(a, b))
    state.save(tmp_path / "a.pt", content(1))
    assert calls[:2] == ["fsync", "replace"]


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused_by_name(tmp_path, keep):
    path = state.save(tmp_path / "a.pt", content(1))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(state.CheckpointError, match=r"a\.pt .*truncated"):
        state.load(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Bad:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"x": Bad()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Bad(), protocol=2))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(state.CheckpointError):
            state.load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        state.load(tmp_path / "a.pt")
    torch.save([1, 2], tmp_path / "a.pt")
    with pytest.raises(state.CheckpointError, match="holds a list"):
        state.load(tmp_path / "a.pt")


def test_latest_falls_back_to_the_one_before(tmp_path, caplog):
    assert state.latest(tmp_path) is None
    for step in (8, 9, 10):
        state.save(state.step_path(tmp_path, step), content(step))
    assert state.latest(tmp_path)[1]["step"] == 10
    newest = state.step_path(tmp_path, 10)
    newest.write_bytes(newest.read_bytes()[:-200])
    with caplog.at_level(logging.WARNING, "segkit"):
        path, loaded = state.latest(tmp_path)
    assert (path, loaded["step"]) == (state.step_path(tmp_path, 9), 9)
    assert str(newest) in caplog.text
    for broken in state.checkpoints(tmp_path):
        broken.write_bytes(b"")
    with pytest.raises(state.CheckpointError, match="none of the 3 checkpoints"):
        state.latest(tmp_path)


def test_prune_and_drop_after(tmp_path):
    for step in (1, 2, 30, 400):
        state.save(state.step_path(tmp_path, step), content(step))
    state.prune(tmp_path)
    assert [path.name for path in state.checkpoints(tmp_path)] == [
        "checkpoint-00000030.pt",
        "checkpoint-00000400.pt",
    ]
    state.drop_after(state.step_path(tmp_path, 30))
    assert [path.name for path in state.checkpoints(tmp_path)] == ["checkpoint-00000030.pt"]
