"""A run's weights in half precision, small enough to ship: `python -m segkit.training.export RUN FILE`.

FILE is a checkpoint like final.pt, for `segkit.predict`, `segkit.evaluate` and
`segkit.evaluation.inference.load_model`, which compute in single precision as before. Example:

    python -m segkit.training.export runs/vnet_streets-12345678 data/weights/vnet_streets.pt
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from segkit.console import command
from segkit.evaluation.inference import load_model, read_checkpoint
from segkit.training import folder, state


def _half(name: str, value: Tensor) -> Tensor:
    """A tensor in half precision; counters stay what they are.

    Raises:
        ValueError: if a number of it is too large, or is none.
    """
    if not value.is_floating_point():
        return value
    half = value.half()
    if not torch.isfinite(half).all():
        largest = value.abs().max().item()
        limit = torch.finfo(torch.half).max
        raise ValueError(
            f"{name} holds {largest:g}, and half precision ends at {limit:g}: ship final.pt itself"
            if torch.isfinite(value).all()
            else f"{name} holds numbers that are not finite: the run has failed, train again"
        )
    return half


def export(run_folder: str | Path, path: str | Path) -> Path:
    """Writes a copy of a run's final.pt with weights and buffers in half precision.

    A number changes by at most one part in 2048, those under 6e-5 in size by at most 3e-8.

    Args:
        run_folder: the run's folder, in which final.pt lies.
        path: the file to write; an existing one is replaced, folders on the way are made.

    Returns:
        ``path``.

    Raises:
        FileNotFoundError: if there is no run, or it has not come to its end.
        ValueError: if final.pt is damaged or belongs to an own model, which segkit cannot build, if a number
            does not fit, or ``path`` is a folder or lies in the run's.
    """
    run_folder, path = Path(run_folder), Path(path)
    final = run_folder / folder.FINAL
    if not final.is_file():
        how = (
            "the run has not come to its end: go on with --resume"
            if (run_folder / folder.SETTINGS).is_file()
            else "name the folder of a run, such as runs/vnet_streets-12345678"
        )
        raise FileNotFoundError(f"no {folder.FINAL} in {run_folder}: {how}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the file to write, such as {path / 'vnet.pt'}")
    if path.resolve().parent == run_folder.resolve():
        raise ValueError(f"{path} lies in the run's own folder; write it elsewhere")
    load_model(final)  # what cannot be loaded now could not be loaded later
    content = read_checkpoint(final)
    content["model"] = {name: _half(name, value) for name, value in content["model"].items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    return state.save(path, content)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        0, or 1 after an error, which is one line on stderr.
    """
    parser = command("training.export", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, with final.pt")
    parser.add_argument("file", type=Path, metavar="FILE", help="the file to write")
    args = parser.parse_args(arguments)
    try:
        written = export(args.run, args.file)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    before, after = (p.stat().st_size / 1e6 for p in (args.run / folder.FINAL, written))
    print(f"{written}: {after:.2f} MB, half precision ({before:.2f} MB before)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
