"""Rendering: what is taken out, what is refused, and that doing it twice changes nothing."""

import nbformat
import pytest

from segkit.notebook import render
from segkit.notebook.render import KERNELSPEC, find, main, normalize, problems

STREAM = {"name": "stdout", "text": "a\n"}


def notebook(*sources, **metadata):
    cells = [nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    metadata = {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}, **metadata}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def stream(name, text):
    return nbformat.v4.new_output("stream", name=name, text=text)


def test_normalize_takes_out_what_tools_and_machines_add():
    dirty = notebook("1", widgets={"state": {}}, papermill={"duration": 1.0})
    dirty.metadata.language_info.version = "3.11.7"
    cell = dirty.cells[0]
    cell.metadata.update(
        papermill={"duration": 1}, execution={"iopub": "t"}, tags=[], jupyter={"source_hidden": True}
    )
    cell.outputs = [
        stream("stdout", "a\n"),
        stream("stdout", "b\n"),
        stream("stderr", "c\n"),
        stream("stdout", "d\n"),
    ]
    clean = normalize(dirty)
    assert clean.metadata == {"kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
    assert clean.cells[0].metadata == {"jupyter": {"source_hidden": True}}
    assert [output.text for output in clean.cells[0].outputs] == ["a\nb\n", "c\n", "d\n"]
    nbformat.validate(clean)


def test_tags_that_are_there_stay():
    tagged = notebook("1")
    tagged.cells[0].metadata.tags = ["parameters"]
    assert normalize(tagged).cells[0].metadata == {"tags": ["parameters"]}


def test_problems_name_what_may_not_be_committed():
    bad = notebook("1", "2", "3")
    assert "execution counts" in problems(bad)[0]
    for count, cell in enumerate(bad.cells, start=1):
        cell.execution_count = count
    assert problems(bad) == []
    bad.cells[1].outputs = [stream("stderr", "a warning\n")]
    bad.cells[2].outputs = [nbformat.v4.new_output("error", ename="KeyError", evalue="", traceback=[])]
    assert problems(bad) == ["cell 2 writes to stderr: 'a warning'", "cell 3 raises KeyError"]
    bad.cells[1].outputs, bad.cells[2].outputs = [stream("stdout", "x" * 500_001)], []
    assert "over 500 KB" in problems(bad)[0]


def test_rendering_twice_gives_the_same_bytes(tmp_path, capsys):
    path = tmp_path / "03_small.ipynb"
    drawing = (
        "from IPython.display import display\nprint('one', flush=True)\nprint('two', flush=True)\n"
        "display({'image/png': b'picture', 'text/plain': 'A line that rises.'}, raw=True)"
    )
    nbformat.write(notebook("size = 3  # a parameter", drawing), path)
    assert main(["--folder", str(tmp_path), "03"]) == 0
    assert "03_small.ipynb: " in capsys.readouterr().out
    first = path.read_bytes()
    done = nbformat.read(path, 4)
    assert problems(done) == [] and list(tmp_path.iterdir()) == [path]
    assert done.cells[1].outputs[0].text == "one\ntwo\n"
    assert done.cells[1].outputs[1].data["text/plain"] == "A line that rises."
    assert main(["--folder", str(tmp_path)]) == 0
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import sys; print('oh', file=sys.stderr)", "cell 1 writes to stderr: 'oh'"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_notebook_that_may_not_be_committed_is_left_as_it_was(tmp_path, capsys, source, message):
    path = tmp_path / "03_bad.ipynb"
    nbformat.write(notebook(source), path)
    before = path.read_bytes()
    assert main(["--folder", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
    assert path.read_bytes() == before


def test_find(tmp_path):
    for name in ("03_a.ipynb", "04_b.ipynb", "out.ipynb"):
        (tmp_path / name).touch()
    assert [path.name for path in find([], tmp_path)] == ["03_a.ipynb", "04_b.ipynb"]
    assert [path.name for path in find(["04", "04_b.ipynb"], tmp_path)] == ["04_b.ipynb"]
    with pytest.raises(FileNotFoundError, match=r"no notebook begins with '05'; there are: 03_a, 04_b"):
        find(["05"], tmp_path)
    with pytest.raises(SystemExit):
        render.main(["--folder", str(tmp_path), "05"])
