"""The benchmark of cached features: the record, that both ways learn the same, errors."""

import json
import math

import pytest
import torch
from torch import nn

from segkit.bench import features as bench

SMALL = ("--model", "denseaspp-student1", "--image-size", "32x64", "--images", "3", "--batch", "2")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    before, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    assert bench.main([*SMALL, "--rounds", "1", "--out", str(folder)]) == 0
    torch.set_num_threads(before)
    assert torch.equal(torch.get_rng_state(), state)
    assert [path.name for path in folder.iterdir()] == ["features.json"]
    return json.loads((folder / "features.json").read_text())


def test_the_record(found):
    assert found["command"].startswith(
        "python -m segkit.bench features --model denseaspp-student1 --image-size"
    )
    assert (found["images"], found["batch_size"], found["image_size"]) == (3, 2, [32, 64])
    assert math.isfinite(found["machine"]["load_at_start"]) and found["versions"]["torch"]
    each, kept = (found["epoch"][name] for name in (bench.EACH_STEP, bench.FROM_DISK))
    assert each["ratio"] == 1 and found["faster"] == 1 / kept["ratio"]
    for row in (each, kept):
        assert 0 < row["minimum"] <= row["median"] and row["images_per_second"] == 3 / row["median"]
    saved = each["median"] - kept["median"]
    if saved > 0:
        assert found["epochs_until_it_pays"] == math.ceil(found["filling"]["seconds"] / saved)
    else:
        assert found["epochs_until_it_pays"] is None


def test_room_on_disk(found):
    filling = found["filling"]
    assert filling["shape"] == [512, 4, 8] and filling["dtype"] == "float32"
    assert 0 < filling["bytes_per_image"] - 512 * 4 * 8 * 4 < 4096
    assert filling["bytes_per_image_512x1024"] == 512 * 64 * 128 * 4
    assert filling["bytes_of_cityscapes_512x1024"] == 2975 * 512 * 64 * 128 * 4
    assert filling["seconds_per_image"] == filling["seconds"] / 3
    assert found["opening"]["seconds"] > 0


def test_both_ways_learn_the_same(found):
    """A timed epoch of two steps after an untimed one."""
    assert found["losses"] == {"steps": 4, "largest_difference": 0}


def test_float16_changes_little_but_something(found):
    half = found["float16"]
    assert 0 < half["features"] <= 2**-11  # half of the last place
    assert 0 < half["logits"] < 1e-2 and 0 < half["logits_mean"] < 1e-2
    assert 0 <= half["pixels"] < 0.05


def test_multiplications():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = nn.Conv2d(3, 4, 8, stride=8), nn.Conv2d(4, 5, 1)

        def features(self, images):
            return self.backbone(images)

        def forward(self, x, *, features, image_size):
            return {"out": self.head(features)}

    backbone, head = 2 * 3 * 4 * 3 * 64, 2 * 3 * 5 * 4
    promised = (backbone + 3 * head) / (3 * head)
    assert bench.macs(Net(), (16, 24)) == {"backbone": backbone, "head": head, "promised": promised}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "vnet", "--image-size", "32x64"), "VNet has not both a backbone and features"),
        (("--model", "denseaspp-student9"), "denseaspp-student4"),
        (("--device", "cuda"), "no GPU here: use cpu"),
        (("--images", "0"), "whole number of at least 1"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as caught:
        bench.main(["--images", "2", "--batch", "1", *arguments])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
