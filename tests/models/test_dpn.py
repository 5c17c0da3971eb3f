import torch

from segkit.measure import cost
from segkit.models.dpn import DPN68


def test_widths_and_resolutions():
    with torch.device("meta"):
        network = DPN68()
        maps = network(torch.empty(1, 3, 224, 224))
    assert network.channels == [144, 320, 704, 832]
    assert [tuple(m.shape[1:]) for m in maps] == [(144, 56, 56), (320, 28, 28), (704, 14, 14), (832, 7, 7)]


class WithClassifier(torch.nn.Module):
    """DPN-68 as for ImageNet: batch norm, ReLU, global pooling and 1000 classes after the last block."""

    def __init__(self):
        super().__init__()
        self.features, self.norm, self.fc = DPN68(), torch.nn.BatchNorm2d(832), torch.nn.Linear(832, 1000)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.features(x)[-1])).mean((2, 3)))


def test_size_is_the_published_one():
    """DPN-68 for ImageNet has 12.61 million parameters."""
    with torch.device("meta"):
        assert round(cost(WithClassifier(), (224, 224)).params / 1e6, 2) == 12.61


def test_unit_adds_to_one_path_and_appends_to_the_other():
    torch.manual_seed(0)
    unit = DPN68().blocks[0][1].eval()
    x = torch.randn(1, 112, 5, 7)
    with torch.no_grad():
        y, new = unit(x), unit.expand(unit.conv3x3(unit.reduce(x)))
    assert torch.equal(y[:, :64], x[:, :64] + new[:, :64])
    assert torch.equal(y[:, 64:112], x[:, 64:])
    assert torch.equal(y[:, 112:], new[:, 64:])
