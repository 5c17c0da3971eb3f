"""Exercise sheets: the notebooks with their solutions blanked (`make exercises`).

    python -m segkit.notebook.blanks [FOLDER]

reads FOLDER/NN_*.ipynb (default: notebooks) and writes FOLDER/exercises/NN_*.ipynb. In a cell tagged
`solution` the part between `### BEGIN SOLUTION` and `### END SOLUTION` becomes `...  # your code here`; a
name that this part assigns and later lines use becomes `name = ...  # your code here`: the sheet still runs.
"""

import ast
import copy
import re
import sys
import textwrap
from pathlib import Path

import nbformat

BEGIN, END, BLANK = "### BEGIN SOLUTION", "### END SOLUTION", "...  # your code here"


def blank_source(source: str) -> str:
    """A solution cell's source with the solution taken out.

    Raises:
        ValueError: if the cell does not have exactly one BEGIN and, after it, one END line.
    """
    lines = source.splitlines()
    marks = [at for at, line in enumerate(lines) if line.strip() in (BEGIN, END)]
    if [lines[at].strip() for at in marks] != [BEGIN, END]:
        raise ValueError(f"a solution cell needs one {BEGIN!r} line and one {END!r} line after it:\n{source}")
    begin, end = marks
    indent = lines[begin][: -len(lines[begin].lstrip())] if lines[begin][0].isspace() else ""
    names = []
    for statement in ast.parse(textwrap.dedent("\n".join(lines[begin + 1 : end])).strip("\n") or "pass").body:
        targets = getattr(statement, "targets", [statement])
        names += [
            found for target in targets if (found := getattr(target, "id", getattr(target, "name", None)))
        ]
    after = "\n".join(lines[end + 1 :])
    needed = [name for name in dict.fromkeys(names) if re.search(rf"\b{name}\b", after)]
    blanks = [f"{indent}{name} = {BLANK}" for name in needed] or [f"{indent}{BLANK}"]
    kept = [line for line in lines[:begin] if line.strip() != "# Solution"]
    return "\n".join([*kept, *blanks, *lines[end + 1 :]])


def blank(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy of a notebook as an exercise sheet: solutions blanked and unfolded, their outputs gone."""
    sheet = copy.deepcopy(notebook)
    for cell in sheet.cells:
        # The sheet lies one folder deeper than the notebook.
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("](../", "](../../")
        elif "solution" in cell.metadata.get("tags", []):
            cell.source = blank_source(cell.source)
            cell.update(outputs=[], execution_count=None)
            cell.metadata = {"tags": [tag for tag in cell.metadata.tags if tag != "solution"]}
    return sheet


def main(arguments: list[str]) -> None:
    """Writes the sheets and prints where."""
    folder = Path(arguments[0] if arguments else "notebooks")
    found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        sys.exit(f"no notebook NN_*.ipynb in {folder.resolve()}: run this from the repository's root")
    (folder / "exercises").mkdir(exist_ok=True)
    for path in found:
        nbformat.write(blank(nbformat.read(path, 4)), folder / "exercises" / path.name)
        print(f"{folder / 'exercises' / path.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
