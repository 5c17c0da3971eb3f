"""`pytest --nbval` collects the numbered notebooks, and nothing that papermill or `make exercises` left."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent


def test_only_numbered_notebooks_are_collected(tmp_path):
    # The settings are the repository's; the notebooks are tiny, under the committed names if there are any.
    for name in ("pyproject.toml", "tests/nbval_sanitize.cfg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    numbered = [path.name for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")] or [
        "03_ldn_train.ipynb"
    ]
    stray = [
        "out.ipynb",
        "runs/03_ldn_train.ipynb",
        "notebooks/out.ipynb",
        "notebooks/.ipynb_checkpoints/03_x.ipynb",
    ]
    stray += ["notebooks/exercises/03_ldn_train.ipynb", "notebooks/Untitled.ipynb", "tests/out.ipynb"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    for name in [*(f"notebooks/{name}" for name in numbered), *stray]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, tmp_path / name)

    command = [sys.executable, "-m", "pytest", "--nbval", "--collect-only", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    collected = {line.split("::")[0] for line in result.stdout.splitlines() if "::" in line}
    assert collected == {f"notebooks/{name}" for name in numbered}
