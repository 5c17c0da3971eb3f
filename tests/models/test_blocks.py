"""Parts of several networks, and what models ask of their arguments and norms."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from segkit.models.blocks import ConvNormReLU, SqueezeExcite, as_integer, check_classes, norms_train


@pytest.mark.parametrize(("kernel", "stride", "relu"), [(1, 1, True), (3, 2, True), (5, 1, False)])
def test_convolution_norm_relu_by_hand(kernel, stride, relu):
    torch.manual_seed(0)
    module = ConvNormReLU(3, 4, kernel, stride=stride, relu=relu).double()
    conv, norm = module[0], module[1]
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    y = F.conv2d(x, conv.weight, stride=stride, padding=kernel // 2)
    assert y.shape[2:] == (-(-7 // stride), -(-8 // stride))
    y = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    y = y * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(module(x), y.relu() if relu else y)
    assert conv.bias is None


def test_gates_lie_between_0_and_1():
    torch.manual_seed(0)
    x = torch.rand(2, 8, 3, 4)
    ratio = SqueezeExcite(8, 2)(x) / x
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio))
    assert ratio.min() > 0
    assert ratio.max() < 1


@pytest.mark.parametrize("value", [7, np.int64(7), np.uint8(7), torch.tensor(7)])
def test_integers_of_any_library_become_pythons(value):
    assert as_integer(value) == 7
    assert type(as_integer(value)) is int
    assert type(check_classes(value)) is int


@pytest.mark.parametrize("value", [True, np.True_, 7.0, np.float64(7), "7", None, (7,), torch.tensor(7.0)])
def test_all_else_is_no_integer(value):
    assert as_integer(value) is None
    with pytest.raises(ValueError, match=r"num_classes=.*an integer of at least 1 is needed"):
        check_classes(value)


def test_too_few_classes():
    assert check_classes(1) == 1
    assert check_classes(5, 5) == 5
    with pytest.raises(ValueError, match="num_classes=0: an integer of at least 1 is needed"):
        check_classes(0)
    with pytest.raises(ValueError, match="num_classes=4: five parts, so an integer of at least 5 is needed"):
        check_classes(4, 5, because="five parts, so ")


def test_norms_are_asked_and_not_their_parts():
    frozen, other = nn.Sequential(ConvNormReLU(3, 4), nn.Conv2d(4, 2, 1)), ConvNormReLU(3, 4)
    assert norms_train(frozen)
    frozen[0][1].eval()
    assert frozen.training
    assert not norms_train(frozen)
    assert not norms_train()
    assert norms_train(frozen, other)
    other.eval()
    assert not norms_train(frozen, other)
    other[1].train()
    assert norms_train(frozen, other)
    assert not norms_train(nn.GroupNorm(2, 4))  # has no use for a batch


def test_norms_over_several_processes_see_more_than_one_image(processes):
    plain, norm = nn.BatchNorm2d(4), nn.SyncBatchNorm(4)
    assert not norms_train(norm)
    assert norms_train(norm, plain)
    processes[0] = 1
    assert norms_train(norm)


def test_norms_without_processes_are_alone(monkeypatch):
    norm = nn.SyncBatchNorm(4)
    assert norms_train(norm)
    assert not norms_train(norm.eval())
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    groups = []
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: groups.append(group) or 2)
    norm.process_group = "its own"
    assert not norms_train(norm.train()) and groups == ["its own"]
