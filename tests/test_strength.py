"""A training attack in less than fp32 is held against itself in fp32, and one that is weaker or stronger is told from one that is not."""

from dataclasses import replace

import pytest
from parts import ATTACK, config, learner_of

from robustclip.attacks.base import Example
from robustclip.defenses import CleanCE, TeCoA
from robustclip.training import strength
from robustclip.training.config import InnerAttack
from robustclip.training.strength import CHANCE, OURS, REFERENCE, said

BF16 = replace(ATTACK, precision="bf16")


@pytest.fixture
def learner(tiny_model):
    return learner_of(tiny_model, config(TeCoA(), attack=BF16, batch=8))


def sure(learner, pictures, n=24):
    """Return images that the student has right, so that an attack has something to break."""
    x, _, ids = pictures(n)
    return x, learner.student(x).argmax(1), ids


def test_it_is_the_training_attack_that_is_compared(learner, pictures):
    found = learner.strength(*sure(learner, pictures))
    assert set(found) == {OURS, REFERENCE, CHANCE}
    assert found[OURS] < 1, "the attack breaks nothing"
    assert abs(found[OURS] - found[REFERENCE]) < 0.2
    assert found[CHANCE] >= strength.DOUBT


def test_of_fp32_and_of_clean_training_there_is_nothing_to_compare(tiny_model, pictures):
    assert learner_of(tiny_model.copy(), config(TeCoA(), batch=8)).strength(*pictures(8)) == {}
    assert learner_of(tiny_model.copy(), config(CleanCE(), attack=BF16, batch=8)).strength(*pictures(8)) == {}


@pytest.mark.parametrize(("kind", "eps", "other"), [("weaker", 16.0, 0.0), ("stronger", 0.0, 16.0)])
def test_planted_an_attack_that_has_another_eps_in_bf16(tiny_model, pictures, monkeypatch, kind, eps, other):
    learner, wrong = (learner_of(tiny_model.copy(), config(TeCoA(), attack=BF16, batch=8, eps=each)) for each in (eps, other))
    monkeypatch.setattr(learner, "attacked", lambda batch: Example(wrong.attacked(batch).images.clone()))
    found = learner.strength(*sure(learner, pictures))
    assert found[CHANCE] < strength.DOUBT
    text = said(BF16, found)
    assert text.startswith("WARNING: ")
    assert f"it is {kind}" in text


def test_what_is_said():
    alike = {OURS: 0.5, REFERENCE: 0.49, CHANCE: 0.7}
    text = said(InnerAttack(precision="bf16"), alike)
    assert text.startswith("50.0% of the held-out images are right under the training attack in bf16, 49.0% in fp32: as strong")
    assert "in fp32, compiled, 49.0% in fp32" in said(InnerAttack(compile="default"), alike)
    assert said(InnerAttack(), {}) == ""
