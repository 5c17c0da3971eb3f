import pytest
import torch
import torchvision

from segkit.models.resnet import ResNet


@pytest.mark.parametrize("depth", [18, 50])
def test_maps_equal_torchvisions(depth):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(f"resnet{depth}", weights=None).eval()
    ours = ResNet(depth).eval()
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    ours.load_state_dict(state)  # strict
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        maps = ours(x)
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for m, name, channels in zip(
            maps, ("layer1", "layer2", "layer3", "layer4"), ours.channels, strict=True
        ):
            x = getattr(theirs, name)(x)
            assert torch.equal(m, x)
            assert m.shape[1] == channels
