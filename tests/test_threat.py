"""Threat models: one conversion of eps, exact projection, steepest directions, and refusals that name the field."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustclip.base.errors import UserError
from robustclip.base.threat import Ball, TextBudget, ThreatModel

EPS = st.floats(0, 64, allow_nan=False)
NORMS = st.sampled_from(["Linf", "L2"])


def deltas(seed, n=4):
    return (
        torch.randn(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * torch.tensor([0, 0.001, 0.1, 10.0])[:n, None, None, None]
    )


@given(EPS)
def test_eps_is_in_units_of_1_over_255(eps):
    assert Ball("Linf", eps).radius == eps / 255 or math.isclose(Ball("Linf", eps).radius, eps / 255, rel_tol=1e-15)
    assert Ball(eps=1.0).radius == 1 / 255


@given(NORMS, EPS, st.integers(0, 99))
def test_projection_is_inside_idempotent_and_leaves_the_inside_alone(norm, eps, seed):
    ball, delta = Ball(norm, eps), deltas(seed)
    projected = ball.project(delta)
    assert bool((ball.size(projected) <= ball.radius * (1 + 1e-6)).all())
    torch.testing.assert_close(ball.project(projected), projected)
    inside = ball.size(delta) < ball.radius
    torch.testing.assert_close(projected[inside], delta[inside])


def test_projection_by_hand():
    delta = torch.tensor([[[[3.0, -4.0]]]]) / 255
    torch.testing.assert_close(Ball("Linf", 2.0).project(delta) * 255, torch.tensor([[[[2.0, -2.0]]]]))
    torch.testing.assert_close(Ball("L2", 2.5).project(delta) * 255, torch.tensor([[[[1.5, -2.0]]]]))
    assert Ball("Linf").size(delta).item() * 255 == pytest.approx(4)
    assert Ball("L2").size(delta).item() * 255 == pytest.approx(5)


@given(NORMS, st.integers(0, 99))
def test_ascent_gains_more_than_any_other_direction_of_norm_1(norm, seed):
    ball, g = Ball(norm, 255.0), deltas(seed)[2:]
    step = ball.ascent(g)
    torch.testing.assert_close(ball.size(step), torch.ones(2))
    other = deltas(seed + 1)[2:]
    other = other / ball.size(other)[:, None, None, None]
    assert bool(((g * step).sum((1, 2, 3)) >= (g * other).sum((1, 2, 3)) - 1e-5).all())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_zero_gradient_moves_nothing(norm):
    assert not Ball(norm).ascent(torch.zeros(2, 3, 4, 4)).any()


@pytest.mark.parametrize("eps", [-1.0, math.nan, math.inf])
def test_an_eps_that_is_no_radius_is_refused(eps):
    with pytest.raises(UserError, match=r"threat\.image\.eps"):
        Ball(eps=eps)


def test_what_else_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="Linf or L2"):
        Ball(norm="L1")
    for budget in ({}, {"words": 1, "edits": 1}, {"words": -1}):
        with pytest.raises(UserError, match=r"threat\.text"):
            TextBudget(**budget)


def test_threats_print_as_papers_write_them():
    assert str(Ball("Linf", 4.0)) == "Linf 4/255"
    assert (str(TextBudget(words=2)), str(TextBudget(edits=1))) == ("2 words", "1 edits")
    assert ThreatModel(image=None).image is None


@pytest.mark.parametrize(
    ("norm", "eps", "said"),
    [
        ("Linf", 0.0, None),
        ("Linf", 0.1, None),
        ("Linf", 0.25, None),
        ("Linf", 64.0, None),
        ("Linf", 0.0157, r"eps is 0\.0157, that is 6\.2e-05 of images in \[0,1\] in Linf: eps is in 1/255; .* give 4\.0035"),
        ("Linf", 255.0, "right answers are not defined there"),
        ("L2", 0.0, None),
        ("L2", 36.0, None),
        ("L2", 765.0, None),
        ("L2", 0.5, r"give 127\.5"),
        ("L2", 3.0, "give 765"),
        ("L2", 4000.0, "right answers are not defined there"),
    ],
)
def test_an_eps_that_is_hardly_meant_is_doubted(norm, eps, said):
    found = Ball(norm, eps).doubt
    assert (found is None) == (said is None)
    assert said is None or re.search(said, found)
