"""The plumbing agrees with itself: pins, bounds, environment, layout, import direction."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    return dict(line.split("==") for line in lines if line)


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def test_requirements_are_exact_pins():
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        line = line.split("#")[0].strip()
        assert not line or re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line), f"not an exact pin: {line!r}"


def test_every_lower_bound_is_pinned_at_or_above(project):
    extras = project["project"]["optional-dependencies"].values()
    bounds = [*project["project"]["dependencies"], *(bound for extra in extras for bound in extra)]
    for bound in bounds:
        name, lowest = bound.split(">=")
        assert name in pins(), f"{name} has a bound in pyproject.toml and no pin in requirements.txt"
        assert version(pins()[name]) >= version(lowest), f"{name}: pin {pins()[name]} below bound {lowest}"


def test_what_the_user_asked_for_is_pinned():
    asked = {
        "torch",
        "torchvision",
        "jupyterlab",
        "ipywidgets",
        "matplotlib",
        "seaborn",
        "papermill",
        "nbval",
    }
    assert asked <= set(pins())


def test_environment_installs_the_requirements(project):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip == ["-r requirements.txt", "-e ."]
    assert conda == ["python" + project["project"]["requires-python"], "pip"]


def test_installed_versions_are_the_pinned_ones():
    """Only where requirements.txt was installed: elsewhere (a bare GPU machine) other versions are fine."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        here = {name: installed(name) for name in pins()}
    except PackageNotFoundError as missing:
        pytest.skip(f"{missing.name} is not installed: not the pinned environment")
    differing = {n: (v, pins()[n]) for n, v in here.items() if version(v.split("+")[0]) != version(pins()[n])}
    if len(differing) > 3:
        pytest.skip("another environment than the pinned one")
    assert not differing


def test_top_level_is_what_was_asked_for():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    if not tracked:
        pytest.skip("not a git checkout")
    visible = {path.split("/")[0] for path in tracked if not path.startswith(".")}
    assert visible <= {
        *("README.md", "environment.yml", "notebooks", "segkit", "data", "tests"),
        *("pyproject.toml", "requirements.txt", "Makefile", "LICENSE", "CITATION.cff", "CONTRIBUTING.md"),
    }
    assert "segkit/data/__init__.py" in tracked, ".gitignore hides segkit/data/"


def test_core_imports_without_plotting_or_notebook_packages():
    """The bare GPU machine: torch, torchvision, numpy and Pillow alone."""
    code = """
import sys
from importlib.machinery import ModuleSpec
class Refuse:  # libraries may look whether a module is there; importing it is what must not happen
    def find_spec(self, name, path=None, target=None):
        if name in ("matplotlib", "seaborn", "pandas", "ipywidgets", "IPython", "nbformat", "papermill"):
            return ModuleSpec(name, self)
    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Refuse())
import segkit.measure, segkit.memory, segkit.models, segkit.data, segkit.data.streets, segkit.evaluation
import segkit.training, segkit.train, segkit.evaluate, segkit.predict
import segkit.bench.__main__, segkit.bench.memory, segkit.bench.streets, segkit.bench.plans
import segkit.bench.checkpointing, segkit.bench.reversible
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bench_lists_and_refuses():
    from segkit.bench.__main__ import main, names

    assert "streets" in names()
    assert main([]) == 0
    assert main(["street"]) == 2


def test_citation_and_package_say_the_same_version(project):
    import segkit

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["project"]["version"] == segkit.__version__


def test_the_readmes_python_prints_what_it_says(capsys):
    readme = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec(block, {})
    promised = re.findall(r"print\(.*\)  # (\S*\(.*\)|\d+)", block)
    assert [line.split(" bytes")[0] for line in promised] == capsys.readouterr().out.splitlines()


def test_the_readme_is_finished_and_its_links_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "data" / "README.md", ROOT / "CONTRIBUTING.md"):
        text = page.read_text()
        assert "@@" not in text
        for target in re.findall(r"\]\(([^)\s#]+)\)", text):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
