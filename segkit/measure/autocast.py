"""CUDA's autocast where there is no CUDA: the same casts written out, to follow bf16 on meta tensors.

``torch.autocast("cuda")`` disables itself where there is no GPU, and ``torch.autocast("cpu")`` has other
lists and passes meta tensors by.
"""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# From the lists "CUDA Ops that autocast to ..." of torch.amp's documentation, those that networks for dense
# prediction use; names as functions and methods have them. Interpolation is not in these lists but has the
# policy (ATen/autocast_mode.h), and a cross-entropy is a log-softmax and a loss that have it.
LOWER = frozenset(
    [
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "linear",
        "prelu",
        "einsum",
        "matmul",
        "__matmul__",
        "__rmatmul__",
        "mm",
        "mv",
        "bmm",
        "addmm",
        "addmv",
        "addbmm",
        "baddbmm",
        "scaled_dot_product_attention",
    ]
)
FLOAT32 = frozenset(
    [
        "softmax",
        "log_softmax",
        "cross_entropy",
        "nll_loss",
        "binary_cross_entropy_with_logits",
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "kl_div",
        "layer_norm",
        "group_norm",
        "cosine_similarity",
        "softplus",
        "exp",
        "expm1",
        "log",
        "log1p",
        "log2",
        "log10",
        "pow",
        "__pow__",
        "rsqrt",
        "reciprocal",
        "sum",
        "prod",
        "cumsum",
        "logsumexp",
        "norm",
        "cdist",
        "interpolate",
    ]
)
PROMOTE = frozenset(["addcmul", "addcdiv", "bilinear", "grid_sample", "scatter_add", "index_put"])


class CudaAutocast(TorchFunctionMode):
    """Casts arguments as ``torch.autocast("cuda", dtype)`` does.

    Convolutions and matrix products run in ``dtype`` (float32 parameters are cast once and the cast kept
    until the backward pass begins); sums, exponentials, losses and interpolation in float32; a few operators
    in the widest type among their arguments. All else, concatenation too, follows PyTorch's ordinary type
    promotion.

    The backward pass itself needs no casts; a checkpointed segment that runs again in it gets them.

    Error of this policy: operators outside `LOWER`, `FLOAT32` and `PROMOTE` that CUDA's lists have (recurrent
    cells, rarer losses) keep their arguments' type; functions of `torch.nn.functional` that call listed
    operators inside (``multi_head_attention_forward``, ``normalize``) are not looked into; a nested
    ``torch.autocast(..., enabled=False)`` is not seen, nor is a segment that `torch.autograd.grad` or
    ``backward(inputs=...)`` recomputes.

    Args:
        dtype: torch.bfloat16 or torch.float16.
    """

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.dtype = dtype
        self.casts: dict[int, Tensor] = {}  # of parameters

    def __exit__(self, *exception):
        self.casts.clear()
        return super().__exit__(*exception)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is Tensor.backward and kwargs.get("inputs") is None:
            return self._backward(*args, **kwargs)
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward and not torch.is_grad_enabled():  # not a recomputed segment
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in LOWER:
            dtype = self.dtype
        elif name in FLOAT32 and kwargs.get("dtype") is None and kwargs.get("mode") != "area":
            dtype = torch.float32
        elif name in PROMOTE:
            widest = [tensor.dtype for tensor in _flat(args, kwargs) if _eligible(tensor)]
            dtype = torch.float32 if torch.float32 in widest else self.dtype
        else:
            return func(*args, **kwargs)

        def cast(value):
            if isinstance(value, Tensor):
                return self._cast(value, dtype, keep=not in_backward)
            if isinstance(value, (tuple, list)):
                return type(value)(cast(part) for part in value)
            return value

        return func(*cast(args), **{key: cast(value) for key, value in kwargs.items()})

    def _backward(self, loss, gradient=None, retain_graph=None, create_graph=False, inputs=None) -> None:
        # A function mode is off while its handler runs, but the segments that backward recomputes need it.
        # Under it `torch.autograd.backward` would come back here if it were given a tensor, and does not if
        # given its edge.
        self.casts.clear()
        edge = torch.autograd.graph.get_gradient_edge(loss)
        gradient = torch.ones_like(loss) if gradient is None else gradient
        with self:
            torch.autograd.backward((edge,), (gradient,), retain_graph, create_graph)

    def _cast(self, tensor: Tensor, dtype: torch.dtype, *, keep: bool) -> Tensor:
        if not _eligible(tensor) or tensor.dtype == dtype:
            return tensor
        if keep and dtype == self.dtype and tensor.requires_grad and tensor.is_leaf:
            if id(tensor) not in self.casts:
                self.casts[id(tensor)] = tensor.to(dtype)
            return self.casts[id(tensor)]
        return tensor.to(dtype)


def _eligible(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float64


def _flat(*values):
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _flat(*value)
        elif isinstance(value, dict):
            yield from _flat(*value.values())
