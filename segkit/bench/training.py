"""A finished run as a measured file: its command, settings, losses by epoch and result, without its weights.

python -m segkit.bench training runs/RUN --trained-with "python -m segkit.train ..." --out data/measured

To be run where the run was, with the same versions: machine and versions are those of now.
"""

import json
import sys
from pathlib import Path
from typing import Any

from segkit import console
from segkit.bench import _record
from segkit.training import folder
from segkit.training.recipes import RECIPES


def record(run: Path | str, trained_with: str) -> dict[str, Any]:
    """What is worth keeping of a run.

    Args:
        run: the run's folder.
        trained_with: the command that trained it, ``python -m segkit.train RECIPE …``.

    Returns:
        ``trained_with``; ``recipe``, its name; ``changes``, the fields that differ from that recipe's;
        ``settings``, of the run beside the recipe; ``steps``; ``seconds``, of all epochs; ``epochs``, a dict
        of lists: mean loss (nats), last learning rate, seconds, and what was measured; ``result``, without
        the confusion matrix.

    Raises:
        FileNotFoundError: if there is no run, or it has not come to its end.
        ValueError: if the command is not one that trains this recipe.
    """
    run = Path(run)
    for name, cure in ((folder.SETTINGS, "name a run's folder"), (folder.RESULT, "go on with --resume")):
        if not (run / name).is_file():
            raise FileNotFoundError(f"no {name} in {run}: {cure}")
    settings = json.loads((run / folder.SETTINGS).read_text())
    chosen = settings.pop("recipe")
    if trained_with.split()[:4] != ["python", "-m", "segkit.train", chosen["name"]]:
        raise ValueError(
            f"the command must begin with 'python -m segkit.train {chosen['name']}', whose run this is; "
            f"got {trained_with!r}"
        )
    usual = RECIPES[chosen["name"]].settings()
    lines = [json.loads(line) for line in (run / folder.LOG).read_text().splitlines()]
    epochs = {line["epoch"]: line for line in lines if line["kind"] == "epoch"}  # of one done twice, the last
    result = json.loads((run / folder.RESULT).read_text())
    for scores in (result["evaluation"], result["multi_scale"]):
        if scores:
            del scores["matrix"]
    kept = ("loss", "lr", "seconds", "miou", "reduced_miou", "pixel_accuracy")
    ordered = [epochs[epoch] for epoch in sorted(epochs)]
    return {
        "trained_with": trained_with,
        "recipe": chosen["name"],
        "changes": {name: value for name, value in chosen.items() if usual.get(name) != value},
        "settings": settings,
        "steps": ordered[-1]["step"],
        "seconds": sum(entry["seconds"] for entry in ordered),
        "epochs": {
            name: [entry.get(name) for entry in ordered]
            for name in kept
            if any(entry.get(name) is not None for entry in ordered)
        },
        "result": result,
    }


def main(argv: list[str] | None = None) -> int:
    """Writes the file, named after the recipe."""
    parser = console.command("bench training", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, with result.json")
    parser.add_argument(
        "--trained-with", required=True, metavar="COMMAND", help="the command that trained it"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write DIR/RECIPE.json; without it only print"
    )
    given = list(sys.argv[2:] if argv is None else argv)
    args = parser.parse_args(given)
    try:
        found = record(args.run, args.trained_with)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    scores = found["result"]["evaluation"]
    print(
        f"{found['recipe']}: {len(found['epochs']['loss'])} epochs, {found['steps']} steps, "
        f"{found['seconds'] / 60:.0f} minutes; {found['result']['split']} mIoU {100 * scores['miou']:.2f} %, "
        f"pixel accuracy {100 * scores['pixel_accuracy']:.2f} %"
    )
    if args.out:
        stamp = _record.stamp(["segkit.bench", "training", *given])
        print(f"wrote {_record.write(args.out / (found['recipe'] + '.json'), stamp | found)}")
    return 0
