"""Projected gradient ascent on any per-image objective (Madry et al. 2018), the attack of training and the cheap one of scoring."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from robustclip.attacks.base import Example, Objective, Scored, Trace
from robustclip.attacks.losses import LEAST_CLASSES, LOSSES, LossName
from robustclip.base.draws import normal, uniform
from robustclip.base.ranges import AMOUNT, COUNT, NATURAL, check_fields
from robustclip.base.threat import Ball
from robustclip.models.adaptive import meeting

Found = tuple[Tensor, Trace]  # attacked images [N,3,H,W] and how it went


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode without parameter gradients while it is attacked, and restore both afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    wanted = [p for p in module.parameters() if p.requires_grad]
    module.eval().requires_grad_(False)
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training
        for p in wanted:
            p.requires_grad_(True)


def random_start(ball: Ball, images: Tensor, ids: list[str], *key: str | int) -> Tensor:
    """Return perturbations [B,C,H,W] uniform in the ball, each drawn from its own image's id and `key`: no batch or order matters."""
    keys, shape, device = [(*key, "start", id_) for id_ in ids], images.shape[1:], images.device
    if ball.norm == "Linf":
        return (2 * uniform(keys, *shape, device=device) - 1).to(images) * ball.radius
    direction = normal(keys, *shape, device=device)
    # Each alone: a norm may round differently in a batch of another size.
    unit = torch.stack([each / each.norm() for each in direction])
    share = uniform([(*each, "share") for each in keys], 1, 1, 1, device=device) ** (1 / shape.numel())
    return (unit * share).to(images) * ball.radius


def move(images: Tensor, delta: Tensor, ball: Ball) -> Tensor:
    """Return the attacked images [B,C,H,W]: delta projected on the ball, then the sum clamped to [0,1]."""
    return (images + ball.project(delta)).clamp(0, 1)


def gradient(objective: Objective, images: Tensor, wanted: bool = True) -> tuple[Scored, Tensor]:
    """Return the scores of images and the gradient of the summed loss with respect to them (zeros if not wanted); parameters get none.

    The sum, not the mean: with a mean the gradient shrinks with the batch and confident images lose theirs to rounding.
    """
    images = images.detach().requires_grad_(True)  # even without a gradient: torch takes other kernels, which round differently
    scored = objective(images)
    g = torch.autograd.grad(scored.loss.sum(), images)[0] if wanted else torch.zeros_like(images)
    return Scored(scored.loss.detach(), scored.fooled), g


def micro_batches(places: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (part, padded): up to `size` of the places, and the same filled up to `size` by repeating the last one."""
    for part in places.split(size) if len(places) else ():
        yield part, torch.cat([part, part[-1:].expand(size - len(part))])


def logits_of(classifier: nn.Module, images: Tensor, ids: Sequence[str], micro_batch: int) -> Tensor:
    """Return the logits [N,K] of images, without gradients and in micro-batches of one size."""
    found = []
    with torch.no_grad():
        for part, padded in micro_batches(torch.arange(len(images)), micro_batch):
            found.append(meeting(classifier, ids, padded)(images[padded])[: len(part)])
    return torch.cat(found)


class Scores(NamedTuple):
    """What an attack learns of images [N] in one pass: loss, whether they fool the model, the gradient; zeros where it did not ask."""

    loss: Tensor
    fooled: Tensor
    gradient: Tensor


class Score(Protocol):
    """Scores images [N,3,H,W] where `active` [N]; the gradient may be left out when no step lies ahead that would need it."""

    def __call__(self, images: Tensor, active: Tensor, ahead: bool = True) -> Scores: ...


def resisting(objective_of: Callable[[Tensor], Objective], micro_batch: int | None) -> Score:
    """Return what scores the images that an attack still works on, repacked into full micro-batches of one size (None: of all images).

    `objective_of` gives the objective of the images at some places. One size, because a matrix product may round differently in another:
    so an image's scores and gradient do not depend on which others still resist.
    """

    def score(images: Tensor, active: Tensor, ahead: bool = True) -> Scores:
        scores = Scores(torch.zeros_like(images[:, 0, 0, 0]), torch.zeros_like(active), torch.zeros_like(images))
        for part, padded in micro_batches(active.nonzero()[:, 0], micro_batch or len(images)):
            scored, g = gradient(objective_of(padded), images[padded], ahead)
            scores.loss[part], scores.gradient[part] = scored.loss[: len(part)], g[: len(part)]
            if scored.fooled is not None:
                scores.fooled[part] = scored.fooled[: len(part)]
        return scores

    return score


class Best:
    """The best iterate of each image so far, in place: one that fools the model beats one that does not, then the higher loss wins."""

    def __init__(self, images: Tensor, scored: Scores):
        self.images, self.loss = images.clone(), scored.loss.clone()
        self.fooled = scored.fooled.clone()
        self.first_success = torch.where(self.fooled, 0, -1)

    def update(self, images: Tensor, scored: Scores, step: int) -> None:
        """Take over every image that does better than before; an image that fooled the model once is never changed again."""
        better = ~self.fooled & (scored.fooled | (scored.loss > self.loss))
        self.first_success = torch.where(better & scored.fooled, step, self.first_success)
        self.images[better], self.loss[better] = images[better], scored.loss[better]
        self.fooled |= better & scored.fooled


class GradientShares:
    """The shares of exactly zero and of non-finite gradient entries of each image, averaged over the steps it was attacked."""

    def __init__(self, images: Tensor):
        self.zero, self.bad, self.steps = (torch.zeros(len(images), device=images.device) for _ in range(3))

    def add(self, g: Tensor, active: Tensor) -> Tensor:
        """Count g [B,...] for the active images and return it with non-finite entries set to 0."""
        finite = torch.isfinite(g)
        self.zero += active * (g == 0).flatten(1).float().mean(1)
        self.bad += active * (~finite).flatten(1).float().mean(1)
        self.steps += active
        return torch.where(finite, g, 0.0)

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the two shares [B]."""
        return self.zero / self.steps.clamp(min=1), self.bad / self.steps.clamp(min=1)


def pgd(
    objective: Objective,
    images: Tensor,
    ball: Ball,
    *,
    steps: int,
    alpha: float,
    start: Tensor | None = None,
    seen: Callable[[Tensor], None] = lambda images: None,
) -> Tensor:
    """Return the last iterate [B,3,H,W] of `steps` steps of size alpha * eps from images + start: the attack of adversarial training.

    `seen` is told every iterate at which a gradient is taken. eps = 0 or steps = 0 return the images bit for bit.
    """
    if ball.radius == 0 or steps == 0:
        return images
    x = images if start is None else move(images, start, ball)
    for _ in range(steps):
        seen(x.detach())
        _, g = gradient(objective, x)
        x = move(images, x - images + alpha * ball.radius * ball.ascent(g), ball)
    return x.detach()


def pgd_best(
    score: Score, images: Tensor, ball: Ball, *, steps: int, alpha: float, start: Tensor | None, todo: Tensor, remembers: bool = False
) -> Found:
    """Return the best iterate of PGD and its trace for the images `todo` [N]; an image is left alone after its first success.

    It is also left alone once it repeats: where an iterate and its loss are bit for bit those of two steps before, all that follows is
    known, and it is no success (cycles of sign steps: arXiv 2503.19347). Nothing but the passes saved depends on it. A model whose answers
    are random gives another loss and is asked to the end; so is a score that `remembers` earlier steps, as momentum does.
    """
    x = images if start is None or steps == 0 else move(images, start, ball)
    scored = score(x, todo, steps > 0)
    best, shares, loss_start, last, forwards = Best(x, scored), GradientShares(images), scored.loss, scored.loss, todo.long()
    repeats, before = torch.zeros_like(todo), [(x, scored.loss)] * 2
    for step in range(1, steps + 1):
        active = todo & ~best.fooled & ~repeats
        if ball.radius == 0 or not active.any():
            break
        g = shares.add(scored.gradient, active)
        moved = move(images, x - images + alpha * ball.radius * ball.ascent(g), ball)
        x = torch.where(active[:, None, None, None], moved, x)
        scored = score(x, active, step < steps)
        best.update(x, scored._replace(loss=torch.where(active, scored.loss, best.loss)), step)
        last, forwards = torch.where(active, scored.loss, last), forwards + active
        (older, older_loss), (_, old_loss) = before
        if step > 1 and not remembers:
            again = active & (x == older).flatten(1).all(1) & (scored.loss == older_loss)
            repeats = repeats | again
            last = torch.where(again & ((steps - step) % 2 == 1), old_loss, last)
        before = [before[1], (x, scored.loss)]
    return best.images, Trace(loss_start, best.loss, last, best.first_success, *shares.means(), forwards)


def with_restarts(run: Callable[[int, Tensor], Found], restarts: int, images: Tensor) -> Found:
    """Return the best of `restarts` runs per image, by (fooled, loss); a later run works only on the images that still resist."""
    found, trace = run(0, torch.ones_like(images[:, 0, 0, 0], dtype=torch.bool))
    for restart in range(1, restarts):
        resist = trace.first_success < 0
        if not resist.any():
            break
        others, other = run(restart, resist)
        better = resist & ((other.first_success >= 0) | (other.loss_best > trace.loss_best))
        fields = ("loss_start", "loss_best", "loss_end", "first_success", "zero_gradient", "nonfinite_gradient")
        chosen = {name: torch.where(better, getattr(other, name), getattr(trace, name)) for name in fields}
        found = torch.where(better[:, None, None, None], others, found)
        trace = replace(trace, **chosen, forwards=trace.forwards + other.forwards)
    return found, trace


@dataclass(frozen=True)
class PGD:
    """PGD with best iterate: `alpha` is the step as a share of eps, starts are uniform in the ball.

    loss="margin" is what papers call CW in an L-inf ball (Madry et al. 2018, section 5: PGD on the loss of Carlini & Wagner; its cap of the
    margin never acts, because an image is left alone once it fools the model). One full step without a random start is FGSM (Goodfellow
    et al. 2015). Raises UserError when the model has too few classes for the loss.
    """

    steps: int = 10
    alpha: float = 0.25
    restarts: int = 1
    random_start: bool = True
    loss: LossName = "ce"

    def __post_init__(self) -> None:
        check_fields(self, "PGD: ", steps=NATURAL, alpha=AMOUNT, restarts=COUNT)

    @property
    def name(self) -> str:
        fgsm = (self.steps, self.alpha, self.random_start) == (1, 1.0, False)
        base = "fgsm" if fgsm else f"pgd-{self.steps}"
        return base + (f"x{self.restarts}" if self.restarts > 1 else "") + (f"-{self.loss}" if self.loss != "ce" else "")

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
            start = random_start(ball, images, ids, seed, f"pgd-{self.steps}", restart) if self.random_start and ball.radius else None
            return pgd_best(score, images, ball, steps=self.steps, alpha=self.alpha, start=start, todo=todo)

        score = resisting(objective_of, micro_batch)
        with frozen(classifier):
            adversarial, trace = with_restarts(run, self.restarts, images)
        return Example(adversarial, trace=trace)
