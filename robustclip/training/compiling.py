"""The tower of the training attack as torch.compile makes it; what is updated, validated and scored is never compiled."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from robustclip.base.errors import UserError
from robustclip.models.classifier import ZeroShotClassifier


class Compiled:
    """The visual tower of a student, compiled by a mode of torch.compile ("off": as it is) for the time of its attacks.

    It is compiled when the first batch meets it, for that batch's shape. Features agree with the tower's own to 1e-5 of the largest, so
    signs of tiny gradients may differ; on one machine, with one torch, they are the same every time. `backend` is torch.compile's.
    Raises UserError for a tower with tokens in it, for CUDA graphs without a GPU, and where no compiler is there.
    """

    def __init__(self, student: ZeroShotClassifier, mode: str, device: torch.device | str, backend: str = "inductor"):
        visual: Any = student.clip.visual
        self.visual = visual
        self.forward: Callable[[Tensor], Tensor] | None = None
        if mode == "off":
            return
        kind = torch.device(device).type
        if student.prompt is not None and student.prompt.visual_layers():
            raise UserError("attack.compile goes with towers without prompt tokens, which enter by hooks it does not see: leave it out")
        if mode == "reduce-overhead" and kind != "cuda":
            raise UserError(f"attack.compile is 'reduce-overhead', which is CUDA graphs, and this run is on a {kind}: take 'default'")
        if backend == "inductor":
            check_compiler(kind)
        # Of the method and not of the module: what looks at the whole tower by hooks goes on to see its passes.
        made: Any = torch.compile(self.visual.forward, mode=mode if backend == "inductor" else None, backend=backend, dynamic=False)
        # The outputs of CUDA graphs lie where those of the next call will.
        self.forward = (lambda images: made(images).clone()) if mode == "reduce-overhead" else made

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the compiled forward take the place of the tower's own."""
        if self.forward is None:
            yield
            return
        self.visual.forward = self.forward
        try:
            yield
        finally:
            del self.visual.forward  # an attribute of its own, which covered that of its class


def check_compiler(kind: str) -> None:
    """Raise UserError where torch finds no compiler for what it writes: C++ for a CPU, C for what starts a GPU's kernels."""
    variable, usual = ("CXX", ("g++",)) if kind == "cpu" else ("CC", ("gcc", "clang", "cc"))
    asked = os.environ.get(variable)
    if not any(map(shutil.which, (asked,) if asked else usual)):
        looked = f"{variable}={asked}" if asked else " or ".join(usual)
        raise UserError(f"attack.compile needs a compiler, and there is no {looked}: install g++, set {variable}, or leave it out")
