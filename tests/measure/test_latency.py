"""`latency`: turns, medians and ratios; what the networks get; that they are left alone; every error."""

import importlib
import random
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from segkit.measure import Latency, latency
from segkit.measure.latency import compared, interleaved

SEEN: list[tuple] = []  # what the copies that are timed were called with


class Clock:
    """Seconds that pass only when a model says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()


@pytest.fixture
def clock(monkeypatch):
    """`latency` reads this clock instead of the machine's."""
    module = importlib.import_module("segkit.measure.latency")
    whole = module.interleaved
    monkeypatch.setattr(module, "interleaved", lambda calls, **options: whole(calls, **options, clock=CLOCK))
    return CLOCK


class Spy(nn.Module):
    """Notes how it is called; takes `seconds` of `CLOCK`; changes what a forward pass may change."""

    def __init__(self, name: str = "", seconds: float = 0.0) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)
        self.name, self.seconds = name, seconds
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x, *, auxiliary=None):
        CLOCK.sleep(self.seconds)
        self.calls += 1
        torch.rand(1)
        random.random()
        out = self.norm(self.conv(x))
        SEEN.append((self.name, tuple(x.shape), x.dtype, auxiliary, out.dtype, self.norm.training))
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
        return {"out": out}


@pytest.fixture(autouse=True)
def forget():
    SEEN.clear()


def test_one_model(clock):
    found = latency(Spy(seconds=0.25), (5, 7), batch_size=3, rounds=4, warmup=1)
    assert isinstance(found, Latency)
    assert len(found.times) == 4 and len(SEEN) == 5
    assert found.times == (0.25,) * 4
    assert found.median == statistics.median(found.times) and found.ratio == 1
    assert found.per_second == 3 / found.median
    assert {seen[1:3] for seen in SEEN} == {((3, 3, 5, 7), torch.float32)}
    assert not any(seen[-1] for seen in SEEN)  # in eval mode
    assert "ms" in str(found) and "images/s" in str(found)


def test_the_clock_on_the_wall_runs():
    found = latency(nn.Conv2d(3, 8, 3), (16, 16), rounds=3)
    assert all(seconds > 0 for seconds in found.times)


def test_models_take_turns(clock):
    models = {"slow": Spy("slow", 2.0), "fast": Spy("fast", 0.25), "a third": Spy("a third", 4.0)}
    found = latency(models, (4, 4), rounds=7, warmup=1)
    assert list(found) == list(models)
    names = [seen[0] for seen in SEEN]
    assert names[::2] == names[1::2]  # each timed pass right after an untimed one of the same
    rounds = [tuple(names[i : i + 6 : 2]) for i in range(0, len(names), 6)]
    assert len(rounds) == 8
    assert all(sorted(turn) == sorted(models) for turn in rounds)  # each once a round
    assert len(set(rounds)) > 3 and len({turn[0] for turn in rounds}) == 3  # in another order
    assert found["slow"].ratio == 1
    assert [found[name].times for name in models] == [(2.0,) * 7, (0.25,) * 7, (4.0,) * 7]  # each its own
    assert (found["fast"].ratio, found["a third"].ratio) == (0.125, 2)


def test_results_are_not_kept_alive_nor_their_release_timed():
    alive = []

    class Result:
        def __init__(self):
            assert not alive  # the one before is gone
            alive.append(1)
            CLOCK.sleep(1)

        def __del__(self):
            CLOCK.sleep(64)
            alive.clear()

    times = interleaved({"a": Result, "b": Result}, rounds=2, warmup=0, clock=CLOCK)
    assert times == {"a": (1, 1), "b": (1, 1)}


def test_the_clock_is_the_one_given():
    ticks = iter(range(100))
    assert interleaved({"a": int}, rounds=3, warmup=2, clock=lambda: next(ticks)) == {"a": (1, 1, 1)}
    assert next(ticks) == 10  # twice a pass, of the warm-up too


@given(
    st.lists(
        st.tuples(*2 * [st.floats(1e-6, 1e3)]),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 8),
)
def test_statistics(pairs, batch_size):
    times = {"first": tuple(a for a, _ in pairs), "second": tuple(b for _, b in pairs)}
    found = compared(times, batch_size)
    for name, taken in times.items():
        np.testing.assert_allclose(
            [found[name].quartiles[0], found[name].median, found[name].quartiles[1]],
            np.quantile(taken, [0.25, 0.5, 0.75]),
        )
        np.testing.assert_allclose(found[name].per_second, batch_size / np.median(taken))
    assert found["first"].ratio == 1
    np.testing.assert_allclose(found["second"].ratio, np.median([b / a for a, b in pairs]))


def test_models_are_left_as_they_were():
    model = Spy()
    model.norm.eval()  # a mode of its own below a model in train mode
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    random.seed(3)
    states = torch.get_rng_state(), random.getstate(), torch.backends.cudnn.benchmark
    found = latency({"a": model, "b": model}, (4, 4), rounds=1)
    assert len(found) == 2
    assert model.training and model.conv.training and not model.norm.training
    assert torch.equal(model.conv.weight.grad, torch.ones_like(model.conv.weight))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.calls == 0 and not model.conv.weight.is_inference()
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert torch.backends.cudnn.benchmark == states[2]


def test_still_trainable_when_measured_in_inference_mode():
    model = nn.Conv2d(3, 2, 1)
    with torch.inference_mode():
        latency(model, (4, 4), rounds=1)
    model(torch.rand(1, 3, 4, 4)).sum().backward()
    assert model.weight.grad is not None


@pytest.mark.parametrize("auxiliary", [False, True])
def test_auxiliary_goes_to_those_who_know_it(auxiliary):
    plain = nn.Conv2d(3, 2, 1)
    latency({"spy": Spy(), "plain": plain}, (4, 4), rounds=1, auxiliary=auxiliary)
    assert {seen[3] for seen in SEEN} == {auxiliary}


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision(precision, dtype):
    with torch.autocast("cpu", torch.bfloat16):  # an autocast around it does not count
        latency(Spy(), (4, 4), rounds=1, precision=precision)
    assert {seen[4] for seen in SEEN} == {dtype}


def test_images_have_the_models_type_and_layouts_stay():
    latency(Spy().double(), (4, 4), rounds=1)
    assert {seen[2] for seen in SEEN} == {torch.float64}
    layouts = []

    class Layout(nn.Conv2d):
        def forward(self, x):
            layouts.append(self.weight.is_contiguous(memory_format=torch.channels_last))
            return super().forward(x)

    latency(Layout(3, 4, 3).to(memory_format=torch.channels_last), (4, 4), rounds=1, warmup=0)
    assert layouts == [True]


def test_a_model_without_parameters_runs_on_the_cpu():
    assert latency(nn.ReLU(), (2, 2), rounds=1).median > 0


def test_cudnn_may_try_its_kernels_on_a_gpu_only():
    settled = importlib.import_module("segkit.measure.latency")._settled
    before = torch.backends.cudnn.benchmark
    with settled(torch.device("cpu")):
        assert torch.backends.cudnn.benchmark == before
    with pytest.raises(KeyError), settled(torch.device("cuda")):
        assert torch.backends.cudnn.benchmark
        raise KeyError
    assert torch.backends.cudnn.benchmark == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    class Many(nn.Module):
        """Long enough on the device that the call alone returns much earlier."""

        def forward(self, x):
            x = x.new_ones(4096, 4096)
            for _ in range(20):
                x = x @ x * 1e-4
            return x

    found = latency({"one": nn.Conv2d(3, 2, 1), "many": Many()}, (8, 8), device="cuda", rounds=5)
    assert found["many"].median > 0.005 and found["many"].ratio > 5


class Refuses(nn.Module):
    def forward(self, x):
        raise ArithmeticError(f"not {tuple(x.shape[2:])}, please")


def test_a_models_own_error_comes_through():
    with pytest.raises(ArithmeticError, match=r"not \(9, 5\), please"):
        latency({"a": nn.ReLU(), "b": Refuses()}, (9, 5))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"models": "regseg"}, TypeError, "Expected a torch.nn.Module, got str"),
        (
            {"models": {"a": nn.ReLU(), "b": None}},
            TypeError,
            "Expected a torch.nn.Module under 'b', got NoneType",
        ),
        ({"models": {}}, ValueError, "no model to time"),
        (
            {"models": nn.Conv2d(3, 2, 1, device="meta")},
            ValueError,
            "Conv2d is on the meta device.*Build it on",
        ),
        (
            {"models": {"a": nn.ReLU(), "b": nn.Conv2d(3, 2, 1, device="meta")}, "device": "cpu"},
            ValueError,
            "b is on the meta device",
        ),
        ({"image_size": 64}, ValueError, r"image_size=64: give \(H, W\), two positive integers"),
        ({"image_size": (64, 0)}, ValueError, r"image_size=\(64, 0\)"),
        ({"image_size": (64.0, 64)}, ValueError, r"image_size=\(64.0, 64\)"),
        ({"image_size": (True, 64)}, ValueError, r"image_size=\(True, 64\)"),
        ({"image_size": (3, 64, 64)}, ValueError, r"image_size=\(3, 64, 64\)"),
        ({"batch_size": 0}, ValueError, "batch_size=0: give an integer of at least 1"),
        ({"rounds": 0}, ValueError, "rounds=0: give an integer of at least 1"),
        ({"rounds": 2.5}, ValueError, "rounds=2.5"),
        ({"warmup": -1}, ValueError, "warmup=-1: give an integer of at least 0"),
        ({"precision": "int8"}, ValueError, "precision='int8': choose 'fp32', 'bf16', 'fp16'"),
        ({"device": "meta"}, ValueError, "device='meta': choose None, 'cpu' or 'cuda'"),
        ({"device": "toaster"}, ValueError, "device='toaster': choose None, 'cpu' or 'cuda'"),
    ],
)
def test_bad_arguments(arguments, kind, message):
    given = {"models": nn.ReLU(), "image_size": (4, 4), **arguments}
    with pytest.raises(kind, match=message):
        latency(given.pop("models"), given.pop("image_size"), **given)


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="No CUDA device here; use device='cpu'"):
        latency(nn.ReLU(), (4, 4), device="cuda")


def test_models_on_several_devices(monkeypatch):
    class Elsewhere(nn.Module):
        """Says that its weights are on a GPU; there may be none here."""

        def parameters(self, recurse=True):
            return iter([type("Weight", (), {"device": torch.device("cuda", 1)})()])

    with pytest.raises(ValueError, match=r"several devices.*\(a on cpu, b on cuda:1\); give device="):
        latency({"a": nn.Conv2d(3, 2, 1), "b": Elsewhere()}, (4, 4))
