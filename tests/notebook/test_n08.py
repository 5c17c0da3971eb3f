"""The exercises of notebook 08: right answers, typical wrong ones, and that each gets its own hint."""

import pytest
import torch
import torch.nn.functional as F

from segkit import models
from segkit.notebook import joint
from segkit.notebook.exercises import n08

EXERCISES = n08.EXERCISES


@pytest.mark.parametrize(
    ("name", "answer", "part"),
    [
        ("08.1", 0.58, "turn it over"),
        ("08.1", 2.10, "frames per second"),
        ("08.1", 3.0, "too large"),
        ("08.4", 52.98, "turned over"),
        ("08.4", 52.10, "59 classes"),
        ("08.4", 51.1, "one point less"),
    ],
)
def test_numbers_that_people_come_up_with(name, answer, part):
    assert part in EXERCISES[name].hint(answer)


@pytest.mark.parametrize(("name", "answer"), [("08.1", 1.72), ("08.4", 51.23)])
def test_the_right_numbers(name, answer):
    assert EXERCISES[name].hint(answer) is None


def test_the_ratio_is_that_of_the_networks():
    dilated, jpu = (joint.whole(f"r101-psp-{up}").macs for up in ("none", "jpu"))
    assert (f"{dilated / 1e9:.2f}", f"{jpu / 1e9:.2f}") == (str(n08.PSP_DILATED), str(n08.PSP_JPU))


def test_the_phases_are_those_of_a_dilated_convolution():
    for case in EXERCISES["08.2"].cases:
        x, weight, rate = case()
        dilated = F.conv1d(x, weight, padding=rate * (weight.shape[2] // 2), dilation=rate)
        assert torch.allclose(n08._from_phases(x, weight, rate), dilated, atol=1e-6)


def test_a_merge_written_out_is_the_modules():
    for case in EXERCISES["08.3"].cases:
        jpu, *maps = case()
        jpu.eval()
        written = n08._looked_at(jpu, n08._merged(jpu, maps))
        assert torch.equal(written, jpu(maps))


def test_the_list_of_the_first_release_lacks_the_jpu():
    net, groups = EXERCISES["08.5"].cases[0]()
    assert n08._missing(net, groups) == sum(p.numel() for p in net["up"].parameters()) > 0
    tensors = sum(len(group["params"]) for group in groups)
    assert repr(groups) == f"of 2 groups, {tensors} tensors"
    assert repr(n08.Groups([{"params": [torch.zeros(1)] * 2}])) == "of 1 group, 2 tensors"
    model = models.build("fastfcn-r50-enc-jpu", num_classes=59, device="meta")
    optimizer = torch.optim.SGD(
        [{"params": part.parameters()} for part in (model.backbone, model.head, model.aux)], lr=0.1
    )
    assert n08._missing(model, optimizer.param_groups) == 19_735_552
