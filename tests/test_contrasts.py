"""Contrasts: points by hand, intervals that agree with the paired difference, refusals."""

import re

import numpy as np
import pytest
from tables import cell

from robustclip.base.errors import UserError
from robustclip.records.contrasts import contrast
from robustclip.records.metrics import paired_difference
from robustclip.records.survival import Survival


def run(*flags, ids=None):
    """Return the outcomes of one set whose images are right, or not, at eps 2."""
    flags = np.array(flags, dtype=bool)
    ids = np.array([f"{i:03d}" for i in range(len(flags))] if ids is None else ids)
    return {"set": Survival(("pgd",), (2.0,), ids, np.ones(len(flags), dtype=bool), flags[:, None, None])}


def test_an_interaction_by_hand():
    """(0.75 - 0.25) - (0.5 - 1.0) = 1, and the mean of two seeds counts as one method."""
    a, b, c, d = run(1, 1, 1, 0), run(1, 0, 0, 0), run(1, 1, 0, 0), run(1, 1, 1, 1)
    found = contrast({"a": (1, [a]), "b": (-1, [b]), "c": (-1, [c]), "d": (1, [d])}, 2.0)
    assert found.mean == pytest.approx(1.0)
    assert found.n == 4
    seeds = contrast({"a": (1.0, [run(1, 1, 0, 0), run(1, 0, 0, 0)])}, 2.0)
    assert seeds.mean == pytest.approx(0.375)


def test_one_pair_agrees_with_the_paired_difference():
    g = np.random.default_rng(0)
    a, b = run(*(g.random(400) < 0.6)), run(*(g.random(400) < 0.5))
    found, known = contrast({"a": (1, [a]), "b": (-1, [b])}, 2.0), paired_difference(a, b, 2.0)
    assert found.mean == pytest.approx(known.point)
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=0.01)


def test_the_same_draw_for_all_methods():
    """Two methods right on the same images differ by nothing, whatever is drawn; drawn apart, the interval would have a width."""
    flags = np.random.default_rng(1).random(50) < 0.5
    found = contrast({"a": (1, [run(*flags)]), "b": (-1, [run(*flags)])}, 2.0)
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_other_images_are_refused():
    with pytest.raises(UserError, match="differ in"):
        contrast({"a": (1, [run(1, 0)]), "b": (-1, [run(1, 0, ids=["000", "x"])])}, 2.0)


def test_a_cell_of_seeds_has_the_interval_of_their_mean_whichever_comes_first():
    worse, better = run(*[0] * 90, *[1] * 10), run(*[0] * 50, *[1] * 50)
    both = cell([worse, better], 2.0, {"set": 2}), cell([better, worse], 2.0, {"set": 2})
    assert both[0] == both[1]
    mean, low, high, *seeds = map(float, re.findall(r"\d+\.\d", both[0]))
    assert low < mean == 30 < high
    assert seeds == [10, 50]
    assert cell([worse], 2.0, {"set": 2}) == "10.0 [5.5, 17.4]"
