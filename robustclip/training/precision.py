"""The type in which forwards compute; weights and what is summed stay fp32 whatever it is."""

import torch

from robustclip.training.config import Precision


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which forwards on a device compute in bf16, or as they would anyway."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
