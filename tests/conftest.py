"""What all tests share: `--all-models`, and one thread for each of several workers."""

import os

import torch


def pytest_addoption(parser):
    parser.addoption(
        "--all-models",
        action="store_true",
        help="run forward and backward on every model, not on one small one per code path",
    )


def pytest_configure(config):
    # The model tests read the variable where they are collected, in workers too.
    if config.getoption("--all-models"):
        os.environ["SEGKIT_ALL_MODELS"] = "1"
    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)
