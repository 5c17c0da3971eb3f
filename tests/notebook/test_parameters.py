"""check_parameters, on histories as IPython, papermill and nbval leave them."""

import subprocess
import sys

import nbformat
import pytest

from segkit.notebook import parameters
from segkit.notebook.parameters import (
    ParameterError,
    at_least,
    between,
    check_parameters,
    existing_folder_or_empty,
    multiple_of,
    one_of,
    positive,
)

CELL = """epochs = 8  # passes over the training images
rate = 4e-4  # initial learning rate
amp = False  # mixed precision
dataset = "streets"  # or camvid
data_dir = ""  # where the data is; empty: the default place
"""
RULES = {"epochs": range(1, 1001), "rate": positive, "dataset": one_of("streets", "camvid")}


def run(injected="", *, rules=RULES, before=(), after=(), history=True):
    """Runs the cells as a kernel does and returns the sentence of the error, or None."""
    scope = {"check_parameters": check_parameters, "rules": rules}
    cells = [*before, CELL, *([f"# Parameters\n{injected}\n"] if injected else []), *after]
    for cell in cells:
        exec(cell, scope)
    call = "check_parameters(**rules)"
    scope["In"] = ["", *cells, call] if history else [""]
    try:
        exec(call, scope)
    except ParameterError as error:
        return str(error)
    return None


@pytest.mark.parametrize("injected", ["", "epochs = 300", "rate = 1", 'amp = True\ndataset = "camvid"'])
def test_good_values_pass(injected):
    assert run(injected) is None


@pytest.mark.parametrize(
    ("injected", "sentence"),
    [
        ("epoch = 3", "unknown parameter epoch; did you mean epochs?"),
        ("zoom = 3", "unknown parameter zoom; the parameters are epochs, rate, amp, dataset, data_dir"),
        ("epochs = 3.0", "epochs must be a whole number like 8, got 3.0"),
        ("epochs = True", "epochs must be a whole number like 8, got True"),
        ("amp = 1", "amp must be True or False like False, got 1"),
        (
            'amp = "true"',
            "amp must be True or False like False, got 'true': papermill reads true as text, "
            "write -p amp True",
        ),
        ("rate = '1e-3x'", "rate must be a number like 0.0004, got '1e-3x'"),
        ("rate = float('nan')", "rate must be a number above 0, got nan"),
        ("epochs = 0", "epochs must be a whole number from 1 to 1000, got 0"),
        (
            "dataset = 'street'",
            "dataset must be one of 'streets', 'camvid', got 'street'; did you mean 'streets'?",
        ),
        (
            "data_dir = 2024",
            "data_dir must be text like '', got 2024: pass text that looks like a number or a word such as "
            "None with -r instead of -p",
        ),
    ],
)
def test_each_mistake_has_its_sentence(injected, sentence):
    assert run(injected) == sentence


def test_without_history_only_the_values_are_checked():
    assert run(history=False) is None
    assert run("epochs = 0", history=False) == "epochs must be a whole number from 1 to 1000, got 0"
    assert run(history=False, rules={"seeds": positive}).startswith("seeds has a rule but no value")


def test_an_answer_that_looks_like_parameters_is_not_taken_for_them():
    assert run("epoch = 3", after=["answer = 0.5\n", "blank = ...\n"]).startswith("unknown parameter epoch")


def test_an_injection_older_than_the_parameters_cell_no_longer_counts():
    assert run(before=["# Parameters\nepoch = 3\n"]) is None


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (multiple_of(32), [32, 768], [0, 33, -32, "32", True]),
        (one_of("a", 1), ["a", 1], ["b", 2, True, 1.0]),
        (between(0.5, 2), [0.5, 2], [0.4, float("inf"), "1", None]),
        (at_least(0), [0, 7], [-1, "0"]),
        (positive, [1, 0.1], [0, -1, True, float("inf")]),
        (existing_folder_or_empty, ["", "/", "~"], ["/no/such/folder", None, 3]),
        (parameters._as_rule(range(32, 97, 32)), [32, 96], [48, 128, 32.0, True]),
    ],
)
def test_rules(rule, good, bad):
    assert [rule.holds(value) for value in good] == [True] * len(good)
    assert [rule.holds(value) for value in bad] == [False] * len(bad)


@pytest.mark.parametrize(
    "source", ["a = b", "a = 1\nprint(a)", "a = b = 1", "a, b = 1, 2", "a = ...", "", "a ="]
)
def test_a_cell_with_anything_but_literals_declares_nothing(source):
    assert parameters.declared(source) is None


def test_declared_reads_every_plain_literal():
    assert parameters.declared("a = -1\nb = 'x'  # why\nc = [1, 2.5]\n") == {"a": -1, "b": "x", "c": [1, 2.5]}


def test_papermill_exits_1_with_the_sentence(tmp_path):
    notebook = nbformat.v4.new_notebook(
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
        }
    )
    notebook.cells = [
        nbformat.v4.new_code_cell("epochs = 8  # passes", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "from segkit.notebook.parameters import check_parameters\ncheck_parameters(epochs=range(1, 9))"
        ),
    ]
    nbformat.write(notebook, tmp_path / "in.ipynb")

    command = [
        sys.executable,
        "-m",
        "papermill",
        "in.ipynb",
        "out.ipynb",
        "--no-progress-bar",
        "-p",
        "epoch",
        "3",
    ]
    wrong = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "ParameterError: unknown parameter epoch; did you mean epochs?" in wrong.stderr
    outputs = nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs
    assert outputs[0].traceback == ["ParameterError: unknown parameter epoch; did you mean epochs?"]
