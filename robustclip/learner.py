"""One learner: the model that trains, its optimiser and its step; plain torch, so that a test or a notebook can drive it."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustclip.attacks.base import Example
from robustclip.attacks.pgd import PGD, frozen, pgd, random_start
from robustclip.config import Config, Optim
from robustclip.defenses import Batch
from robustclip.errors import UserError
from robustclip.model import Model
from robustclip.threat import Ball


def lr_at(step: int, optim: Optim, steps: int) -> float:
    """Return the learning rate of step `step` of `steps`: linear warm-up lr (t+1)/W, then lr (1 + cos(pi (t-W)/(N-W))) / 2."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - optim.warmup) / max(steps - optim.warmup, 1)))


def to_images(pixels: np.ndarray | Tensor, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return images [B,3,H,W] in [0,1] of 8-bit pixels [B,H,W,3]."""
    return torch.as_tensor(pixels).to(device).permute(0, 3, 1, 2).to(dtype) / 255


class Learner:
    """The student and its teacher (the same classifier before training), the parameters that learn, and how they step.

    `sum_over_workers` adds a tensor in place over all workers; alone it does nothing. Every step averages `optim.batch` images.
    """

    def __init__(
        self,
        config: Config,
        model: Model,
        class_names: Sequence[str],
        templates: Sequence[str],
        steps: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        sum_over_workers: Callable[[Tensor], None] = lambda tensor: None,
    ):
        self.config, self.steps, self.device, self.dtype = config, steps, device, dtype
        self.sum_over_workers = sum_over_workers
        model.clip.to(device, dtype)
        self.teacher = model.copy().classifier(class_names, config.templates or templates).to(device, dtype)
        self.model, self.parameters = config.trainable.install(model, config.seed)
        self.student = self.model.classifier(class_names, config.templates or templates).to(device, dtype)
        self.optimizer = make_optimizer(config.optim, self.parameters)
        self.step = 0
        self.parts: dict[str, Any] = {}  # of the loss, summed over the micro-batches since the last step
        self.teacher.requires_grad_(False)

    def accumulate(self, pixels: np.ndarray | Tensor, labels: Tensor, ids: list[str]) -> None:
        """Attack a micro-batch and add its gradient; ids key the attack's random start."""
        config, images = self.config, to_images(pixels, self.device, self.dtype)
        batch = Batch(images, labels.to(self.device), ids)
        adversarial = self.attacked(batch)
        parts = config.defense.loss(self.student, self.teacher, batch, adversarial)
        share = len(images) / config.optim.batch
        (sum(parts.values()) * share).backward()  # type: ignore[union-attr]
        for name, part in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + part.detach() * share

    def attacked(self, batch: Batch) -> Example:
        """Return the batch after the training attack: PGD on the defence's objective, parameters without gradient."""
        ball, settings = self.config.threat.image or Ball(eps=0), self.config.attack
        with frozen(self.student):
            objective = self.config.defense.objective(self.student, self.teacher, batch)
            start = random_start(ball, batch.images, batch.ids, self.config.seed, "train", self.step) if ball.radius else None
            return Example(pgd(objective, batch.images, ball, steps=settings.steps, alpha=settings.alpha, start=start))

    def update(self) -> dict[str, float]:
        """Take one optimiser step with the accumulated gradients, summed over workers; return the loss, its parts and the learning rate.

        Raises UserError when the loss or a gradient is not finite.
        """
        names, gradients = sorted(self.parts), [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients] + [self.parts[name].to(gradients[0]).view(1) for name in names])
        self.sum_over_workers(flat)
        if not bool(torch.isfinite(flat).all()):
            raise UserError(
                f"step {self.step + 1}: the loss or a gradient is not finite; lower optim.lr, or continue from the last checkpoint"
            )
        for g, summed in zip(gradients, flat.split([g.numel() for g in gradients] + [len(names)])[:-1], strict=True):
            g.copy_(summed.view_as(g))
        lr = lr_at(self.step, self.config.optim, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        losses = dict(zip(names, flat[len(flat) - len(names) :].tolist(), strict=True))
        self.step, self.parts = self.step + 1, {}
        return {"loss": sum(losses.values()), **{f"loss/{name}": value for name, value in losses.items()}, "lr": lr}

    def validate(self, images: Tensor, labels: Tensor, ids: list[str]) -> dict[str, float]:
        """Return val/clean and val/robust in [0,1]: accuracy on held-out images [N,3,H,W] and under the validation's PGD."""
        settings, attack = self.config.validation, PGD(self.config.validation.steps)
        clean, robust, size = [], [], self.config.optim.micro_batch
        for part in torch.arange(len(images)).split(8 * size):  # room for the attack to repack what resists
            x, y = images[part].to(self.device), labels[part].to(self.device)
            names = [ids[i] for i in part.tolist()]
            adversarial = attack(self.student, x, y, names, Ball("Linf", settings.eps), self.config.seed, size)
            with torch.no_grad(), frozen(self.student):
                right = self.student(x).argmax(1) == y
                clean.append(right)
                robust.append(right & (self.student(adversarial.images).argmax(1) == y))
        return {"val/clean": float(torch.cat(clean).float().mean()), "val/robust": float(torch.cat(robust).float().mean())}

    def state(self) -> dict[str, Any]:
        """Return a copy of all that `restore` needs to go on bit for bit; the attack's randomness is keyed by step and id: no state."""
        learned = [p.detach().cpu().clone() for p in self.parameters]
        return {"step": self.step, "learned": learned, "optimizer": copy.deepcopy(self.optimizer.state_dict())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        with torch.no_grad():
            for p, saved in zip(self.parameters, state["learned"], strict=True):
                p.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def make_optimizer(optim: Optim, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser of the recipe."""
    if optim.name == "sgd":
        return torch.optim.SGD(parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    return torch.optim.AdamW(parameters, lr=optim.lr, weight_decay=optim.weight_decay)
