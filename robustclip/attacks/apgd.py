"""Auto-PGD (Croce & Hein 2020, Algorithm 1): momentum, a step size halved per image when progress stalls."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from robustclip.attacks.base import Example, Objective, Trace
from robustclip.attacks.losses import LEAST_CLASSES, LOSSES, targeted_dlr
from robustclip.attacks.pgd import Best, Found, GradientShares, Score, frozen, logits_of, move, random_start, resisting, with_restarts
from robustclip.base.errors import UserError
from robustclip.base.ranges import COUNT, NATURAL, check_fields
from robustclip.base.threat import Ball
from robustclip.models.adaptive import meeting

MOMENTUM = 0.75
RHO = 0.75  # share of steps that must raise the loss between two checkpoints


class StepSize:
    """The step size of each image [B], with the two conditions of the paper that halve it at a checkpoint."""

    def __init__(self, ball: Ball, steps: int, loss: Tensor):
        self.size = torch.full_like(loss, 2 * ball.radius)
        self.period = max(int(0.22 * steps), 1)
        self.shortest, self.shrink = max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
        self.since, self.raised = 0, torch.zeros_like(loss)
        self.previous, self.halved, self.best_at_checkpoint = loss, torch.ones_like(loss, dtype=torch.bool), loss

    def after(self, loss: Tensor, best: Tensor) -> Tensor:
        """Take the loss and the best loss [B] after a step; return which images [B] must go back to their best point."""
        self.raised += loss > self.previous
        self.previous = loss
        self.since += 1
        if self.since < self.period:
            return torch.zeros_like(self.halved)
        oscillating = self.raised <= RHO * self.period
        stalled = ~self.halved & (self.best_at_checkpoint >= best)
        self.halved = oscillating | stalled
        self.size = torch.where(self.halved, self.size / 2, self.size)
        self.best_at_checkpoint = best.clone()
        self.since, self.raised = 0, torch.zeros_like(self.raised)
        self.period = max(self.period - self.shrink, self.shortest)
        return self.halved


def apgd(score: Score, images: Tensor, ball: Ball, *, steps: int, start: Tensor, todo: Tensor) -> Found:
    """Return the best iterate of APGD from images + start and its trace for the images `todo` [N]; a success is left alone."""
    x = move(images, start, ball) if steps else images
    scored = score(x, todo, steps > 0)
    best, shares = Best(x, scored), GradientShares(images)
    peak_x, peak_g, peak_loss = x.clone(), scored.gradient, scored.loss.clone()  # where the loss was highest: the point to go back to
    step_size, previous, g = StepSize(ball, steps, scored.loss), x, scored.gradient.clone()
    loss_start, last, forwards = scored.loss, scored.loss, todo.long()
    for step in range(1, steps + 1):
        active = todo & ~best.fooled
        if ball.radius == 0 or not active.any():
            break
        g = shares.add(g, active)
        proposed = move(images, x - images + step_size.size[:, None, None, None] * ball.ascent(g), ball)
        share = 1.0 if step == 1 else MOMENTUM
        moved = move(images, x - images + share * (proposed - x) + (1 - share) * (x - previous), ball)
        previous, x = x, torch.where(active[:, None, None, None], moved, x)
        scored = score(x, active, step < steps)
        best.update(x, scored, step)
        higher = scored.loss > peak_loss
        peak_x[higher], peak_g[higher], peak_loss[higher] = x[higher], scored.gradient[higher], scored.loss[higher]
        back = step_size.after(scored.loss, peak_loss)[:, None, None, None]
        x, g = torch.where(back, peak_x, x), torch.where(back, peak_g, scored.gradient)
        last, forwards = torch.where(active, scored.loss, last), forwards + active
    return best.images, Trace(loss_start, best.loss, last, best.first_success, *shares.means(), forwards)


def surface_start(ball: Ball, images: Tensor, ids: list[str], *key: str | int) -> Tensor:
    """Return the random starts of APGD [B,3,H,W]: random directions scaled to the surface of the ball (none has none)."""
    if ball.radius == 0:
        return torch.zeros_like(images)
    delta = random_start(ball, images, ids, *key)
    return delta * (ball.radius / ball.size(delta).clamp(min=1e-12)).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class APGD:
    """APGD with `restarts` random starts on the cross-entropy or the DLR loss; nothing to tune but the number of steps.

    Raises UserError when the model has too few classes for the loss.
    """

    steps: int = 100
    restarts: int = 1
    loss: Literal["ce", "dlr"] = "ce"

    def __post_init__(self) -> None:
        check_fields(self, "APGD: ", steps=NATURAL, restarts=COUNT)

    @property
    def name(self) -> str:
        return f"apgd-{self.loss}-{self.steps}" + (f"x{self.restarts}" if self.restarts > 1 else "")

    @property
    def min_classes(self) -> int:
        """The fewest classes its loss is defined for."""
        return LEAST_CLASSES[self.loss]

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, ids: list[str], ball: Ball, seed: int, micro_batch: int | None = None
    ) -> Example:
        def objective_of(places: Tensor) -> Objective:
            return LOSSES[self.loss](meeting(classifier, ids, places), labels[places])

        return self.raising(objective_of, classifier, images, ids, ball, seed, micro_batch)

    def raising(
        self,
        objective_of: Callable[[Tensor], Objective],
        classifier: nn.Module,
        images: Tensor,
        ids: list[str],
        ball: Ball,
        seed: int,
        micro_batch: int | None = None,
    ) -> Example:
        """Return what it makes of images where it raises another objective than its own, that of the images at some places."""

        def run(restart: int, todo: Tensor) -> Found:
            # Not keyed by the number of restarts: the first of many is the only one of one.
            start = surface_start(ball, images, ids, seed, f"apgd-{self.loss}-{self.steps}", restart)
            return apgd(score, images, ball, steps=self.steps, start=start, todo=todo)

        score = resisting(objective_of, micro_batch)
        with frozen(classifier):
            adversarial, trace = with_restarts(run, self.restarts, images)
        return Example(adversarial, trace=trace)


@dataclass(frozen=True)
class APGDT:
    """APGD-T: one APGD run on the targeted DLR loss for each of the `targets` wrong classes the clean image is closest to, best first.

    Each run, of `restarts` for each target, meets only the images that still resist (Croce & Hein 2020, section 4). Raises UserError for a
    model of fewer than 4 classes or of no more classes than targets.
    """

    steps: int = 100
    targets: int = 9
    restarts: int = 1
    min_classes = 4  # the loss looks at the fourth logit

    def __post_init__(self) -> None:
        check_fields(self, "APGD-T: ", steps=NATURAL, targets=COUNT, restarts=COUNT)

    @property
    def name(self) -> str:
        aims = f"[t={self.targets}]" if self.targets != 9 else ""
        return f"apgd-t-{self.steps}" + (f"x{self.restarts}" if self.restarts > 1 else "") + aims

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, ids: list[str], ball: Ball, seed: int, micro_batch: int | None = None
    ) -> Example:
        def run(number: int, todo: Tensor) -> Found:
            rank, restart = divmod(number, self.restarts)
            start = surface_start(ball, images, ids, seed, f"apgd-t-{self.steps}", rank, restart)
            score = resisting(
                lambda places: targeted_dlr(meeting(classifier, ids, places), labels[places], aims[places, rank]), micro_batch
            )
            return apgd(score, images, ball, steps=self.steps, start=start, todo=todo)

        with frozen(classifier):
            aims = closest_wrong(logits_of(classifier, images, ids, micro_batch or len(images)), labels, self.targets, self.name)
            adversarial, trace = with_restarts(run, self.targets * self.restarts, images)
        return Example(adversarial, trace=replace(trace, forwards=trace.forwards + 1))  # and the pass that ranked the classes


def closest_wrong(logits: Tensor, labels: Tensor, targets: int, name: str) -> Tensor:
    """Return the `targets` wrong classes [N,targets] of highest logit, best first; raises UserError when the model has too few."""
    if targets >= logits.shape[1]:
        raise UserError(
            f"{name} aims at {targets} wrong classes, this model has {logits.shape[1]} in all: use targets={logits.shape[1] - 1}"
        )
    return logits.scatter(1, labels[:, None], float("-inf")).topk(targets, dim=1).indices
