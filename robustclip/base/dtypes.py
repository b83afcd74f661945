"""In which precision losses and differences are computed: the images' own, never less than fp32."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Return x in fp32, or as it is if wider: differences of what bf16 rounds would be its rounding."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
