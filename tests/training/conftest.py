"""What the training tests share: the module tiny.py, and a way to run it as a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def tiny():
    """The module tests/training/tiny.py."""
    spec = importlib.util.spec_from_file_location("segkit_tests_tiny", HERE / "tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def run_process(tmp_path_factory):
    """Runs tiny.py with arguments, on one process or by torchrun on several; returns exit status and output.

    The output goes through a file: loading workers that outlive a killed process would hold a pipe open.
    """

    def run(*arguments, processes=1):
        launcher = []
        if processes > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *launcher, str(HERE / "tiny.py"), *map(str, arguments)]
        output = tmp_path_factory.mktemp("process") / "output"
        with output.open("wb") as file:
            done = subprocess.run(command, env=environment, stdout=file, stderr=file, timeout=200)
        return done.returncode, output.read_text()

    return run


@pytest.fixture
def one_thread():
    """Sums are then added in one order, here and in a process of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
