"""Exercise sheets: what is blanked, and that the sheet still runs."""

import nbformat
import pytest

from segkit.notebook.blanks import blank, blank_source, main


def cell(*lines):
    return "\n".join(lines)


def test_a_value_keeps_its_name():
    source = cell(
        "# Solution", "### BEGIN SOLUTION", "half = 1 / 2", "answer = half", "### END SOLUTION", "f(answer)"
    )
    assert blank_source(source) == cell("answer = ...  # your code here", "f(answer)")


def test_a_function_keeps_its_head():
    source = cell(
        "# Solution",
        "def f(x):",
        '    """Doubles."""',
        "    ### BEGIN SOLUTION",
        "    y = 2 * x",
        "",
        "    return y",
        "    ### END SOLUTION",
        "",
        "check('03.3', f)",
    )
    blanked = cell("def f(x):", '    """Doubles."""', "    ...  # your code here", "", "check('03.3', f)")
    assert blank_source(source) == blanked


def test_a_whole_function_in_the_region_keeps_its_name():
    source = cell("### BEGIN SOLUTION", "def f(x):", "    return x", "### END SOLUTION", "check('03.3', f)")
    assert blank_source(source) == cell("f = ...  # your code here", "check('03.3', f)")


@pytest.mark.parametrize(
    "source", ["x = 1", "### BEGIN SOLUTION\nx = 1", "### END SOLUTION\n### BEGIN SOLUTION"]
)
def test_a_solution_without_its_marks_is_refused(source):
    with pytest.raises(ValueError, match="BEGIN SOLUTION"):
        blank_source(source)


@pytest.fixture
def notebook():
    solution = nbformat.v4.new_code_cell(
        "# Solution\n### BEGIN SOLUTION\nx = 1\n### END SOLUTION\nprint(x)",
        execution_count=2,
        metadata={"tags": ["solution"], "jupyter": {"source_hidden": True}},
        outputs=[nbformat.v4.new_output("stream", text="1\n")],
    )
    other = nbformat.v4.new_code_cell("x = 0", execution_count=1)
    text = nbformat.v4.new_markdown_cell("[data](../data/README.md), [next](04_x.ipynb)")
    return nbformat.v4.new_notebook(cells=[other, solution, text])


def test_only_solution_cells_and_links_change(notebook):
    before = str(notebook)
    first, second, third = blank(notebook).cells
    assert str(notebook) == before
    assert first == notebook.cells[0]
    assert second.source == "x = ...  # your code here\nprint(x)"
    assert (second.outputs, second.execution_count, second.metadata) == ([], None, {"tags": []})
    assert third.source == "[data](../../data/README.md), [next](04_x.ipynb)"


def test_the_command_writes_numbered_notebooks_only(tmp_path, notebook, capsys):
    for name in ("03_x.ipynb", "out.ipynb"):
        nbformat.write(notebook, tmp_path / name)
    main([str(tmp_path)])
    assert [path.name for path in (tmp_path / "exercises").iterdir()] == ["03_x.ipynb"]
    assert "03_x.ipynb" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"no notebook NN_"):
        main([str(tmp_path / "exercises" / "none")])
