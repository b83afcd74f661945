"""Attacks are as strong as theory where theory knows; best iterates, early stops, restarts."""

import pytest
import torch
import torch.nn.functional as F
from toys import Linear, Wavy, all_of, ids_of, middle, only_loss, scored_by

from robustclip.attacks import APGD, PGD
from robustclip.attacks.apgd import apgd
from robustclip.attacks.losses import cross_entropy
from robustclip.attacks.pgd import pgd, pgd_best, random_start
from robustclip.base.threat import Ball


def on_linear(name, classifier, x, y, ball):
    objective = only_loss(cross_entropy(classifier, y))
    start = random_start(ball, x, ids_of(len(x)), 0)
    if name == "pgd":
        return pgd(objective, x, ball, steps=40, alpha=0.5, start=start)
    if name == "pgd_best":
        return pgd_best(scored_by(objective), x, ball, steps=40, alpha=0.5, start=start, todo=all_of(x))[0]
    return apgd(scored_by(objective), x, ball, steps=40, start=start, todo=all_of(x))[0]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", ["pgd", "pgd_best", "apgd"])
def test_a_linear_model_is_attacked_to_the_closed_form(norm, name):
    classifier, x, y, ball = Linear(scale=0.1), middle(6), torch.tensor([0, 1] * 3), Ball(norm, 8.0)
    w, side = classifier.w[0].detach(), 1 - 2 * y.float()  # class 0 is left by going against w
    direction = w.sign() if norm == "Linf" else w / w.norm()
    best = -side[:, None] * ball.radius * direction
    delta = (on_linear(name, classifier, x, y, ball) - x).flatten(1)
    # In L2 the last percent of a direction gains less loss than fp32 can tell.
    torch.testing.assert_close(delta, best, atol=1e-6 if norm == "Linf" else ball.radius / 500, rtol=0)
    reach = ball.radius * (w.abs().sum() if norm == "Linf" else w.norm())
    expected = F.softplus(-2 * (side * (x.flatten(1) @ w) - reach))
    torch.testing.assert_close(F.cross_entropy(classifier(x + delta.view_as(x)), y, reduction="none"), expected, atol=1e-5, rtol=1e-4)


def test_apgd_is_on_average_no_worse_than_pgd_with_as_many_steps():
    classifier, ball, gains = Wavy().eval(), Ball("Linf", 16.0), []
    for seed in range(4):
        x, y = middle(32, 6, seed), torch.arange(32) % 5
        score, shared = scored_by(only_loss(cross_entropy(classifier, y))), {"steps": 20, "todo": all_of(x)}
        start = random_start(ball, x, ids_of(32), seed)
        ours, theirs = apgd(score, x, ball, start=start, **shared), pgd_best(score, x, ball, alpha=0.25, start=start, **shared)
        gains.append((ours[1].loss_best - theirs[1].loss_best).mean())
    assert sum(gains) > 0


def test_the_best_iterate_is_returned_and_never_worse_than_the_last_or_the_start():
    classifier, x, y, ball = Wavy().eval(), middle(16, 6), torch.arange(16) % 5, Ball("Linf", 16.0)
    objective = only_loss(cross_entropy(classifier, y))
    for run, alpha in ((apgd, {}), (pgd_best, {"alpha": 1.0})):
        start = random_start(ball, x, ids_of(16), 0)
        images, trace = run(scored_by(objective), x, ball, steps=10, start=start, todo=all_of(x), **alpha)
        torch.testing.assert_close(objective(images).loss.detach(), trace.loss_best)
        assert bool((trace.loss_best >= torch.maximum(trace.loss_end, trace.loss_start)).all())
        assert bool((trace.loss_best > trace.loss_end).any())
        assert trace.forwards.max() == 11
        assert trace.forwards.tolist() == [11] * 16 or run is pgd_best  # which leaves alone what repeats itself


@pytest.mark.parametrize("kind", [PGD, APGD])
def test_an_image_is_left_alone_from_its_first_success_on(kind):
    """The trace says at which step it came and how many passes that took, and the image returned fools the model."""
    classifier, x, ball = Wavy().eval(), middle(24, 6), Ball("Linf", 24.0)
    y = classifier(x).argmax(1)
    example = kind(10)(classifier, x, y, ids_of(24), ball, 0)
    fooled = classifier(example.images).argmax(1) != y
    assert torch.equal(fooled, example.trace.first_success >= 0)
    assert len(set(example.trace.first_success.tolist())) > 2
    assert torch.equal(example.trace.forwards, torch.where(fooled, example.trace.first_success, 10) + 1)
    already = kind(10)(classifier, x, (y + 1) % 5, ids_of(24), Ball("Linf", 0.01), 0)
    assert already.trace.first_success.tolist() == [0] * 24
    assert already.trace.forwards.tolist() == [1] * 24


def test_restarts_only_help_and_are_skipped_when_nothing_is_left():
    classifier, x, ball = Wavy().eval(), middle(24, 6), Ball("Linf", 6.0)
    y = classifier(x).argmax(1)
    for kind in (PGD, APGD):
        one, three = (kind(3, restarts=n)(classifier, x, y, ids_of(24), ball, 0) for n in (1, 3))
        resisted = one.trace.first_success < 0
        assert torch.equal(three.trace.forwards > one.trace.forwards, resisted)  # a restart costs only those it is for
        assert not ((one.trace.first_success >= 0) & (three.trace.first_success < 0)).any()
        assert (three.trace.first_success >= 0).sum() > (one.trace.first_success >= 0).sum()
        everything = kind(3, restarts=3)(classifier, x, (y + 1) % 5, ids_of(24), Ball("Linf", 0.01), 0)
        assert bool((everything.trace.first_success >= 0).all())
        assert everything.trace.forwards.tolist() == [1] * 24
