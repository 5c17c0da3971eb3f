"""Follows the memory of every tensor while a step runs, operator by operator: the engine below `peak_memory`.

Memory is counted in storages, the blocks that tensors and their views share, each rounded up to 512 bytes as
the CUDA allocator does. On the meta device storages have a size and no data, so that a step of any size can
be followed.
"""

import sys
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from segkit.measure import meta
from segkit.measure.allocator import SMALLEST, Requests

ROUNDING = SMALLEST  # bytes
KINDS = ("parameters", "gradients", "optimizer state", "activations", "temporaries", "input")
MODEL, STEP, OPTIMIZER, INPUT = "(model)", "(step)", "(optimizer)", "(input)"  # where no submodule is to name

_aten = torch.ops.aten


class MeasurementError(RuntimeError):
    """A step that cannot be measured as it stands; the message says why, where, and what to do."""


class Timeline(Sequence):
    """What was alive after each operator that allocated memory, in order.

    ``timeline[i]`` is a pair: the operator's name and a dict from kind (see `KINDS`) to live bytes. The last
    entry is the end of the step.

    Attributes:
        operators: their names, e.g. ``"aten.convolution"``.
        phases: ``"forward"`` (the loss included), ``"backward"``, ``"recompute"`` (a forward pass again,
            within the backward pass) or ``"optimizer"``.
        modules: path of the module whose forward or backward it belongs to.
        bytes: a list of live bytes for each kind.
        allocated: bytes that the operator allocated.
        macs: multiply-adds of convolutions and matrix products, as torch's FlopCounterMode counts them.
    """

    def __init__(self) -> None:
        self.operators: list[str] = []
        self.phases: list[str] = []
        self.modules: list[str] = []
        self.bytes: dict[str, list[int]] = {kind: [] for kind in KINDS}
        self.allocated: list[int] = []
        self.macs: list[int] = []

    def __len__(self) -> int:
        return len(self.operators)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return self.operators[i], {kind: values[i] for kind, values in self.bytes.items()}

    def __iter__(self) -> Iterator[tuple[str, dict[str, int]]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"<Timeline of {len(self)} operators, peak at {self.peak}>"

    @property
    def total(self) -> list[int]:
        """Live bytes of all kinds after each operator."""
        return [sum(values) for values in zip(*self.bytes.values(), strict=True)]

    @property
    def peak(self) -> int:
        """Index of the (first) entry with most live bytes."""
        total = self.total
        return total.index(max(total))


class _Storage:
    """One block of memory: its size, from when to when it lived, who made it, and as what it counted when."""

    __slots__ = ("birth", "bytes", "death", "kind", "kinds", "module", "number", "reference", "saved", "size")

    def __init__(self, number: int, size: int, birth: int, kind: str, module: str) -> None:
        self.number, self.size = number, size
        self.bytes = -(-size // ROUNDING) * ROUNDING
        self.birth, self.death = birth, sys.maxsize  # indices of the timeline; alive at birth <= i < death
        self.kind, self.kinds = kind, [(birth, kind)]
        self.module = module
        self.saved = 0  # how many nodes of the autograd graph hold it


class _Saved:
    """What autograd keeps in place of a tensor that it saves; dropped when the tensor is needed no more."""

    __slots__ = ("storage", "tensor", "tracker")

    def __init__(self, tracker: "Tracker", tensor: Tensor, storage: _Storage | None) -> None:
        self.tracker, self.tensor, self.storage = tracker, tensor, storage

    def __del__(self) -> None:
        storage = self.storage
        if storage is not None:
            storage.saved -= 1
            if storage.saved == 0 and storage.kind == "activations" and storage.death == sys.maxsize:
                self.tracker._change(storage, "temporaries", self.tracker.clock)


class Alive:
    """What was alive when: ``alive(i)``, (module, kind) -> bytes at the timeline's entry ``i``."""

    def __init__(self, storages: Sequence[_Storage] = ()) -> None:
        self._storages = storages

    def __call__(self, i: int) -> dict[tuple[str, str], int]:
        table: dict[tuple[str, str], int] = {}
        for storage in self._storages:
            if storage.birth <= i < storage.death and storage.bytes:
                kind = next(kind for since, kind in reversed(storage.kinds) if since <= i)
                table[storage.module, kind] = table.get((storage.module, kind), 0) + storage.bytes
        return table


class Tracker(TorchDispatchMode):
    """Dispatch mode that follows every storage on one type of device.

    Three things would be lost in a plain count of allocations:

    - *Kinds.* A storage counts as an activation from the moment autograd saves it until it lets go of it:
      hooks on saved tensors see both. (The hooks of `torch.utils.checkpoint` take their place inside a
      checkpointed segment.) What a recomputed segment leaves behind is kept for the backward pass too.
    - *Modules.* In the backward pass no module is running. Autograd numbers its nodes as the forward pass
      makes them; the numbers at which modules begin and end are noted, so a node leads back to its module.
    - *Sums of gradients.* Where a tensor is used twice, autograd adds the second gradient to the first in
      place, but not while a dispatch mode looks on: then it makes a third tensor. The first one is not
      counted beside the third where it dies at once, as it would have been overwritten.

    Args:
        device: type of the device to follow, e.g. ``"meta"``.
        model: its modules' names are the paths reported. It gets hooks: give a copy.
    """

    def __init__(self, device: str, model: nn.Module) -> None:
        super().__init__()
        self.device = device
        self._run = meta.run if device == "meta" else lambda func, args, kwargs: func(*args, **kwargs)
        self.timeline = Timeline()
        self.optimizing = False  # whether the optimizer is running
        self.storages: list[_Storage] = []
        self._live: dict[int, _Storage] = {}  # by address
        self._now = dict.fromkeys(KINDS, 0)
        self._recomputed: list[_Storage] = []
        self._overwritten: _Storage | None = None
        self._order: list[int] = []  # storages that came, by number, and went (~number)
        self._summed = 0  # where in it the sum came that an overwritten gradient makes room for
        self._fixed: int | None = None  # storages that were there before the step
        self._macs = 0  # of operators since the last entry of the timeline
        self._node: tuple[int, int] = (-1, 0)  # number of the running autograd node, and when it began
        self._stack: list[str] = []  # paths of the running modules
        self._numbers, self._paths = [0], [STEP]  # from this node number on, nodes are made by this module
        self._backward_path = STEP
        self._saved_hooks = torch.autograd.graph.saved_tensors_hooks(self._pack(), lambda saved: saved.tensor)
        self._hook(model)

    # --- what lives before the step ---

    def register(self, tensor: Tensor, kind: str, module: str) -> None:
        """Count a tensor that exists before the step."""
        if tensor.device.type == self.device:
            self._add(tensor.untyped_storage(), kind, module)

    def exempt(self, tensor: Tensor) -> None:
        """Do not count this tensor (a counter that lives on the CPU whatever the device)."""
        if tensor.device.type == self.device:
            self._add(tensor.untyped_storage(), "input", INPUT, counted=False)

    def _hook(self, model: nn.Module) -> None:
        for path, module in model.named_modules():
            path = path or MODEL

            def enter(module, inputs, path=path):
                self._stack.append(path)
                self._note_path(path)

            def leave(module, inputs, output):
                self._stack.pop()
                self._note_path(self._stack[-1] if self._stack else STEP)

            module.register_forward_pre_hook(enter, prepend=True)
            module.register_forward_hook(leave, always_call=True)
            for parameter in module.parameters(recurse=False):
                self.register(parameter, "parameters", path)
                if parameter.requires_grad:

                    def accumulated(parameter, path=path):
                        self._gradient(parameter.grad, path)

                    parameter.register_post_accumulate_grad_hook(accumulated)
            for buffer in module.buffers(recurse=False):
                self.register(buffer, "parameters", path)

    def _note_path(self, path: str) -> None:
        self._numbers.append(torch.autograd._get_sequence_nr())
        self._paths.append(path)

    # --- the step ---

    def __enter__(self):
        self._fixed = len(self.storages)
        self._saved_hooks.__enter__()
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        self._saved_hooks.__exit__(*exception)

    @property
    def clock(self) -> int:
        """Number of the timeline's entries so far."""
        return len(self.timeline.operators)

    def finish(self) -> None:
        """Close the timeline; what dies from now on does not count."""
        self._note("end of step", self._phase(), STEP)
        for storage in self._live.values():
            storage.reference = None
        self._live.clear()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self._overwritten = None
        phase = self._phase()
        if self.device == "meta" and func is _aten._local_scalar_dense.default and args[0].is_meta:
            raise self._unmeasurable("a value of a tensor decides how the computation goes on")
        try:
            out = self._run(func, args, kwargs or {})
        except (NotImplementedError, RuntimeError) as error:
            why = self._why(func, error)
            if why is None:
                raise
            raise self._unmeasurable(why) from error
        if func.overloadpacket in flop_registry:
            self._macs += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out) // 2
        self._follow(func, args, out, phase)
        return out

    def _follow(self, func, args, out, phase: str) -> None:
        fresh = 0  # bytes
        module = None
        for tensor, aliased in _tensors(out, func):
            if tensor.device.type != self.device:
                continue
            block = tensor.untyped_storage()
            storage = self._live.get(block._cdata)
            if storage is not None:
                size = block.nbytes()
                if size != storage.size:  # resized in place
                    self._free(block._cdata)
                    fresh += self._add(block, storage.kind, storage.module).bytes
                continue
            if aliased:  # a tensor that the step brought along and nobody registered
                self._add(block, "input", INPUT)
                continue
            if module is None:
                module = self._module(phase)
                if self._recomputed and phase == "backward":
                    self._keep_recomputed()
            storage = self._add(block, "temporaries", module)
            if phase == "recompute":
                self._recomputed.append(storage)
            fresh += storage.bytes
        if fresh:
            self._note(str(func.overloadpacket), phase, module or STEP, fresh)
            if func is _aten.add.Tensor and phase == "backward" and _from_engine():
                self._watch_sum(*args[:2])

    def _note(self, operator: str, phase: str, module: str, allocated: int = 0) -> None:
        self.timeline.operators.append(operator)
        self.timeline.phases.append(phase)
        self.timeline.modules.append(module)
        self.timeline.allocated.append(allocated)
        self.timeline.macs.append(self._macs)
        self._macs = 0
        for kind, values in self.timeline.bytes.items():
            values.append(self._now[kind])

    def _phase(self) -> str:
        if self.optimizing:
            return "optimizer"
        if torch._C._current_graph_task_id() == -1:
            return "forward"
        return "recompute" if torch.is_grad_enabled() else "backward"

    def _module(self, phase: str) -> str:
        if self.optimizing:
            return OPTIMIZER
        if phase == "forward" or self._stack:
            return self._stack[-1] if self._stack else STEP
        node = torch._C._current_autograd_node()
        number = node._sequence_nr() if node is not None else 1 << 63
        if number < 1 << 63:  # nodes that collect a parameter's gradient have none
            if number != self._node[0]:
                self._node = (number, self.clock)
            self._backward_path = self._paths[bisect_right(self._numbers, number) - 1]
        return self._backward_path

    # --- storages come, change and go ---

    def _add(self, block, kind: str, module: str, *, counted: bool = True) -> _Storage:
        address = block._cdata
        known = self._live.get(address)
        if known is not None:
            return known
        storage = _Storage(len(self.storages), block.nbytes(), self.clock, kind, module)
        if not counted:
            storage.bytes = 0
        elif self._fixed is not None:
            self._order.append(storage.number)
        storage.reference = weakref.ref(block, lambda _: self._free(address))
        self._live[address] = storage
        self.storages.append(storage)
        self._now[kind] += storage.bytes
        return storage

    def _free(self, address: int) -> None:
        storage = self._live.pop(address, None)
        if storage is None:
            return
        storage.death, storage.reference = self.clock, None
        self._now[storage.kind] -= storage.bytes
        if storage is self._overwritten:  # its last entry is the sum that would have been written into it
            storage.death -= 1
            self.timeline.bytes[storage.kind][-1] -= storage.bytes
            self._order.insert(self._summed, ~storage.number)
            self._overwritten = None
        else:
            self._order.append(~storage.number)

    def _change(self, storage: _Storage, kind: str, since: int) -> None:
        """Let a storage count as another kind from entry ``since`` of the timeline on."""
        since = max(since, storage.kinds[-1][0])
        old, new = self.timeline.bytes[storage.kind], self.timeline.bytes[kind]
        for i in range(since, self.clock):
            old[i] -= storage.bytes
            new[i] += storage.bytes
        self._now[storage.kind] -= storage.bytes
        self._now[kind] += storage.bytes
        storage.kind = kind
        storage.kinds.append((since, kind))

    def _pack(self):
        def pack(tensor: Tensor) -> _Saved:
            storage = None
            if tensor.device.type == self.device:
                storage = self._live.get(tensor.untyped_storage()._cdata)
            if storage is not None:
                storage.saved += 1
                if storage.kind == "temporaries":
                    self._change(storage, "activations", self.clock - 1)  # from the operator on that saves it
            return _Saved(self, tensor, storage)

        # Selective checkpointing asks whether a user has hooks on saved tensors and warns if so; these are
        # not a user's, and it shall run as it does without them.
        pack._checkpoint_internal, pack._user_hooks = True, None
        return pack

    def _gradient(self, gradient: Tensor | None, path: str) -> None:
        if gradient is not None and gradient.device.type == self.device:
            storage = self._live.get(gradient.untyped_storage()._cdata)
            if storage is not None and storage.kind != "gradients":
                storage.module = path
                self._change(storage, "gradients", self.clock - 1)

    def _keep_recomputed(self) -> None:
        for storage in self._recomputed:
            if storage.kind == "temporaries" and storage.death == sys.maxsize:
                self._change(storage, "activations", storage.birth)
        self._recomputed.clear()

    def _watch_sum(self, first: Tensor, second: Tensor) -> None:
        """Autograd adds ``second`` to ``first``: it would do so in place if nothing else used ``first``."""
        if isinstance(second, Tensor) and first.shape == second.shape and _is_dense(first):
            storage = self._live.get(first.untyped_storage()._cdata)
            # Older than the node that just ran: not one of that node's own intermediate results.
            if storage is not None and storage.kind == "temporaries" and storage.birth < self._node[1]:
                self._overwritten, self._summed = storage, len(self._order) - 1

    # --- what cannot be measured ---

    def _why(self, func, error: Exception) -> str | None:
        """What it is in an operator that meta tensors cannot do; None for an error of another sort."""
        if self.device != "meta":
            return None
        if torch.Tag.dynamic_output_shape in func.tags or torch.Tag.data_dependent_output in func.tags:
            return f"the result of {func} depends on the values of a tensor"
        if "on the expected device" in str(error) or "on the same device" in str(error):
            return (
                f"{func} was given a tensor on another device (make it with device=images.device, or "
                f"register it as a buffer)"
            )
        if "copy out of meta" in str(error):
            return "the values of a tensor are copied to another device"
        if isinstance(error, NotImplementedError):
            return f"the operator {func} has no kernel for meta tensors"
        return None

    def _unmeasurable(self, why: str) -> MeasurementError:
        outside = STEP if self._phase() == "forward" else self._backward_path
        where = self._stack[-1] if self._stack else outside
        return MeasurementError(
            f"This step cannot run on meta tensors, which have sizes but no values: in {where}, {why}. Use "
            f"device='cpu', which follows real tensors in the same way (a smaller batch or image helps), or "
            f"leave that part out of the step."
        )

    # --- the result ---

    def requests(self) -> Requests:
        """What the step asks of a GPU's allocator."""
        sizes = [storage.bytes and storage.size for storage in self.storages]
        return Requests(sizes, self._fixed or 0, self._order)

    def record(self) -> Alive:
        """What was alive when."""
        return Alive(self.storages)


def _tensors(out, func) -> Iterator[tuple[Tensor, bool]]:
    """The tensors that an operator returned, and whether each is an argument or a view of one."""
    if isinstance(out, Tensor):
        # `lift_fresh` hands over what torch.tensor() just made
        yield out, func._schema.returns[0].alias_info is not None and func is not _aten.lift_fresh.default
    elif isinstance(out, (tuple, list)):
        returns = func._schema.returns
        for i, part in enumerate(out):
            alias = returns[i if len(returns) == len(out) else 0].alias_info is not None
            if isinstance(part, Tensor):
                yield part, alias
            elif isinstance(part, (tuple, list)):
                yield from ((tensor, alias) for tensor in part if isinstance(tensor, Tensor))


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor fills a block of memory of its own without gaps."""
    return tensor.is_contiguous() or (
        tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )


def _from_engine() -> bool:
    """Whether autograd's engine itself called the running operator, rather than Python code in a backward."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(
        ("torch._dynamo", "torch._compile", "segkit.measure.tracker", "contextlib")
    ):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"
