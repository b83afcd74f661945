"""The fused optimiser takes the steps of the other but for rounding, and goes on from a checkpoint bit for bit."""

import io

import pytest
import torch
from parts import TOWER, config, learned, learner_of, pixels, step

from robustclip.defenses import TeCoA

NAMES = ["adamw", "adam", "sgd"]


@pytest.fixture
def batch(pictures):
    x, y, ids = pictures(8)
    return pixels(x), y, ids


def stepping(make_model, name, fused):
    return learner_of(make_model(), config(TeCoA(), TOWER, batch=8, name=name, lr=1e-3, eps=1e-4, fused=fused))


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_the_same_step_but_for_rounding(make_model, batch, name):
    plain, one = (stepping(make_model, name, fused) for fused in (False, True))
    assert {group["fused"] for group in one.optimiser.optimizer.param_groups} == {True}
    assert {group["fused"] for group in plain.optimiser.optimizer.param_groups} == {None}
    start = learned(plain)
    for learner in (plain, one):
        step(learner, batch)
    moved = (learned(plain) - start).abs().max()
    assert moved > 0
    assert (learned(plain) - learned(one)).abs().max() < 1e-3 * moved


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_bit_for_bit(make_model, batch, name):
    whole, first, second = (stepping(make_model, name, True) for _ in range(3))
    for _ in range(3):
        step(whole, batch)
    step(first, batch)
    file = io.BytesIO()
    torch.save(first.state(), file)
    file.seek(0)
    second.restore(torch.load(file, weights_only=True))
    for _ in range(2):
        step(second, batch)
    assert torch.equal(learned(second), learned(whole))
