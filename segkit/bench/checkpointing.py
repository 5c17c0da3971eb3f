"""Ways to checkpoint a Ladder-DenseNet, side by side: memory, time, recomputed work, exactness.

python -m segkit.bench checkpointing --out data/measured

Every method runs the same network with the same weights, on the same batch, with the same loss and update:
ours by its segments; torchvision's DenseNet-121 in place of our backbone, under the same ladder, plain and
with the checkpoints that PyTorch and torchvision offer; and our network through torch.compile.
"""

import argparse
import gc
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)
from torch.utils.flop_counter import flop_registry

from segkit import console, models
from segkit.bench import _record
from segkit.measure.peak import MIB, NOT_COUNTED, PeakMemory, Step, default_step, peak_memory
from segkit.memory import Segments, chunked_step
from segkit.models.blocks import BN_MOMENTUM
from segkit.models.ladder_densenet import Ladder

PAPER_BATCH, PAPER_SIZE = 6, (768, 768)  # column "Memory" of Tables 12 and 13
COMPILE_SECONDS = 150  # no longer than that: a whole network through a C++ compiler takes many minutes

# --- other people's checkpoints, on torchvision's DenseNet ---


class TorchvisionDenseNet(nn.Module):
    """torchvision's own DenseNet-121 as a backbone: its blocks and transitions as they are, no classifier.

    ``forward(x)`` takes (B, 3, H, W) and returns the outputs of its four dense blocks, at H/4, H/8, H/16 and
    H/32. Parameters have the names of `segkit.models.densenet.DenseNet`; the batch norms get its momentum.

    Args:
        memory_efficient: torchvision's own checkpoints (concatenation, norm1 and conv1 of each unit).
        run: ``run(parts, x)`` applies callables one after the other: stem and first block, then a transition
            and a block each.
    """

    def __init__(self, *, memory_efficient: bool = False, run: Callable | None = None) -> None:
        super().__init__()
        network = torchvision.models.densenet121(weights=None, memory_efficient=memory_efficient)
        for name, part in network.features.named_children():
            if name != "norm5":  # belongs to the classifier
                self.add_module(name, part)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = BN_MOMENTUM
        self.run = run or plainly
        self.torchvision_name = "densenet121"
        self.segment = Segments()
        self.channels, self.strides = [256, 512, 1024, 1024], [4, 8, 16, 32]

    def forward(self, x: Tensor) -> list[Tensor]:
        maps, before = [], self.stem
        for b in range(1, 5):
            x = self.run([before, getattr(self, f"denseblock{b}")], x)
            maps.append(x)  # (B, 256, H/4, W/4), (B, 512, H/8, W/8), (B, 1024, H/16, W/16) and H/32
            before = getattr(self, f"transition{b}", None)
        return maps

    def stem(self, x: Tensor) -> Tensor:
        return self.pool0(self.relu0(self.norm0(self.conv0(x))))  # (B, 64, H/4, W/4)


def plainly(parts: list[Callable], x: Tensor) -> Tensor:
    for part in parts:
        x = part(x)
    return x


def by_checkpoint_sequential(parts: list[Callable], x: Tensor) -> Tensor:
    """Each part as a segment. The last segment of a sequence is never recomputed: it is an identity here."""
    return checkpoint_sequential([*parts, nn.Identity()], len(parts) + 1, x, use_reentrant=False)


def by_selection(parts: list[Callable], x: Tensor) -> Tensor:
    """Selective checkpoints: outputs of convolutions are kept, all else in each part is recomputed."""
    for part in parts:
        x = checkpoint(part, x, use_reentrant=False, context_fn=_keep_convolutions)
    return x


def _keep_convolutions():
    def policy(context, operator, *args, **kwargs) -> CheckpointPolicy:
        keep = operator is torch.ops.aten.convolution.default
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


# --- what is compared ---


def ours(plan: "Plan", device: str) -> nn.Module:
    """The kit's network with the plan's segments."""
    return models.build(plan.model, recompute=plan.recompute, device=device)


def on_torchvision(**options) -> Callable[["Plan", str], nn.Module]:
    """The ladder of ldn121-32-4 on `TorchvisionDenseNet` with these options."""

    def build(plan: "Plan", device: str) -> nn.Module:
        with torch.device(device):
            return Ladder(TorchvisionDenseNet(**options), num_classes=19)

    return build


@dataclass(frozen=True)
class Plan:
    """One way to run the training step of a model.

    Attributes:
        name: in the table.
        model: plans of the same model are compared with the first of them, its plain step, and share its
            weights: parameters and buffers have the same names.
        recompute: segments of the kit's own network.
        build: ``build(plan, device)`` makes the network.
        step: as in `peak_memory`: the loss, and how it is computed.
        budget: the network goes through torch.compile with this ``activation_memory_budget``; None: it does
            not.
        tables: of the paper, that it belongs to.
        papers_batch: column "Max BS" of those tables.
    """

    name: str
    model: str = "ldn121-32-4"
    recompute: str | None = None
    build: Callable[["Plan", str], nn.Module] = ours
    step: Step = default_step
    budget: float | None = None
    tables: tuple[int, ...] = (12,)
    papers_batch: int | None = None


LEAN = "unit,stem,td,tu"
ALL = f"{LEAN},spp,cat,nested"
PLANNED = "cat,stem,spp,nested,unit:1,td:1,unit:2,3x3:3,unit:4,blend:1,tu:2,blend:3"
PLANS: tuple[Plan, ...] = (
    # Table 12 from the top; its sixth row as the label says and with TD, as the authors' code does it
    Plan("plain", tables=(12, 13), papers_batch=6),
    Plan("ours: 3x3", recompute="3x3", papers_batch=6),
    Plan("ours: cat1x1", recompute="cat1x1", papers_batch=10),
    Plan("ours: cat1x1,3x3", recompute="cat1x1,3x3", papers_batch=12),
    Plan("ours: block,stem,td,tu", recompute="block,stem,td,tu", papers_batch=16),
    Plan("ours: unit", recompute="unit", papers_batch=19),
    Plan("ours: unit,td", recompute="unit,td", papers_batch=19),
    Plan(f"ours: {LEAN}", recompute=LEAN, tables=(12, 13), papers_batch=27),
    Plan("ours: block,stem,td", recompute="block,stem,td"),  # the segments of checkpoint_sequential below
    # beyond the paper: all that there is, and what `segkit.memory.plan` finds for 1490 MiB
    Plan(f"ours: {ALL}, chunked loss", recompute=ALL, step=chunked_step),
    Plan("ours: planned for 1490 MiB, chunked loss", recompute=PLANNED, step=chunked_step),
    # other people's
    Plan("torchvision, plain", build=on_torchvision()),
    Plan("torchvision, memory_efficient=True", build=on_torchvision(memory_efficient=True)),
    Plan("torchvision, checkpoint_sequential", build=on_torchvision(run=by_checkpoint_sequential)),
    Plan("torchvision, selective checkpoints", build=on_torchvision(run=by_selection)),
    Plan("torch.compile, memory budget 0.5", budget=0.5),
    # Table 13
    Plan("plain", model="ldn161-32-4", tables=(13,), papers_batch=3),
    Plan(f"ours: {LEAN}", model="ldn161-32-4", recompute=LEAN, tables=(13,), papers_batch=19),
    Plan("plain", model="ladder-resnet18-32-4", tables=(13,), papers_batch=17),
    Plan("plain", model="ladder-resnet50-32-4", tables=(13,), papers_batch=6),
    Plan("plain", model="ladder-resnet101-32-4", tables=(13,), papers_batch=4),
)

# --- counting ---


def work(peak: PeakMemory) -> tuple[int, int]:
    """Multiply-adds of the forward pass of a step that `peak_memory` ran, and of the whole step."""
    return peak.forward_macs, sum(peak.timeline.macs)


def graph_macs(graph: torch.fx.Graph) -> int:
    """Multiply-adds of a graph of aten operators whose nodes know their values' shapes."""
    flops = 0
    for node in graph.nodes:
        packet = getattr(node.target, "overloadpacket", None) if node.op == "call_function" else None
        if packet in flop_registry:
            args, kwargs = torch.fx.node.map_arg(
                (node.args, node.kwargs), lambda argument: argument.meta["val"]
            )
            flops += flop_registry[packet](*args, **kwargs, out_val=node.meta["val"])
    return flops // 2


class Compiled(nn.Module):
    """A network through torch.compile, where the compiler chooses what to keep for the backward pass.

    Args:
        model: the network; parameters and buffers stay its own.
        budget: ``activation_memory_budget``: 1 keeps what a compiled network keeps by default, 0 as little as
            recomputing everything would.
        backend: ``"inductor"`` makes machine code; ``"aot_eager"`` runs the same two graphs, cut by the same
            rule, operator by operator.

    Attributes: ``macs``, multiply-adds of the graphs compiled so far, forward and backward.
    """

    def __init__(self, model: nn.Module, *, budget: float, backend: str) -> None:
        super().__init__()
        self.model, self.budget, self.macs = model, budget, 0
        make = self._aot_eager if backend == "aot_eager" else self._inductor
        self.run = torch.compile(model, backend=make, dynamic=False)

    def forward(self, x: Tensor):
        from torch._functorch import config  # late: brings the compiler with it

        with config.patch(activation_memory_budget=self.budget):
            return self.run(x)

    def _aot_eager(self, graph, inputs):
        from torch._dynamo.backends.common import aot_autograd
        from torch._functorch.aot_autograd import make_boxed_func
        from torch._functorch.partitioners import min_cut_rematerialization_partition

        def count(part: torch.fx.GraphModule, inputs) -> Callable:
            self.macs += graph_macs(part.graph)
            return make_boxed_func(part.forward)

        compiler = aot_autograd(
            fw_compiler=count,
            partition_fn=min_cut_rematerialization_partition,
            keep_inference_input_mutations=True,  # else backward finds the running statistics changed
        )
        return compiler(graph, inputs)

    def _inductor(self, graph, inputs):
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner

        def count(part: torch.fx.GraphModule, inputs, **options) -> Callable:
            self.macs += graph_macs(part.graph)
            return compile_fx_inner(part, inputs, **options)

        return compile_fx(graph, inputs, inner_compile=count)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in its body after so many seconds, where the system has alarms; otherwise never."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_):
        raise TimeoutError(f"compiling took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)  # again, should someone swallow the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- running ---


class Series:
    """Plans of one model on one device: one set of weights, one optimizer, and a network for each plan.

    The rows (``.rows``, a dict for each plan) are filled in by `predict`, `compare`, `weigh` and `time`. A
    plan that cannot run keeps a ``note`` and is left out from then on.

    Args:
        plans: the first is the plain one.
        batch_sizes: of each plan.
        image_size: (H, W) in pixels.
        device: ``"cpu"`` or ``"cuda"``.
        backend: of torch.compile.
        compile_seconds: when to give up compiling.
    """

    def __init__(
        self,
        plans: list[Plan],
        batch_sizes: list[int],
        image_size: tuple[int, int],
        *,
        device: str,
        backend: str,
        compile_seconds: float = COMPILE_SECONDS,
    ) -> None:
        self.plans, self.image_size, self.device = plans, image_size, device
        self.backend, self.compile_seconds = backend, compile_seconds
        self.rows = [
            {
                "method": plan.name,
                "model": plan.model,
                "recompute": plan.recompute,
                "batch_size": batch_size,
                "image_size": list(image_size),
                **dict.fromkeys(("predicted", "measured", "recomputed_macs", "recomputed_share")),
                **dict.fromkeys(("seconds", "time_ratio", "time_ratio_of_minima", "images_per_second")),
                **dict.fromkeys(("statistics_exact", "statistics", "gradients_equal", "gradients")),
            }
            for plan, batch_size in zip(plans, batch_sizes, strict=True)
        ]
        if device == "cuda":
            small = torch.ones(16, 16, device=device)
            small @ small  # cuBLAS keeps a workspace from its first call on; not a step's cost
            del small
            _clean(device)
            self.before = torch.cuda.memory_allocated()
        torch.manual_seed(0)
        self.weights = plans[0].build(plans[0], device)
        for module in self.weights.modules():
            if isinstance(module, nn.BatchNorm2d):  # as in mid-training: a second update shows in all of them
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
                module.num_batches_tracked.fill_(11)
        self.optimizer = torch.optim.Adam(self.weights.parameters(), lr=1e-4, amsgrad=True, foreach=True)
        self.networks = [self._network(plan) for plan in plans]
        self.failed: set[int] = set()

    def _network(self, plan: Plan) -> nn.Module:
        network = plan.build(plan, self.device)
        network.load_state_dict(self.weights.state_dict(keep_vars=True), assign=True)  # shared, not copied
        if plan.budget is None:
            return network
        return Compiled(network, budget=plan.budget, backend=self.backend)

    def _batch(self, batch_size: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(0)  # the same on every device
        images = torch.randn(batch_size, 3, *self.image_size, generator=random)
        labels = torch.randint(0, 19, (batch_size, *self.image_size), generator=random)
        return images.to(self.device), labels.to(self.device)

    def _step(self, i: int, images: Tensor, labels: Tensor, *, update: bool) -> None:
        result = self.plans[i].step(self.networks[i], images, labels)
        loss = result[0] if isinstance(result, tuple) else result
        if isinstance(loss, Tensor) and loss.requires_grad:
            loss.backward()
        if update:
            self.optimizer.step()

    def _running(self) -> list[int]:
        return [i for i in range(len(self.plans)) if i not in self.failed]

    @contextmanager
    def _noted(self, i: int) -> Iterator[None]:
        """What may go wrong goes into the row: memory for any plan, anything for a compiled one."""
        try:
            yield
            return
        except torch.OutOfMemoryError:
            note = "the step does not fit on this GPU"
        except Exception as error:
            if self.plans[i].budget is None:
                raise
            error = getattr(error, "inner_exception", error)  # what the compiler stumbled over
            note = f"torch.compile: {type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"
        self.failed.add(i)  # out of the handler, whose traceback holds the step's tensors
        self.rows[i]["note"] = note
        self.weights.zero_grad(set_to_none=True)
        _clean(self.device)

    def predict(self, write: Callable[[], None]) -> None:
        """Peak memory and multiply-adds at the paper's batch and image size, on meta tensors."""
        plain = None
        for plan, row in zip(self.plans, self.rows, strict=True):
            if plan.budget is not None:
                row["note"] = "no prediction: the simulation cannot see the tensors of compiled code"
                continue
            network = plan.build(plan, "meta")
            peak = peak_memory(network, PAPER_BATCH, PAPER_SIZE, step=plan.step, optimizer="amsgrad")
            row["predicted"] = peak.total
            macs = work(peak)
            plain = plain or macs
            row["recomputed_macs"] = macs[1] - plain[1]
            row["recomputed_share"] = (macs[1] - plain[1]) / plain[0]
            write()

    def compare(self, write: Callable[[], None]) -> None:
        """One step of each plan from the same state: statistics and gradients beside the plain step's.

        The plain step itself runs twice: its row says what one run differs from the next by.
        """
        images, labels = self._batch(self.rows[0]["batch_size"])
        start = {name: _to_cpu(tensor) for name, tensor in self.weights.state_dict().items()}
        expected = None
        for i in (0, *self._running()):
            if 0 in self.failed:
                break
            limit = nullcontext() if self.plans[i].budget is None else time_limit(self.compile_seconds)
            with self._noted(i), limit:
                self.weights.load_state_dict(start)
                self._step(i, images, labels, update=False)
            found = (
                self._gradients(),
                {name: _to_cpu(buffer) for name, buffer in self.weights.named_buffers()},
            )
            self.weights.zero_grad(set_to_none=True)
            if expected is None:
                expected = found
            elif i not in self.failed:
                self.rows[i] |= _compared(found, expected)
                if isinstance(self.networks[i], Compiled):
                    plain = self.plans[0].build(self.plans[0], "meta")
                    forward, total = work(
                        peak_memory(plain, len(images), self.image_size, step=self.plans[0].step)
                    )
                    self.rows[i]["recomputed_share"] = (self.networks[i].macs - total) / forward
            write()
        self.weights.load_state_dict(start)

    def _gradients(self) -> dict[str, Tensor]:
        return {
            name: _to_cpu(parameter.grad)
            for name, parameter in self.weights.named_parameters()
            if parameter.grad is not None
        }

    def weigh(self, write: Callable[[], None]) -> None:
        """Peak of a real step by the allocator's own count; the optimizer's state exists from here on.

        On a GPU the step is whole. On the CPU it ends after the backward pass and the optimizer's state is
        left out: at a small size they would be most of it.
        """
        self._make_optimizer_state()
        for i in self._running():
            with self._noted(i):
                images, labels = self._batch(self.rows[i]["batch_size"])
                _clean(self.device)
                if self.device == "cuda":
                    self._step(i, images, labels, update=True)  # lets the libraries set themselves up
                    self.weights.zero_grad(set_to_none=True)
                    torch.cuda.reset_peak_memory_stats()
                    self._step(i, images, labels, update=True)
                    torch.cuda.synchronize()
                    self.rows[i]["measured"] = torch.cuda.max_memory_allocated() - self.before
                else:
                    known = [*self.weights.parameters(), *self.weights.buffers(), images, labels]
                    self.rows[i]["measured"] = sum(tensor.nbytes for tensor in known) + highest(
                        lambda i=i, batch=(images, labels): self._step(i, *batch, update=False)
                    )
            images = labels = None
            self.weights.zero_grad(set_to_none=True)
            write()

    def _make_optimizer_state(self) -> None:
        for parameter in self.weights.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.weights.zero_grad(set_to_none=True)

    def time(self, rounds: int, write: Callable[[], None]) -> None:
        """Seconds of a step. In each round every plan takes one, so that a busy moment hits all alike."""
        for row in self.rows:
            row["seconds"] = {"all": []}
        for _ in range(rounds):
            for i in self._running():
                with self._noted(i):
                    images, labels = self._batch(self.rows[i]["batch_size"])
                    _clean(self.device)
                    begin = time.perf_counter()
                    self._step(i, images, labels, update=True)
                    if self.device == "cuda":
                        torch.cuda.synchronize()
                    self.rows[i]["seconds"]["all"].append(time.perf_counter() - begin)
                images = labels = None
                self.weights.zero_grad(set_to_none=True)
            self._summarize()
            write()

    def _summarize(self) -> None:
        """Medians and minima; ratios are of seconds an image, to the plain step's."""
        for row in self.rows:
            taken = row["seconds"]["all"]
            if not taken:
                row["seconds"] = None
                continue
            row["seconds"] |= {"median": statistics.median(taken), "minimum": min(taken)}
            row["images_per_second"] = row["batch_size"] / row["seconds"]["median"]
            plain = self.rows[0]
            if plain["seconds"]:
                images = plain["batch_size"] / row["batch_size"]
                row["time_ratio"] = row["seconds"]["median"] / plain["seconds"]["median"] * images
                row["time_ratio_of_minima"] = row["seconds"]["minimum"] / plain["seconds"]["minimum"] * images


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict:
    """How far tensors are from what is expected.

    Returns:
        ``unequal``: tensors that are not bit-equal; and of the real numbers among them ``largest``: the
        largest difference of an element as a share of its tensor's largest absolute value; ``norm``: of all
        differences, as a share of the norm of all that is expected. A missing tensor counts as zero.
    """
    unequal, largest, squares, scale = 0, 0.0, 0.0, 0.0
    for name, right in expected.items():
        left = found.get(name, torch.zeros_like(right))
        unequal += not torch.equal(left, right)
        if right.is_floating_point():
            off = (left - right).abs()
            if off.any():
                largest = max(largest, (off.max() / right.abs().max()).item())
            squares += off.double().square().sum().item()
            scale += right.double().square().sum().item()
    return {"unequal": unequal, "largest": largest, "norm": (squares / scale) ** 0.5 if squares else 0.0}


def _compared(found: tuple[dict, dict], expected: tuple[dict, dict]) -> dict:
    """What a row says about (gradients, buffers) beside those of the plain step."""
    gradients, buffers = difference(found[0], expected[0]), difference(found[1], expected[1])
    counters = [name for name in expected[1] if name.endswith("num_batches_tracked")]
    extra = sum(int(found[1][name] - expected[1][name]) for name in counters)
    return {
        "statistics_exact": buffers["unequal"] == 0,
        "statistics": {"tensors": len(expected[1]), **buffers, "extra_updates": extra},
        "gradients_equal": gradients["unequal"] == 0,
        "gradients": {"tensors": len(expected[0]), **gradients},
    }


def highest(step: Callable[[], object]) -> int:
    """Most bytes on the CPU that ``step()`` has in use beyond what was there before.

    By the allocator's events, which torch.profiler records.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints that it starts, stops and finds no GPU
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as trace:
        step()
    now = most = 0
    events = (event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def _to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _clean(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


# --- the command ---


HEADING = (("", 52), ("peak MiB", 9), ("here", 6), ("GMAC", 7), ("%", 6), ("time", 6), ("(min)", 6))
HEADING += (("images/s", 9), ("BN", 6), ("gradients", 10))


def heading() -> str:
    return " ".join(text.rjust(width) for text, width in HEADING)


def line(row: dict) -> str:
    """A row of the printed table, with memory in MiB and the norm of what gradients differ by."""

    def show(value, text: str, scale: float = 1) -> str:
        return "-" if value is None else text.format(value / scale)

    norms, gradients = row["statistics"], row["gradients"]
    exact = "-"
    if norms is not None:
        exact = "twice" if norms["extra_updates"] else f"{norms['largest']:.0e}"
    cells = (
        f"{row['model']} {row['method']}".ljust(HEADING[0][1]),
        show(row["predicted"], "{:.0f}", MIB),
        show(row["measured"], "{:.0f}", MIB),
        show(row["recomputed_macs"], "{:.1f}", 1e9),
        show(row["recomputed_share"], "{:.1f}", 0.01),
        show(row["time_ratio"], "{:.2f}"),
        show(row["time_ratio_of_minima"], "{:.2f}"),
        show(row["images_per_second"], "{:.2f}"),
        "exact" if row["statistics_exact"] else exact,
        "equal" if row["gradients_equal"] else "-" if gradients is None else f"{gradients['norm']:.0e}",
    )
    text = " ".join(cell.rjust(width) for cell, (_, width) in zip(cells, HEADING, strict=True))
    return f"{text}  {row['note']}" if "note" in row else text


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark, prints the table, writes the result as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m segkit.bench checkpointing", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--size",
        type=console.size,
        metavar="HxW",
        help="images of the real steps (default: 256x256; cuda: 768x768)",
    )
    parser.add_argument(
        "--batch", type=console.count, help="images in a batch of the real steps (default: 2; cuda: 6)"
    )
    parser.add_argument(
        "--papers-batches",
        action="store_true",
        help="then time and measure again with the paper's largest batch of each row, column 'Max BS'",
    )
    parser.add_argument(
        "--rounds", type=console.count, help="timed steps of each method (default: 3; cuda: 20)"
    )
    parser.add_argument(
        "--table", type=int, choices=(12, 13), nargs="+", default=[12], help="the paper's (default: 12)"
    )
    parser.add_argument(
        "--backend",
        choices=("aot_eager", "inductor"),
        help="of torch.compile (default: aot_eager, which needs no C++ compiler; cuda: inductor)",
    )
    parser.add_argument(
        "--compile-seconds",
        type=console.count,
        default=COMPILE_SECONDS,
        help="then give up (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write checkpointing.json (cuda: checkpointing_cuda.json) here",
    )
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="only methods whose name contains TEXT, and the plain step"
    )
    options = parser.parse_args(argv)
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        parser.error("there is no CUDA device; leave out --device cuda to time steps on the CPU")
    image_size = options.size or (PAPER_SIZE if cuda else (256, 256))
    if min(image_size) < 1:
        parser.error(f"--size {image_size[0]}x{image_size[1]}: give at least one pixel a side")
    batch = options.batch or (PAPER_BATCH if cuda else 2)
    chosen = [plan for plan in PLANS if set(plan.tables) & set(options.table)]
    if not any(options.only in plan.name for plan in chosen):
        parser.error(
            f"no method contains {options.only!r}; there is {', '.join(plan.name for plan in chosen)}"
        )
    wanted = {plan.model for plan in chosen if options.only in plan.name}
    groups: dict[str, list[Plan]] = {model: [] for model in dict.fromkeys(plan.model for plan in chosen)}
    for plan in chosen:
        group = groups[plan.model]
        if plan.model in wanted and (not group or options.only in plan.name):
            group.append(plan)

    arguments = None if argv is None else ["segkit.bench", "checkpointing", *argv]
    result = _record.stamp(arguments, device=options.device)
    if hasattr(os, "getloadavg"):  # timings mean little on a busy machine: say how busy it was
        result["machine"]["load_at_start"] = os.getloadavg()[0]
    result |= {
        "device": options.device,
        "predicted": f"peak_memory at batch {PAPER_BATCH}, {PAPER_SIZE[0]}x{PAPER_SIZE[1]}, AMSGrad, bytes",
        "not_counted": NOT_COUNTED,
        "measured": (
            "torch.cuda.max_memory_allocated, bytes, in a whole step at the row's batch and image size"
            if cuda
            else "torch.profiler's trace of the allocator, bytes, in forward and backward at the row's batch "
            "and image size, without the optimizer's state"
        ),
        "recomputed_macs": "multiply-adds of the predicted step beyond the plain step's",
        "recomputed_share": "the same over the multiply-adds of the plain forward pass",
        "time_ratio": "medians of seconds an image, to the plain step's, interleaved; forward to update",
        "compile": {"backend": options.backend or ("inductor" if cuda else "aot_eager"), "of": "the network"},
        "rows": [],
    }

    def write() -> None:  # after each finding: a run that is cut off keeps what it has
        if options.out:
            _record.write(options.out / ("checkpointing_cuda.json" if cuda else "checkpointing.json"), result)

    print(heading())
    for group in filter(None, groups.values()):
        runs = [(group, [batch] * len(group), False)]
        if options.papers_batches:
            plans = [plan for plan in group if plan.papers_batch is not None]
            runs.append((plans, [plan.papers_batch for plan in plans], True))
        for plans, batches, papers in runs:
            series = Series(
                plans,
                batches,
                image_size,
                device=options.device,
                backend=result["compile"]["backend"],
                compile_seconds=options.compile_seconds,
            )
            for row in series.rows:
                row["batches"] = "the paper's" if papers else "equal"
            result["rows"] += series.rows
            if not papers:
                series.predict(write)
                series.compare(write)
            series.weigh(write)
            series.time(options.rounds or (20 if cuda else 3), write)
            for row in series.rows:
                print(line(row), flush=True)
            del series
            _clean(options.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
