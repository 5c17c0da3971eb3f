"""The parts add up to the whole, carry the paper's names, and the rungs are what the heads say."""

import pytest
import torch

from segkit import measure, models
from segkit.data.transforms import normalize
from segkit.evaluation import predict
from segkit.notebook.ladder import anatomy, ribbon, rungs


@pytest.mark.parametrize("name", ["ldn121-64-4", "ldn121-32-4", "ldn121-128-4", "ldn121-64-4-dws"])
def test_parts_add_up_to_the_model(name):
    parts = anatomy(name, (256, 256))
    whole = measure.cost(models.build(name, device="meta"), (256, 256))
    assert sum(part.params for part in parts.values()) == whole.params
    assert sum(part.macs for part in parts.values()) == whole.macs


def test_parts_have_the_papers_names_in_order():
    assert list(anatomy("ldn121-64-4", (128, 128))) == [
        *("stem", "DB1", "TD1", "DB2", "TD2", "DB3a", "DB3b", "TD3", "DB4"),
        *("SPP", "TU1", "TU2", "TU3", "TU4", "logits"),
    ]


def test_first_block_has_most_of_the_work():
    parts = anatomy("ldn121-64-4", (1024, 1024))
    assert max(parts, key=lambda part: parts[part].macs) == "DB1"
    assert parts["DB1"].macs / 1e9 == pytest.approx(21.7, abs=0.1)
    assert parts["DB4"].params > 6 * parts["DB1"].params


def test_ribbon_follows_figure_2():
    stages, skips = ribbon(models.build("ldn121-64-4", device="meta"), 1024)
    assert stages == [
        *[("DB1", 256, 256), ("DB2", 512, 128), ("DB3a", 640, 64), ("DB3b", 1024, 32), ("DB4", 1024, 16)],
        *[("SPP", 256, 16), ("TU1", 256, 32), ("TU2", 256, 64), ("TU3", 128, 128), ("TU4", 128, 256)],
    ]
    assert skips == [("DB1", "TU4"), ("DB2", "TU3"), ("DB3a", "TU2"), ("DB3b", "TU1")]


def test_only_ladder_densenets_have_this_anatomy():
    with pytest.raises(ValueError, match="ladder-resnet18-32-4 is not a Ladder-DenseNet"):
        anatomy("ladder-resnet18-32-4", (64, 64))


def test_rungs_are_the_heads_answers():
    torch.manual_seed(0)
    model = models.build("ldn121-32-4", num_classes=5).train()
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    answers = rungs(model, image)
    assert model.training
    assert list(answers) == [32, 16, 8, 4]
    assert all(answer.shape == (64, 96) for answer in answers.values())
    assert torch.equal(answers[4], predict(model, normalize(image[None])).argmax(1)[0])
