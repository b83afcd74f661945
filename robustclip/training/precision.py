"""Whether a device can compute as a run asks for it."""

import torch

from robustclip.base.errors import UserError
from robustclip.training.config import Config

AMPERE = (8, 0)  # the first compute capability whose tensor cores know TF32 and bf16


def knows_bf16() -> bool:
    """Return whether this process has a GPU whose tensor cores know bf16."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= AMPERE


def check_precision(config: Config, device: torch.device | str) -> None:
    """Raise UserError for a precision of the attack or of the update that a device does not have."""
    device = torch.device(device)
    for name, precision in (("attack.precision", config.attack.precision), ("optim.precision", config.optim.precision)):
        if precision == "tf32" and device.type != "cuda":
            raise UserError(f"{name} is tf32, which NVIDIA's tensor cores know, and this run is on a {device.type}: take fp32 or bf16")
        if precision != "fp32" and device.type == "cuda" and (has := torch.cuda.get_device_capability(device)) < AMPERE:
            known = torch.cuda.get_device_name(device)
            raise UserError(
                f"{name} is {precision}, which takes compute capability 8.0 (Ampere) or newer, and {known} has {has[0]}.{has[1]}: take fp32"
            )
