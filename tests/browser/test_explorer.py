"""An explorer in a real JupyterLab: the cells run, the slider moves, the picture changes.

Needs Playwright's Python client and a Chromium (Debian: apt-get install --no-install-recommends chromium).
Skipped without them, unless SEGKIT_REQUIRE_BROWSER=1.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parent.parent.parent
CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CELLS = [
    """from segkit.notebook.explore import explore
from segkit.notebook.plots import margins""",
    """def draw(figure, *, height=2):
    axes = figure.subplots(gridspec_kw=margins(figure, left=0.6, right=0.2, bottom=0.5, top=0.3))
    axes.plot([0, 1], [0, height])
    axes.set(xlabel="x, px", ylabel="y, px", ylim=(0, 5))""",
    """explore(draw, twin=[{"height": 1}, {"height": 4}], alt="A line that rises.", height=[1, 2, 3, 4])""",
]


def missing(reason):
    if os.environ.get("SEGKIT_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab of its own; yields the folder that it shows and a function from file name to address."""
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("notebooks")
    settings = home / "config" / "labconfig" / "default_setting_overrides.json"
    settings.parent.mkdir(parents=True)
    overrides = {
        "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
        "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # cells out of sight exist too
    }
    settings.write_text(json.dumps(overrides))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("SEGKIT_", "PYTEST_"))
    }
    environment |= {
        "HOME": str(home),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    options += [
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={folder}",
        "--ServerApp.port_retries=0",
    ]
    log = (home / "server.log").open("wb")
    command = [sys.executable, "-m", "jupyterlab", *options]
    server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        _wait_for(f"http://127.0.0.1:{port}/api/status?token={token}", server, home / "server.log")
        yield folder, lambda name: f"http://127.0.0.1:{port}/lab/tree/{name}?token={token}&reset"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()


def _wait_for(address, server, log, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A fresh Chromium's page."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("Playwright is not installed: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        missing("no Chromium found: apt-get install --no-install-recommends chromium")
    with sync_playwright() as playwright:
        profile = str(tmp_path_factory.mktemp("profile"))
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=chromium,
            args=CHROMIUM_FLAGS,
            viewport={"width": 1400, "height": 1000},
        )
        yield context.new_page()
        context.close()


def run_all_and_move_a_slider(page, address, timeout):
    """Runs a notebook's cells in JupyterLab and moves its first explorer's slider by one."""
    from playwright.sync_api import expect

    page.goto(address)
    # The cell indicator is idle before the kernel is connected, and Run All then runs nothing.
    expect(page.locator("#jp-main-statusbar")).to_contain_text("| Idle", timeout=90_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    picture = page.locator(".jp-Notebook .segkit-explorer img").first
    error = page.locator('.jp-Notebook [data-mime-type="application/vnd.jupyter.stderr"]').first
    expect(picture.or_(error).first).to_be_visible(timeout=timeout)
    assert not error.is_visible(), error.inner_text()

    before = picture.get_attribute("src")
    assert picture.get_attribute("alt")
    slider = page.locator(".jp-Notebook .segkit-explorer").get_by_role("slider").first
    slider.focus()
    slider.press("ArrowRight")
    expect(picture).not_to_have_attribute("src", before, timeout=20_000)
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 900


def test_a_slider_moves_the_picture(page, lab):
    folder, address = lab
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(notebook, folder / "explorer.ipynb")
    run_all_and_move_a_slider(page, address("explorer.ipynb"), timeout=90_000)


def test_the_main_notebook_is_alive(page, lab):
    source = ROOT / "notebooks" / "03_ldn_train.ipynb"
    if not source.is_file():
        pytest.skip("notebook 03 is not there")
    folder, address = lab
    notebook = nbformat.read(source, 4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    for name, value in {"epochs": 1, "limit_train": 8, "limit_val": 4}.items():  # its default run is nbval's
        parameters.source, changes = re.subn(rf"(?m)^{name} = \d+", f"{name} = {value}", parameters.source)
        assert changes == 1, name
    nbformat.write(notebook, folder / source.name)
    run_all_and_move_a_slider(page, address(source.name), timeout=400_000)
