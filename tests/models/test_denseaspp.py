import pytest
import torch
import torchvision
from torch import nn

from segkit.measure import cost, peak_memory, receptive_field
from segkit.models import denseaspp, densenet
from segkit.models.denseaspp import DenseASPP, ReleasedHead, check_dilations


def on_meta(depth=121, **options):
    with torch.device("meta"):
        return DenseASPP(depth, **{"num_classes": 19, **options})


@pytest.fixture
def tiny(monkeypatch):
    """DenseASPP on a DenseNet of two units a block, in place of the one with DenseNet-121."""
    monkeypatch.setitem(densenet.CONFIGURATIONS, 121, (8, 16, (2, 2, 2, 2)))
    monkeypatch.setitem(denseaspp.WIDTHS, 121, (6, 4))
    return lambda **options: DenseASPP(121, **{"num_classes": 3, **options})


def small_head(**options):
    return ReleasedHead(6, **{"dilations": (1, 2, 4), "squeezed": 4, "growth": 2, "dropout": 0.0, **options})


@pytest.mark.parametrize(
    ("depth", "params", "head", "macs"),
    [
        (121, 8_280_851, 801_683, "308.8"),
        (161, 35_395_427, 6_483_587, "1239.5"),
        (169, 18_420_675, 4_550_083, "638.3"),
        (201, 28_639_987, 8_701_939, "970.7"),
    ],
)
def test_size_and_work(depth, params, head, macs):
    model = on_meta(depth)
    assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
    found = cost(model, (1024, 2048))
    assert (found.params, f"{found.macs / 1e9:.1f}") == (params, macs)
    assert sum(p.numel() for part in (model.head, model.classifier) for p in part.parameters()) == head
    assert sum(p.numel() for p in model.parameters()) == params


def test_field_of_the_head():
    head = small_head(dilations=(3, 6, 12, 18, 24))
    assert receptive_field(head, channels=6).size == (127, 127)


def test_concatenation_is_new_then_old():
    torch.manual_seed(0)
    head = small_head().eval()
    x = torch.randn(2, 6, 5, 7)
    with torch.no_grad():
        parts = head.parts(x)
        first = head.layers[0](x)
        second = head.layers[1](first, x)
        third = head.layers[2](second, first, x)
        assert all(map(torch.equal, parts, (third, second, first, x)))
        assert torch.equal(head(x), torch.cat([third, second, first, x], dim=1))
    assert head.channels_out == head(x).shape[1] == 12


def test_the_first_relu_leaves_the_shared_features_alone():
    """In the release that ReLU worked in place: all that followed saw rectified features."""
    torch.manual_seed(0)
    head = small_head()  # train mode: a fresh norm in eval mode is the identity and would hide it
    x = torch.randn(2, 6, 5, 7)
    before = x.clone()
    with torch.no_grad():
        out = head(x)
        assert torch.equal(x, before)
        assert torch.equal(out[:, -6:], before)
        released = head(before.relu())  # what it amounts to
    assert torch.equal(out[:, 4:6], released[:, 4:6])  # the first layer's own maps are the same
    assert (out[:, 2:4] - released[:, 2:4]).abs().max() > 0.01


def test_norms_of_the_head():
    model = on_meta()
    first, *others = model.head.layers
    assert first.norm1 is None
    assert {layer.norm1.momentum for layer in others} == {layer.norm2.momentum for layer in others} == {3e-4}
    assert [layer.norm1.num_features for layer in others] == [576, 640, 704, 768]
    assert all(m.bias is not None for m in model.head.modules() if isinstance(m, torch.nn.Conv2d))


def test_dropout_in_training_only():
    torch.manual_seed(0)
    head = small_head(dropout=0.5)
    x = torch.randn(4, 6, 5, 7)
    dropped = (head(x)[:, :6] == 0).all(-1).all(-1)  # whole maps
    assert dropped.any()
    assert not dropped.all()
    assert not (head.eval()(x)[:, :6] == 0).any()


@pytest.mark.parametrize("size", [(8, 8), (9, 21), (13, 12), (65, 97), (64, 128)])
def test_any_size(tiny, size):
    model = tiny()
    x = torch.zeros(2, 3, *size)
    cells = tuple((side + 3) // 8 for side in size)
    assert {name: t.shape for name, t in model(x).items()} == {"out": (2, 3, *size)}
    assert model.features(x).shape == (2, 16, *cells)
    assert model(x, full_size=False)["out"].shape == (2, 3, *cells)


@pytest.mark.parametrize("labels", ["unit,stem,td,spp,tu", "cat,nested,3x3,spp:2", "block:3,td:4"])
def test_recomputation_changes_nothing(tiny, labels):
    """Dropout draws the same maps again; statistics are updated once."""
    results = []
    for recompute in (None, labels):
        torch.manual_seed(0)
        model = tiny(recompute=recompute).double()
        model(torch.randn(2, 3, 24, 24, dtype=torch.float64))["out"].square().mean().backward()
        results.append([*(p.grad for p in model.parameters()), *model.buffers()])
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-8, atol=1e-12)


def test_recomputation_saves_memory(tiny):
    def peak(labels):
        with torch.device("meta"):
            return peak_memory(tiny(recompute=labels), 4, (256, 512)).total

    plain, head, most = map(peak, (None, "spp,tu", "unit,stem,td,spp,tu"))
    assert most < head < plain


def test_imagenet_weights_under_their_old_names(tmp_path, monkeypatch):
    """The files that torchvision offers name layers norm.1 where its modules, and ours, have norm1."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    theirs = torchvision.models.densenet121(weights=None).state_dict()
    old = {}
    for key, value in theirs.items():
        if key.endswith("num_batches_tracked"):  # younger than the files
            continue
        for name in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in key:
                key = key.replace(name, f"{name[:-1]}.{name[-1]}")
        old[key] = value
    url = torchvision.models.DenseNet121_Weights.IMAGENET1K_V1.url
    torch.save(old, folder / url.rpartition("/")[2])
    model = DenseASPP(121, num_classes=2)
    assert model.pretrained_parameters() == []
    model.load_imagenet()
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, theirs[f"features.{key}"]), key
    assert {id(p) for p in model.pretrained_parameters()} == {id(p) for p in model.backbone.parameters()}
    with pytest.raises(ValueError, match="meta device holds no weights"):
        on_meta().load_imagenet()


def test_missing_weights_say_how_to_go_on(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(
        RuntimeError, match=r"weights for densenet121: no route.*Download http.*weights='none'"
    ):
        DenseASPP(121, num_classes=2).load_imagenet()


def test_a_single_cell_cannot_be_trained_on(tiny):
    model, x = tiny(), torch.zeros(1, 3, 12, 12)
    with pytest.raises(ValueError, match=r"Cannot train .*single image of 12x12.*one value per channel"):
        model(x)
    assert model(x.expand(2, -1, -1, -1))["out"].shape == (2, 3, 12, 12)
    assert model(torch.zeros(1, 3, 12, 13))["out"].shape == (1, 3, 12, 13)
    assert model.eval()(x)["out"].shape == (1, 3, 12, 12)


def test_one_cell_per_process_can_be_trained_on(tiny, processes):
    model, x = nn.SyncBatchNorm.convert_sync_batchnorm(tiny()), torch.zeros(1, 3, 12, 12)
    assert model(x)["out"].shape == (1, 3, 12, 12)
    processes[0] = 1
    with pytest.raises(ValueError, match="Cannot train on a single image"):
        model(x)


def test_images_cost_no_walk_over_the_network(tiny, visited):
    model = tiny().eval()
    visited.clear()
    with torch.no_grad():
        model(torch.zeros(1, 3, 24, 24))
    assert not visited


def test_too_small_images():
    with pytest.raises(ValueError, match=r"7x64 pixels are too small.*at least 8x8"):
        on_meta()(torch.empty(2, 3, 7, 64, device="meta"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 122}, "No DenseASPP with DenseNet-122; there are 121, 161, 169, 201"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"dilations": (6, 3)}, r"dilations=\(6, 3\): 3 after 6 does not increase"),
        ({"recompute": "skip"}, "No segments labelled 'skip'.*cat1x1.*spp, tu"),
        ({"recompute": "td:5"}, "No 'td:5' in this network: td has 1, 2, 3, 4"),
        ({"recompute": "spp:6"}, "No 'spp:6' in this network: spp has 1, 2, 3, 4, 5"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        on_meta(**options)


@pytest.mark.parametrize("dilations", [(), (3, 0), (3.0, 6), (True, 2), 3, "36", None])
def test_dilations_that_are_none(dilations):
    with pytest.raises(ValueError, match="give the dilation of each atrous layer"):
        check_dilations(dilations)


@pytest.mark.parametrize("dilations", [(3, 3), (3, 12, 6), (24, 18)])
def test_dilations_that_do_not_increase(dilations):
    with pytest.raises(ValueError, match="does not increase"):
        check_dilations(dilations)
