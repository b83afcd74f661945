"""Targeted FAB (Croce & Hein 2020, "Fast Adaptive Boundary"): from class boundary to class boundary, ever closer to the image."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustclip.attacks.apgd import closest_wrong, surface_start
from robustclip.attacks.base import Example, Objective, Scored, Trace
from robustclip.attacks.losses import fools
from robustclip.attacks.pgd import (
    Best,
    Found,
    GradientShares,
    Score,
    Scores,
    frozen,
    logits_of,
    micro_batches,
    move,
    resisting,
    with_restarts,
)
from robustclip.base.dtypes import wide
from robustclip.base.ranges import COUNT, NATURAL, check_fields
from robustclip.base.threat import Ball
from robustclip.models.adaptive import meeting

ALPHA_MAX = 0.1  # how far a step may be pulled towards the image
ETA = 1.05  # how far a step goes beyond the linearised boundary
BETA = 0.9  # where an adversarial point outside the ball is moved back to, on the line from the image


def difference(classifier: nn.Module, labels: Tensor, targets: Tensor) -> Objective:
    """Return the objective z_target - z_label of each image [B], and whether it is misclassified already, as whatever class."""

    def objective(images: Tensor) -> Scored:
        logits = classifier(images)
        of = wide(logits).gather(1, torch.stack([targets, labels], 1))
        return Scored(of[:, 0] - of[:, 1], fools(logits, labels))

    return objective


def to_hyperplane(points: Tensor, normal: Tensor, gap: Tensor, ball: Ball) -> Tensor:
    """Return the steps d [B,D], shortest in the ball's norm, with normal . d = gap [B,1] and points + d in [0,1] (Equation 4).

    Where the box does not reach the hyperplane, d goes to the corner that comes closest to it. All entries of d grow together, as level
    (Linf) or level * |normal| (L2), until they hit the box, so normal . d is piecewise linear in the level: sort the kinks and look it up.
    """
    scale = normal.abs().amax(1, keepdim=True).clamp(min=1e-30)
    normal, gap = normal / scale, gap / scale
    direction, gap = normal.sign() * gap.sign(), gap.abs()
    room = torch.where(direction > 0, 1 - points, points)
    pace = torch.ones_like(normal) if ball.norm == "Linf" else normal.abs()
    full = torch.where(pace > 0, room / pace, 0.0)  # the level at which an entry hits the box
    kinks, order = full.sort(1)
    slope = (pace * normal.abs()).gather(1, order)
    growing = slope.flip(1).cumsum(1).flip(1)  # total slope just before each kink
    stopped = (slope * kinks).cumsum(1) - slope * kinks  # what the entries that hit the box before it contribute
    kink = (stopped + growing * kinks < gap).sum(1, keepdim=True).clamp(max=points.shape[1] - 1)
    level = (gap - stopped.gather(1, kink)) / growing.gather(1, kink).clamp(min=1e-30)
    return direction * pace * torch.minimum(level, full)


def step_to_boundary(images: Tensor, x: Tensor, lead: Tensor, gradient: Tensor, ball: Ball) -> Tensor:
    """Return the next iterates [B,3,H,W] from x by Algorithm 1: the boundary is where lead [B] = z_target - z_label is 0 to first order."""
    clean, point, normal = (t.flatten(1) for t in (images, x, gradient))
    gap = -lead[:, None]
    from_point = to_hyperplane(point, normal, gap, ball)
    from_clean = to_hyperplane(clean, normal, gap + (normal * (point - clean)).sum(1, keepdim=True), ball)
    near, far = (ball.size(d).clamp(min=1e-8)[:, None] for d in (from_point, from_clean))
    alpha = (near / (near + far)).clamp(max=ALPHA_MAX)
    moved = (1 - alpha) * (point + ETA * from_point) + alpha * (clean + ETA * from_clean)
    return moved.clamp(0, 1).view_as(x)


def fab(score: Score, images: Tensor, ball: Ball, *, steps: int, start: Tensor | None, size: int, todo: Tensor) -> Found:
    """Return the best images inside the ball and the trace of FAB from images + start for the images `todo` [N]; a success is left alone.

    An image that no step broke gets a last attempt: its last iterate, which is near the boundary, projected on the ball.
    """

    def inside(x: Tensor, scored: Scores) -> Scores:
        outside = ball.size(x - images) > ball.radius
        return scored._replace(loss=scored.loss.masked_fill(outside, -torch.inf), fooled=scored.fooled & ~outside)

    x = images if start is None else move(images, start, ball)
    scored = score(x, todo, steps > 0)
    best, shares = Best(x, scored), GradientShares(images)
    loss_start, last, forwards = scored.loss, scored.loss, todo.long()
    for step in range(1, steps + 1):
        active = todo & ~best.fooled
        if ball.radius == 0 or not active.any():
            break
        x, g = x.clone(), shares.add(scored.gradient, active)
        # The geometry is done in micro-batches too: a sum may round differently in a batch of another size.
        # Where the model gave no finite answer there is no boundary to step to.
        for part, padded in micro_batches((active & scored.loss.isfinite()).nonzero()[:, 0], size):
            x[part] = step_to_boundary(images[padded], x[padded], scored.loss[padded], g[padded], ball)[: len(part)]
        # No gradient yet: where the step went beyond the ball it is wanted somewhere else.
        tried = score(x, active, False)
        best.update(x, inside(x, tried), step)
        left = active & ~best.fooled
        beyond = left & tried.fooled
        x[beyond] = images[beyond] + BETA * (x - images)[beyond]
        scored = score(x, left, step < steps)
        best.update(x, inside(x, scored), step)
        last = torch.where(left, scored.loss, torch.where(active, tried.loss, last))
        forwards = forwards + active + left
    resist = todo & ~best.fooled
    attempt = move(images, x - images, ball)
    scored = score(attempt, resist, False)
    best.update(attempt, scored, steps)
    return best.images, Trace(loss_start, best.loss, last, best.first_success, *shares.means(), forwards + resist)


@dataclass(frozen=True)
class FABT:
    """Targeted FAB towards each of the `targets` highest-ranked wrong classes, in Linf or L2, with the constants of AutoAttack.

    FAB looks for the closest adversarial image; as only the ball matters here, an image is left alone as soon as one is inside. The first
    run for a target starts at the image, the others (`restarts` - 1) at a random point half a radius away. Raises UserError when there are
    not more classes than targets.
    """

    steps: int = 100
    targets: int = 9
    restarts: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "FAB-T: ", steps=NATURAL, targets=COUNT, restarts=COUNT)

    @property
    def name(self) -> str:
        restarts = f"x{self.restarts}" if self.restarts > 1 else ""
        # The number of targets only where it is not the published one: fewer are less than the attack of that name.
        return f"fab-t-{self.steps}{restarts}" + (f"[t={self.targets}]" if self.targets != 9 else "")

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, ids: list[str], ball: Ball, seed: int, micro_batch: int | None = None
    ) -> Example:
        size = micro_batch or len(images)
        with frozen(classifier):
            targets = closest_wrong(logits_of(classifier, images, ids, size), labels, self.targets, self.name)

            def run(number: int, todo: Tensor) -> Found:
                restart, rank = divmod(number, self.targets)
                score = resisting(lambda places: difference(meeting(classifier, ids, places), labels[places], targets[places, rank]), size)
                start = surface_start(ball, images, ids, seed, "fab-t", restart, rank) / 2 if restart and ball.radius else None
                return fab(score, images, ball, steps=self.steps, start=start, size=size, todo=todo)

            adversarial, trace = with_restarts(run, self.targets * self.restarts, images)
        return Example(adversarial, trace=replace(trace, forwards=trace.forwards + 1))  # and the pass that ranked the classes
