"""Memory for time: transformer blocks keep no activations and are computed again when their gradient is taken."""

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from robustclip.base.errors import UserError


def recompute(clip: nn.Module, name: str) -> None:
    """Make every block of both towers of a CLIP be computed again in the backward pass.

    What is computed is the same to the bit; every pass with a gradient, the attack's too, takes one more forward pass and the memory of one
    block (Chen et al. 2016). Raises UserError for a tower without blocks, and for weights that are themselves computed, which torch does
    not find again as they were.
    """
    visual: Any = clip.visual
    if not (hasattr(visual, "transformer") or hasattr(visual, "trunk")):
        raise UserError(f"optim.recompute needs a tower of blocks, and {name}'s is a {type(visual).__name__}: leave it out")
    if any(parametrize.is_parametrized(module) for module in clip.modules()):
        raise UserError("optim.recompute goes with whole weights, not with LoRA's or SameSize's parts of them: leave it out")
    clip.set_grad_checkpointing(True)  # type: ignore[operator]
