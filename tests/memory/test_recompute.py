"""Checkpointed steps end where plain ones do: loss, gradients and running statistics, bit for bit."""

import copy
import re
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from segkit.memory.recompute import LABELS, Freeze, Segments
from segkit.models import build
from segkit.models.blocks import CatBNReLUConv

PAPER = (
    "3x3",
    "cat1x1",
    "cat1x1,3x3",
    "block,stem,td,tu",
    "unit",
    "unit,stem,td,tu",
)  # Table 12, from the top


class Meter(TorchDispatchMode):
    """Counts multiply-adds, and bytes of storages alive."""

    def __init__(self):
        super().__init__()
        self.macs = self.live = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.macs += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out) // 2
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self.forget, storage._cdata, storage.nbytes())
        return out

    def forget(self, key, size):
        self.known.discard(key)
        self.live -= size


def step(model, x):
    """One forward and backward through every output; returns loss, gradients, state."""
    return metered_step(model, x)[0]


def metered_step(model, x):
    """The same, and the multiply-adds of the step, and the bytes alive between its two passes."""
    with Meter() as meter:
        output = model(x)
        loss = sum(logits.square().mean() for logits in (output["out"], *output["aux"].values()))
        del output
        kept = meter.live
        loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return (loss.detach(), gradients, model.state_dict()), meter.macs, kept


def assert_bit_equal(found, expected):
    assert torch.equal(found[0], expected[0])
    for kind in (1, 2):
        assert found[kind].keys() == expected[kind].keys()
        for key, value in expected[kind].items():
            assert torch.equal(found[kind][key], value), key


def twin(plain, name, recompute, **options):
    model = build(name, recompute=recompute, num_classes=3, **options)
    model.load_state_dict(plain.state_dict())
    return model


def macs_by_convolution(model, x):
    """Multiply-adds of each convolution in one forward, by its name."""
    macs = {}

    def note(name):
        def hook(module, inputs, output):
            macs[name] = output.numel() * module.weight[0].numel()

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note(name))
    with torch.no_grad():
        model(x)
    return macs


@pytest.fixture(scope="module")
def reference():
    """A Ladder-DenseNet whose running statistics are not the initial ones, an input, and its plain step."""
    torch.manual_seed(0)
    plain = build("ldn121-64-4", num_classes=3)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked.fill_(11)
    x = torch.randn(2, 3, 64, 96)
    start = copy.deepcopy(plain)
    macs = macs_by_convolution(copy.deepcopy(plain), x)
    return start, x, macs, metered_step(plain, x)


# Which convolutions run again: not the last one of a segment, since backward needs its inputs only.
UNITS = r"denselayer\d+\.conv1"
BLOCKS = r"denselayer\d+\.conv(1|2)(?<!block1\.denselayer6\.conv2)(?<!block2\.denselayer12\.conv2)"
BLOCKS += r"(?<!block3\.denselayer12\.conv2)(?<!block3\.denselayer24\.conv2)(?<!block4\.denselayer16\.conv2)"
AROUND = r"conv0|transition\d\.conv|up\.\d\.project\.conv|up\.[012]\.blend\.0\.conv"  # stem, TD, TU
SPP = r"spp\.(project|levels\.\d)\.conv"
# Rows of Table 12: segments, convolutions run again, share of the plain step's memory kept after forward.
ROWS = {
    "3x3": (None, 0.874),
    "cat1x1": (None, 0.588),
    "cat1x1,3x3": (None, 0.462),
    "block,stem,td,tu": (f"({BLOCKS}|{AROUND})$", 0.080),
    "unit": (f"({UNITS})$", 0.338),
    "unit,stem,td,tu": (f"({UNITS}|{AROUND})$", 0.107),
    # Beyond the paper. A TU whose parts are segments of their own keeps the projection and does not redo it.
    "unit,stem,td,skip,blend": (
        f"({UNITS}|conv0|transition\\d\\.conv|up\\.[012]\\.blend\\.0\\.conv)$",
        0.146,
    ),
    "unit,stem,td,tu,spp,cat": (f"({UNITS}|{AROUND}|{SPP})$", 0.065),
    "unit,stem,td,tu,spp,cat,nested": (
        f"({UNITS}|{AROUND}|{SPP})$",
        0.084,
    ),  # 2 % are states of the CPU's RNG
    "unit:1,3x3:2,block:4,td:1,tu:2,tu:logits": (
        r"(denseblock1\.denselayer\d+\.conv1|denseblock4\.denselayer\d+\.conv(1|2)"
        r"(?<!denselayer16\.conv2)|transition1\.conv|up\.1\.project\.conv|up\.1\.blend\.0\.conv)$",
        0.598,
    ),
}


@pytest.mark.parametrize("recompute", ROWS)
def test_papers_rows_are_bit_equal_and_lean(reference, recompute):
    start, x, macs_of, (expected, plain_macs, plain_kept) = reference
    found, macs, kept = metered_step(twin(start, "ldn121-64-4", recompute), x)
    assert_bit_equal(found, expected)
    rerun, share = ROWS[recompute]
    names = [name for name in macs_of if rerun and re.search(rerun, name)]
    assert macs - plain_macs == sum(macs_of[name] for name in names)
    assert kept / plain_kept == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(
    ("name", "recompute"),
    [
        ("ladder-resnet18-32-4", "block,stem,tu"),
        ("ladder-dpn68-32-4", "block,stem,tu"),
        ("ldn121-32-2", "unit,stem,td,tu"),
        ("lddn121-8-4", "unit,stem,td,tu"),
        ("ladder-resnet18-32-4", "block:1,block:4,spp,skip,blend,nested"),
        ("ldn121-32-2", "unit,stem,td,tu,spp,cat,nested"),
        ("ldn121-64-4-nospp", "block,stem,td,tu,spp,cat,nested"),
        ("ldn121-64-4-pspnet-spp", "cat,nested"),
    ],
)
def test_other_networks_are_bit_equal(name, recompute):
    torch.manual_seed(0)
    plain = build(name, num_classes=3)
    x = torch.randn(2, 3, plain.minimum_size + 1, 2 * plain.minimum_size + 1)
    other = twin(plain, name, recompute)
    assert_bit_equal(step(other, x), step(plain, x))


class Toy(nn.Module):
    """Two convolutions with batch norm; ``outer`` holds ``inner``, so that segments can nest."""

    def __init__(self, recompute=None, norm=nn.BatchNorm2d):
        super().__init__()
        self.segment = Segments(recompute)
        self.conv1, self.norm1 = nn.Conv2d(2, 4, 3), norm(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 2, 3), norm(2)
        self.calls = []

    def inner(self, x):
        self.calls.append("inner")
        return self.norm2(self.conv2(x))

    def outer(self, x):
        self.calls.append("outer")
        return self.segment("tu", self.inner, torch.tanh(self.norm1(self.conv1(x)))).tanh()

    def forward(self, x):
        return {"out": self.segment("stem", self.outer, x), "aux": {}}


class CountsNothing:
    def append(self, name):
        pass


@pytest.fixture
def toy():
    torch.manual_seed(0)
    return Toy(), torch.randn(3, 2, 8, 8)


@pytest.mark.parametrize("recompute", ["stem", "tu", "stem,tu"])
def test_nested_segments_are_bit_equal_over_two_steps(toy, recompute):
    plain, x = toy
    other = Toy(recompute)
    other.load_state_dict(plain.state_dict())
    for _ in range(2):  # the second from running statistics that the first has moved
        assert_bit_equal(step(other, x), step(plain, x))
    assert other.norm1.num_batches_tracked == 2
    assert other.norm1.momentum == 0.1


def test_chosen_segments_really_run_again(toy):
    _, x = toy
    counts = {}
    for recompute in (None, "td", "tu", "stem"):
        model = Toy(recompute)
        step(model, x)
        counts[recompute] = (model.calls.count("outer"), model.calls.count("inner"))
    assert counts == {None: (1, 1), "td": (1, 1), "tu": (1, 2), "stem": (2, 2)}


def test_momentum_none_and_frozen_norms(toy):
    plain, x = toy
    for model in (plain, other := Toy("stem,tu")):
        model.norm1.momentum = None  # cumulative average: its weight is 1 / counter
        model.norm2.eval()
    other.load_state_dict(plain.state_dict())
    for _ in range(2):
        assert_bit_equal(step(other, x), step(plain, x))
    assert other.norm1.momentum is None
    assert other.norm2.num_batches_tracked == 0


def test_norm_without_statistics(toy):
    _, x = toy

    def norm(channels):
        return nn.BatchNorm2d(channels, track_running_stats=False)

    plain = Toy(norm=norm)
    other = Toy("stem,tu", norm=norm)
    other.load_state_dict(plain.state_dict())
    assert_bit_equal(step(other, x), step(plain, x))


def test_statistics_come_back_after_an_error():
    model = Toy()
    counter = model.norm1.num_batches_tracked
    freeze = Freeze(model)
    with pytest.raises(KeyError), freeze, freeze:
        assert model.norm1.momentum == 0.0
        assert model.norm1.num_batches_tracked is not counter
        raise KeyError
    assert model.norm1.momentum == 0.1
    assert model.norm1.num_batches_tracked is counter


def test_no_checkpoint_without_gradients(toy, monkeypatch):
    _, x = toy
    monkeypatch.setattr("segkit.memory.recompute.checkpoint", None)  # would raise if it were called
    with torch.no_grad():
        assert Toy("stem,tu")(x)["out"].shape == (3, 2, 4, 4)


def test_bf16_autocast_is_bit_equal(toy):
    plain, x = toy
    other = Toy("stem,tu")
    other.load_state_dict(plain.state_dict())
    results = []
    for model in (other, plain):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x)["out"].float().square().mean()
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in model.named_parameters()}, model.state_dict()))
    assert_bit_equal(*results)


def test_compiles_to_one_graph(toy):
    plain, x = toy
    other = Toy("stem,tu")
    other.load_state_dict(plain.state_dict())
    plain.calls = other.calls = CountsNothing()  # a list that grows would make the compiler start over
    expected = step(plain, x)
    loss = torch.compile(other, backend="aot_eager", fullgraph=True)(x)["out"].square().mean()
    loss.backward()
    found = (loss.detach(), {n: p.grad for n, p in other.named_parameters()}, other.state_dict())
    assert_bit_equal(found, expected)


class Mix(nn.Module):
    """A BN-ReLU-1x1 on a concatenation of two maps."""

    def __init__(self, recompute=None):
        super().__init__()
        self.segment = Segments(recompute)
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 10, 3, padding=1)
        self.mix = CatBNReLUConv(16, 4, 1, segment=self.segment)

    def forward(self, x):
        return {"out": self.segment("tu", self.mix, self.left(x), self.right(x)), "aux": {}}


@pytest.mark.parametrize("recompute", ["nested", "nested,tu"])
@pytest.mark.parametrize("way", ["eager", "compiled", "autocast"])
def test_quarters_in_all_ways(recompute, way):
    torch.manual_seed(0)
    plain, other = Mix(), Mix(recompute)
    other.load_state_dict(plain.state_dict())
    run = torch.compile(other, backend="aot_eager", fullgraph=True) if way == "compiled" else other
    x = torch.randn(2, 3, 8, 8)
    results = []
    for model, forward in ((plain, plain), (other, run)):
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            loss = forward(x)["out"].float().square().mean()
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in model.named_parameters()}, model.state_dict()))
    assert_bit_equal(*reversed(results))
    assert other.mix.norm.num_batches_tracked == 1


def test_quarters_need_the_kits_batch_norm():
    model = Mix("nested")
    model.mix.norm = nn.BatchNorm2d(16)
    with pytest.raises(
        TypeError, match=r"'nested' needs segkit's own BatchNorm.* a BatchNorm2d took its place"
    ):
        model(torch.randn(2, 3, 8, 8))
    model.segment = model.mix.segment = Segments()
    assert model(torch.randn(2, 3, 8, 8))["out"].shape == (2, 4, 8, 8)


def test_quarters_refuse_a_single_value():
    with pytest.raises(ValueError, match="Cannot train batch norm on a single value per channel"):
        Mix("nested")(torch.randn(1, 3, 1, 1))


def test_quarters_with_cumulative_averages():
    torch.manual_seed(0)
    plain, other = Mix(), Mix("nested,tu")
    plain.mix.norm.momentum = other.mix.norm.momentum = None
    other.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 8, 8)
    for _ in range(2):
        assert_bit_equal(step(other, x), step(plain, x))


@pytest.mark.parametrize("text", [None, "", " ", "unit,stem,td,tu", " unit , stem ", "cat1x1,3x3"])
def test_labels_are_parsed(text):
    expected = {label.strip() for label in (text or "").split(",")} - {""}
    assert Segments(text).chosen == expected <= set(LABELS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "units",
            "No segments labelled 'units' in this network. Did you mean 'unit'.*It has cat1x1, 3x3, unit",
        ),
        ("unit;stem", "No segments labelled 'unit;stem'"),
        ("unit,", "No segments labelled ''"),
        ("unit,cat1x1", "covers 'cat1x1' twice: a 'unit' segment"),
        ("3x3,block", "covers '3x3' twice: a 'block' segment"),
        ("block,unit", "covers 'unit' twice"),
        ("td,tu,td", "'td' occurs twice"),
        ("unit:1,unit:2,unit:1", "'unit:1' occurs twice"),
        ("unit:1,unit", "covers 'unit' twice"),
        ("unit:1,cat1x1", "covers 'cat1x1' twice"),
        ("block,cat1x1:3", "covers 'cat1x1' twice"),
        ("tu:2,skip:2", "covers 'skip' twice: a 'tu' segment"),
        ("nested,cat1x1", "covers 'cat1x1' twice: a 'nested' segment"),
    ],
)
def test_wrong_labels(text, message):
    with pytest.raises(ValueError, match=message):
        Segments(text)


@pytest.mark.parametrize(
    ("recompute", "message"),
    [
        ("unit:5", "No 'unit:5' in this network: unit has 1, 2, 3, 4."),
        ("unit:", "No place after 'unit:'; write 'unit', or a place such as unit:1."),
        ("tu:4", "No 'tu:4' in this network: tu has 1, 2, 3, logits, aux."),
        ("stem:1", "No 'stem:1' in this network: stem takes no place."),
        ("nested:1", "No 'nested:1' in this network: nested takes no place."),
    ],
)
def test_wrong_places(recompute, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build("ldn121-32-4", device="meta", recompute=recompute)


def test_the_same_label_in_different_places():
    assert Segments("unit:1,cat1x1:2,3x3:2,unit:3").chosen == {"unit:1", "cat1x1:2", "3x3:2", "unit:3"}
    segments = Segments("unit:1,td")
    assert segments.has("unit", "1") and not segments.has("unit", "2") and not segments.has("unit")
    assert segments.has("td", "7") and segments.has("td")


def test_pooling_first_gives_the_same_up_to_rounding():
    torch.manual_seed(0)
    plain = build("ldn121-32-4", num_classes=3).double()
    other = build(
        "ldn121-32-4", num_classes=3, pool_first=True, recompute="unit,stem,td,tu,cat,nested"
    ).double()
    other.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    expected, found = step(plain, x), step(other, x)
    for kind in (1, 2):
        for key, value in expected[kind].items():
            assert torch.allclose(found[kind][key].double(), value.double(), rtol=1e-6, atol=1e-9), key


def test_relu_out_of_place_gives_the_same():
    torch.manual_seed(0)
    plain = build("ldn121-32-4", num_classes=3)
    other = twin(plain, "ldn121-32-4", None, inplace=False)
    x = torch.randn(2, 3, 64, 96)
    assert_bit_equal(step(other, x), step(plain, x))


def test_labels_must_be_text():
    with pytest.raises(TypeError, match=r"comma-separated string.*not \['unit'\]"):
        Segments(["unit"])


@pytest.mark.parametrize("name", ["ladder-resnet18-32-4", "ladder-dpn68-32-4"])
def test_networks_without_dense_units_say_what_they_have(name):
    with pytest.raises(ValueError, match=r"'unit' in this network\. It has stem, block, tu, skip"):
        build(name, device="meta", recompute="unit,stem,td,tu")


def test_segments_print_their_labels():
    assert repr(Segments("unit,stem")) == "Segments('stem,unit')"
