"""The three heads of FastFCN's Tables 1 and 2: Encoding (EncNet), ASPP (DeepLabV3) and PSP (PSPNet).

The paper takes them as they are; widths and order are those of the authors' code, which builds on
PyTorch-Encoding. With the paper's ``width`` of 64 they have 10,041,046 (Encoding on dilated features),
1,652,438 (Encoding on the JPU's), 16,140,603 and 23,104,059 parameters at 59 classes. Only the last 1x1
convolution of each and the linear layers have biases. Chosen here: what scales with ``width``, namely all
channels but not the 32 codewords.

Every head is called ``head(x, presence)`` and returns logits at its input's size, and presence logits or
None. ``single``, where there is one, is the path of the part that pools all of an image into one value per
channel, which batch norm cannot be trained on with a single image.

Shapes: B images, f = channels in, D = channels inside, K = codewords, N = h * w positions.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkit.models.blocks import ConvNormReLU, PyramidPooling, conv_classifier
from segkit.models.jpu import resize

RATES = (12, 24, 36)  # DeepLabV3's, for features at H/8
BINS = (1, 2, 3, 6)  # PSPNet's


class Encoding(nn.Module):
    """Residual encoding (EncNet, Section 3.1): what the features differ by from each of K codewords, summed.

    Position i is assigned to codeword k with the weight a_ik = softmax_k(s_k |x_i - c_k|^2), s_k being a
    learned scale, and e_k = sum_i a_ik (x_i - c_k). Written out as differences, that takes N * K * D values
    twice; here it is two matrix products of N * K * D multiply-adds, with nothing larger than x, for
    |x - c|^2 = |x|^2 - 2 x.c + |c|^2, and the sum falls apart likewise. In half precision these differences
    of large numbers would be lost, so all of it runs in float32 at least, under autocast too.

    Args:
        channels: D.
        codes: K.

    Attributes:
        codewords: (K, D).
        scale: (K), drawn from [-1, 0).
    """

    def __init__(self, channels: int, codes: int) -> None:
        super().__init__()
        bound = (codes * channels) ** -0.5
        self.codewords = nn.Parameter(torch.empty(codes, channels).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(codes).uniform_(-1, 0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, K, D), of the codewords' type."""
        precise = torch.promote_types(torch.promote_types(x.dtype, self.codewords.dtype), torch.float32)
        with _without_autocast(x.device.type):
            x = x.flatten(2).to(precise)  # (B, D, N)
            codewords, scale = self.codewords.to(precise), self.scale.to(precise)
            products = codewords @ x  # (B, K, N)
            distances = x.pow(2).sum(1, keepdim=True) - 2 * products + codewords.pow(2).sum(1, keepdim=True)
            weights = F.softmax(scale[:, None] * distances, dim=1)  # (B, K, N)
            codes = weights @ x.mT - weights.sum(2, keepdim=True) * codewords
        return codes.to(self.codewords.dtype)


def _without_autocast(kind: str) -> AbstractContextManager:
    """Turns autocast off on this kind of device where it is on: the meta device knows none, and elsewhere an
    exported graph is spared a region of its own."""
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


class EncodingHead(nn.Module):
    """EncNet's head: channels are gated by what the whole image holds, which presence logits are read from.

    The codes' residuals are averaged (EncNet's text sums them).

    Args:
        channels: f.
        num_classes: maps of the logits, and presence logits.
        width: of the network; D is eight times that.
        kernel: side of the first convolution's kernel; None for no such convolution, where f is D already.
            The authors take 3, but 1 above a JPU, which is part of what makes that faster.
        codes: K.

    Attributes:
        norm_of_codes: batch norm over the K codewords' residuals; sees D values of each in every image.
    """

    single: str | None = None

    def __init__(
        self, channels: int, *, num_classes: int, width: int = 64, kernel: int | None = 3, codes: int = 32
    ) -> None:
        super().__init__()
        inside = 8 * width
        self.reduce = nn.Identity() if kernel is None else ConvNormReLU(channels, inside, kernel)
        self.encode = nn.Sequential(*ConvNormReLU(inside, inside, 1), Encoding(inside, codes))
        self.norm_of_codes = nn.BatchNorm1d(codes)
        self.gate = nn.Linear(inside, inside)
        self.presence = nn.Linear(inside, num_classes)
        self.logits = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(inside, num_classes, 1))

    def forward(self, x: Tensor, presence: bool = False) -> tuple[Tensor, Tensor | None]:
        """(B, f, h, w) -> logits (B, num_classes, h, w); with ``presence`` also (B, num_classes), how sure it
        is that each class occurs in the image (the semantic-encoding branch), before a sigmoid."""
        x = self.reduce(x)  # (B, D, h, w)
        codes = F.relu(self.norm_of_codes(self.encode(x)), inplace=True)  # (B, K, D)
        code = codes.mean(1)  # (B, D)
        gate = torch.sigmoid(self.gate(code))[:, :, None, None]
        logits = self.logits(F.relu(x + x * gate, inplace=True))
        return logits, self.presence(code) if presence else None


class ASPPHead(nn.Module):
    """DeepLabV3's head: a 1x1 convolution, three dilated ones and the image's mean, side by side.

    Args:
        channels: f.
        num_classes: maps of the logits.
        width: of the network; each branch has four times that (D).
        rates: dilations of the 3x3 convolutions.

    Attributes:
        pool: the branch of the image's mean.
    """

    single: str | None = "pool"

    def __init__(
        self, channels: int, *, num_classes: int, width: int = 64, rates: tuple[int, ...] = RATES
    ) -> None:
        super().__init__()
        inside = 4 * width
        self.branches = nn.ModuleList([ConvNormReLU(channels, inside, 1)])
        for rate in rates:
            conv = nn.Conv2d(channels, inside, 3, padding=rate, dilation=rate, bias=False)
            self.branches.append(nn.Sequential(conv, nn.BatchNorm2d(inside), nn.ReLU(inplace=True)))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), *ConvNormReLU(channels, inside, 1))
        self.project = nn.Sequential(
            *ConvNormReLU((len(self.branches) + 1) * inside, inside, 1), nn.Dropout2d(0.5)
        )
        self.logits = conv_classifier(inside, inside, num_classes, dropout=0.1)

    def forward(self, x: Tensor, presence: bool = False) -> tuple[Tensor, None]:
        """(B, f, h, w) -> logits (B, num_classes, h, w)."""
        parts = [branch(x) for branch in self.branches]
        parts.append(resize(self.pool(x), x.shape[-2:]))
        return self.logits(self.project(torch.cat(parts, dim=1))), None


class PSPHead(nn.Module):
    """PSPNet's head: pyramid pooling and a 3x3 convolution.

    Args:
        channels: f; as many are added by the pyramid.
        num_classes: maps of the logits.
        width: of the network; the 3x3 convolution has eight times that.
    """

    single: str | None = "ppm.levels.1"

    def __init__(self, channels: int, *, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.ppm = PyramidPooling(channels, BINS, resize=resize)
        self.logits = conv_classifier(2 * channels, 8 * width, num_classes, dropout=0.1)

    def forward(self, x: Tensor, presence: bool = False) -> tuple[Tensor, None]:
        """(B, f, h, w) -> logits (B, num_classes, h, w)."""
        return self.logits(self.ppm(x)), None
