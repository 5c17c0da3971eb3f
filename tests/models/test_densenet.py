import pytest
import torch
import torch.nn.functional as F
import torchvision

from segkit.models.densenet import CONFIGURATIONS, DenseNet


@pytest.mark.parametrize("depth", sorted(CONFIGURATIONS))
def test_parameter_names_and_shapes_are_torchvisions(depth):
    with torch.device("meta"):
        ours, theirs = (
            DenseNet(depth),
            torchvision.models.get_model(f"densenet{depth}", weights=None).features,
        )
    expected = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("norm5")}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected


def test_features_equal_torchvisions():
    torch.manual_seed(0)
    theirs = torchvision.models.densenet121(weights=None).features.eval()
    for module in theirs.modules():  # statistics and affine parameters that matter
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    ours = DenseNet(121).eval()
    ours.load_state_dict(
        {key: value for key, value in theirs.state_dict().items() if not key.startswith("norm5")}
    )
    x = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        maps = ours(x)
        for name, module in theirs.named_children():
            if name == "norm5":
                break
            if name == "transition1":
                assert torch.equal(maps[0], x)
            x = module(x)
    assert torch.equal(maps[-1], x)


def test_split_blocks_keep_names_and_pool_in_the_middle():
    torch.manual_seed(0)
    plain, split = DenseNet(121).eval(), DenseNet(121, split=(3,)).eval()
    split.load_state_dict(plain.state_dict())  # strict: the very same names
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        *_, at8, at16, at32 = plain(x)
        maps = split(x)
        assert [m.shape[1] for m in maps] == split.channels == [256, 512, 640, 1024, 1024]
        assert [128 // m.shape[2] for m in maps] == split.strides == [4, 8, 16, 32, 64]
        # up to the split nothing changed: DB3a is the block's input and the first 12 of its 24 units
        assert torch.equal(maps[1], at8)
        assert torch.equal(maps[2], at16[:, : 256 + 12 * 32])
        # after it, the block goes on from the pooled maps
        assert torch.equal(maps[3][:, :640], F.avg_pool2d(maps[2], 2))
        assert at32.shape[2] == 2 * maps[4].shape[2]


@pytest.mark.parametrize(
    ("depth", "dilations", "without"),
    [
        (121, (1, 1, 1, 1), ["1.1", "1.2", "1.3", "2.1"]),
        (161, (1, 1, 1, 1), ["1.1", "1.2", "1.3", "2.1"]),
        (121, (1, 1, 2, 4), ["1.1", "1.2"]),  # of exactly 4k = 128 maps: kept on the dilated rows
    ],
)
def test_paper_count_leaves_out_narrow_bottlenecks(depth, dilations, without):
    with torch.device("meta"):
        network = DenseNet(depth, dilations=dilations, paper_count=True)
    found = [
        f"{b}.{i}"
        for b in range(1, 5)
        for i, unit in enumerate(getattr(network, f"denseblock{b}").values(), start=1)
        if not hasattr(unit, "conv1")
    ]
    assert found == without


def test_dilation_keeps_the_resolution():
    with torch.device("meta"):
        network = DenseNet(121, dilations=(1, 1, 2, 4))
        maps = network(torch.empty(1, 3, 64, 64))
    assert network.strides == [4, 8]
    assert [tuple(m.shape[1:]) for m in maps] == [(256, 16, 16), (1024, 8, 8)]
    conv = network.denseblock4.denselayer1.conv2
    assert (conv.dilation, conv.padding) == ((4, 4), (4, 4))


def test_stem_variants():
    with torch.device("meta"):
        x = torch.empty(1, 3, 64, 64)
        with_stem, no_pool = DenseNet(121, stem_map=True), DenseNet(121, stem_pool=False, stem_map=True)
        assert [m.shape[2] for m in with_stem(x)] == [32, 16, 8, 4, 2]
        assert with_stem.channels[0] == 64
        assert with_stem.strides == [2, 4, 8, 16, 32]
        assert [m.shape[2] for m in no_pool(x)] == [32, 16, 8, 4]
        assert no_pool.strides == [2, 4, 8, 16]


def test_fewer_units_and_another_growth():
    with torch.device("meta"):
        network = DenseNet(121, units=(2, 4, 4, 2), growth=16, dilations=(1, 1, 2, 4))
        maps = network(torch.empty(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 16, 24), (88, 8, 12)]
    assert network.conv0.weight.shape[0] == 32
    assert network.torchvision_name is None


def test_first_blocks_alone_still_fit_the_weights():
    with torch.device("meta"):
        whole, part = DenseNet(121), DenseNet(121, units=(6, 12))
        maps = part(torch.empty(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(256, 16, 24), (512, 8, 12)]
    assert (part.channels, part.strides) == ([256, 512], [4, 8])
    assert part.torchvision_name == "densenet121"
    shapes = {key: value.shape for key, value in whole.state_dict().items()}
    assert shapes.items() >= {key: value.shape for key, value in part.state_dict().items()}.items()
    with torch.device("meta"):
        assert DenseNet(121, units=(6, 11)).torchvision_name is None


def test_unknown_depth():
    with pytest.raises(ValueError, match="No DenseNet-120; there are 121, 161, 169, 201"):
        DenseNet(120)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": ()}, r"units=\(\): give the units of each of 1 to 4 dense blocks"),
        ({"units": (6, 0)}, r"units=\(6, 0\)"),
        ({"units": 6}, "units=6"),
        ({"growth": 0}, "growth=0: an integer of at least 1"),
        ({"units": (6, 12), "split": (3,)}, r"split=\(3,\): units=\(6, 12\) makes 2 dense block"),
    ],
)
def test_wrong_units_and_growth(options, message):
    with pytest.raises(ValueError, match=message):
        DenseNet(121, **options)
