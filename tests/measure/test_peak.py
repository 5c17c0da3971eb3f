"""`peak_memory`: held to hand counts, real tensors, the profiler's allocator trace and MemTracker."""

import json
import random
import subprocess
import sys
import time
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from segkit import models
from segkit.measure import meta, peak, tracker
from segkit.measure import step as step_module
from segkit.measure.on_gpu import measure_on_gpu
from segkit.measure.peak import MeasurementError, largest_batch, max_batch, peak_memory

MIB = 2**20


class Dense(nn.Module):
    """Concatenates the outputs of its units, with batch norm and dropout; logits from a half-size map.

    1x1 convolutions, for which CPU kernels take no memory of their own; the tracker cannot see such memory.
    """

    def __init__(self, units: int = 4, k: int = 16, *, recompute: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, k, 3, stride=2, padding=1, bias=False)
        self.units = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(k * (i + 1)), nn.ReLU(), nn.Conv2d(k * (i + 1), k, 1), nn.Dropout(dropout)
            )
            for i in range(units)
        )
        self.head = nn.Conv2d(k * (units + 1), 7, 1)
        self.recompute = recompute

    def forward(self, x):
        size = x.shape[-2:]
        x = self.stem(x)
        for unit in self.units:
            # A copy of the generator's state would be a CPU tensor, counted only where the step is there.
            options = {"use_reentrant": False, "preserve_rng_state": False}
            new = checkpoint(unit, x, **options) if self.recompute else unit(x)
            x = torch.cat([x, new], 1)
        return F.interpolate(self.head(x), size=size, mode="bilinear", align_corners=False)


class Fork(nn.Module):
    """One large map that three branches read: at the peak, autograd sums gradients of that map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 1)
        self.branches = nn.ModuleList(nn.Conv2d(32, 1, 1, bias=False) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        return sum(branch(x) for branch in self.branches)


class Function(nn.Module):
    """A convolution and whatever is to be tried on its output."""

    def __init__(self, function) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.function = function

    def forward(self, x):
        return self.function(self.conv(x))


def allocator_peak(model, batch_size, image_size, *, step=peak.default_step, optimizer=None) -> int:
    """Peak of a real step on the CPU by the allocator's own events, as torch.profiler records them.

    Seen at the end of each operator, so without what a kernel takes for itself while it runs: oneDNN's
    scratch memory depends on the processor, and is what `peak_memory` says it leaves out.
    """
    network = step_module.copy_model(model, "cpu")
    images, labels = step_module.make_batch(network, batch_size, image_size, "cpu")
    update = step_module.make_optimizer(network, optimizer)
    before = [*network.parameters(), *network.buffers(), images, labels]
    if update:
        before += [t for state in update.state.values() for name, t in state.items() if name != "step"]
    now = highest = sum(tensor.numel() * tensor.element_size() for tensor in before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step_module.run(step, network, images, labels, update, precision="fp32")
    events = profiler.profiler.kineto_results.events()
    moments = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    assert len(moments) > 30
    spans = sorted((e.start_ns(), -e.end_ns()) for e in events if e.name().startswith("aten::"))
    last = 0
    for _, end in spans:
        if -end > last:  # not inside the operator before
            last = -end
            moments.append((last, None))
    for _, size in sorted(moments, key=lambda moment: moment[0]):
        now += size or 0
        highest = max(highest, now) if size is None else highest
    return highest


# --- what is counted ---


def test_every_byte_of_a_tiny_step():
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False))
    result = peak_memory(model, 2, (32, 32))
    pixels = 2 * 32 * 32
    i = result.timeline.phases.index("backward") - 1
    end_of_forward = result.timeline[i][1]
    assert end_of_forward == {
        "parameters": 512 + 512,  # 96 and 128 bytes, rounded up
        "gradients": 0,
        "optimizer state": 0,
        "activations": pixels * 8 * 4
        + pixels * 4 * 4
        + 512,  # ReLU's output, log-softmax's, number of labels
        "temporaries": pixels * 4 * 4 + 512 + 512,  # logits; the loss and its gradient
        "input": pixels * 3 * 4 + pixels * 8,  # float images, int64 labels
    }
    # Peak: the ReLU's backward reads its output and one gradient, and writes another; the log-softmax is
    # gone.
    assert result.timeline.operators[result.timeline.peak] == "aten.threshold_backward"
    assert result.by_kind["activations"] == pixels * 8 * 4
    assert result.by_kind["temporaries"] == 2 * pixels * 8 * 4 + pixels * 4 * 4 + 512 + 512
    assert result.by_kind["gradients"] == 512
    assert result.timeline[-1][1]["gradients"] == 1024


def test_parts_add_up_to_the_total():
    result = peak_memory(Dense(), 2, (64, 64), optimizer="adam")
    timeline = result.timeline
    assert (
        result.total == sum(result.by_kind.values()) == sum(result.by_module.values()) == max(timeline.total)
    )
    assert result.total == sum(result.alive.values()) == timeline.total[timeline.peak]
    for kind, size in result.by_kind.items():
        assert size == sum(bytes_ for (_, other), bytes_ in result.alive.items() if other == kind)
    assert all(value >= 0 for values in timeline.bytes.values() for value in values)
    assert len(timeline) == len(list(timeline)) == len(timeline.phases) == len(timeline.modules)
    assert timeline[1:3] == [timeline[1], timeline[2]]
    assert f"{result.total / MIB:.1f} MiB" in str(result)


def test_modules_are_found_in_the_backward_pass_too():
    result = peak_memory(Dense(), 2, (64, 64))
    timeline = result.timeline
    backward = {
        module
        for operator, phase, module in zip(timeline.operators, timeline.phases, timeline.modules, strict=True)
        if phase == "backward" and operator == "aten.convolution_backward"
    }
    assert backward == {"stem", "head", *(f"units.{i}.2" for i in range(4))}
    assert result.alive["units.3.1", "activations"] == 2 * 64 * 32 * 32 * 4  # the ReLU's output
    assert result.alive["(input)", "input"] == 2 * 64 * 64 * (3 * 4 + 8)
    assert result.alive["stem", "parameters"] == -(-16 * 3 * 9 * 4 // 512) * 512


def test_optimizer_state_is_alive_all_along():
    model = Dense()
    trained = sum(-(-p.numel() * 4 // 512) * 512 for p in model.parameters())
    plain = peak_memory(model, 2, (64, 64))
    for optimizer, slots in (("sgd", 1), ("adam", 2), ("amsgrad", 3)):
        result = peak_memory(model, 2, (64, 64), optimizer=optimizer)
        assert set(result.timeline.bytes["optimizer state"]) == {slots * trained}
        assert result.total == plain.total + slots * trained
        assert "optimizer" in result.timeline.phases or optimizer == "sgd"
    model.stem.requires_grad_(False)
    frozen = peak_memory(model, 2, (64, 64), optimizer="sgd")
    assert frozen.by_kind["optimizer state"] == trained - plain.alive["stem", "parameters"]


def test_the_update_counts_where_it_is_the_peak():
    model = nn.Conv2d(256, 256, 3)

    def step(network, images, labels):
        return sum(parameter.sum() for parameter in network.parameters())

    result = peak_memory(model, 1, (4, 4), step=step, optimizer="adam")
    assert result.timeline.phases[result.timeline.peak] == "optimizer"
    assert result.by_kind["temporaries"] >= 256 * 256 * 9 * 4  # the square roots of all second moments
    assert result.total == peak_memory(model, 1, (4, 4), step=step, optimizer="adam", device="cpu").total


def test_recomputed_activations_count_as_activations():
    plain = peak_memory(Dense(units=6), 2, (64, 64))
    result = peak_memory(Dense(units=6, recompute=True), 2, (64, 64))
    timeline = result.timeline
    assert result.total < plain.total
    assert set(timeline.phases) == {"forward", "backward", "recompute"}
    assert timeline.bytes["activations"][-1] == 0
    # What recomputing the last unit leaves behind is kept for its backward: batch statistics, the ReLU's
    # output; not the batch norm's output.
    first = timeline.phases.index("recompute")
    assert timeline.operators[first : first + 2] == ["aten.native_batch_norm", "aten.relu"]
    assert timeline.phases[first + 2] == "backward"
    output = 2 * (16 * 6) * 32 * 32 * 4
    assert timeline.bytes["activations"][first + 1] - timeline.bytes["activations"][first] == output
    assert timeline.bytes["temporaries"][first + 1] == timeline.bytes["temporaries"][first]


def test_selective_checkpointing_runs_as_it_does_without_a_tracker():
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    def policy(context, operator, *args, **kwargs):
        save = operator is torch.ops.aten.convolution.default
        return CheckpointPolicy.MUST_SAVE if save else CheckpointPolicy.PREFER_RECOMPUTE

    unit = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1))

    def step(model, images, labels):
        contexts = lambda: create_selective_checkpoint_contexts(policy)  # noqa: E731
        return F.cross_entropy(checkpoint(model, images, use_reentrant=False, context_fn=contexts), labels)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = peak_memory(unit, 2, (32, 32), step=step)
    assert result.total == peak_memory(unit, 2, (32, 32), step=step, device="cpu").total


# --- held to truth ---


MODELS = {
    "dense": lambda: Dense(units=6, k=32),
    "dropout": lambda: Dense(dropout=0.5),
    "recompute": lambda: Dense(units=6, k=32, recompute=True),
    "fork": Fork,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("optimizer", [None, "amsgrad"])
def test_equal_on_real_tensors(name, optimizer):
    model = MODELS[name]()
    simulated = peak_memory(model, 2, (64, 96), optimizer=optimizer)
    real = peak_memory(model, 2, (64, 96), optimizer=optimizer, device="cpu")
    assert simulated.total == real.total
    assert simulated.by_kind == real.by_kind
    assert simulated.by_module == real.by_module
    # On the CPU the update's step counter is among the tensors that are followed, on a GPU it is not.
    end = simulated.timeline.phases.index("optimizer") if optimizer else None
    assert simulated.timeline.operators[:end] == real.timeline.operators[:end]
    for kind, values in simulated.timeline.bytes.items():
        assert values[:end] == real.timeline.bytes[kind][:end]


@pytest.mark.parametrize("name", MODELS)
def test_within_two_percent_of_the_allocators_trace(name):
    model = MODELS[name]()
    simulated = peak_memory(model, 2, (128, 128)).total
    assert simulated == pytest.approx(allocator_peak(model, 2, (128, 128)), rel=0.02)


def test_sums_of_gradients_are_made_in_place(monkeypatch):
    real = allocator_peak(Fork(), 4, (64, 64))
    assert peak_memory(Fork(), 4, (64, 64)).total == pytest.approx(real, rel=0.02)
    monkeypatch.setattr(tracker.Tracker, "_watch_sum", lambda self, first, second: None)
    assert peak_memory(Fork(), 4, (64, 64)).total > 1.2 * real  # what a plain count of allocations would say


def test_equal_to_torchs_mem_tracker(monkeypatch):
    mem_tracker = pytest.importorskip(
        "torch.distributed._tools.mem_tracker", reason="no MemTracker in this PyTorch"
    )
    from torch._subclasses import FakeTensorMode

    monkeypatch.setattr(tracker, "ROUNDING", 1)  # MemTracker rounds on CUDA only
    ours = peak_memory(Dense(), 2, (64, 64)).total
    try:
        with FakeTensorMode():
            model = Dense()
            images, labels = torch.empty(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.int64)
            theirs = mem_tracker.MemTracker()
            theirs.track_external(model, images, labels)
            with theirs:
                loss, kept = peak.default_step(model, images, labels)
                loss.backward()
                del kept
            snapshot = theirs.get_tracker_snapshot("peak")
    except (
        AttributeError,
        TypeError,
        NotImplementedError,
    ) as error:  # a private module: its interface may change
        pytest.skip(f"MemTracker does not run here: {error}")
    assert ours == snapshot[torch.device("cpu")]["Total"]


@pytest.mark.parametrize("build", [MODELS["recompute"], lambda: models.build("vnet", device="meta")])
def test_own_meta_kernels_give_the_same_as_pytorchs(build, monkeypatch):
    fast = {p: peak_memory(build(), 2, (64, 64), optimizer="amsgrad", precision=p) for p in peak.PRECISIONS}
    monkeypatch.setattr(meta, "KERNELS", {})
    for precision, result in fast.items():
        slow = peak_memory(build(), 2, (64, 64), optimizer="amsgrad", precision=precision)
        assert result.timeline.bytes == slow.timeline.bytes
        assert result.timeline.operators == slow.timeline.operators


def test_first_run_in_a_process_is_equal_to_later_ones():
    code = (
        "from torch import nn; from segkit.measure.peak import peak_memory\n"
        "net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))\n"
        "first, second = (peak_memory(net, 2, (32, 32)).timeline.bytes for _ in range(2))\n"
        "assert first == second, (first, second)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_runs_are_equal():
    model = Dense(recompute=True, dropout=0.1)
    first, second = (peak_memory(model, 3, (60, 44), optimizer="sgd") for _ in range(2))
    assert first.timeline.bytes == second.timeline.bytes
    assert first.alive == second.alive


# Table 12 of the LDN paper, batch 6 of 768x768; MiB with the three AMSGrad states, as an independent
# simulator found them, and what the paper measured.
TABLE_12 = [
    (None, 11103, 11265),
    ("cat1x1", 6565, 6620),
    ("unit,stem,td,tu", 2187, 2106),
]


@pytest.mark.parametrize(("recompute", "expected", "paper"), TABLE_12)
def test_ladder_densenet_at_paper_scale_in_three_seconds(recompute, expected, paper):
    from segkit import models

    model = models.build("ldn121-32-4", device="meta", recompute=recompute)
    peak_memory(model, 2, (128, 128))  # imports what the first call imports
    begin = time.process_time()
    result = peak_memory(model, 6, (768, 768), optimizer="amsgrad")
    seconds = time.process_time() - begin
    assert result.total / MIB == pytest.approx(expected, rel=0.002)
    assert result.total / MIB == pytest.approx(paper, rel=0.06)
    assert result.timeline.operators[result.timeline.peak] == "aten._log_softmax_backward_data"
    assert seconds < 3


def test_a_real_ladder_network_equal_on_real_tensors():
    from segkit import models

    model = models.build("ladder-resnet18-32-4", recompute="tu")
    simulated, real = (peak_memory(model, 2, (64, 96), device=device) for device in ("meta", "cpu"))
    assert simulated.timeline.bytes == real.timeline.bytes


def test_ladder_densenet_within_two_percent_of_the_allocators_trace():
    from segkit import models

    model = models.build("ldn121-32-4", device="meta", recompute="unit,stem,td,tu")
    assert peak_memory(model, 2, (96, 96)).total == pytest.approx(
        allocator_peak(model, 2, (96, 96)), rel=0.02
    )


# --- nothing is changed ---


class _LargeAllocations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if (
                isinstance(tensor, torch.Tensor)
                and tensor.device.type == "cpu"
                and func.name() != "aten::detach"
            ):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_nothing_changes(device):
    model = Dense(dropout=0.3, recompute=True)
    model.units[0].eval()
    model.cache = torch.ones(1000, 1000)
    model.head.weight.grad = torch.full_like(model.head.weight, 3.0)
    handle = model.head.register_forward_hook(lambda module, inputs, output: None)
    parameters = {name: (p, p.data_ptr(), p._version, p.clone()) for name, p in model.named_parameters()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = [(list(m._forward_hooks.items()), list(m._forward_pre_hooks)) for m in model.modules()]
    attributes = [set(vars(module)) for module in model.modules()]
    rng, python_rng = torch.get_rng_state(), random.getstate()

    with _LargeAllocations() as allocations:
        peak_memory(model, 2, (64, 64), optimizer="adam", device=device)

    assert torch.equal(torch.get_rng_state(), rng) and random.getstate() == python_rng
    for name, p in model.named_parameters():
        same, address, version, value = parameters[name]
        assert p is same and p.data_ptr() == address and p._version == version and torch.equal(p, value)
        assert (p.grad is None) == (name != "head.weight")
        assert not p._post_accumulate_grad_hooks and not p._backward_hooks
    assert torch.equal(model.head.weight.grad, torch.full_like(model.head.weight, 3.0))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [(list(m._forward_hooks.items()), list(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert model.cache.device.type == "cpu"
    handle.remove()
    if device == "meta":
        assert allocations.largest < 10_000  # the model has 4 MB in its cache alone


def test_a_model_in_eval_mode_is_trained_as_a_copy():
    model = Dense().eval()
    assert peak_memory(model, 2, (64, 64)).total == peak_memory(Dense(), 2, (64, 64)).total
    assert not model.training


def test_shared_parameters_count_once():
    model = Function(nn.Identity())
    model.second = model.conv
    assert peak_memory(model, 1, (8, 8)).by_kind["parameters"] == 2 * 512


def test_under_no_grad_and_inference_mode():
    expected = peak_memory(Dense(), 2, (64, 64)).total
    with torch.no_grad():
        assert peak_memory(Dense(), 2, (64, 64)).total == expected
    with torch.inference_mode():
        assert peak_memory(Dense(), 2, (64, 64)).total == expected


# --- the step ---


def test_step_may_return_the_loss_or_call_backward_itself():
    def returns(model, images, labels):
        return F.cross_entropy(model(images), labels)

    def calls(model, images, labels):
        F.cross_entropy(model(images), labels).backward()

    def keeps(model, images, labels):
        logits = model(images)
        return F.cross_entropy(logits, labels), {"kept": logits}

    results = [peak_memory(Dense(), 2, (64, 64), step=step) for step in (returns, calls, keeps)]
    assert results[0].total == results[1].total
    at = [r.timeline.operators.index("aten._log_softmax_backward_data") for r in results]
    live = [r.timeline.total[i] for r, i in zip(results, at, strict=True)]
    assert live[2] == live[0] + 2 * 7 * 64 * 64 * 4  # the logits that it still holds
    assert peak_memory(Dense(), 2, (64, 64)).total == results[2].total  # as does the default step


def test_auxiliary_outputs_count():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.head = Dense(), nn.Conv2d(3, 7, 4, stride=4)

        def forward(self, x):
            return {"out": self.net(x), "aux": {"level4": self.head(x)}}

    timeline = peak_memory(Two(), 2, (64, 64)).timeline
    assert timeline.operators.count("aten._log_softmax") == 2
    assert peak_memory(Two(), 2, (64, 64)).total == peak_memory(Two(), 2, (64, 64), device="cpu").total


def test_auxiliary_weight():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            logits = torch.stack([self.w * torch.ones(1, 4, 4), torch.zeros(1, 4, 4)], 1)
            return {"out": logits, "aux": {"a": logits[..., :2, :2], "b": logits[..., :1, :1]}}

    loss, _ = peak.default_step(Constant(), torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64))
    log_p = F.log_softmax(torch.tensor([2.0, 0.0]), 0)
    assert loss.item() == pytest.approx((-0.6 * log_p[0] - 0.4 * log_p.mean()).item())


def test_bf16_takes_less_and_recomputes_alike():
    for recompute in (False, True):
        full = peak_memory(Dense(units=6, k=32, recompute=recompute), 2, (64, 64))
        half = peak_memory(Dense(units=6, k=32, recompute=recompute), 2, (64, 64), precision="bf16")
        real = peak_memory(
            Dense(units=6, k=32, recompute=recompute), 2, (64, 64), precision="bf16", device="cpu"
        )
        assert half.total < full.total
        assert half.by_kind["activations"] < 0.7 * full.by_kind["activations"]
        assert half.timeline.bytes == real.timeline.bytes


# --- max_batch ---


@pytest.mark.parametrize("budget_mib", [3, 7.5, 20, 31])
def test_max_batch_is_the_largest_that_fits(budget_mib):
    model = Dense(k=8, units=2)
    found = max_batch(model, (32, 32), budget_mib / 1024, optimizer="sgd")
    fits = [
        peak_memory(model, b, (32, 32), optimizer="sgd").total <= budget_mib * MIB for b in (found, found + 1)
    ]
    assert found >= 1 and fits == [True, False]


@pytest.mark.parametrize("budget_mib", [30, 64, 200])
def test_max_batch_with_the_allocators_gaps(budget_mib):
    model = Dense(k=8, units=2)
    found = max_batch(model, (64, 64), budget_mib / 1024, optimizer="sgd", fragmentation=True)
    fits = [
        peak_memory(model, b, (64, 64), optimizer="sgd").fits(budget_mib / 1024) for b in (found, found + 1)
    ]
    assert found >= 1 and fits == [True, False]
    assert found <= max_batch(model, (64, 64), budget_mib / 1024, optimizer="sgd")
    assert max_batch(model, (64, 64), 1 / 1024, fragmentation=True) == 0  # the smallest segment has 2 MiB
    assert max_batch(model, (64, 64), 100, fragmentation=True, limit=5) == 5


def test_max_batch_at_its_ends():
    model = Dense(k=8, units=2)
    one = peak_memory(model, 1, (32, 32)).total
    assert max_batch(model, (32, 32), one / 2**30) == 1
    assert max_batch(model, (32, 32), (one - 1) / 2**30) == 0
    assert max_batch(model, (32, 32), 100, limit=9) == 9
    with pytest.raises(ValueError, match=r"does not hold the model itself.*larger budget"):
        max_batch(model, (32, 32), 1e-5, optimizer="amsgrad")
    for budget in (0, -1, float("nan"), "12", True):
        with pytest.raises(ValueError, match="budget_gib"):
            max_batch(model, (32, 32), budget)


@given(data=st.data())
def test_the_search_finds_the_largest_batch_in_few_steps(data):
    """Peaks on a straight line, or one that jumps where the step's peak moves elsewhere."""
    fixed, slope, first, limit = (data.draw(st.integers(1, n)) for n in (500, 90, 20, 60))
    first, budget = min(first, limit), data.draw(st.integers(0, 4000))
    jump, jumps_at = data.draw(st.sampled_from([0, 0, 30, 300])), data.draw(st.integers(1, 60))
    asked = []

    def peak_of(batch):
        asked.append(batch)
        return fixed + slope * batch + jump * (batch >= jumps_at)

    known = data.draw(st.sampled_from([fixed, 0]))
    found = largest_batch(peak_of, budget, fixed=known, first=first, limit=limit)
    steps = len(asked)
    assert found == max((b for b in range(1, limit + 1) if peak_of(b) <= budget), default=0)
    assert steps == len(set(asked[:steps]))  # none is simulated twice
    if known == fixed and not jump:
        assert steps <= 4


def test_max_batch_of_a_model_that_cannot_train_on_one_image():
    class Pool(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x):
            return self.norm(F.adaptive_avg_pool2d(self.conv(x), 1)).expand(-1, -1, *x.shape[-2:])

    found = max_batch(Pool(), (32, 32), 2 / 1024)
    assert found >= 2
    assert (
        peak_memory(Pool(), found, (32, 32)).total <= 2 * MIB < peak_memory(Pool(), found + 1, (32, 32)).total
    )
    assert 2 <= max_batch(Pool(), (32, 32), 2 / 1024, fragmentation=True) <= found
    assert max_batch(Pool(), (32, 32), 1 / 1024, fragmentation=True) == 0


# --- bad input ---


def branch(y):
    return y if y.sum() > 0 else -y


def select(y):
    return y * y[y > 0].mean()


def to_numpy(y):
    return y * float(y.detach().numpy().mean())


def to_list(y):
    return y * y.detach().flatten().tolist()[0]


def other_device(y):
    return y + torch.ones(4, 1, 1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (branch, "a value of a tensor decides"),
        (select, "depends on the values"),
        (to_numpy, "numpy"),
        (to_list, "values of a tensor are copied"),
        (other_device, "tensor on another device"),
    ],
)
def test_what_meta_tensors_cannot_do(function, message):
    with pytest.raises(MeasurementError, match=message) as caught:
        peak_memory(Function(function), 1, (8, 8))
    assert "Use device='cpu'" in str(caught.value)
    assert peak_memory(Function(function), 1, (8, 8), device="cpu").total > 0


def test_operator_without_a_meta_kernel():
    with torch.library._scoped_library("segkit_test", "FRAGMENT") as library:
        library.define("halve(Tensor x) -> Tensor")
        library.impl("halve", lambda x: x / 2, "CPU")
        with pytest.raises(
            MeasurementError, match=r"segkit_test\.halve\.default has no kernel for meta tensors"
        ):
            peak_memory(Function(lambda y: y + torch.ops.segkit_test.halve(y.detach())), 1, (8, 8))


def test_a_models_own_errors_pass_unchanged():
    def refuse(y):
        raise ValueError("too small")

    with pytest.raises(ValueError, match=r"^too small$"):
        peak_memory(Function(refuse), 1, (8, 8))
    with pytest.raises(RuntimeError, match="broadcast") as caught:
        peak_memory(Function(lambda y: y + y[..., :3]), 1, (8, 8))
    assert not isinstance(caught.value, MeasurementError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 1.5}, "batch_size=1.5"),
        ({"image_size": 64}, "image_size=64"),
        ({"image_size": (64, -1)}, "two positive integers"),
        ({"optimizer": "rmsprop"}, "optimizer='rmsprop': choose None, 'sgd'"),
        ({"device": "tpu"}, "device='tpu': choose"),
        ({"precision": "fp8"}, "precision='fp8': choose"),
    ],
)
def test_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        peak_memory(**{"model": Dense(), "batch_size": 2, "image_size": (64, 64), **change})


def test_more_bad_input():
    with pytest.raises(TypeError, match="got function"):
        peak_memory(branch, 1, (8, 8))
    with pytest.raises(TypeError, match="step=3"):
        peak_memory(Dense(), 1, (8, 8), step=3)
    with pytest.raises(ValueError, match="needs logits"):
        peak_memory(Function(lambda y: y.mean((2, 3))), 1, (8, 8))
    with pytest.raises(ValueError, match="must be a single number"):
        peak_memory(Dense(), 1, (8, 8), step=lambda model, images, labels: model(images))
    with pytest.raises(MeasurementError, match="computed no gradient"):
        peak_memory(Dense(), 1, (8, 8), step=lambda model, images, labels: None)
    with pytest.raises(ValueError, match="nothing to train"):
        peak_memory(Dense().requires_grad_(False), 1, (8, 8), optimizer="sgd")
    with pytest.raises(ValueError, match="run one forward pass"):
        peak_memory(nn.LazyConv2d(3, 1), 1, (8, 8))
    model = Dense()
    model.log = sys.stdout
    with pytest.raises(MeasurementError, match="cannot be copied"):
        peak_memory(model, 1, (8, 8))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu():
    with pytest.raises(RuntimeError, match="use device='meta'"):
        peak_memory(Dense(), 1, (8, 8), device="cuda")


# --- on a GPU ---


class FakeAllocator(TorchDispatchMode):
    """Stands in for torch.cuda's counters where there is no GPU: adds up the CPU's storages by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.highest = 0
        self.calls: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        import weakref

        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                address, size = storage._cdata, -(-storage.nbytes() // 512) * 512
                if address not in self.live:
                    self.live[address] = size
                    self.now += size
                    weakref.finalize(storage, self.free, address)
        if func is torch.ops.aten.convolution_backward.default:  # cuDNN's workspace
            self.highest = max(self.highest, self.now + 12345 * 512)
        self.highest = max(self.highest, self.now)
        return out

    def free(self, address):
        self.now -= self.live.pop(address)

    def memory_allocated(self):
        return self.now

    def max_memory_allocated(self):
        return self.highest

    def memory_stats(self):
        """Two thirds of each block were not asked for; all of them come out of whole MiB."""
        stats = {}
        for when, size in (("current", self.now), ("peak", self.highest)):
            stats[f"allocated_bytes.all.{when}"] = size
            stats[f"requested_bytes.all.{when}"] = size // 3
            stats[f"reserved_bytes.all.{when}"] = -(-size // 2**20) * 2**20
        return stats

    def reset_peak_memory_stats(self):
        self.calls.append("reset")
        self.highest = self.now

    def empty_cache(self):
        self.calls.append("empty")

    def synchronize(self):
        self.calls.append("synchronize")


def test_gpu_steps_with_a_stand_in_for_the_gpu():
    model = Dense()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    allocator = FakeAllocator()
    with allocator:
        held = torch.ones(10_000)  # not the step's
        measured, requested, reserved, workspace = measure_on_gpu(
            peak.default_step,
            model,
            2,
            (64, 64),
            optimizer=None,
            precision="fp32",
            device="cpu",
            allocator=allocator,
        )
    assert held.sum() == 10_000
    predicted = peak_memory(model, 2, (64, 64))
    # The stand-in adds a workspace to every convolution's backward, and sums gradients out of place.
    assert predicted.total < measured <= predicted.total + 12345 * 512 + 2 * 80 * 32 * 32 * 4
    assert abs(requested - measured / 3) <= 1
    assert abs(reserved - measured) < 2**20 and reserved % 2**20 == 0
    assert workspace["aten.convolution_backward"] == 12345 * 512
    assert next(iter(workspace)) == "aten.convolution_backward"
    assert allocator.calls[0] == "empty" and allocator.calls.count("synchronize") == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", [None, "amsgrad"])
def test_prediction_on_a_gpu(optimizer):
    result = peak_memory(Dense(units=8, k=64), 4, (256, 256), optimizer=optimizer, device="cuda")
    largest = max(result.workspace.values(), default=0)
    assert result.total * 0.97 <= result.measured <= result.total * 1.03 + largest
    assert result.requested <= result.measured <= result.reserved


def test_meta_models_can_be_run_for_real():
    with torch.device("meta"):
        model = Dense()
    assert peak_memory(model, 2, (64, 64), device="cpu").total == peak_memory(model, 2, (64, 64)).total
    copied = step_module.copy_model(model, "cpu")
    assert all(parameter.isfinite().all() for parameter in copied.parameters())
    assert json.dumps(peak_memory(model, 2, (64, 64)).by_kind)
