"""Arguments that model tests are parametrised over.

``small_name`` is one small model per distinct code path, ``other_name`` every other one. With
``--all-models`` (which sets SEGKIT_ALL_MODELS=1) ``small_name`` is every model.
"""

import os

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
)


def pytest_generate_tests(metafunc):
    everything = os.environ.get("SEGKIT_ALL_MODELS") == "1"
    if "small_name" in metafunc.fixturenames:
        metafunc.parametrize("small_name", sorted(MODELS) if everything else ONE_PER_CODE_PATH)
    if "other_name" in metafunc.fixturenames:
        metafunc.parametrize("other_name", sorted(set(MODELS) - set(ONE_PER_CODE_PATH)))
