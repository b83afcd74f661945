"""PGD that repeats itself ends: image, losses and verdict are those of every step made, and a random model is asked to the end."""

import pytest
import torch
from torch import Tensor

from robustclip.attacks.base import Scored
from robustclip.attacks.losses import cross_entropy
from robustclip.attacks.pgd import Best, Scores, Trace, move, pgd_best, random_start, resisting
from robustclip.base.threat import Ball

NAMES, TEMPLATES, N, STEPS = ("red", "green", "blue", "grey"), ("a photo of a {}.",), 12, 40


def every_step(score, images: Tensor, ball: Ball, steps: int, alpha: float, start: Tensor) -> tuple[Tensor, Trace]:
    """PGD as it is defined: every step, for every image that does not yet fool the model."""
    x, todo = move(images, start, ball), torch.ones(len(images), dtype=torch.bool)
    scored = score(x, todo)
    best, last, forwards = Best(x, scored), scored.loss, todo.long()
    for step in range(1, steps + 1):
        active = ~best.fooled
        moved = move(images, x - images + alpha * ball.radius * ball.ascent(scored.gradient), ball)
        x = torch.where(active[:, None, None, None], moved, x)
        scored = score(x, active)
        best.update(x, scored, step)
        last, forwards = torch.where(active, scored.loss, last), forwards + active
    return best.images, (best.loss, last, best.first_success, forwards)


@pytest.fixture
def task(tiny_model, pictures):
    """Return a score, images, ids: half of the labels are those that the model gives."""
    classifier, (x, _, ids) = tiny_model.classifier(NAMES, TEMPLATES), pictures(N)
    with torch.no_grad():
        y = classifier(x).argmax(1)
    return resisting(lambda places: cross_entropy(classifier, y[places]), 4), x, ids


@pytest.mark.parametrize("steps", [STEPS, STEPS + 1])  # a cycle of two ends on either of its iterates
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_what_repeats_is_left_alone_and_nothing_else_changes(task, steps, alpha):
    score, x, ids = task
    ball = Ball("Linf", 2.0)
    start = random_start(ball, x, ids, 0)
    images, trace = pgd_best(score, x, ball, steps=steps, alpha=alpha, start=start, todo=torch.ones(N, dtype=torch.bool))
    expected, (loss, last, first_success, forwards) = every_step(score, x, ball, steps, alpha, start)
    resisted = first_success < 0
    assert resisted.sum() >= N // 2
    assert torch.equal(images, expected)
    assert torch.equal(trace.loss_best, loss)
    assert torch.equal(trace.loss_end, last)
    assert torch.equal(trace.first_success, first_success)
    assert torch.equal(trace.forwards[~resisted], forwards[~resisted])
    assert bool((trace.forwards[resisted] < forwards[resisted]).any())
    assert trace.forwards[resisted].float().mean() < 0.8 * (steps + 1)


def test_a_random_model_is_asked_to_the_end():
    """Its gradient never turns, so the iterate stays in a corner; the last answer is the one that fools it."""
    asked = []

    def score(images: Tensor, active: Tensor, ahead: bool = True) -> Scores:
        asked.append(len(asked))
        noise = torch.full((len(images),), 0.01 * torch.rand(1).item())
        return Scores(images.flatten(1).sum(1) + noise, torch.full((len(images),), len(asked) == STEPS + 1), torch.ones_like(images))

    x = torch.full((2, 3, 4, 4), 0.5)
    _, trace = pgd_best(score, x, Ball("Linf", 2.0), steps=STEPS, alpha=1.0, start=None, todo=torch.ones(2, dtype=torch.bool))
    assert trace.first_success.tolist() == [STEPS] * 2
    assert trace.forwards.tolist() == [STEPS + 1] * 2


def test_a_corner_that_is_reached_is_a_cycle_of_one():
    score = resisting(lambda places: lambda images: Scored(images.flatten(1).sum(1), torch.zeros(len(images), dtype=torch.bool)), None)
    x = torch.full((2, 3, 4, 4), 0.5)
    images, trace = pgd_best(score, x, Ball("Linf", 2.0), steps=STEPS, alpha=0.5, start=None, todo=torch.ones(2, dtype=torch.bool))
    assert torch.equal(images, x + 2 / 255)
    assert torch.equal(trace.loss_end, trace.loss_best)
    assert trace.forwards.tolist() == [5] * 2  # start, two steps to the corner, two that stay there


def test_a_score_that_remembers_is_asked_to_the_end():
    """Twice the same corner, then momentum turns: its loss says nothing of what comes."""
    asked = []

    def score(images: Tensor, active: Tensor, ahead: bool = True) -> Scores:
        asked.append(images)
        g = torch.ones_like(images) * (1 if len(asked) < 10 else -1)
        return Scores(images.flatten(1).sum(1), images.flatten(1).sum(1) < 23.9, g)

    x = torch.full((1, 3, 4, 4), 0.5)
    options = {"steps": STEPS, "alpha": 1.0, "start": None, "todo": torch.ones(1, dtype=torch.bool)}
    ended = pgd_best(score, x, Ball("Linf", 2.0), **options)[1]
    assert ended.forwards.tolist() == [4]
    asked.clear()
    remembered = pgd_best(score, x, Ball("Linf", 2.0), **options, remembers=True)[1]
    assert remembered.first_success.tolist() == [11]
