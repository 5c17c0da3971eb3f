"""Writes the committed outputs of notebooks (`make render`).

    python -m segkit.notebook.render [NAME …]

runs each notebook from start to end in a fresh kernel and writes it back in place. What the machine or the
tools add (kernel and papermill metadata, widget state, how a kernel cut its printing into pieces) is taken
out, so that rendering twice changes nothing. A name is the beginning of a file name, such as 03; none: all.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
import papermill
from nbformat import NotebookNode

KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
MAX_BYTES = 500_000  # what GitHub still shows quickly


def normalize(notebook: NotebookNode) -> NotebookNode:
    """Takes out, in place, what differs from run to run or from machine to machine."""
    notebook.metadata = NotebookNode(
        kernelspec=NotebookNode(KERNELSPEC), language_info=NotebookNode(name="python")
    )
    notebook.nbformat_minor = max(notebook.nbformat_minor, 5)  # cells have ids from 4.5 on
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]  # papermill adds an empty list
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
    return notebook


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs with the printed text that follows itself in one piece, as nbval compares it."""
    kept: list[NotebookNode] = []
    for output in outputs:
        same = (
            kept and output.output_type == "stream" == kept[-1].output_type and output.name == kept[-1].name
        )
        if same:
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def problems(notebook: NotebookNode) -> list[str]:
    """Why a rendered notebook may not be committed; empty when it may."""
    found = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        counts = [cell.execution_count for cell in code]
        found.append(f"execution counts are not 1 to {len(code)} but {counts}: is there an empty cell?")
    for at, cell in enumerate(code, start=1):
        for output in cell.outputs:
            if output.get("name") == "stderr":
                found.append(f"cell {at} writes to stderr: {output.text.strip()[:200]!r}")
            if output.output_type == "error":
                found.append(f"cell {at} raises {output.ename}")
    size = len(nbformat.writes(notebook).encode())
    if size > MAX_BYTES:
        found.append(f"{size / 1e3:.0f} KB is over {MAX_BYTES / 1e3:.0f} KB: draw smaller or fewer pictures")
    return found


def render(path: Path, *, timeout: int = 900) -> None:
    """Runs one notebook with its default parameters and writes it back, or leaves it as it was.

    Args:
        path: the notebook.
        timeout: of one cell, in seconds.

    Raises:
        papermill.PapermillExecutionError: if a cell fails.
        ValueError: if the result may not be committed; the message lists why.
    """
    notebook = papermill.execute_notebook(
        path,
        None,
        cwd=path.parent,
        kernel_name="python3",
        progress_bar=False,
        execution_timeout=timeout,
        store_widget_state=False,
    )
    notebook = normalize(notebook)
    if found := problems(notebook):
        raise ValueError("; ".join(found))
    nbformat.validate(notebook)
    text = nbformat.writes(notebook, nbformat.NO_CONVERT) + "\n"
    part = path.with_suffix(".ipynb.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def find(names: list[str], folder: Path) -> list[Path]:
    """The notebooks whose names begin like this; all for no name.

    Raises:
        FileNotFoundError: if a name fits none.
    """
    there = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    for name in names:
        if not any(path.name.startswith(name) for path in there):
            listed = ", ".join(path.stem for path in there) or f"none in {folder.resolve()}"
            raise FileNotFoundError(f"no notebook begins with {name!r}; there are: {listed}")
    return [path for path in there if not names or path.name.startswith(tuple(names))]


def main(arguments: list[str]) -> int:
    """Renders and says how long each took; 1 when one could not be rendered."""
    parser = argparse.ArgumentParser(
        prog="python -m segkit.notebook.render", description="Render notebooks in place."
    )
    parser.add_argument("names", nargs="*", help="beginnings of file names; none: all")
    parser.add_argument("--folder", type=Path, default=Path("notebooks"), help="where they are (%(default)s)")
    parser.add_argument("--timeout", type=int, default=900, help="seconds for one cell (%(default)s)")
    options = parser.parse_args(arguments)
    failed = False
    try:
        paths = find([Path(name).name for name in options.names], options.folder)
    except FileNotFoundError as error:
        parser.error(str(error))
    for path in paths:
        began = time.monotonic()
        try:
            render(path, timeout=options.timeout)
        except (papermill.PapermillExecutionError, ValueError) as error:
            print(f"{path.name} not rendered: {error}", file=sys.stderr)
            failed = True
        else:
            print(f"{path.name}: {time.monotonic() - began:.0f} s, {path.stat().st_size / 1e3:.0f} KB")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
