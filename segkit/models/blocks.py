"""What two or more architectures share: batch norm, BN-ReLU-convolution, input checks, initialization."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BN_MOMENTUM = (
    0.05  # the LDN paper is silent; its authors' released code says 0.05 (and PyTorch's default eps, 1e-5)
)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that says what to do when a batch holds one value per channel only."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=BN_MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            raise ValueError(
                f"Cannot train batch norm on a single value per channel (a batch of one with a 1x1 map, "
                f"{tuple(x.shape)}), such as the one-cell grid of spatial pyramid pooling. Use at least two "
                f"images in a batch, a crop at least 1.5 times as wide as high, spp_grids without 1, or "
                f"model.eval()."
            )
        return super().forward(x)


class BNReLUConv(nn.Module):
    """The pre-activation unit of Section 3.1: batch norm, ReLU, convolution ('same' padding).

    Args:
        channels_in: maps in, which the batch norm sees.
        channels_out: maps out.
        kernel: side of the kernel, odd.
        stride: stride of the convolution.
        groups: groups of the convolution.
        bias: whether the convolution has one; of use only where no batch norm follows, before a loss.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.norm = BatchNorm(channels_in)
        self.conv = nn.Conv2d(
            channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        # ReLU in place: nothing else reads the norm's output, and its backward needs only its input
        return self.conv(F.relu(self.norm(x), inplace=True))


def upsample(x: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bilinear interpolation to (H, W), pixels seen as areas (corners not aligned)."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def check_images(x: Tensor, minimum: int) -> None:
    """Refuse what is not a batch of normalized images of at least ``minimum`` pixels a side.

    Raises:
        TypeError: if ``x`` is not a floating-point tensor.
        ValueError: if its shape is not (B, 3, H, W), or H or W is below the minimum.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = f"{x.dtype} tensor" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"Expected a floating-point batch of images, got {kind}; normalize the images first.")
    if x.dim() != 4 or x.shape[1] != 3:
        raise ValueError(f"Expected images of shape (B, 3, H, W), got {tuple(x.shape)}.")
    if min(x.shape[-2:]) < minimum:
        raise ValueError(
            f"Images of {x.shape[-2]}x{x.shape[-1]} pixels are too small: this network subsamples {minimum} "
            f"times and needs at least {minimum}x{minimum}."
        )


def initialize(model: nn.Module) -> None:
    """Kaiming-normal convolutions, as the LDN authors' release has them; biases zero. In place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
