"""Networks that the papers compare theirs with, one a file."""

from torch import Tensor


def check_divisible(x: Tensor, divisor: int) -> None:
    """Refuse images whose height or width is not a multiple of ``divisor``.

    Raises:
        ValueError: naming the nearest size that fits.
    """
    height, width = x.shape[-2:]
    if height % divisor or width % divisor:
        nearest = [max(1, round(side / divisor)) * divisor for side in (height, width)]
        raise ValueError(
            f"Images of {height}x{width} pixels do not fit: this network halves its maps and doubles them "
            f"again, so height and width must be divisible by {divisor}. Crop, pad or resize to "
            f"{nearest[0]}x{nearest[1]}."
        )
