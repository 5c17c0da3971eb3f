"""A reversible stack trains as plain autograd does, in memory that does not grow with its depth."""

import copy
import gc
import pickle
import warnings
import weakref
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from segkit.measure import peak_memory
from segkit.memory import reversible
from segkit.memory.reversible import ReversibleSequence, ReversibleUnit

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def function(channels, dropout=0.0):
    """VNet's F on half of the channels, maybe with dropout."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), bias=False),
        nn.BatchNorm2d(channels),
        nn.PReLU(channels),
        nn.Dropout(dropout),
        nn.Conv2d(channels, channels, (1, 3), padding=(0, 1), bias=False),
        nn.BatchNorm2d(channels),
        nn.PReLU(channels),
    )


def unit(form, channels=3):
    return ReversibleUnit(function(channels), function(channels) if form == "revnet" else None)


def stack(depth=3, form="vnet", dtype=torch.float64):
    """A stack whose batch norms have seen something."""
    sequence = ReversibleSequence([unit(form) for _ in range(depth)]).to(dtype)
    for module in sequence.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked.fill_(11)
    return sequence


def twin(sequence):
    """The same by plain autograd."""
    plain = copy.deepcopy(sequence)
    for module in plain.modules():
        if isinstance(module, ReversibleSequence):
            module.reversible = False
    return plain


def images(dtype=torch.float64, channels=6):
    return torch.randn(2, channels, 7, 5, dtype=dtype, requires_grad=True)


def step(model, x, repeat=1):
    """Output, gradients by name (the input's under "x")."""
    x = x.detach().requires_grad_(x.requires_grad)
    y = model(x)
    loss = (y.float() if y.dtype in (torch.bfloat16,) else y).square().mean()
    for i in range(repeat):
        loss.backward(retain_graph=i < repeat - 1)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return y.detach(), gradients | {"x": x.grad}


def assert_close(found, expected, tolerance):
    """Each tensor's largest error against the largest value."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert found[name] is None, name
        else:
            error = (found[name] - value).abs().max() / value.abs().max()
            assert error <= tolerance, (name, float(error))


def assert_same_state(found, expected):
    for (name, a), b in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# the same results


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", ["vnet", "revnet"])
def test_a_step_is_that_of_plain_autograd(form, dtype):
    sequence = stack(form=form, dtype=dtype)
    plain = twin(sequence)
    for _ in range(2):  # the second from statistics that the first has moved
        x = images(dtype)
        for model in (sequence, plain):
            model.zero_grad()
        y, gradients = step(sequence, x)
        expected, plain_gradients = step(plain, x)
        assert torch.equal(y, expected)
        assert_close(gradients, plain_gradients, TOLERANCE[dtype])
        assert_same_state(sequence, plain)
    norm = sequence.units[0].f[1]
    assert norm.num_batches_tracked == 13 and norm.momentum == 0.1


@pytest.mark.parametrize("depth", [1, 2, 5, 16, 64])
def test_any_depth(depth):
    """The gradient as a whole; the round-off in the smallest of 64 units' tensors is a little above 1e-12."""
    sequence = stack(depth)
    plain = twin(sequence)
    x = images()
    found, expected = (torch.cat([g.flatten() for g in step(m, x)[1].values()]) for m in (sequence, plain))
    assert (found - expected).norm() <= 1e-12 * expected.norm()
    assert_same_state(sequence, plain)


def test_printed_form():
    """Z = X1 + F(X2), Y1 = Z, Y2 = X2 + Z; with G, Y2 = X2 + G(Z)."""
    f, g = function(3).double(), function(3).double()
    x = images()
    x1, x2 = x.chunk(2, 1)
    z = x1 + f(x2)
    assert torch.equal(ReversibleSequence([f])(x), torch.cat((z, x2 + z), 1))
    assert torch.equal(ReversibleSequence([ReversibleUnit(f, g)])(x), torch.cat((z, x2 + g(z)), 1))


def test_units_of_both_forms_in_one_stack():
    sequence = ReversibleSequence([unit(form) for form in ("vnet", "revnet", "vnet", "revnet")]).double()
    x = images()
    assert_close(step(sequence, x)[1], step(twin(sequence), x)[1], 1e-12)


@pytest.mark.parametrize("channel_dim", [1, -1, 0])
def test_another_dimension_is_split(channel_dim):
    linear = nn.Sequential(nn.Linear(4 if channel_dim != -1 else 2, 4 if channel_dim != -1 else 2), nn.Tanh())
    sequence = ReversibleSequence([linear] * 2, channel_dim=channel_dim).double()
    x = torch.randn(4, 6, 4, dtype=torch.float64, requires_grad=True)
    assert_close(step(sequence, x)[1], step(twin(sequence), x)[1], 1e-12)
    torch.testing.assert_close(sequence.inverse(sequence(x)), x.detach())


class Awkward(nn.Module):
    """Returns its input, or the sum of it and a parameter: autograd gives one tensor as two gradients."""

    def __init__(self, shift):
        super().__init__()
        self.shift = nn.Parameter(torch.randn(2, 3, 7, 5, dtype=torch.float64)) if shift else None

    def forward(self, x):
        return x if self.shift is None else x + self.shift


@pytest.mark.parametrize("shift", [False, True])
def test_gradients_that_are_one_tensor(shift):
    sequence = ReversibleSequence(
        [ReversibleUnit(Awkward(shift), Awkward(shift)), Awkward(shift), Awkward(shift)]
    )
    x = images()
    assert_close(step(sequence, x)[1], step(twin(sequence), x)[1], 1e-12)


def test_function_without_gradient_to_its_input():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.ones(1, 3, 1, 1, dtype=torch.float64))
            self.unused = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.value.expand_as(x)

    sequence = ReversibleSequence([Constant(), ReversibleUnit(Constant(), function(3).double()), Constant()])
    x = images()
    found = step(sequence, x)[1]
    assert_close(found, step(twin(sequence), x)[1], 1e-12)
    assert found["units.0.f.unused"] is None


def test_modules_shared_between_units():
    shared = function(3)
    sequence = ReversibleSequence([shared, ReversibleUnit(shared, shared), shared]).double()
    plain = twin(sequence)
    x = images()
    assert_close(step(sequence, x)[1], step(plain, x)[1], 1e-12)
    assert_same_state(sequence, plain)
    assert shared[1].num_batches_tracked == 4


def test_norms_in_eval_mode_and_cumulative_ones():
    sequence = stack()
    sequence.units[0].f[1].eval()
    sequence.units[1].f[1].momentum = None
    plain = twin(sequence)
    x = images()
    assert_close(step(sequence, x)[1], step(plain, x)[1], 1e-12)
    assert_same_state(sequence, plain)
    assert sequence.units[0].f[1].num_batches_tracked == 11


# what needs a gradient


@pytest.mark.parametrize("frozen", ["units.0.", "units.1.", "units.2.", "units.0.f.0", ".4.", ""])
@pytest.mark.parametrize("form", ["vnet", "revnet"])
@pytest.mark.parametrize("input_too", [False, True])
def test_frozen_parts(form, frozen, input_too):
    sequence = stack(form=form)
    for name, parameter in sequence.named_parameters():
        parameter.requires_grad_(frozen not in name)
    plain = twin(sequence)
    x = images().requires_grad_(not input_too)
    if input_too and not frozen:
        assert not sequence(x).requires_grad
        return
    found = step(sequence, x)[1]
    assert_close(found, step(plain, x)[1], 1e-12)
    assert_same_state(sequence, plain)
    assert (found["x"] is None) == input_too


def test_what_no_gradient_needs_is_not_run_again():
    sequence = stack(4)
    calls = []
    for i, part in enumerate(sequence.units):
        part.requires_grad_(i == 2)
        part.f.register_forward_hook(lambda *_, i=i: calls.append(i))
    step(sequence, images().requires_grad_(False))
    assert calls == [0, 1, 2, 3, 3, 2]


@pytest.mark.parametrize("form", ["vnet", "revnet"])
def test_every_function_runs_once_more(form):
    sequence = stack(3, form)
    calls = []
    for i, part in enumerate(sequence.units):
        for name, f in part.named_children():
            f.register_forward_hook(lambda *_, key=f"{name}{i}": calls.append(key))
    step(sequence, images())
    forward = ["f0", "f1", "f2"] if form == "vnet" else ["f0", "g0", "f1", "g1", "f2", "g2"]
    again = ["f2", "f1", "f0"] if form == "vnet" else ["g2", "f2", "g1", "f1", "g0", "f0"]
    assert calls == forward + again


def test_torch_autograd_grad():
    sequence = stack()
    plain = twin(sequence)
    x = images().requires_grad_(False)
    chosen = ("units.2.f.0.weight", "units.0.f.5.bias")
    found, expected = (
        torch.autograd.grad(m(x).square().mean(), [dict(m.named_parameters())[name] for name in chosen])
        for m in (sequence, plain)
    )
    assert_close(dict(zip(chosen, found, strict=True)), dict(zip(chosen, expected, strict=True)), 1e-12)
    assert all(p.grad is None for p in sequence.parameters())


def test_hooks_on_parameters_see_one_gradient_once():
    sequence = stack()
    plain = twin(sequence)
    x = images()
    for model in (sequence, plain):
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: 2 * gradient)
    assert_close(step(sequence, x)[1], step(plain, x)[1], 1e-12)


def test_functional_call_with_other_parameters():
    sequence = stack()
    x = images()
    others = {name: torch.randn_like(p, requires_grad=True) for name, p in sequence.named_parameters()}
    results = []
    for model in (sequence, twin(sequence)):
        y = torch.func.functional_call(model, others, (x,))
        results.append(
            dict(zip(others, torch.autograd.grad(y.square().mean(), others.values()), strict=True))
        )
    assert_close(*results, 1e-12)
    assert all(isinstance(p, nn.Parameter) for p in sequence.parameters())


@pytest.mark.parametrize("form", ["vnet", "revnet"])
def test_second_backward(form):
    sequence = stack(form=form)
    plain = twin(sequence)
    x = images()
    assert_close(step(sequence, x, 2)[1], step(plain, x, 2)[1], 1e-12)
    assert_same_state(sequence, plain)
    y = sequence(x)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()


def test_gradients_of_gradients_are_refused():
    sequence = stack()
    x = images()
    (gradient,) = torch.autograd.grad(sequence(x).square().sum(), x, create_graph=True)
    assert_close({"x": gradient.detach()}, {"x": step(twin(sequence), 1 * x)[1]["x"] * x.numel()}, 1e-10)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_pytorch_that_frees_nothing_early(monkeypatch):
    """As before PyTorch had the two options: the same result."""
    monkeypatch.setattr(reversible._Stage, "boxed_grads_call", False)
    backward = reversible._backward

    class Older:
        """A context without ``maybe_clear_saved_tensors``."""

        def __init__(self, ctx):
            for name in ("stage", "autocast", "evaluations", "saved_tensors", "needs_input_grad"):
                setattr(self, name, getattr(ctx, name))

    monkeypatch.setattr(reversible, "_backward", lambda ctx, box: backward(Older(ctx), box))
    sequence = stack()
    x = images()
    assert_close(step(sequence, x, 2)[1], step(twin(sequence), x, 2)[1], 1e-12)


# random numbers, precision


@pytest.mark.parametrize("form", ["vnet", "revnet"])
def test_dropout(form):
    sequence = ReversibleSequence(
        [
            ReversibleUnit(function(3, 0.5 * (i != 1)), function(3, 0.3) if form == "revnet" else None)
            for i in range(3)
        ]
    ).double()
    plain = twin(sequence)
    x = images()
    torch.manual_seed(1)
    found = step(sequence, x)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    expected = step(plain, x)
    assert torch.equal(found[0], expected[0])
    assert_close(found[1], expected[1], 1e-12)
    assert torch.equal(after, torch.get_rng_state())


def test_random_state_of_the_backward_pass_is_left_alone():
    sequence = ReversibleSequence([function(3, 0.5)]).double()
    y = sequence(images())
    torch.manual_seed(7)
    before = torch.get_rng_state()
    y.sum().backward()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("form", ["vnet", "revnet"])
@pytest.mark.parametrize("inside", [False, True])
def test_bf16_autocast(form, inside):
    """Functions in bf16, streams in float32: the same as plain autograd, whose streams are float32 too."""
    sequence = stack(9, form, torch.float32)
    plain = twin(sequence)
    seen = set()
    for part in sequence.units:
        part.f[0].register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    x = torch.randn(2, 6, 16, 16)
    results = []
    for model in (sequence, plain):
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x.bfloat16())
            if inside:
                y.square().mean().backward()
        if not inside:
            y.square().mean().backward()
        assert y.dtype == torch.float32
        results.append((y, {name: p.grad for name, p in model.named_parameters()}))
    assert seen == {torch.bfloat16}
    assert torch.equal(results[0][0], results[1][0])
    # A float32 round-off of the streams may tip a bf16 rounding inside the functions.
    assert_close(results[0][1], results[1][1], 0.05)
    assert_same_state(sequence, plain)


def test_backward_under_autocast_of_a_forward_without():
    sequence = stack(dtype=torch.float32)
    x = images(torch.float32)
    y = sequence(x)
    with torch.autocast("cpu", torch.bfloat16):
        y.square().mean().backward()
    found = {name: p.grad for name, p in sequence.named_parameters()}
    expected = step(twin(sequence), x.detach())[1]
    assert_close(found, {name: expected[name] for name in found}, 1e-5)


def test_half_precision_input_outside_autocast_is_widened():
    sequence = stack(dtype=torch.float32)
    x = images(torch.float32).detach().bfloat16().requires_grad_()
    y, gradients = step(sequence, x)
    assert y.dtype == torch.float32 and gradients["x"].dtype == torch.bfloat16


def test_half_precision_model_in_eval_mode():
    sequence = stack().bfloat16().eval()
    assert sequence(images(torch.bfloat16)).dtype == torch.bfloat16


# other modes, and the inverse


def test_eval_mode_and_no_grad_are_plain(monkeypatch):
    monkeypatch.setattr(reversible, "_Stage", None)  # would raise if it were used
    sequence = stack()
    x = images()
    with torch.no_grad():
        assert sequence(x).shape == x.shape
    y = sequence.eval()(x)
    torch.autograd.grad(torch.autograd.grad(y.square().sum(), x, create_graph=True)[0].sum(), x)
    sequence.train().reversible = False
    assert sequence(x).grad_fn is not None


@pytest.mark.parametrize("form", ["vnet", "revnet"])
@pytest.mark.parametrize("mode", [True, False])
def test_inverse(form, mode):
    sequence = stack(4, form).train(mode)
    x = images()
    y = sequence(x)
    state = copy.deepcopy(sequence.state_dict())
    found = sequence.inverse(y)
    assert not found.requires_grad
    torch.testing.assert_close(found, x.detach(), rtol=0, atol=1e-12)
    for name, value in sequence.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_copies_and_state():
    sequence = stack()
    keys = list(sequence.state_dict())
    assert keys[0] == "units.0.f.0.weight" and len(keys) == 3 * 14
    other = stack()
    other.load_state_dict(sequence.state_dict())
    x = images()
    expected = step(sequence, x)
    for copied in (other, copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        found = step(copied, x)
        assert torch.equal(found[0], expected[0])
        assert_close(found[1], expected[1], 0)
    assert "channel_dim=1, reversible=True" in repr(sequence)


# memory and operations


class Network(nn.Module):
    def __init__(self, depth, form="vnet"):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.body = ReversibleSequence([unit(form, 8) for _ in range(depth)])

    def forward(self, x):
        return self.body(self.stem(x))


def mean_square(model, images, labels):
    return model(images).square().mean()


@pytest.mark.parametrize("form", ["vnet", "revnet"])
def test_peak_is_flat_in_depth(form):
    def peak(depth, reversible=True):
        with torch.device("meta"):
            model = Network(depth, form)
        model.body.reversible = reversible
        return peak_memory(model, 4, (512, 512), step=mean_square)

    found = {depth: peak(depth) for depth in (1, 4, 32)}
    assert found[32].total == pytest.approx(found[4].total, rel=0.005)
    assert found[4].total == pytest.approx(found[1].total, rel=0.005)
    assert peak(32, False).total > 10 * found[32].total
    if form == "vnet":  # 7 maps of half the channels that F keeps, X1, two gradients and two temporaries
        half = 4 * 8 * 512 * 512 * 4
        assert found[4].total - found[4].by_kind["input"] == pytest.approx(11 * half, rel=0.005)


@pytest.mark.parametrize("form", ["vnet", "revnet"])
def test_simulation_agrees_on_meta_and_real_tensors(form):
    model = Network(4, form)
    meta, real = (
        peak_memory(model, 2, (24, 40), step=mean_square, device=device) for device in ("meta", "cpu")
    )
    assert meta.total == real.total and meta.by_kind == real.by_kind
    assert "recompute" in meta.timeline.phases
    assert any(name.startswith("body.units.0.f") for name in meta.timeline.modules)


def test_bf16_can_be_followed():
    with torch.device("meta"):
        model = Network(4)
    fp32, bf16 = (
        peak_memory(model, 2, (64, 64), step=mean_square, precision=p).total for p in ("fp32", "bf16")
    )
    assert bf16 < fp32


@pytest.mark.parametrize("form", ["vnet", "revnet"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flops_are_counted(form, device):
    """A forward, a second one, and twice as much for the two gradients of each convolution."""
    sequence = stack(3, form, torch.float32).to(device)
    x = torch.randn(2, 6, 16, 16, device=device, requires_grad=True)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        sequence(x)
    with FlopCounterMode(display=False) as both:
        sequence(x).sum().backward()
    assert forward.get_total_flops() == 3 * (1 + (form == "revnet")) * 2 * 2 * (2 * 16 * 16 * 3 * 3 * 3)
    assert both.get_total_flops() == 4 * forward.get_total_flops()


@pytest.mark.parametrize("form", ["vnet", "revnet"])
def test_nothing_is_kept_alive(form):
    sequence = stack(form=form)
    seen = []

    def note(module, inputs, output):
        outputs = output if isinstance(output, tuple) else (output,)
        seen.extend(weakref.ref(tensor.untyped_storage()) for tensor in (*inputs, *outputs))

    for module in sequence.modules():
        module.register_forward_hook(note)
    gc.collect()
    gc.disable()  # without its help
    try:
        x = images()
        y = sequence(x * 1)
        kept = {ref()._cdata for ref in seen if ref() is not None}
        assert kept == {y.untyped_storage()._cdata}  # between the two passes
        y.sum().backward()
        del y
        assert [ref for ref in seen if ref() is not None] == []
        y = sequence(x * 1)  # a pass without a backward one
        del y
        assert [ref for ref in seen if ref() is not None] == []
    finally:
        gc.enable()


# around it


def _share(index, rank, folder):
    """One of two processes under DistributedDataParallel, each with its own images."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    try:
        results = []
        for reversible in (True, False):
            torch.manual_seed(0)
            sequence = stack()
            sequence.reversible = reversible
            model = nn.parallel.DistributedDataParallel(sequence)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for number in range(2):
                torch.manual_seed(2 * number + rank)
                optimizer.zero_grad()
                model(images()).square().mean().backward()
                optimizer.step()
            results.append(({n: p.grad for n, p in sequence.named_parameters()}, sequence.state_dict()))
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_distributed_data_parallel(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # the other process imports this file by its name
    other = torch.multiprocessing.spawn(_share, (1, tmp_path), join=False)
    _share(0, 0, tmp_path)
    while not other.join():
        pass
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for found, expected in ranks:
        assert_close(found[0], expected[0], 1e-12)
        assert_close(found[1], expected[1], 1e-12)
    for name, gradient in ranks[0][0][0].items():
        assert torch.equal(gradient, ranks[1][0][0][name]), name


def test_inside_a_checkpoint():
    sequence = stack()
    plain = twin(sequence)
    x = images()
    y = torch.utils.checkpoint.checkpoint(sequence.train(), x, use_reentrant=False)
    y.square().mean().backward()
    expected = step(plain, x)[1]
    found = {name: p.grad for name, p in sequence.named_parameters()} | {"x": x.grad}
    assert_close(found, expected, 1e-12)


def test_compile_leaves_it_out():
    sequence = stack()
    x = images()
    expected = step(twin(sequence), x)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler about itself
        model = nn.Sequential(nn.Identity(), sequence)
        found = step(torch.compile(model, backend="aot_eager"), x)[1]
        found = {name.removeprefix("_orig_mod.").removeprefix("1."): value for name, value in found.items()}
        assert_close(found, expected, 1e-12)
        torch.compiler.reset()
        with pytest.raises(Exception, match="ReversibleSequence recomputes in a backward pass of its own"):
            torch.compile(model, backend="aot_eager", fullgraph=True)(x)


# messages


def test_data_parallel_is_refused():
    replica = stack()._replicate_for_data_parallel()
    with pytest.raises(RuntimeError, match=r"DataParallel.*DistributedDataParallel"):
        replica(images())


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.randn(2, 5, 4, 4), ValueError, r"\(2, 5, 4, 4\) has 5 of them.*even number"),
        (torch.randn(2, 0, 4, 4), ValueError, "has 0 of them"),
        (torch.randn(6), ValueError, r"channel_dim=1, and an input of shape \(6,\)"),
        (torch.ones(2, 6, 4, 4, dtype=torch.int64), TypeError, "floating-point tensor and got torch.int64"),
        (torch.ones(2, 6, 4, 4, dtype=torch.complex64), TypeError, "got torch.complex64"),
        ([1.0], TypeError, "floating-point tensor and got list"),
    ],
)
def test_wrong_inputs(x, error, message):
    with pytest.raises(error, match=message):
        stack(dtype=torch.float32)(x)
    with pytest.raises(error, match=message):
        stack(dtype=torch.float32).inverse(x)


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        (nn.Conv2d(3, 4, 1), ValueError, r"keep the shape.*Conv2d got \(2, 3, 7, 5\).*\(2, 4, 7, 5\)"),
        (nn.Conv2d(3, 3, 3), ValueError, r"returned \(2, 3, 5, 3\)"),
        (nn.AdaptiveMaxPool2d(3, return_indices=True), TypeError, "AdaptiveMaxPool2d returned .*tuple"),
    ],
)
@pytest.mark.parametrize("reversible", [False, True])
def test_functions_of_wrong_shape(part, error, message, reversible):
    sequence = ReversibleSequence([function(3), part])
    sequence.reversible = reversible
    with pytest.raises(error, match=message):
        sequence(images(torch.float32))


def test_functions_of_wider_type():
    class Wider(nn.Module):
        def forward(self, x):
            return x.double()

    with pytest.raises(TypeError, match=r"Wider got torch\.float32 and returned torch\.float64"):
        ReversibleSequence([Wider()])(images(torch.float32))


def test_half_precision_parameters_are_refused_in_training():
    with pytest.raises(TypeError, match=r"parameters in torch\.bfloat16.*use torch\.autocast"):
        stack().bfloat16()(images(torch.bfloat16))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([],), {}, ValueError, "units is empty"),
        ((nn.Conv2d(1, 1, 1),), {}, TypeError, "single Conv2d; put it in a list"),
        (([torch.tanh],), {}, TypeError, "made of modules, not of"),
        (([nn.Tanh()],), {"channel_dim": "1"}, TypeError, "channel_dim='1'"),
    ],
)
def test_wrong_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ReversibleSequence(*arguments, **options)


def test_second_function_must_be_a_module():
    with pytest.raises(TypeError, match="not of 3"):
        ReversibleUnit(nn.Tanh(), 3)


def test_a_tensor_from_outside_that_needs_a_gradient_is_refused():
    class Borrows(nn.Module):
        def __init__(self, tensor):
            super().__init__()
            self.tensor = [tensor]

        def forward(self, x):
            return x * self.tensor[0]

    outside = torch.ones(3, 1, 1, dtype=torch.float64, requires_grad=True)
    y = ReversibleSequence([function(3).double(), Borrows(outside)])(images())
    with pytest.raises(RuntimeError, match=r"shape \(3, 1, 1\) that requires a gradient.*would be lost"):
        y.sum().backward()


def test_changes_between_forward_and_backward_are_noticed():
    sequence = stack()
    y = sequence(images())
    sequence.eval()
    with pytest.raises(RuntimeError, match="went from train to eval mode"):
        y.sum().backward()
    y = sequence.train()(images())
    with torch.no_grad():
        sequence.units[1].f[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = sequence(images())
    with torch.no_grad():
        y.relu_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
