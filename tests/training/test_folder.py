"""The run folder: what is overwritten, what is not, and the log across a resume."""

import json
from pathlib import Path

import pytest

from segkit.training import folder, state
from segkit.training.fields import LATER, Recipe

SETTINGS = {"recipe": {"name": "tiny", "epochs": 3, "crop": [32, 48]}, "limit_train": 0}


def files(path):
    return sorted(entry.name for entry in path.iterdir())


def test_root_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGKIT_RUNS", str(tmp_path))
    assert folder.default_folder(SETTINGS).parent == tmp_path


def test_each_setting_has_a_folder(monkeypatch):
    monkeypatch.delenv("SEGKIT_RUNS", raising=False)
    path = folder.default_folder(SETTINGS)
    assert path.parent.name == "runs"
    assert path == folder.default_folder(json.loads(json.dumps(SETTINGS)))
    assert path.name.startswith("tiny-") and len(path.name) == len("tiny-") + 8
    assert path != folder.default_folder(SETTINGS | {"limit_train": 5})


def test_later_fields_at_their_default_do_not_move_a_run():
    settings = {"recipe": Recipe(name="tiny").settings()}
    older = {"recipe": {key: value for key, value in settings["recipe"].items() if key not in LATER}}
    assert len(older["recipe"]) < len(settings["recipe"])
    assert folder.default_folder(settings) == folder.default_folder(older)
    for change in ({"blur": 0.5, "augmentation": "fastfcn", "short_side": (8, 9)}, {"image_size": (8, 8)}):
        other = {"recipe": Recipe(name="tiny", **change).settings()}
        assert folder.default_folder(other) != folder.default_folder(settings)


def test_start_writes_the_settings(tmp_path):
    folder.start(tmp_path / "a" / "b", SETTINGS)
    assert json.loads((tmp_path / "a" / "b" / "settings.json").read_text()) == SETTINGS


def test_an_unfinished_run_is_not_overwritten_silently(tmp_path):
    folder.start(tmp_path, SETTINGS)
    state.save(state.step_path(tmp_path, 5), {"step": 5})
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match=r"--resume .*--overwrite .*--out-dir"):
        folder.start(tmp_path, SETTINGS)
    assert files(tmp_path) == before
    (tmp_path / "mine.txt").write_text("kept")
    folder.start(tmp_path, SETTINGS, overwrite=True)
    assert files(tmp_path) == ["mine.txt", "settings.json"]


def test_a_finished_run_moves_aside(tmp_path):
    for turn in ("first", "second"):
        folder.start(tmp_path, SETTINGS)
        (tmp_path / "result.json").write_text(turn)
    folder.start(tmp_path, SETTINGS)
    assert files(tmp_path) == ["previous", "settings.json"]
    assert (tmp_path / "previous" / "result.json").read_text() == "second"


@pytest.mark.parametrize("moved", range(5))
def test_a_kill_while_a_finished_run_moves_aside_can_be_recovered_from(tmp_path, monkeypatch, moved):
    folder.start(tmp_path, SETTINGS)
    for name in ("log.jsonl", "final.pt", "result.json"):
        (tmp_path / name).write_text(name)
    rename, done = Path.rename, []

    def rename_until_killed(path, target):
        if len(done) == moved:
            raise KeyboardInterrupt
        done.append(rename(path, target))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_until_killed)
        patch.setattr(state, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.start(tmp_path, SETTINGS)
    assert len(done) == min(moved, 4)
    if moved in (1, 2, 3):  # a part of the run is left: it is not deleted unasked, and it can go on
        with pytest.raises(FileExistsError, match="--resume"):
            folder.start(tmp_path, SETTINGS)
        folder.check_resume(tmp_path, SETTINGS)
        assert (tmp_path / "final.pt").is_file() or (tmp_path / "previous" / "final.pt").is_file()
    folder.start(tmp_path, SETTINGS, overwrite=moved in (1, 2, 3))
    assert files(tmp_path) == ["previous", "settings.json"]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="no run"):
        folder.start(tmp_path, SETTINGS)
    with pytest.raises(FileExistsError, match="is a file"):
        folder.start(tmp_path / "thesis.tex", SETTINGS)
    assert files(tmp_path) == ["thesis.tex"]


def test_resume_names_the_setting_that_differs(tmp_path):
    folder.start(tmp_path, SETTINGS)
    folder.check_resume(tmp_path, SETTINGS)
    other = {"recipe": SETTINGS["recipe"] | {"epochs": 5}, "limit_train": 0}
    with pytest.raises(ValueError, match=r"other settings .*: epochs: here 5, there 3$"):
        folder.check_resume(tmp_path, other)


def test_a_run_may_go_on_with_other_memory(tmp_path, monkeypatch):
    folder.start(tmp_path, SETTINGS)
    lean = {"recipe": SETTINGS["recipe"] | {"recompute": "unit", "chunked_loss": True}, "limit_train": 0}
    folder.check_resume(tmp_path, lean)
    monkeypatch.setenv("SEGKIT_RUNS", str(tmp_path))
    assert folder.default_folder(lean) == folder.default_folder(SETTINGS)  # it is found there too


def test_a_run_from_before_a_field_had_the_fields_default(tmp_path):
    before = Recipe(name="tiny").settings()
    for field in ("recompute", "chunked_loss", "optimizer", "schedule", "poly_power"):
        del before[field]
    folder.start(tmp_path, {"recipe": before})
    folder.check_resume(tmp_path, {"recipe": Recipe(name="tiny", recompute="unit").settings()})
    with pytest.raises(ValueError, match=r": optimizer: here 'adam', there 'amsgrad'$"):
        folder.check_resume(tmp_path, {"recipe": Recipe(name="tiny", optimizer="adam").settings()})


def test_nothing_to_resume_names_the_other_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGKIT_RUNS", str(tmp_path))
    folder.start(folder.default_folder(SETTINGS), SETTINGS)
    other = {"recipe": SETTINGS["recipe"] | {"epochs": 5}, "limit_train": 0}
    with pytest.raises(
        FileNotFoundError, match=r"nothing to resume in .*runs of this recipe: .*epochs: here 5, there 3"
    ):
        folder.check_resume(folder.default_folder(other), other)


def test_log_is_cut_at_the_checkpoint(tmp_path):
    log = folder.Log(tmp_path)
    for step in range(1, 6):
        log.write("step", epoch=0, step=step, loss=1 / step)
        if step == 3:
            log.write("epoch", epoch=0, step=3, miou=0.5)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "step", "epoch": 1, "st')  # killed while writing
    resumed = folder.Log(tmp_path, step=4)
    assert [entry["step"] for entry in resumed.steps] == [1, 2, 3, 4]
    assert [entry["miou"] for entry in resumed.epochs] == [0.5]
    resumed.write("step", epoch=1, step=5, loss=float("nan"))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 3, 4, 5]
    assert lines[2]["loss"] == 1 / 3  # bit-equal through JSON
    assert lines[-1]["loss"] is None


def test_log_without_a_folder_stays_in_memory(tmp_path):
    log = folder.Log(None)
    log.write("step", epoch=0, step=1, loss=1.0)
    log.sync()
    assert len(log.steps) == 1
    assert files(tmp_path) == []
