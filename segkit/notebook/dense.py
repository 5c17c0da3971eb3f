"""One dense block beside one residual block, for notebook 01: weights, work, and what autograd keeps.

"Efficient Ladder-style DenseNets for Semantic Segmentation of Large Images", Section 3. In its words: a block
has n units, F_in maps at its input and F_out at its output; k, the growth rate, is what a dense unit adds.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from segkit.measure import meta
from segkit.memory.recompute import Segments
from segkit.models.blocks import BatchNorm, BNReLUConv
from segkit.models.densenet import DenseBlock, DenseUnit

# What the notebook calls a way to train a dense block, and the segments it recomputes.
MODES: dict[str, str | None] = {"naive": None, "cat1x1": "cat1x1", "unit": "unit"}


# Blocks -------------------------------------------------------------------------------------------


class OneMap(nn.Module):
    """A dense block as a function of one map: (B, F_in, h, w) -> (B, F_out, h, w)."""

    def __init__(self, block: DenseBlock) -> None:
        super().__init__()
        self.block = block

    @property
    def units(self) -> list[DenseUnit]:
        return list(self.block.values())

    def forward(self, x: Tensor) -> Tensor:
        (out,) = self.block(0, None, x)
        return out


def dense_block(n: int, f_in: int, k: int, *, mode: str = "naive", device: str = "meta") -> OneMap:
    """A block of n dense units, as `segkit.models.densenet` has them.

    Args:
        n: units.
        f_in: maps at its input.
        k: maps that each unit adds.
        mode: one of `MODES`.
        device: where its parameters are; "meta" holds none.

    Raises:
        ValueError: if the mode is unknown, or a count is not positive.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: choose {', '.join(map(repr, MODES))}.")
    if min(n, f_in, k) < 1:
        raise ValueError(f"n={n}, f_in={f_in}, k={k}: a block needs at least one of each.")
    segment, place = Segments(MODES[mode]), "1"
    with torch.device(device):
        units = {
            f"denselayer{i + 1}": DenseUnit(
                f_in + i * k, k, bottleneck=True, dilation=1, segment=segment, place=place
            )
            for i in range(n)
        }
        return OneMap(DenseBlock(units, segment, place))


class ResidualUnit(nn.Module):
    """A pre-activation bottleneck unit (Figure 1a): three BN-ReLU-convs around the sum of Section 3.1.

    Args:
        width_in: maps in.
        width: maps out, F_out.
        stride: of its 3x3 convolution and of its projection.
    """

    def __init__(self, width_in: int, width: int, *, stride: int = 1) -> None:
        super().__init__()
        self.norm = BatchNorm(width_in)
        self.reduce = nn.Conv2d(width_in, width // 4, 1, bias=False)
        self.blend = BNReLUConv(width // 4, width // 4, 3, stride=stride)
        self.restore = BNReLUConv(width // 4, width, 1)
        projects = width_in != width or stride > 1
        self.project = nn.Conv2d(width_in, width, 1, stride=stride, bias=False) if projects else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm(x), inplace=True)
        out = self.restore(self.blend(self.reduce(active)))  # (B, F_out, h, w)
        return out + (x if self.project is None else self.project(active))


def residual_block(n: int, f_in: int, f_out: int, *, stride: int = 1, device: str = "meta") -> nn.Sequential:
    """A block of n pre-activation residual units, the first of which widens (and strides).

    Args:
        n: units.
        f_in: maps at its input.
        f_out: maps at its output, a multiple of 4.
        stride: of the first unit.
        device: where its parameters are; "meta" holds none.
    """
    with torch.device(device):
        first = ResidualUnit(f_in, f_out, stride=stride)
        return nn.Sequential(first, *(ResidualUnit(f_out, f_out) for _ in range(n - 1)))


# Counting -----------------------------------------------------------------------------------------


def conv_weights(module: nn.Module) -> int:
    """Weights of all convolutions in a module, which is what Table 1 counts."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Conv2d))


def block_weights(network: nn.Module, *, transitions: bool = True) -> dict[str, int]:
    """Convolution weights of each of the four processing blocks (Table 1).

    Args:
        network: torchvision's ResNet (``layer1``, …) or `segkit.models.densenet.DenseNet`.
        transitions: whether a dense block's transition-down layer counts with it.
    """
    counts = {}
    for b in range(1, 5):
        names = [f"layer{b}", f"denseblock{b}"] + ([f"transition{b}"] if transitions else [])
        parts = [getattr(network, name) for name in names if hasattr(network, name)]
        counts[f"B{b}"] = sum(map(conv_weights, parts))
    return counts


def macs_per_pixel(module: nn.Module, shape: tuple[int, int, int, int]) -> float:
    """Multiply-adds of a module's convolutions per pixel of its output, counted in one pass on meta tensors.

    Args:
        module: takes and returns one map; left as it is.
        shape: of its input, (B, channels, h, w).
    """
    twin = _twin(module).eval()
    with meta.FastMeta(), FlopCounterMode(display=False) as counter, torch.no_grad():
        out = twin(torch.empty(shape, device="meta"))
    return counter.get_total_flops() / 2 / _pixels(out)


def eq1(n: int, f_out: int) -> int:
    """Equation (1): channels per pixel that backprop needs of a residual block."""
    return (n + 1) * f_out


def eq2(n: int, f_in: int, k: int) -> int:
    """Equation (2): channels per pixel that backprop needs of a dense block."""
    return f_in + (n - 1) * k


def dense_channels(n: int, f_in: int, k: int) -> dict[str, int]:
    """What autograd keeps of a dense block by `MODES`, in channels per pixel, counted on paper (Section 3.3).

    Unit i reads c_i = F_in + (i - 1) k maps. Plain autograd keeps them twice, as input of the first batch
    norm and of the 1x1 convolution, and twice the 4k maps between the two convolutions. Recomputing the first
    half of each unit leaves those 8k, and every map once; recomputing units leaves equation (2).
    """
    reads = [f_in + i * k for i in range(n)]
    shared = eq2(n, f_in, k)
    return {"naive": 2 * sum(reads) + 8 * k * n, "cat1x1": shared + 8 * k * n, "unit": shared}


# What autograd keeps ------------------------------------------------------------------------------

# By the operator that first wrote to a storage: what the notebook calls it.
_MAKERS = {
    "cat": "concatenation",
    "batch_norm": "BN-ReLU",
    "relu": "BN-ReLU",
    "convolution": "convolution",
    "add": "sum",
    "pad": "input",
}
SOURCES = ("input", "concatenation", "BN-ReLU", "convolution", "sum", "other")


@dataclass(frozen=True)
class SavedMap:
    """A feature map that autograd keeps: ``channels`` per pixel of the output; ``source``, of `SOURCES`."""

    channels: float
    source: str


@dataclass(frozen=True)
class Kept:
    """The feature maps that autograd keeps of one forward pass, each storage once, in the order of saving."""

    maps: tuple[SavedMap, ...]

    def __iter__(self) -> Iterator[SavedMap]:
        return iter(self.maps)

    @property
    def channels(self) -> float:
        """All of them, in channels per pixel of the output."""
        return _whole(sum(saved.channels for saved in self))

    @property
    def by_source(self) -> dict[str, float]:
        """The same by what they are; only what is there."""
        sums = {source: sum(saved.channels for saved in self if saved.source == source) for source in SOURCES}
        return {source: _whole(channels) for source, channels in sums.items() if channels}


class _FirstWriter(TorchDispatchMode):
    """Notes which operator made each storage; one that works in place writes to one that is there already.

    Runs operators on meta tensors by `segkit.measure.meta`, which is faster than PyTorch's own kernels there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operator: dict[int, str] = {}
        self._alive: list[Tensor] = []  # a storage that died would give its address to another one

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = meta.run(func, args, kwargs or {})
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.operator.setdefault(_address(tensor), func.overloadpacket.__name__)
                self._alive.append(tensor)
        return out


def kept(module: nn.Module, shape: tuple[int, int, int, int]) -> Kept:
    """What autograd keeps of a module's forward pass in training, seen by hooks on saved tensors.

    Two saved tensors that share a storage count once (a ReLU's output is the next convolution's input). Left
    out are parameters, which are there anyway, and what is no map: a batch norm's means and deviations.

    Args:
        module: takes and returns one map; left as it is. The pass runs in a copy on meta tensors.
        shape: of its input, (B, channels, h, w).
    """
    twin = _twin(module).train()
    x = torch.empty(shape, device="meta", requires_grad=True)
    own = {_address(tensor) for tensor in [*twin.parameters(), *twin.buffers()]}
    saved: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.dim() == 4 and _address(tensor) not in own:
            saved.setdefault(_address(tensor), tensor)
        return tensor

    with _FirstWriter() as writer, saved_tensors_hooks(note, lambda tensor: tensor):
        out = twin(x)
    writer.operator[_address(x)] = "input"  # it was there before
    return Kept(
        tuple(
            SavedMap(_whole(tensor.numel() / _pixels(out)), _source(writer.operator[address]))
            for address, tensor in saved.items()
        )
    )


def _source(operator: str) -> str:
    if operator in SOURCES:
        return operator
    return next((source for part, source in _MAKERS.items() if part in operator), "other")


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # data_ptr() is 0 on the meta device


def _pixels(out: Tensor) -> int:
    return out.shape[0] * out.shape[2] * out.shape[3]


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def _twin(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to("meta")


def mib(channels: float, *, batch_size: int, image_size: tuple[int, int], stride: int) -> float:
    """Channels per pixel at a block's own resolution, as MiB of float32 for a batch of images.

    Args:
        channels: per pixel of the block's output.
        batch_size: images.
        image_size: (H, W) of an image in pixels.
        stride: of the block: 4 for the first one.
    """
    pixels = batch_size * (image_size[0] // stride) * (image_size[1] // stride)
    return 4 * channels * pixels / 2**20


def activations_of_units(alive: Mapping[tuple[str, str], int], block: str) -> int:
    """Bytes of activations that the units of a block hold in a `segkit.measure.PeakMemory`.

    Args:
        alive: its ``.alive``.
        block: path of the block, such as "backbone.denseblock1". What belongs to the block itself, its
            output, is kept for what comes after it.
    """
    return sum(
        size for (path, kind), size in alive.items() if kind == "activations" and path.startswith(f"{block}.")
    )


# Section 3.5 --------------------------------------------------------------------------------------


class SparseResidualUnit(nn.Module):
    """x + r(x) on F_out maps, with the two BN-ReLU-convs of a dense unit as r (Section 3.5)."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.reduce = BNReLUConv(width, bottleneck, 1)
        self.write = BNReLUConv(bottleneck, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.write(self.reduce(x))


class ResidualBlock(nn.Module):
    """A residual block that takes F_in maps, sets the other F_out - F_in to zero and sums from there on."""

    def __init__(self, units: list[SparseResidualUnit], f_out: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)
        self.f_out = f_out

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, 0, self.f_out - x.shape[1]))  # (B, F_out, h, w)
        for unit in self.units:
            x = unit(x)
        return x


@torch.no_grad()
def as_residual(block: OneMap) -> ResidualBlock:
    """The residual block that computes what a dense block computes (Section 3.5).

    Counting units from 0, unit i reads all F_out maps with weights that are zero beyond the first F_in + i k,
    and writes its k maps to places F_in + i k to F_in + (i + 1) k, zeros elsewhere. The sum then does what
    the concatenation did.

    Args:
        block: a dense block whose units all have their 1x1 convolution; it is left as it is.

    Returns:
        A block of as many units, with the same weights in the midst of zeros, in the same mode, of the same
        dtype and on the same device.

    Raises:
        ValueError: if a unit has no 1x1 convolution or a dilated 3x3 one.
    """
    if not all(unit.bottleneck and unit.conv2.dilation == (1, 1) for unit in block.units):
        raise ValueError("as_residual takes dense units with a 1x1 convolution and without dilation.")
    f_out = block.units[-1].norm1.num_features + block.units[-1].conv2.out_channels
    units = []
    for dense in block.units:
        reads, k = dense.norm1.num_features, dense.conv2.out_channels
        like = dense.conv1.weight
        with torch.device(like.device):
            unit = SparseResidualUnit(f_out, dense.conv1.out_channels).to(like.dtype)
        norm = unit.reduce.norm.state_dict()  # shares its memory with the module
        for name, tensor in dense.norm1.state_dict().items():
            place = norm[name][:reads] if tensor.dim() else norm[name]
            place.copy_(tensor)
        unit.reduce.conv.weight.zero_()
        unit.reduce.conv.weight[:, :reads] = like
        unit.write.norm.load_state_dict(dense.norm2.state_dict())
        unit.write.conv.weight.zero_()
        unit.write.conv.weight[reads : reads + k] = dense.conv2.weight
        units.append(unit)
    return ResidualBlock(units, f_out).train(block.training)
