"""One learner: the model that trains, its optimiser and its step; plain torch, so that a test or a notebook can drive it."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustclip.attacks.base import Example
from robustclip.attacks.pgd import PGD, frozen, pgd, random_start
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball
from robustclip.data.reading import to_images
from robustclip.defenses import Batch, Paired, Roles
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.models.lowrank import bake
from robustclip.models.model import Model
from robustclip.training import pairing
from robustclip.training.compatible import check_pair
from robustclip.training.config import Config, Optim, Precision
from robustclip.training.installing import install
from robustclip.training.pairing import Waiting, World
from robustclip.training.proxy import share_right
from robustclip.views.crops import crops

SHOWN_IDS = 8  # of a batch that stopped a run


class NotFinite(UserError):
    """The loss or a gradient is NaN or infinite."""


def lr_at(step: int, optim: Optim, steps: int) -> float:
    """Return the learning rate of step `step` of `steps`: linear warm-up lr (t+1)/W, then lr (1 + cos(pi (t-W)/(N-W))) / 2, or lr."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    if optim.schedule == "constant":
        return optim.lr
    return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - optim.warmup) / max(steps - optim.warmup, 1)))


class Learner:
    """The student and its teacher (the same classifier before training), the parameters that learn, and how they step.

    `world` is this worker's place among all, alone if not given. Every step averages `optim.batch` images. A defence with a `head_share`
    trains its head alone first: then, and only then, the head is what steps. One over pairs (`Paired`) waits for the whole step, and where
    the text tower learns, the class embeddings follow it. Raises UserError for a defence and a trainable that make no sense together.
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
        world: World = World(),  # noqa: B008 (a frozen value)
    ):
        check_pair(config.defense, config.trainable)
        self.config, self.steps, self.device, self.dtype = config, steps, device, dtype
        self.world = world
        model.clip.to(device, dtype)
        templates = config.templates or templates
        teacher = model.copy().classifier(class_names, templates).to(device, dtype).requires_grad_(False)
        self.model, self.parameters = install(config.trainable, model, config.seed, class_names)
        student = self.model.classifier(class_names, templates).to(device, dtype)
        head = config.defense.head(student, config.seed)
        self.roles = Roles(student, teacher, head if head is None else head.to(device, dtype))
        self.head_steps = round(config.defense.head_share * steps)
        self.optimizer = make_optimizer(config.optim, self.parameters)
        self.head_parameters = list(head.parameters()) if head is not None and self.head_steps else []
        self.head_optimizer = torch.optim.AdamW(self.head_parameters, lr=config.defense.head_lr) if self.head_parameters else None
        self.average = [p.detach().clone() for p in self.parameters] if config.optim.ema else None
        self.step = 0
        self.parts: dict[str, Any] = {}  # of the loss, summed over the micro-batches since the last step
        self.ids: list[str] = []  # of the images since the last step
        self.waiting: list[Waiting] = []  # of a defence over pairs: the attacked micro-batches since the last step
        self.rewritten: tuple[str, ...] = ()  # the student's prompts after the defence's last text attack
        visual = {id(p) for p in self.student.clip.visual.parameters()}  # type: ignore[union-attr]
        self.trains_tokens = self.student.prompt is not None and bool(self.student.prompt.text_layers())
        towers = {id(p) for p in self.student.clip.parameters()}
        self.trains_texts = self.trains_tokens or any(id(p) in towers - visual for p in self.parameters)

    @property
    def student(self) -> ZeroShotClassifier:
        """The classifier that learns."""
        return self.roles.student

    @property
    def teacher(self) -> ZeroShotClassifier:
        """The same classifier before training."""
        return self.roles.teacher

    @property
    def in_head_stage(self) -> bool:
        """Whether the head learns, on clean images, and nothing else does."""
        return self.step < self.head_steps

    def accumulate(self, pixels: np.ndarray | Tensor, labels: Tensor, ids: list[str]) -> None:
        """Attack a micro-batch and add its gradient; ids key the attack's random start and the augmentation."""
        images = self._augmented(to_images(pixels, self.device, self.dtype), ids)
        self._rewrite(labels)
        batch = Batch(images, labels.to(self.device), ids, self.config.seed, self.step, self.rewritten)
        self.model.before_step(self.config.seed, self.step)
        if self.roles.head is not None:
            self.roles.head.requires_grad_(self.in_head_stage)
        if isinstance(self.config.defense, Paired):
            self._wait(self.config.defense, batch)
            return
        parts = self._head_loss(batch) if self.in_head_stage else self._loss(batch)
        share = len(images) / self.config.optim.batch
        (sum(parts.values()) * share).backward()  # type: ignore[union-attr]
        self.ids += ids
        for name, part in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + part.detach() * share

    def _augmented(self, images: Tensor, ids: list[str]) -> Tensor:
        """Return the images as the data's augmentation shows them at this step."""
        if self.config.data.augment == "none":
            return images
        return crops(images, [(self.config.seed, "augment", self.step, id_) for id_ in ids], 1)[:, 0]

    def _rewrite(self, labels: Tensor) -> None:
        """Let the defence's text attack, if it has one, rewrite the prompts of these classes, or of all when the step is one for that."""
        text = getattr(self.config.defense, "text", None)
        if text is None:
            return
        if self.config.defense.refresh > 1:  # type: ignore[union-attr]
            if not self.ids and self.step % self.config.defense.refresh == 0:  # type: ignore[union-attr]
                self.rewritten = text(self.student).texts
            return
        classes, templates = labels.unique().tolist(), len(self.student.templates)
        _, now, _ = text.rewrite(self.student, classes)
        texts = list(self.rewritten or self.student.texts)
        for place, c in enumerate(classes):
            texts[c * templates : (c + 1) * templates] = [p.text for p in now[place * templates : (place + 1) * templates]]
        self.rewritten = tuple(texts)

    def _wait(self, defense: Paired, batch: Batch) -> None:
        """Attack a micro-batch of a defence over pairs; its gradient comes with the step's."""
        iterates: list[Tensor] = []
        attacked = self.attacked(batch, iterates.append if defense.leak_attack_grads else lambda images: None)
        self.waiting.append(Waiting(batch.images, attacked.images, batch.labels, iterates))
        self.ids += batch.ids

    def _pairs(self, defense: Paired) -> None:
        """Add the gradient of this worker's pairs of the step."""
        with self._precision(self.config.optim.precision):
            self.parts = pairing.backward(defense, self.student, self.waiting, self.rewritten, self.world)
            if defense.leak_attack_grads:
                pairing.leak(self.student, self.waiting, self.config.optim.batch)
        self.waiting = []

    def _follow(self) -> None:
        """Let the class embeddings follow the text tower."""
        if self.trains_texts:
            self.student.class_embeddings = self.student.embed_prompts()

    def _loss(self, batch: Batch) -> dict[str, Tensor]:
        adversarial = self.attacked(batch)
        with self._precision(self.config.optim.precision):
            if self.trains_tokens:  # the loss reaches the tokens in the texts; attacks meet what the texts say as a constant
                self.student.class_embeddings = self.student.class_features()
            parts = self.config.defense.loss(self.roles, batch, adversarial)
            self.student.class_embeddings = self.student.class_embeddings.detach()
            return parts

    def _head_loss(self, batch: Batch) -> dict[str, Tensor]:
        assert self.roles.head is not None
        with torch.no_grad():
            features = self.student.features(batch.images)
        return {"head": F.cross_entropy(self.roles.head(features), batch.labels)}

    def _precision(self, precision: Precision) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=precision == "bf16")

    def attacked(self, batch: Batch, seen: Callable[[Tensor], None] = lambda images: None) -> Example:
        """Return the batch after the training attack: PGD on the defence's objective, parameters without gradient; `seen`: its iterates."""
        ball, settings = self.config.threat.image or Ball(eps=0), self.config.attack
        with frozen(self.student), self._precision(settings.precision):
            objective = self.config.defense.objective(self.roles, batch)
            if objective is None:
                return Example(batch.images)
            start = random_start(ball, batch.images, batch.ids, self.config.seed, "train", self.step) if ball.radius else None
            return Example(pgd(objective, batch.images, ball, steps=settings.steps, alpha=settings.alpha, start=start, seen=seen))

    def update(self) -> dict[str, float]:
        """Take one optimiser step with the accumulated gradients, summed over workers; return the loss, its parts and the learning rate.

        Raises NotFinite with the step and the images of this worker in it.
        """
        if isinstance(self.config.defense, Paired):
            self._pairs(self.config.defense)
        learning = self.head_parameters if self.in_head_stage else self.parameters
        names, gradients = sorted(self.parts), [p.grad for p in learning if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients] + [self.parts[name].to(gradients[0]).view(1) for name in names])
        self.world.add(flat)
        if not bool(torch.isfinite(flat).all()):
            more = f" and {len(self.ids) - SHOWN_IDS} more" if len(self.ids) > SHOWN_IDS else ""
            raise NotFinite(
                f"step {self.step + 1}: the loss or a gradient is not finite; lower optim.lr, or look at the images of this step: "
                f"{', '.join(self.ids[:SHOWN_IDS])}{more}"
            )
        for g, summed in zip(gradients, flat.split([g.numel() for g in gradients] + [len(names)])[:-1], strict=True):
            g.copy_(summed.view_as(g))
        lr = self._step_optimizer()
        losses = dict(zip(names, flat[len(flat) - len(names) :].tolist(), strict=True))
        self.step, self.parts, self.ids = self.step + 1, {}, []
        return {"loss": sum(losses.values()), **{f"loss/{name}": value for name, value in losses.items()}, "lr": lr}

    def _step_optimizer(self) -> float:
        """Step what learns now, keep the running average, and return the learning rate."""
        optim = self.config.optim
        if self.in_head_stage:
            assert self.head_optimizer is not None
            self.head_optimizer.step()
            self.head_optimizer.zero_grad()
            return self.config.defense.head_lr
        lr = lr_at(self.step - self.head_steps, optim, self.steps - self.head_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        if getattr(self.config.trainable, "logit_scale", None) == "clamped":
            self.student.clip.logit_scale.data.clamp_(max=math.log(100))  # type: ignore[operator]
        for average, p in zip(self.average or (), self.parameters):
            average.mul_(optim.ema).add_(p.detach(), alpha=1 - optim.ema)
        self._follow()
        return lr

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the running average of the weights in their place, where there is one, and the weights back afterwards."""
        if self.average is None:
            yield
            return
        weights = [p.detach().clone() for p in self.parameters]
        set_all(self.parameters, self.average)
        self._follow()
        try:
            yield
        finally:
            set_all(self.parameters, weights)
            self._follow()

    def validate(self, images: Tensor, labels: Tensor, ids: list[str]) -> dict[str, float]:
        """Return val/clean and val/robust in [0,1]: accuracy on held-out images [N,3,H,W] and under the validation's PGD."""
        self.model.before_step(self.config.seed, None)
        with self.averaged():
            clean, robust = share_right(self.config, self.student, images.to(self.device), labels, ids, PGD(self.config.validation.steps))
        return {"val/clean": clean, "val/robust": robust}

    def finish(self) -> None:
        """Make the model one to save: averaged weights if there are any, fp32, at rest, its low-rank and partial changes baked in."""
        set_all(self.parameters, self.average or self.parameters)
        self.model.before_step(self.config.seed, None)
        bake(self.model.clip)
        self.model.clip.float()
        self._follow()

    def state(self) -> dict[str, Any]:
        """Return a copy of all that `restore` needs to go on bit for bit; the attack's randomness is keyed by step and id: no state."""

        def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
            return [tensor.detach().cpu().clone() for tensor in tensors]

        return {
            "step": self.step,
            "learned": copies(self.parameters),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "average": copies(self.average or ()),
            "head": copies(self.head_parameters),
            "head_optimizer": copy.deepcopy(self.head_optimizer.state_dict()) if self.head_optimizer else {},
            "rewritten": list(self.rewritten),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        set_all(self.parameters, state["learned"])
        set_all(self.average or (), state["average"])
        set_all(self.head_parameters, state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.head_optimizer:
            self.head_optimizer.load_state_dict(state["head_optimizer"])
        self.step, self.rewritten = state["step"], tuple(state.get("rewritten", ()))
        self._follow()


def set_all(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into tensors, in place."""
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)


def make_optimizer(optim: Optim, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser of the recipe."""
    if optim.name == "sgd":
        return torch.optim.SGD(parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    adam = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
    return adam(parameters, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)
