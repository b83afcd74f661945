"""APGD: the step sizes, the momentum and the results of the published algorithm."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import all_of, middle, scored_by

from robustclip.attacks import APGD, Library, Scored
from robustclip.attacks.apgd import StepSize, apgd
from robustclip.base.threat import Ball

NAMES, TEMPLATES = ["red", "green", "blue", "grey"], ["a photo of a {}."]


def published_checkpoints(steps):
    """Return w_0, w_1, ... of Croce & Hein 2020, section 3.2, as their code rounds them."""
    period, points = max(int(0.22 * steps), 1), [0]
    while points[-1] + period <= steps:
        points.append(points[-1] + period)
        period = max(period - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return points


def published_step_sizes(losses, eta):
    """Return eta after every step for one image: conditions 1 and 2 of Algorithm 1, by plain loops. losses[0] is before any step."""
    steps, best, points = len(losses) - 1, [max(losses[: i + 1]) for i in range(len(losses))], published_checkpoints(len(losses) - 1)
    etas, previous = [eta], {"eta": None, "best": None}
    for k in range(1, steps + 1):
        if k in points[1:]:
            j = points.index(k)
            rises = sum(losses[i + 1] > losses[i] for i in range(points[j - 1], k))
            first = rises <= 0.75 * (k - points[j - 1])
            second = j > 1 and previous["eta"] == eta and previous["best"] == best[k]
            previous = {"eta": eta, "best": best[k]}
            eta = eta / 2 if first or second else eta
        etas.append(eta)
    return etas


@settings(max_examples=80)
@given(st.integers(1, 60), st.integers(0, 10_000), st.floats(0, 1))
def test_step_sizes_are_halved_as_published(steps, seed, trend):
    """Hand-made losses [steps+1, 5]: random walks that rise with chance `trend`, with plateaus."""
    g = torch.Generator().manual_seed(seed)
    rising = torch.rand(steps, 5, generator=g) < trend
    walk = torch.where(rising, 1.0, torch.randint(-2, 1, (steps, 5), generator=g).float())
    losses = torch.cat([torch.zeros(1, 5), walk]).cumsum(0)
    rule, best = StepSize(Ball("Linf", 255.0), steps, losses[0]), losses[0]
    found = [rule.size]
    for k in range(1, steps + 1):
        best = torch.maximum(best, losses[k])
        size = rule.size
        back = rule.after(losses[k], best)
        assert torch.equal(back, rule.size < size)  # who is halved goes back to the best point
        found.append(rule.size)
    expected = torch.tensor([published_step_sizes(losses[:, i].tolist(), 2.0) for i in range(5)]).T
    torch.testing.assert_close(torch.stack(found), expected, rtol=0, atol=0)


def test_the_checkpoints_of_100_steps_are_the_papers():
    assert published_checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]


def test_an_image_that_rises_below_its_best_is_halved_at_every_other_checkpoint():
    """Ten steps have checkpoints after 2, 3 and 4. Image 0 falls, then rises but never to its best; image 1 makes progress."""
    rule, sizes = StepSize(Ball("Linf", 255.0), 10, torch.tensor([5.0, 0.0])), []
    for k in range(1, 5):
        rule.after(torch.tensor([1.0 + 0.1 * k, float(k)]), torch.tensor([5.0, float(k)]))
        sizes.append(rule.size.tolist())
    assert sizes == [[2.0, 2.0], [1.0, 2.0], [1.0, 2.0], [0.5, 2.0]]


def test_the_first_step_has_full_weight():
    """From delta = -eps the first step of 2 eps reaches +eps; with the momentum's 0.75 it would stop at eps/2."""
    x, ball = middle(2), Ball("Linf", 4.0)
    start = torch.full_like(x, -ball.radius)
    images, _ = apgd(scored_by(lambda x: Scored(x.flatten(1).sum(1))), x, ball, steps=1, start=start, todo=all_of(x))
    torch.testing.assert_close(images, x + ball.radius)


def test_later_steps_carry_momentum():
    """By hand, with a gradient that turns after the first step: x2 = x1 + 0.75 (P(x1 - eta) - x1) + 0.25 (x1 - x0)."""
    x, ball, seen = torch.full((1, 3, 1, 1), 0.5), Ball("Linf", 8.0), []

    def objective(images):
        seen.append(images.detach().clone())
        return Scored(images.flatten(1).sum(1) * (1.0 if len(seen) == 1 else -1.0))

    apgd(scored_by(objective), x, ball, steps=10, start=torch.zeros_like(x), todo=all_of(x))
    r = ball.radius
    first, second = ((s - x).flatten()[0].item() for s in seen[1:3])
    assert first == pytest.approx(r, rel=1e-4)
    assert second == pytest.approx(r + 0.75 * (-r - r) + 0.25 * r, rel=1e-3)


@pytest.mark.slow
def test_apgd_agrees_with_torchattacks(tiny_model, pictures):
    """The same published attack written by others breaks the same images, but for a few that hang on the random start."""
    pytest.importorskip("torchattacks")
    classifier = tiny_model.classifier(NAMES, TEMPLATES)
    x, _, ids = pictures(24)
    y, counts = classifier(x).argmax(1), []
    for eps in (4.0, 8.0, 16.0):
        ours, theirs = (
            classifier(attack(classifier, x, y, ids, Ball("Linf", eps), 0).images).argmax(1) == y
            for attack in (APGD(10), Library("APGD", (("steps", 10), ("n_restarts", 1))))
        )
        assert (ours != theirs).sum() <= 2
        counts.append(int(ours.sum()))
    assert counts[0] > counts[-1]
    assert {0, 24} != set(counts)
