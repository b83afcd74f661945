"""What steps the weights: the optimiser of the recipe at its schedule's rates, and before it, where a head trains first, the head's."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from robustclip.training.averaging import copies, set_all
from robustclip.training.config import Config, Optim


def lr_at(step: int, optim: Optim, steps: int) -> float:
    """Return the learning rate of step `step` of `steps`: linear warm-up lr (t+1)/W, then lr (1 + cos(pi (t-W)/(N-W))) / 2, or lr."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    if optim.schedule == "constant":
        return optim.lr
    return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - optim.warmup) / max(steps - optim.warmup, 1)))


def make_optimizer(optim: Optim, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser of the recipe."""
    fused = optim.fused or None  # None: torch chooses among the others, as it does where nobody speaks of it
    if optim.name == "sgd":
        return torch.optim.SGD(parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=fused)
    adam = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
    return adam(parameters, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=fused)


class Optimiser:
    """The parameters that learn, the head's of the first `head_steps` of all steps where a defence trains one, and what steps each."""

    def __init__(self, config: Config, parameters: list[nn.Parameter], head: nn.Module | None, steps: int):
        self.optim, self.steps = config.optim, steps
        self.head_steps, self.head_lr = round(config.defense.head_share * steps), config.defense.head_lr
        self.parameters = parameters
        self.optimizer = make_optimizer(config.optim, parameters)
        self.head_parameters = list(head.parameters()) if head is not None and self.head_steps else []
        self.head_optimizer = torch.optim.AdamW(self.head_parameters, lr=self.head_lr) if self.head_parameters else None

    def learning(self, step: int) -> list[nn.Parameter]:
        """Return the parameters that learn in a step."""
        return self.head_parameters if step < self.head_steps else self.parameters

    def take(self, step: int) -> float:
        """Take step number `step` with the gradients there are, clear them, and return its learning rate."""
        if step < self.head_steps:
            assert self.head_optimizer is not None
            self.head_optimizer.step()
            self.head_optimizer.zero_grad()
            return self.head_lr
        lr = lr_at(step - self.head_steps, self.optim, self.steps - self.head_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return lr

    def state(self) -> dict[str, Any]:
        """Return copies of the weights that learn and of what their optimisers remember."""
        return {
            "learned": copies(self.parameters),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "head": copies(self.head_parameters),
            "head_optimizer": copy.deepcopy(self.head_optimizer.state_dict()) if self.head_optimizer else {},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        set_all(self.parameters, state["learned"])
        set_all(self.head_parameters, state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.head_optimizer:
            self.head_optimizer.load_state_dict(state["head_optimizer"])
