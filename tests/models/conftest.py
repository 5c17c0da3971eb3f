"""Arguments that model tests are parametrised over.

``small_name`` is one small model per distinct code path, ``other_name`` every other one. With
``--all-models`` (which sets SEGKIT_ALL_MODELS=1) ``small_name`` is every model. Of the 24 FastFCN it is one
per code path even then, and ``other_name`` none: tests/models/test_fastfcn.py builds each on the meta device.
"""

import os

import pytest
import torch.distributed as dist
from torch import nn

from segkit.models import MODELS

ONE_PER_CODE_PATH = (
    "dn121-32",  # no ladder
    "ldn121-64-4",  # split block
    "ldn121-32-2",  # skip from the stem
    "ldn121-16-2",  # stem without pooling
    "ldn121-64-4-dws",
    "ldn121-64-4-nospp",
    "ldn121-64-4-pspnet-spp",
    "lddn121-8-4",  # dilated, residual
    "ladder-resnet18-32-4",
    "ladder-dpn68-32-4",
    "vnet",
    "enet",
    "espnet",
    "erfnet",
    "segnet",
    "regseg",
    "regseg-row3",  # four branches, sum+3x3
    "regseg-concat-yblock",
    "regseg-lraspp",
    "regseg-sfnet",
    "regseg-bisenet",
    "regnety-600mf",
    "ddrnet23",
    "lraspp-mobilenetv3",
    "fc-hardnet70",
    "swiftnet-rn18",
    "denseaspp121",
    "denseaspp-student1",
    "denseaspp-student3",  # upsampled by 2
    "denseaspp-student5",
    "fastfcn-r50-enc-none",
    "fastfcn-r50-enc-jpu",
    "fastfcn-r50-aspp-fpn",
    "fastfcn-r50-psp-bilinear",
)


def pytest_generate_tests(metafunc):
    everything = os.environ.get("SEGKIT_ALL_MODELS") == "1"
    if "small_name" in metafunc.fixturenames:
        alike = {name for name in MODELS if name.startswith("fastfcn-")}
        every = sorted(set(MODELS) - alike | set(ONE_PER_CODE_PATH))
        metafunc.parametrize("small_name", every if everything else ONE_PER_CODE_PATH)
    if "other_name" in metafunc.fixturenames:
        others = (name for name in MODELS if not name.startswith("fastfcn-"))
        metafunc.parametrize("other_name", sorted(set(others) - set(ONE_PER_CODE_PATH)))


@pytest.fixture
def visited(monkeypatch):
    """The modules that any walk over a network has come to, in a list that grows."""
    modules, found = nn.Module.modules, []

    def noted(self, *args, **kwargs):
        for module in modules(self, *args, **kwargs):
            found.append(module)
            yield module

    monkeypatch.setattr(nn.Module, "modules", noted)
    return found


@pytest.fixture
def processes(monkeypatch):
    """A number of processes to be told of, in a list; synchronized norms, which need GPUs, do nothing."""
    number = [2]
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: number[0])
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", lambda self, x: x)
    return number
