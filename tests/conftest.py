"""What all tests share: `--all-models`, and one thread for each of several workers."""

import os


def pytest_addoption(parser):
    parser.addoption(
        "--all-models",
        action="store_true",
        help="run forward and backward on every model, not on one small one per code path",
    )


def pytest_configure(config):
    # Read where the model tests are collected, in the workers too.
    if config.getoption("--all-models"):
        os.environ["SEGKIT_ALL_MODELS"] = "1"
    # Several workers with several threads each would spin against each other; notebook kernels inherit this.
    if config.getoption("numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
