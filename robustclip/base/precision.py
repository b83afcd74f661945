"""The type in which tensors are multiplied: as a run asks for it where it trains, and true fp32 wherever something is scored."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any, Literal

import torch

Precision = Literal["fp32", "tf32", "bf16"]
# What decides how fp32 is multiplied. In its own defaults torch rounds the inputs of convolutions to TF32, so those of a ViT's first layer.
BACKENDS: Any = torch.backends
SWITCHES = (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn, BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv)


# What each open context found, the newest last. Threads leave theirs in any order.
_found: list[list[str]] = []
_one_at_a_time = Lock()


@contextmanager
def tensor_cores(allowed: bool) -> Iterator[None]:
    """Let fp32 be multiplied in TF32 (10 of its 23 bits) by tensor cores, or in fp32, whatever this process allows; its switches come back.

    They are the process's: gradients taken inside the context are multiplied alike, and so is what other threads compute meanwhile.
    """
    with _one_at_a_time:
        before = [switch.fp32_precision for switch in SWITCHES]
        _found.append(before)
        _switch(["tf32" if allowed else "ieee"] * len(SWITCHES))
    try:
        yield
    finally:
        with _one_at_a_time:
            place = next(i for i, found in enumerate(_found) if found is before)
            _found.pop(place)
            if place == len(_found):
                _switch(before)
            else:  # another thread's context began in this one and goes on: it gives back what this one found
                _found[place][:] = before


def _switch(values: list[str]) -> None:
    if torch.cuda.is_available():  # torch's older switches, which parts of it still read: both must say the same
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = values[0] == "tf32", values[1] == "tf32"
    for switch, value in zip(SWITCHES, values, strict=True):
        switch.fp32_precision = value


@contextmanager
def computing(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute forwards on a device in fp32, in TF32, or in bf16 under autocast; weights, losses and what is summed stay fp32."""
    with tensor_cores(precision == "tf32"), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute in true fp32 whatever stands around: the precision of all that is scored, of class embeddings and of the checks."""
    with tensor_cores(False), ExitStack() as off:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                off.enter_context(torch.autocast(kind, enabled=False))
        yield


def reduced() -> str | None:
    """Return in what fp32 would be multiplied now, where that is less than fp32; None where it is not."""
    found = {switch.fp32_precision for switch in SWITCHES} - {"ieee", "none"}
    return ", ".join(sorted(found)) or None
