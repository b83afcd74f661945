"""Auto-PGD on the cross-entropy (Croce & Hein 2020, Algorithm 1): momentum, a step size halved per image when progress stalls."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustclip.attacks.base import Example, Trace
from robustclip.attacks.pgd import Best, Found, GradientShares, Score, cross_entropy, frozen, move, random_start, resisting, with_restarts
from robustclip.threat import Ball

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
    scored = score(x, todo)
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
        scored = score(x, active)
        best.update(x, scored, step)
        higher = scored.loss > peak_loss
        peak_x[higher], peak_g[higher], peak_loss[higher] = x[higher], scored.gradient[higher], scored.loss[higher]
        back = step_size.after(scored.loss, peak_loss)[:, None, None, None]
        x, g = torch.where(back, peak_x, x), torch.where(back, peak_g, scored.gradient)
        last, forwards = torch.where(active, scored.loss, last), forwards + active
    return best.images, Trace(loss_start, best.loss, last, best.first_success, *shares.means(), forwards)


def surface_start(ball: Ball, images: Tensor, ids: list[str], *key: str | int) -> Tensor:
    """Return the random starts of APGD [B,3,H,W]: random directions scaled to the surface of the ball."""
    delta = random_start(ball, images, ids, *key)
    return delta * (ball.radius / ball.size(delta).clamp(min=1e-12)).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class APGD:
    """APGD-CE with `restarts` random starts; nothing to tune but the number of steps."""

    steps: int = 100
    restarts: int = 1

    @property
    def name(self) -> str:
        return f"apgd-ce-{self.steps}" + (f"x{self.restarts}" if self.restarts > 1 else "")

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, ids: list[str], ball: Ball, seed: int, micro_batch: int | None = None
    ) -> Example:
        def run(restart: int, todo: Tensor) -> Found:
            key = (seed, f"apgd-ce-{self.steps}", restart)  # not the number of restarts: the first of many is the only one of one
            start = surface_start(ball, images, ids, *key) if ball.radius else torch.zeros_like(images)
            return apgd(score, images, ball, steps=self.steps, start=start, todo=todo)

        score = resisting(lambda places: cross_entropy(classifier, labels[places]), micro_batch)
        with frozen(classifier):
            adversarial, trace = with_restarts(run, self.restarts, images)
        return Example(adversarial, trace=trace)
