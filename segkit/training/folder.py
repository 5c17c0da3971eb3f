"""A run's folder: settings.json, log.jsonl, checkpoints, and at the end final.pt and result.json."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import segkit
from segkit.training import state
from segkit.training.fields import LATER, MEMORY, Recipe

SETTINGS, LOG, FINAL, RESULT = "settings.json", "log.jsonl", "final.pt", "result.json"
PREVIOUS = "previous"  # the subfolder that a finished run moves to


def runs_root() -> Path:
    """Where runs go: SEGKIT_RUNS, else the checkout's runs/, else runs/ in the current folder."""
    if "SEGKIT_RUNS" in os.environ:
        return Path(os.environ["SEGKIT_RUNS"])
    checkout = Path(segkit.__file__).parent.parent
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "runs"


def default_folder(settings: dict[str, Any]) -> Path:
    """runs/NAME-HASH, one folder for each recipe and settings, whatever memory the run shall spare."""
    usual = Recipe().settings()
    named = {
        key: value
        for key, value in _deciding(settings["recipe"]).items()
        if key not in LATER or value != usual[key]
    }
    deciding = settings | {"recipe": named}
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
    return runs_root() / f"{settings['recipe']['name']}-{digest[:8]}"


def _deciding(recipe: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key not in MEMORY}


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """The settings that differ, as "field: here A, there B".

    The fields of a recipe that only trade time for memory may differ. A field that one of the recipes lacks
    is newer than its run, which did what is the field's default today.
    """
    found = []
    for key in sorted(mine.keys() | theirs.keys()):
        here, there = mine.get(key), theirs.get(key)
        if key == "recipe" and isinstance(here, dict) and isinstance(there, dict):
            default = Recipe().settings()
            found += differences(_deciding(default | here), _deciding(default | there))
        elif here != there:
            found.append(f"{key}: here {here!r}, there {there!r}")
    return found


def is_finished(folder: Path) -> bool:
    """Whether the run in the folder went to its end."""
    return (folder / RESULT).is_file()


def has_weights(folder: Path) -> bool:
    """Whether a run that goes on in the folder takes its weights from there."""
    return (folder / FINAL).is_file() or bool(state.checkpoints(folder))


def _own_files(folder: Path) -> list[Path]:
    parts = folder.glob(".*.part")  # what a kill while writing leaves behind
    named = [folder / name for name in (SETTINGS, LOG, FINAL, RESULT) if (folder / name).is_file()]
    return [*named, *state.checkpoints(folder), *parts]


def check_start(folder: Path, *, overwrite: bool = False) -> None:
    """Makes sure that a run may begin in the folder.

    Raises:
        FileExistsError: if an unfinished run, or something that is no run, lies there.
    """
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; choose another --out-dir")
    if not folder.is_dir():
        return
    old = _own_files(folder)
    if not old and any(path.name != PREVIOUS for path in folder.iterdir()):
        raise FileExistsError(f"{folder} holds files that are no run; choose another --out-dir")
    if old and not overwrite and not is_finished(folder):
        raise FileExistsError(
            f"{folder} holds an unfinished run: go on with --resume (resume=True), "
            "start over with --overwrite (overwrite=True), or choose another --out-dir"
        )


def start(folder: Path, settings: dict[str, Any], *, overwrite: bool = False) -> None:
    """Makes the folder ready for a run from the beginning.

    A finished run that lies there is moved to the subfolder ``previous`` (which holds one run); with
    ``overwrite`` what lies there is deleted.

    Raises:
        FileExistsError: as :func:`check_start`.
    """
    check_start(folder, overwrite=overwrite)
    folder.mkdir(parents=True, exist_ok=True)
    old = _own_files(folder)
    if is_finished(folder) and not overwrite:
        previous = folder / PREVIOUS
        previous.mkdir(exist_ok=True)
        for path in _own_files(previous):
            path.unlink()
        for path in reversed(old):  # settings.json last: whenever a kill comes, a run can begin here again
            path.rename(previous / path.name)
    else:
        for path in old:
            path.unlink()
    state.write_text(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")


def check_resume(folder: Path, settings: dict[str, Any]) -> None:
    """Makes sure that the run in the folder is the one described.

    Raises:
        FileNotFoundError: if there is no run; the recipe's other runs are named.
        ValueError: if its settings differ, naming each field that does; see :func:`differences`.
    """
    if not (folder / SETTINGS).is_file():
        others = sorted(runs_root().glob(f"{settings['recipe']['name']}-*/{SETTINGS}"))
        hints = [
            f"{path.parent} ({'; '.join(_compare(path, settings)) or 'same settings'})" for path in others
        ]
        also = f"; runs of this recipe: {', '.join(hints)}" if hints else ""
        raise FileNotFoundError(f"nothing to resume in {folder}{also}")
    found = _compare(folder / SETTINGS, settings)
    if found:
        raise ValueError(
            f"{folder} holds a run with other settings and cannot be resumed with these: {'; '.join(found)}"
        )


def _compare(path: Path, settings: dict[str, Any]) -> list[str]:
    try:
        return differences(settings, json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); start over with --overwrite") from error


def jsonable(value: Any) -> Any:
    """The value with NaN and infinity as None, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Log:
    """The log of a run: one JSON object a line, ``"kind"`` "step" or "epoch"; also in memory, as two lists.

    Args:
        folder: the run's; None keeps the log in memory alone (as all processes but the main one do).
        step: where the run goes on: lines about later steps are cut off, so that no step is there twice.
    """

    def __init__(self, folder: Path | None, *, step: int = 0) -> None:
        self.steps: list[dict[str, Any]] = []
        self.epochs: list[dict[str, Any]] = []
        self._path = None if folder is None else folder / LOG
        if self._path is None:
            return
        lines = []
        if step and self._path.is_file():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    break  # the kill came while this line was written
                if entry["step"] <= step:
                    self._keep(entry)
                    lines.append(line + "\n")
        state.write_text(self._path, "".join(lines))

    def _keep(self, entry: dict[str, Any]) -> None:
        (self.epochs if entry["kind"] == "epoch" else self.steps).append(entry)

    def write(self, kind: str, **values: Any) -> dict[str, Any]:
        """Adds a line and returns it."""
        entry = jsonable({"kind": kind, **values})
        self._keep(entry)
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, allow_nan=False) + "\n")
        return entry

    def sync(self) -> None:
        """Puts the lines on disk: before a checkpoint, so that the log never lacks its steps."""
        if self._path and self._path.is_file():
            with self._path.open("a") as file:
                os.fsync(file.fileno())
