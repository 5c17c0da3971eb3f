"""The checkpointing benchmark: what its methods are, what it finds out about them, what it writes."""

import copy
import dataclasses
import json
import time

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from segkit import models
from segkit.bench import checkpointing as bench
from segkit.measure.peak import peak_memory
from segkit.memory.recompute import Segments


class Toy(nn.Module):
    """Three convolutions with a batch norm between; ``segment(part, x)`` runs the first two and the norm."""

    def __init__(self, segment=lambda part, x: part(x)):
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        self.logits = nn.Conv2d(8, 19, 1)
        self.segment = segment

    def part(self, x):
        return self.conv2(self.norm(self.conv1(x)))

    def forward(self, x):
        return {"out": self.logits(self.segment(self.part, x))}


def careless(part, x):
    return checkpoint(part, x, use_reentrant=False)


def wrong(part, x):
    return part(x).detach()


def toys(*segments, **options):
    def make(segment):
        return lambda plan, device: Toy(segment).to(device) if segment else Toy().to(device)

    plans = [bench.Plan(f"method {i}", model="toy", build=make(s), **options) for i, s in enumerate(segments)]
    return [bench.Plan("plain", model="toy", build=make(None)), *plans]


def series(plans, batches=None, **options):
    options = {"device": "cpu", "backend": "aot_eager"} | options
    return bench.Series(plans, batches or [2] * len(plans), (16, 24), **options)


def nothing():
    pass


def test_plans_are_the_papers_rows_and_others():
    names = [(plan.model, plan.name) for plan in bench.PLANS]
    assert len(set(names)) == len(names)
    ours = [
        plan.recompute for plan in bench.PLANS if plan.model == "ldn121-32-4" and plan.build is bench.ours
    ]
    for row in (
        None,
        "3x3",
        "cat1x1",
        "cat1x1,3x3",
        "block,stem,td,tu",
        "unit",
        "unit,td",
        "unit,stem,td,tu",
    ):
        assert row in ours
    for plan in bench.PLANS:
        assert plan.model in models.MODELS
        Segments(plan.recompute)
    table13 = [(plan.model, plan.papers_batch) for plan in bench.PLANS if 13 in plan.tables]
    assert len(table13) == 7 and all(batch for _, batch in table13)
    seen = set()
    for plan in bench.PLANS:  # what others are compared with comes first
        assert plan.name == "plain" or plan.model in seen
        seen.add(plan.model)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"memory_efficient": True},
        {"run": bench.by_checkpoint_sequential},
        {"run": bench.by_selection},
    ],
)
def test_torchvisions_backbone_is_the_same_network(options):
    torch.manual_seed(0)
    plain = models.build("ldn121-32-4")
    other = bench.on_torchvision(**options)(bench.PLANS[0], "cpu")
    other.load_state_dict(plain.state_dict())  # strict: all names and shapes
    x = torch.randn(2, 3, 64, 96)
    results = []
    for model in (other, plain):
        output = model(x)
        sum(logits.square().mean() for logits in (output["out"], *output["aux"].values())).backward()
        results.append(([p.grad for p in model.parameters()], model.state_dict()))
    (gradients, state), (expected, expected_state) = results
    assert all(map(torch.equal, gradients, expected))
    moved = [key for key, value in expected_state.items() if not torch.equal(state[key], value)]
    if options:  # every one of them updates batch norms twice
        assert moved and all("backbone" in key and "norm" in key for key in moved)
        if "memory_efficient" in options:
            assert all("denselayer" in key and "norm1" in key for key in moved)
    else:
        assert not moved


def test_sequential_checkpoints_recompute_what_our_blocks_do():
    """The last segment of a checkpoint_sequential is not recomputed: the identity must be it."""
    ours = models.build("ldn121-32-4", recompute="block,stem,td", device="meta")
    theirs = bench.on_torchvision(run=bench.by_checkpoint_sequential)(bench.PLANS[0], "meta")
    ours, theirs = peak_memory(ours, 2, (64, 64)), peak_memory(theirs, 2, (64, 64))
    assert bench.work(ours) == bench.work(theirs)
    assert ours.total == theirs.total


def test_multiply_adds():
    toy, again = Toy().to("meta"), Toy(careless).to("meta")
    conv1 = 2 * 8 * 27 * 14 * 22
    conv2, logits = 2 * 8 * 72 * 12 * 20, 2 * 19 * 8 * 12 * 20

    def step(model, images, labels):
        return model(images)["out"].square().mean()

    forward, total = bench.work(peak_memory(toy, 2, (16, 24), step=step))
    assert forward == conv1 + conv2 + logits
    assert total == 3 * forward - conv1  # nobody asks for the gradient of the images
    # conv2 is the last of its segment: backward needs its input, not its output
    assert bench.work(peak_memory(again, 2, (16, 24), step=step)) == (forward, total + conv1)


def test_careless_and_wrong_methods_are_found_out():
    run = series(toys(None, careless, wrong))
    start = copy.deepcopy(run.weights.state_dict())
    run.compare(nothing)
    plain, same, moved, lost = run.rows
    for row in (plain, same):
        assert row["statistics_exact"] and row["gradients_equal"]
        assert row["gradients"] == {"tensors": 8, "unequal": 0, "largest": 0.0, "norm": 0.0}
    assert moved["gradients_equal"] and not moved["statistics_exact"]
    assert moved["statistics"]["extra_updates"] == 1 and moved["statistics"]["unequal"] == 3
    assert moved["statistics"]["tensors"] == 3 and moved["statistics"]["largest"] > 1e-3
    assert lost["statistics_exact"] and not lost["gradients_equal"]
    assert lost["gradients"]["largest"] == 1 and lost["gradients"]["unequal"] == 6
    for key, value in run.weights.state_dict().items():
        assert torch.equal(value, start[key]), key


def test_networks_share_their_weights():
    run = series(toys(None))
    assert len({id(network) for network in (run.weights, *run.networks)}) == 3
    for network in run.networks:
        for own, shared in zip(network.parameters(), run.weights.parameters(), strict=True):
            assert own is shared
        for own, shared in zip(network.buffers(), run.weights.buffers(), strict=True):
            assert own is shared


def test_measured_peak_is_that_of_the_tracker():
    run = series(toys(careless))
    run.weigh(nothing)
    expected = peak_memory(Toy(), 2, (16, 24), device="cpu").total
    assert run.rows[0]["measured"] == pytest.approx(expected, rel=0.05)


def test_ratios_are_of_seconds_an_image(monkeypatch):
    run = series(toys(None), [2, 4])
    clock = iter([0, 1, 10, 13, 20, 22, 30, 34])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    run.time(2, nothing)
    plain, other = run.rows
    assert plain["seconds"] == {"all": [1, 2], "median": 1.5, "minimum": 1}
    assert other["seconds"] == {"all": [3, 4], "median": 3.5, "minimum": 3}
    assert other["time_ratio"] == pytest.approx(3.5 / 4 / (1.5 / 2))
    assert other["time_ratio_of_minima"] == pytest.approx(1.5) and plain["time_ratio"] == 1
    assert other["images_per_second"] == pytest.approx(4 / 3.5)


def test_what_does_not_fit_is_noted_and_left_out(monkeypatch):
    def full(model, images, labels):
        raise torch.OutOfMemoryError("CUDA out of memory")

    run = series(toys(None, step=full))
    run.compare(nothing)
    run.weigh(nothing)
    run.time(1, nothing)
    plain, other = run.rows
    assert other["note"] == "the step does not fit on this GPU" and bench.line(other)
    assert other["seconds"] is None and other["measured"] is None and other["gradients"] is None
    assert plain["seconds"] and plain["gradients_equal"] and "note" not in plain


def test_other_errors_of_our_own_are_not_hidden():
    def broken(model, images, labels):
        raise KeyError("bug")

    with pytest.raises(KeyError):
        series(toys(None, step=broken)).compare(nothing)


@pytest.mark.parametrize("budget", [1, 0])
def test_compiled_network(budget):
    run = series(toys(None, budget=budget))
    run.predict(nothing)
    run.compare(nothing)
    row = run.rows[1]
    assert row["predicted"] is None and "no prediction" in row["note"]
    assert row["statistics"]["extra_updates"] == 0 and row["gradients"]["norm"] < 1e-5
    conv1, conv2, logits = 27 * 14 * 22, 72 * 12 * 20, 19 * 12 * 20
    again = 0 if budget else conv1 + conv2  # the last convolution's output is not needed for its gradients
    assert row["recomputed_share"] == pytest.approx(again / (conv1 + conv2 + logits))
    torch._dynamo.reset()


def test_a_compiler_that_fails_or_lingers_is_noted(monkeypatch):
    def fail(self, graph, inputs):
        raise RuntimeError("no compiler here\nand a long story")

    def linger(self, graph, inputs):
        time.sleep(60)

    for backend, words in ((fail, "no compiler here"), (linger, "took more than 0.5 s")):
        monkeypatch.setattr(bench.Compiled, "_aot_eager", backend)
        run = series(toys(None, budget=0.5), compile_seconds=0.5 if backend is linger else 60)
        begin = time.monotonic()
        run.compare(nothing)
        assert time.monotonic() - begin < 30
        assert words in run.rows[1]["note"] and "\n" not in run.rows[1]["note"]
        run.time(1, nothing)
        assert run.rows[1]["seconds"] is None and run.rows[0]["seconds"]
        torch._dynamo.reset()


def test_command(tmp_path, monkeypatch, capsys):
    name = "ladder-resnet18-32-4"
    plans = [bench.Plan("plain", model=name), bench.Plan("ours: tu", model=name, recompute="tu")]
    monkeypatch.setattr(bench, "PLANS", (*plans, *toys(careless)))
    arguments = ["--size", "128x128", "--rounds", "1", "--only", "ours", "--out", str(tmp_path)]
    assert bench.main(arguments) == 0
    result = json.loads((tmp_path / "checkpointing.json").read_text())
    assert result["command"] == f"python -m segkit.bench checkpointing {' '.join(arguments)}"
    assert result["device"] == "cpu" and result["machine"]["processor"]
    plain, row = result["rows"]
    assert row["recompute"] == "tu" and row["image_size"] == [128, 128] and row["batch_size"] == 2
    model = models.build(name, recompute="tu", device="meta")
    assert row["predicted"] == peak_memory(model, 6, (768, 768), optimizer="amsgrad").total
    assert row["predicted"] < plain["predicted"] and row["measured"] > 0
    assert row["recomputed_macs"] > 0 and row["statistics_exact"] and row["gradients_equal"]
    assert plain["time_ratio"] == 1 and row["time_ratio"] > 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3 and printed[2].endswith("exact      equal")


def test_the_papers_batches(monkeypatch, capsys, tmp_path):
    first, second = toys(careless, papers_batch=3)
    monkeypatch.setattr(bench, "PLANS", (dataclasses.replace(first, papers_batch=2), second, *toys(None)[1:]))
    monkeypatch.setattr(bench, "PAPER_SIZE", (16, 16))
    arguments = [
        "--size",
        "16x16",
        "--rounds",
        "1",
        "--batch",
        "4",
        "--papers-batches",
        "--out",
        str(tmp_path),
    ]
    assert bench.main(arguments) == 0
    rows = json.loads((tmp_path / "checkpointing.json").read_text())["rows"]
    assert [(row["batches"], row["batch_size"]) for row in rows] == [
        *[("equal", 4)] * 3,
        *[("the paper's", batch) for batch in (2, 3)],
    ]
    assert all(row["images_per_second"] and row["measured"] for row in rows)
    assert rows[1]["statistics"] and rows[4]["statistics"] is None  # of different batches: nothing to compare


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "magic"], "no method contains 'magic'; there is plain, ours: 3x3"),
        (["--size", "256by64"], "'256by64' is not HEIGHTxWIDTH"),
        (["--size", "0x64"], "--size 0x64: give at least one pixel"),
        (["--rounds", "0"], "'0' is not a whole number of at least 1"),
        (["--device", "cuda"], "there is no CUDA device"),
    ],
)
def test_bad_arguments(arguments, message, assert_refused):
    assert_refused(bench.main, arguments, message)
