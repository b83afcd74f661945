"""How many processes share a GPU: as many as its memory holds, by what one of them was measured to take."""

import math
from dataclasses import dataclass

from robustclip.base.errors import UserError
from robustclip.base.forecast import amount

CONTEXT = 1e9  # bytes that a process takes beside torch's tensors: CUDA's context and its libraries; a guess on the safe side
SPARE = 1.25  # times the measured bytes: torch's allocator keeps blocks that it cannot use, and no two micro-batches are quite alike


@dataclass(frozen=True)
class Footprint:
    """Bytes of tensors that a piece of work holds on a GPU at most, and bytes that the GPU has; both 0 where there is none."""

    taken: float = 0.0
    there: float = 0.0


def taken(more: float = 0.0) -> Footprint:
    """Return what this process has held on its GPU at most since `begin`, and `more` bytes."""
    import torch

    if not torch.cuda.is_available():
        return Footprint()
    return Footprint(torch.cuda.max_memory_allocated() + more, torch.cuda.get_device_properties(0).total_memory)


def begin() -> None:
    """Let `taken` count from now on."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def share(found: Footprint) -> float:
    """Return the share of a GPU that a process of this footprint takes, 1/n in Ray's ten-thousandths; 1 where there is no GPU.

    Raises UserError where a GPU does not hold one.
    """
    if not found.there:
        return 1.0
    needed = SPARE * found.taken + CONTEXT
    if needed > found.there:
        raise UserError(
            f"one process needs {amount(needed)} of a GPU that has {amount(found.there)} ({amount(found.taken)} measured, times {SPARE:g}, "
            f"and {amount(CONTEXT)} for CUDA): take a smaller micro-batch, optim.recompute, or a node with a larger GPU"
        )
    return math.floor(10_000 / int(found.there / needed)) / 10_000


def places(gpus: float, share: float) -> int:
    """Return how many processes of a share fit on some GPUs; none is on two."""
    return int(gpus) * int(1 / share + 1e-9)


def largest(found: list[Footprint]) -> Footprint:
    """Return the footprint that fills the largest part of its GPU."""
    return max(found, key=lambda each: each.taken / each.there if each.there else 0.0, default=Footprint())
