"""Targeted FAB: the projection, minimal distances where theory knows them, an image's result its own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Linear, Wavy, ids_of, middle

from robustclip.attacks import FABT
from robustclip.attacks.fab import to_hyperplane
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball

NAMES, TEMPLATES = ["red", "green", "blue", "grey"], ["a photo of a {}."]
BALLS = [Ball("Linf", 8.0), Ball("L2", 60.0)]


def fooled(classifier, example, y):
    return classifier(example.images).argmax(1) != y


def gain_within(x, direction, eps, norm):
    """Return max direction . d over d [D] in the ball of radius eps with x + d in [0,1], by bisection on the multiplier in L2."""
    room = torch.where(direction > 0, 1 - x, x)
    if norm == "Linf":
        return (direction.abs() * room.clamp(max=eps)).sum()
    low, high = 0.0, 1e4
    for _ in range(50):
        middle = (low + high) / 2
        d = torch.minimum(direction.abs() * middle, room)
        low, high = (middle, high) if d.norm() < eps else (low, middle)
    return (direction.abs() * d).sum()


def minimal_distance(x, classifier, y, norm):
    """Return the distance from image x [3,H,W] of class y to the nearest wrong class of a linear model inside the box, by bisection."""
    w, x = classifier.w.detach().double(), x.flatten().double()
    found = []
    for other in set(range(len(w))) - {y}:
        lead, low, high = (w[y] - w[other]) @ x, 0.0, 10.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if gain_within(x, w[other] - w[y], middle, norm) > lead else (middle, high)
        found.append(high)
    return min(found)


@settings(max_examples=60)
@given(st.sampled_from(BALLS), st.integers(1, 40), st.floats(-1.5, 1.5).filter(lambda x: abs(abs(x) - 1) > 1e-3), st.integers(0, 1000))
def test_the_projection_is_the_published_one(ball, size, share, seed):
    """On planes in reach of the box (|share| < 1) and out of it, not at its very corner, with points on the box and zeros in the normal."""
    g = torch.Generator().manual_seed(seed)
    points = (torch.rand(3, size, generator=g) * 1.4 - 0.2).clamp(0, 1)
    normal = torch.randn(3, size, generator=g) * (torch.rand(3, size, generator=g) < 0.8)
    room = torch.where(normal * share > 0, 1 - points, points)
    gap = share * (normal.abs() * room).sum(1, keepdim=True)
    d = to_hyperplane(points, normal, gap, ball)
    assert bool((points + d - 0.5).abs().max() <= 0.5 + 1e-6)
    reached = (normal * d).sum(1, keepdim=True)
    torch.testing.assert_close(
        reached, gap.sign() * torch.minimum(gap.abs(), (normal.abs() * room).sum(1, keepdim=True)), atol=1e-4, rtol=1e-4
    )
    published = pytest.importorskip("torchattacks.attacks.fab")
    projection = published.projection_linf if ball.norm == "Linf" else published.projection_l2
    theirs = projection(points, normal, (normal * points).sum(1) + gap[:, 0])
    torch.testing.assert_close(ball.size(d), ball.size(theirs), atol=2e-4, rtol=1e-3)


def test_without_a_gradient_there_is_no_step():
    points = middle(2).flatten(1)
    for ball in BALLS:
        assert not to_hyperplane(points, torch.zeros_like(points), torch.tensor([[1.0], [0.0]]), ball).any()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("clipped", [False, True], ids=["inside", "at the box"])
def test_the_minimal_distance_of_a_linear_model_is_found(norm, clipped):
    """Each image under a ball 2 % larger than its distance, which breaks it, and 1 % smaller, which nothing can."""
    classifier, x = Linear(5, scale=0.1), middle(3)
    x = ((x - 0.5) * 4 + 0.5).clamp(0, 1) if clipped else x
    for i in range(3):
        image, y = x[i : i + 1], classifier(x[i : i + 1]).argmax(1)
        distance = minimal_distance(x[i], classifier, int(y), norm)
        broken = [
            bool(fooled(classifier, FABT(20, 4)(classifier, image, y, ["it"], Ball(norm, 255 * distance * share), 0), y))
            for share in (1.02, 0.99)
        ]
        assert broken == [True, False]


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_an_image_out_of_reach_comes_back_as_the_best_attempt(ball):
    """On a linear model at half the distance, the attempt is at the surface and has lost half of the margin."""
    classifier, x = Linear(2), middle(4)
    y = classifier(x).argmax(1)
    for i in range(4):
        distance = minimal_distance(x[i], classifier, int(y[i]), ball.norm)
        trace = FABT(10, 1)(classifier, x[i : i + 1], y[i : i + 1], ["it"], Ball(ball.norm, 255 * distance / 2), 0).trace
        torch.testing.assert_close(trace.loss_best, trace.loss_start / 2, rtol=0.02, atol=1e-4)
        assert trace.first_success.tolist() == [-1]


def test_all_the_targets_are_tried():
    """Class 1 has the second highest logit everywhere but is far away in input; class 2 is lower and near."""
    classifier, x = Linear(3), torch.full((1, 3, 4, 4), 0.5)
    w = torch.zeros(3, 48)
    w[0], w[1], w[2] = 0.2, 0.19, 0.1
    w[2, ::2] += 1.0
    w[2, 1::2] -= 1.0
    classifier.w.data, y = w, torch.tensor([0])
    assert classifier(x).argsort(descending=True).tolist() == [[0, 1, 2]]
    one, two = (FABT(10, n)(classifier, x, y, ["it"], Ball("Linf", 20.0), 0) for n in (1, 2))
    assert not fooled(classifier, one, y)
    assert fooled(classifier, two, y)


def test_more_targets_than_wrong_classes_are_refused():
    classifier, x = Linear(4), middle(2)
    with pytest.raises(UserError, match="aims at 4 wrong classes, this model has 4 in all"):
        FABT(5, 4)(classifier, x, torch.tensor([0, 1]), ids_of(2), BALLS[0], 0)


@settings(max_examples=10)
@given(st.sampled_from(["Linf", "L2"]), st.floats(0, 80), st.integers(0, 1000))
def test_images_stay_in_the_ball_and_in_range_and_the_trace_is_true(norm, eps, seed):
    classifier, ball = Wavy(seed=seed).eval(), Ball(norm, eps)
    x = (torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 0.5).clamp(0, 1)
    y = classifier(x).argmax(1)
    y[0] = (y[0] + 1) % 5
    example = FABT(5, 2, restarts=2)(classifier, x, y, ids_of(6), ball, seed)
    assert bool((ball.size(example.images - x) <= ball.radius + 1e-6).all())
    assert 0 <= example.images.min() <= example.images.max() <= 1
    assert torch.equal(fooled(classifier, example, y), example.trace.first_success >= 0)
    assert torch.equal(example.images[0], x[0])
    assert bool((example.trace.loss_best >= example.trace.loss_start).all())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_larger_ball_breaks_more_and_nothing_less(norm):
    classifier, x = Wavy().eval(), middle(32, 6)
    y, before = classifier(x).argmax(1), torch.zeros(32, dtype=torch.bool)
    for eps in (0.5, 1.0, 2.0, 8.0):
        now = fooled(classifier, FABT(10, 3)(classifier, x, y, ids_of(32), Ball(norm, eps * (1 if norm == "Linf" else 8)), 0), y)
        assert not (before & ~now).any()
        assert now.sum() > before.sum()
        before = now
    assert now.all()


def test_restarts_break_more_and_only_they_are_random():
    classifier, x, ball = Wavy().eval(), middle(48, 6), Ball("Linf", 4.0)
    y, ids = classifier(x).argmax(1), ids_of(48)
    one, other = (FABT(2, 1)(classifier, x, y, ids, ball, seed).images for seed in (0, 1))
    assert torch.equal(one, other)
    three, again, other = (FABT(2, 1, restarts=3)(classifier, x, y, ids, ball, seed) for seed in (0, 0, 1))
    assert torch.equal(three.images, again.images)
    assert not torch.equal(three.images, other.images)
    broken = classifier(one).argmax(1) != y
    assert not (broken & ~fooled(classifier, three, y)).any()
    assert fooled(classifier, three, y).sum() > broken.sum()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_result_does_not_depend_on_who_else_is_attacked(norm):
    """In micro-batches of one size: fewer images, another order and other neighbours change no bit."""
    classifier, x, ball, attack = Wavy().eval(), middle(12, 6), Ball(norm, 2.0), FABT(8, 2, restarts=2)
    y, ids = classifier(x).argmax(1), ids_of(12)
    every = attack(classifier, x, y, ids, ball, 0, 4).images
    for some in ([7], [3, 1], [11, 5, 0, 2, 9]):
        part = attack(classifier, x[some], y[some], [ids[i] for i in some], ball, 0, 4).images
        assert torch.equal(part, every[some])


@pytest.mark.parametrize(("norm", "sizes"), [("Linf", (4.0, 8.0, 16.0)), ("L2", (80.0, 160.0, 320.0))])
@pytest.mark.slow
def test_fab_agrees_with_torchattacks(tiny_model, pictures, norm, sizes):
    """The same published attack written by others breaks the same images; ours adds a last attempt, theirs goes on after a success."""
    torchattacks = pytest.importorskip("torchattacks")
    classifier = tiny_model.classifier(NAMES, TEMPLATES)
    x, _, ids = pictures(24)
    y, counts = classifier(x).argmax(1), []
    for eps in sizes:
        ball = Ball(norm, eps)
        with torch.random.fork_rng():
            theirs = torchattacks.FAB(classifier, norm=norm, eps=ball.radius, steps=10, multi_targeted=True, n_classes=4)(x, y)
        ours = fooled(classifier, FABT(10, 3)(classifier, x, y, ids, ball, 0), y)
        assert (ours != (classifier(theirs).argmax(1) != y)).sum() <= 1
        counts.append(int(ours.sum()))
    assert counts[0] < counts[-1]
    assert {0, 24} != set(counts)
