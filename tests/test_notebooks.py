"""What every committed notebook must be: parameters checked, outputs complete and clean, exercises that work.

That the outputs are still true is `pytest --nbval`'s part; these tests run no notebook.
"""

import ast
import base64
import importlib
import io
import json
import re
from pathlib import Path

import nbformat
import papermill
import pytest
from PIL import Image

from segkit.notebook import parameters
from segkit.notebook.blanks import BEGIN, END, blank_source
from segkit.notebook.exercises.kinds import UNANSWERED
from segkit.notebook.render import KERNELSPEC, MAX_BYTES, problems

FOLDER = Path(__file__).parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))

# The cells, by id, whose outputs nbval does not compare: timings, trained scores, versions. Nothing else.
NOT_COMPARED: dict[str, set[str]] = {
    "03_ldn_train": {"c28", "c30", "c35"},  # the scores of the trained network
    "04_vnet_reversible": {"c39"},  # the scores of the three trained networks
    "05_receptive_field": {"c33"},  # how far the gradients of trained networks reach
    "06_regseg_train": {"c09", "c18", "c32", "c39"},  # times, and the scores of trained networks
    "07_denseaspp": {"c26", "c30", "c35", "c39", "c43", "c44", "c48"},  # times; what trained networks answer
    "08_jpu_ablation": {"c31", "c35"},  # times, and the scores of trained networks
}
EXEMPT_TAGS = {"nbval-ignore-output", "nbval-skip", "raises-exception"}

FRAME = ("Paper", "Question", "Afterwards", "Time and memory", "Prerequisites")
MACHINE_PATH = re.compile(r"/(home|root|tmp|Users|work|opt|mnt|var/folders)/|[A-Z]:\\Users")

pytestmark = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def read(path):
    return nbformat.read(path, 4)


def code(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tagged(path, tag):
    return [cell for cell in code(path) if tag in cell.metadata.get("tags", [])]


def texts(output):
    """Every text of an output: printed, text/plain, html, …"""
    parts = [output.get("text", ""), *(output.get("data") or {}).values()]
    return [part if isinstance(part, str) else json.dumps(part) for part in parts]


# Parameters ---------------------------------------------------------------------------------------


def test_parameters_are_plain_literals_one_a_line_with_a_comment(path):
    (cell,) = tagged(path, "parameters")
    assert not cell.source.startswith("# Parameters"), "papermill's own cell begins like this"
    for line in cell.source.splitlines():
        assert re.fullmatch(r"[a-z][a-z0-9_]* = .+  # \S.+", line), line
    values = parameters.declared(cell.source)
    assert values and None not in values.values(), "papermill cannot tell the type of None"


def test_the_next_code_cell_checks_the_parameters(path):
    cells = code(path)
    (at,) = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    calls = [node for node in ast.walk(ast.parse(cells[at + 1].source)) if isinstance(node, ast.Call)]
    (check,) = [call for call in calls if getattr(call.func, "id", "") == "check_parameters"]
    assert {rule.arg for rule in check.keywords} <= set(parameters.declared(cells[at].source))


def test_our_parser_and_papermill_read_the_same_parameters(path):
    (cell,) = tagged(path, "parameters")
    inspected = papermill.inspect_notebook(path)
    assert {
        name: ast.literal_eval(entry["default"]) for name, entry in inspected.items()
    } == parameters.declared(cell.source)


# Outputs ------------------------------------------------------------------------------------------


def test_outputs_are_complete_and_of_one_run(path):
    assert problems(read(path)) == []
    assert path.stat().st_size < MAX_BYTES


def test_metadata_says_nothing_about_a_machine_or_a_tool(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata == {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        assert not {"papermill", "execution", "widgets"} & set(cell.metadata)
        for output in cell.get("outputs", []):
            assert "application/vnd.jupyter.widget-view+json" not in (output.get("data") or {})


def test_no_path_of_a_machine(path):
    for cell in read(path).cells:
        for text in [cell.source, *(text for output in cell.get("outputs", []) for text in texts(output))]:
            if found := MACHINE_PATH.search(text[:20_000]):
                pytest.fail(f"cell {cell.id} shows {text[found.start() :][:80]!r}")


def test_pictures_are_png_with_alternative_text(path):
    for cell in code(path):
        for output in cell.outputs:
            data = output.get("data") or {}
            images = [kind for kind in data if kind.startswith("image/")]
            assert images in ([], ["image/png"]), (
                f"cell {cell.id}: nbval compares svg, and skips only png and jpeg"
            )
            if images:
                alt = data.get("text/plain", "")
                assert len(alt.split()) >= 3 and not alt.startswith("<"), (
                    f"cell {cell.id}: {alt!r} describes nothing"
                )
                picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
                assert picture.width <= 1000, f"cell {cell.id}: wider than a notebook's column"
                assert "Software" not in picture.info


def test_no_live_object_is_shown(path):
    for cell in code(path):
        for output in cell.outputs:
            for text in texts(output):
                assert not re.search(r"\bat 0x[0-9a-f]{6,}", text), f"cell {cell.id} shows an address"


def test_cells_that_are_not_compared_are_listed(path):
    exempt = {cell.id for cell in code(path) if EXEMPT_TAGS & set(cell.metadata.get("tags", []))}
    assert exempt == NOT_COMPARED.get(path.stem, set())
    assert len(exempt) <= len(code(path)) / 3
    comments = [cell.id for cell in code(path) if re.search(r"#\s*(NBVAL_|PYTEST_VALIDATE)", cell.source)]
    assert not comments, "use tags"


# The frame ----------------------------------------------------------------------------------------


def test_the_frame_is_there(path):
    cells = read(path).cells
    first_code = next(i for i, cell in enumerate(cells) if cell.cell_type == "code")
    opening = "\n".join(cell.source for cell in cells[:first_code])
    assert re.match(r"# \S", opening), "the title"
    missing = [label for label in FRAME if f"**{label}" not in opening]
    assert not missing
    budget = opening.split("**Time and memory", 1)[1].split("\n\n")[0]
    assert re.search(r"\d\s*(s|seconds|min|minutes)\b", budget) and re.search(
        r"\d\s*(MB|MiB|GB|GiB)\b", budget
    )
    markdown = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert "\n## Summary" in "\n" + markdown
    assert "<details" in markdown, "a 'predict first' question with its answer folded"


def test_links_lead_somewhere_and_to_the_neighbors(path):
    markdown = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", markdown) if "://" not in t]
    broken = [target for target in targets if target and not (path.parent / target).exists()]
    assert not broken
    at = PATHS.index(path)
    neighbors = {PATHS[i].name for i in (at - 1, at + 1) if 0 <= i < len(PATHS)}
    assert neighbors <= set(targets), "links to the previous and the next notebook"


# Exercises ----------------------------------------------------------------------------------------


def exercise_id(cell):
    (found,) = re.findall(r'^check\("(\d\d\.\d)", ', cell.source, re.MULTILINE)
    return found


def run(path, source, capsys):
    """What a cell prints when only the imports cell came before it."""
    (imports,) = tagged(path, "imports")
    scope = {"__name__": "notebook"}
    exec(imports.source, scope)
    capsys.readouterr()
    exec(source, scope)
    return capsys.readouterr().out.strip()


def test_solution_cells_have_one_form(path):
    for cell in tagged(path, "solution"):
        lines = cell.source.splitlines()
        assert lines[0] == "# Solution", "the folded cell shows its first line"
        assert cell.metadata.get("jupyter", {}).get("source_hidden") is True
        assert [line.strip() for line in lines if line.strip() in (BEGIN, END)] == [BEGIN, END]
        assert exercise_id(cell).startswith(path.name[:2])
    marked = [cell for cell in code(path) if BEGIN in cell.source]
    assert marked == tagged(path, "solution"), "every cell with a solution has the tag"


def test_every_exercise_is_asked_once(path):
    asked = [exercise_id(cell) for cell in tagged(path, "solution")]
    known = importlib.import_module(f"segkit.notebook.exercises.n{path.name[:2]}").EXERCISES
    assert asked == list(known)
    assert 3 <= len(asked) <= 5


def test_solutions_pass_and_blanks_do_not(path, capsys):
    for cell in tagged(path, "solution"):
        name = exercise_id(cell)
        assert run(path, cell.source, capsys) == f"{name}: correct"
        assert run(path, blank_source(cell.source), capsys) == f"{name}: {UNANSWERED}"
        assert f"{name}: correct" in [text.strip() for output in cell.outputs for text in texts(output)]


def test_the_readmes_figure_is_the_notebooks(path):
    if path.stem != "03_ldn_train":
        pytest.skip("another notebook")
    figure = (FOLDER.parent / "data" / "figures" / "ladder.png").read_bytes()
    pictures = [
        o.data["image/png"] for c in code(path) for o in c.outputs if "image/png" in (o.get("data") or {})
    ]
    assert figure in [base64.b64decode(picture) for picture in pictures]
