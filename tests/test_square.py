"""Square Attack: the published proposals, theory where theory knows, no gradient needed, an image's result its own."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import Linear, Wavy, ids_of, middle

from robustclip.attacks import PGD, Square
from robustclip.attacks import square as square_module
from robustclip.attacks.square import bump, next_delta, window, window_side
from robustclip.base.threat import Ball

NAMES, TEMPLATES = ["red", "green", "blue", "grey"], ["a photo of a {}."]
BALLS = [Ball("Linf", 8.0), Ball("L2", 60.0)]


class Counted(nn.Module):
    """A model that counts the images it is shown and passes no gradient on."""

    def __init__(self, model):
        super().__init__()
        self.model, self.shown = model, 0

    def forward(self, x):
        self.shown += len(x)
        return self.model(x.detach())


def fooled(classifier, example, y):
    return classifier(example.images).argmax(1) != y


def test_the_window_shrinks_as_published():
    """The table of the paper for 10,000 queries of images of 100 x 100: p is halved nine times; other budgets are rescaled."""
    starts = [0, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    sides = [89, 63, 45, 32, 22, 16, 11, 8, 6, 4]
    for first, after, side in zip(starts, [*starts[1:], 10_000], sides):
        assert {window_side(step, 10_000, 100, 100, "Linf") for step in (first, after - 1)} == {side}
    assert [window_side(step, 5_000, 100, 100, "Linf") for step in (5, 6, 4000, 4001)] == [89, 63, 6, 4]
    assert [window_side(step, 10_000, 100, 100, "L2") for step in (0, 51, 501, 9999)] == [89, 45, 23, 5]
    assert [window_side(9999, 10_000, 16, 16, norm) for norm in ("Linf", "L2")] == [1, 3]
    assert window_side(0, 100, 4, 40, "Linf") == 4  # never larger than the image


def test_the_bump_is_the_published_one():
    torchattacks = pytest.importorskip("torchattacks")
    theirs = torchattacks.Square(Linear())
    for side in (2, 3, 6, 9, 15):
        other = theirs.eta(side)
        assert torch.allclose(bump(side), other, atol=1e-6) or torch.allclose(bump(side).T, other, atol=1e-6)


def test_a_window_is_at_every_place_equally_often():
    """Corners from an even grid over [0,1): each of the 3 x 2 places of a window of 3 in 5 x 4 comes as often as any other."""
    images = torch.zeros(36, 2, 5, 4)
    corners = torch.tensor([[(i + 0.5) / 6, (j + 0.5) / 6] for i in range(6) for j in range(6)])
    images[window(images, corners, 3)] = 1
    assert images.sum((1, 2, 3)).tolist() == [18] * 36
    found = [(int(i[0].sum(1).argmax()), int(i[0].sum(0).argmax())) for i in images]
    assert all(found.count(place) == 6 for place in itertools.product(range(3), range(2)))
    ends = window(images[:1], torch.tensor([[1 - 2**-24, 1 - 2**-24]]), 3)
    assert (int(ends[2].max()), int(ends[3].max())) == (4, 3)


@pytest.mark.parametrize("used", [1.0, 0.5])
def test_an_l2_proposal_moves_norm_from_one_window_to_the_other(used):
    """Algorithm 3: zeros in the second window, the rest as it was, in the first what both held and the ball had left, per channel."""
    ball, g, side = Ball("L2", 100.0), torch.Generator().manual_seed(0), 3
    delta, uniform = torch.randn(50, 3, 9, 8, generator=g), torch.rand(50, 8, generator=g)
    delta *= used * ball.radius / delta.flatten(1).norm(dim=1)[:, None, None, None]
    proposed = next_delta(delta, ball, uniform, side)
    first, second = torch.zeros(2, 50, 3, 9, 8, dtype=torch.bool)
    first[window(delta, uniform[:, :2], side)] = True
    second[window(delta, uniform[:, 2:4], side)] = True
    assert not proposed[second & ~first].any()
    torch.testing.assert_close(proposed[~first & ~second], delta[~first & ~second])
    energy = (delta * (first | second)).square().sum((2, 3)) + ball.radius**2 * (1 - used**2) / 3
    torch.testing.assert_close((proposed * first).square().sum((2, 3)), energy)
    assert (proposed[first] * delta[first]).sum() > 0  # half of the new window's direction is the old one's


@pytest.mark.parametrize(("ball", "share"), [(BALLS[0], 0.9), (BALLS[1], 0.6)], ids=str)
def test_a_linear_model_is_broken_when_its_margin_is_in_reach(ball, share):
    """Images at known shares of the reach: below it they break (random search in L2 is the weaker one), beyond it nothing can."""
    classifier, x = Linear(scale=0.1), middle(8)
    w = (classifier.w[0] - classifier.w[1]).detach()
    reach = ball.radius * (w.abs().sum() if ball.norm == "Linf" else w.norm())
    shares = torch.tensor([0.1, 0.3, share - 0.2, share, 1.01, 1.1, 2.0, 0.2])
    x += ((shares * reach - x.flatten(1) @ w) / w.square().sum())[:, None, None, None] * w.view(1, 3, 4, 4)
    y = torch.zeros(8, dtype=torch.long)
    assert torch.equal(fooled(classifier, Square(500)(classifier, x, y, ids_of(8), ball, 0), y), shares < 1)


@settings(max_examples=12)
@given(st.sampled_from(BALLS), st.tuples(st.integers(3, 12), st.integers(3, 12)), st.integers(1, 40), st.integers(0, 1000))
def test_images_stay_in_the_ball_and_in_range_whatever_their_shape(ball, shape, queries, seed):
    """Pixels at 0, 1 and between; the model never errs, so every query is used."""
    x = (torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 0.5).clamp(0, 1)
    weights = torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed + 1))

    def logits(images):
        return torch.stack([100 + (images * weights).sum((1, 2, 3)), images.mean((1, 2, 3))], 1)

    model = nn.Module()
    model.forward = logits
    example = Square(queries)(model, x, torch.zeros(2, dtype=torch.long), ids_of(2), ball, seed)
    assert bool((ball.size(example.images - x) <= ball.radius + 1e-6).all())
    assert bool((ball.size(example.images - x) > 0).all())
    assert 0 <= example.images.min() <= example.images.max() <= 1
    assert example.trace.forwards.tolist() == [queries + 1] * 2


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_a_result_does_not_depend_on_who_else_is_attacked(ball):
    """In micro-batches of one size: fewer images, another order and other neighbours change no bit; another seed does."""
    classifier, x = Wavy().eval(), middle(12, 6)
    y, attack, ids = classifier(x).argmax(1), Square(30), ids_of(12)
    every = attack(classifier, x, y, ids, ball, 0, 4).images
    for some in ([7], [3, 1], [11, 5, 0, 2, 9]):
        part = attack(classifier, x[some], y[some], [ids[i] for i in some], ball, 0, 4).images
        assert torch.equal(part, every[some])
    assert not torch.equal(attack(classifier, x, y, ids, ball, 1, 4).images, every)


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_only_who_resists_is_asked_and_the_trace_says_what_was_found(ball):
    classifier, x = Counted(Wavy().eval()), middle(24, 6)
    y = classifier(x).argmax(1)
    y[:2] = (y[:2] + 1) % 5
    classifier.shown = 0
    example = Square(60)(classifier, x, y, ids_of(24), replace(ball, eps=ball.eps / 4), 0, 1)
    trace, broken = example.trace, fooled(classifier.model, example, y)
    assert classifier.shown == trace.forwards.sum()
    assert torch.equal(trace.first_success >= 0, broken)
    assert torch.equal(trace.forwards, torch.where(broken, trace.first_success, 60) + 1)
    assert torch.equal(example.images[:2], x[:2])
    assert trace.first_success[:2].tolist() == [0, 0]
    assert len(set(trace.first_success.tolist())) > 5
    assert -1 in trace.first_success
    assert torch.equal(trace.loss_best > 0, broken)
    assert bool(trace.zero_gradient.isnan().all())


def test_more_queries_and_restarts_break_more():
    classifier, x, ball = Wavy().eval(), middle(48, 6), Ball("Linf", 1.5)
    y, ids = classifier(x).argmax(1), ids_of(48)
    counts = [int(fooled(classifier, Square(n)(classifier, x, y, ids, ball, 0), y).sum()) for n in (2, 20, 400)]
    assert 0 < counts[0] < counts[1] < counts[2] < 48
    one, three = (fooled(classifier, Square(20, restarts=n)(classifier, x, y, ids, ball, 0), y) for n in (1, 3))
    assert not (one & ~three).any()
    assert three.sum() > one.sum()


def test_square_breaks_a_model_that_hides_its_gradient():
    """Where PGD is blind, because the model detaches its input, Square is not."""
    open_, x, ball = Wavy().eval(), middle(16, 6), Ball("Linf", 8.0)
    y = open_(x).argmax(1)

    class Masked(nn.Module):
        def forward(self, x):
            return open_(x.detach()) + 0 * x.sum()

    blind = PGD(5, random_start=False)(Masked(), x, y, ids_of(16), ball, 0)
    assert not fooled(open_, blind, y).any()
    assert fooled(open_, Square(200)(Masked(), x, y, ids_of(16), ball, 0), y).all()


def test_eps_0_returns_the_images_bit_for_bit():
    classifier, x = Linear(3), middle(3)
    y = classifier(x).argmax(1)
    assert torch.equal(Square(10)(classifier, x, y, ids_of(3), Ball("L2", 0.0), 0).images, x)


@pytest.mark.parametrize(("norm", "sizes"), [("Linf", (16.0, 32.0, 64.0)), ("L2", (320.0, 640.0, 960.0))])
@pytest.mark.slow
def test_square_agrees_with_torchattacks(tiny_model, pictures, norm, sizes):
    """The same published attack written by others, with windows that are one for the whole batch, breaks about as many images."""
    torchattacks = pytest.importorskip("torchattacks")
    classifier = tiny_model.classifier(NAMES, TEMPLATES)
    x, _, ids = pictures(48)
    y, counts = classifier(x).argmax(1), []
    for eps in sizes:
        ball = Ball(norm, eps)
        with torch.random.fork_rng():
            theirs = torchattacks.Square(classifier, norm=norm, eps=ball.radius, n_queries=100, loss="margin")(x, y)
        counts.append(int(fooled(classifier, Square(100)(classifier, x, y, ids, ball, 0), y).sum()))
        assert abs(counts[-1] - int((classifier(theirs).argmax(1) != y).sum())) <= 5
    assert counts[0] + 10 < counts[-1]


def test_autoattack_breaks_off_the_schedule_of_ten_thousand_queries(tiny_model, pictures, monkeypatch):
    asked = []
    monkeypatch.setattr(square_module, "window_side", lambda step, schedule, *rest: asked.append(schedule) or 3)
    x, y, ids = pictures(4)
    for attack, schedule in ((Square(20), 20), (Square(20, rescale=False), 10_000)):
        attack(tiny_model.classifier(NAMES, TEMPLATES), x, y, ids, Ball("Linf", 0.1), 0)
        assert set(asked) == {schedule}
        asked.clear()
