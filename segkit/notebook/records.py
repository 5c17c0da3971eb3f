"""What the notebooks show without measuring or training it themselves: data/measured and data/weights."""

import json
from collections.abc import Mapping
from pathlib import Path

from segkit.papers.ledger import MEASURED

WEIGHTS = MEASURED.parent / "weights"


def read(name: str, folder: Path = MEASURED) -> dict | None:
    """A measured file as it was written; None where it was not measured.

    Args:
        name: the file's, e.g. ``"dblock.json"``.
        folder: where measured files are.
    """
    path = folder / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def where(record: Mapping) -> str:
    """The day on which a record was measured, and the machine."""
    machine = record["machine"]
    device = machine.get("gpu") or f"{machine['processor']}, threads: {machine['threads']}"
    return f"{record['date'][:10]}, {device}"


def long_run(run: Mapping) -> str:
    """A real run as lines of text: its command, its length and how it went on, its scores by class.

    Args:
        run: as ``python -m segkit.bench training`` wrote it.
    """
    loss, scores = run["epochs"]["loss"], run["result"]["evaluation"]
    tenth = max(1, len(loss) // 10)
    change = loss[-1] / loss[-1 - tenth] - 1
    ious = [(iou, name) for name, iou in scores["iou_by_class"].items() if iou is not None]
    date, version = run["date"][:10], run["versions"]["torch"].partition("+")[0]
    return "\n".join(
        (
            run["trained_with"],
            f"{len(loss)} epochs, {run['steps']:,} steps, {date}, torch {version}",
            f"loss {loss[0]:.2f} in the first epoch, {loss[-1]:.3f} in the last; "
            f"over the last tenth of the run it {'fell' if change < 0 else 'rose'} by {abs(change):.1%}",
            f"{run['result']['split']}: mIoU {scores['miou']:.1%}, "
            f"pixel accuracy {scores['pixel_accuracy']:.1%}",
            ", ".join(f"{name} {iou:.0%}" for iou, name in sorted(ious, reverse=True)),
        )
    )


def weights(path: str, shipped: Path, commands: str) -> Path:
    """The file of a checkpoint that is there.

    Args:
        path: a checkpoint; empty for the one that ships.
        shipped: the one that ships.
        commands: how to make that.

    Raises:
        FileNotFoundError: if it is missing; the message says what to do.
    """
    file = Path(path).expanduser() if path else shipped
    if not file.is_file():
        raise FileNotFoundError(
            f"no weights at {path}: name a checkpoint, such as runs/{shipped.stem}-12345678/final.pt."
            if path
            else f"data/weights/{shipped.name} is missing. Make it with\n  {commands}"
        )
    return file
