"""FAP's "How to know it is right" (tapt.md, section 10, item 8), its loss by hand, and whom its training attack meets."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from parts import Given, config, learned, learner_of, pixels, roles_of, step
from toys import ids_of

from robustclip.attacks.base import Example
from robustclip.base.errors import UserError
from robustclip.defenses import FAP, Batch, CleanCE, Roles
from robustclip.defenses.fap import read
from robustclip.defenses.guided import divergence
from robustclip.models.dress import JointTokens, LinearHead

FAPS = JointTokens("visual to text", 2, 1)


@pytest.fixture
def batch(pictures):
    return Batch(*pictures(8))


def test_tapt_item_8_fap_without_a_perturbation_the_kl_is_0_and_the_rest_is_clean_training(tiny_model, batch):
    roles = roles_of(FAP(), tiny_model)
    same, other = (FAP().loss(roles, batch, Example(images)) for images in (batch.images, batch.images * 0.9))
    assert same["fap_kl"].item() == 0.0 < other["fap_kl"].item()
    for parts in (same, other):
        assert torch.equal(parts["fap_clean"], F.cross_entropy(roles.student(batch.images), batch.labels))


def test_tapt_item_8_fap_of_lambda_0_is_clean_cross_entropy(make_model, pictures):
    """Three steps of it are those of CleanCE, and those of lambda 1.5 are not."""
    x, y, ids = pictures(8)
    found = {}
    for defense in (FAP(0.0), CleanCE(), FAP()):
        learner = learner_of(make_model(), config(defense, FAPS, batch=8))
        losses = [step(learner, (pixels(x), y, ids))["loss"] for _ in range(3)]
        found[defense] = torch.tensor(losses), learned(learner)
    for mine, clean, full in zip(found[FAP(0.0)], found[CleanCE()], found[FAP()]):
        torch.testing.assert_close(mine, clean, atol=1e-6, rtol=1e-5)
        assert (mine - full).abs().max() > 1e-4


def test_the_divergence_is_weighed_by_the_features_likeness_by_hand():
    """Logits are the unit features: (1, 0) against (0, 1) has cosine 0, (1, 0) against (0.6, 0.8) cosine 0.6; one mean, times lam."""
    student, y = Given(torch.eye(2)), torch.tensor([0, 0])
    student.readout, student.scores = None, lambda unit: unit
    clean, moved = torch.tensor([[3.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 5.0], [0.6, 0.8]])
    parts = FAP(2.0).loss(Roles(student, student), Batch(clean, y, ids_of(2)), Example(moved))
    p, q = math.e / (1 + math.e), 1 / (1 + math.exp(0.2))
    opposed = p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p)
    near = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert parts["fap_kl"].item() == pytest.approx(2.0 * (opposed * 1.0 + near * 1.6) / 2, rel=1e-5)
    assert parts["fap_clean"].item() == pytest.approx(-math.log(p), rel=1e-5)


def test_features_and_logits_come_of_one_forward_and_are_the_classifiers(make_model, batch):
    for trainable in (FAPS, LinearHead()):
        learner, seen = learner_of(make_model(), config(FAP(), trainable)), []
        with torch.no_grad():
            for p in learner.parameters:
                p += 0.1
        learner.student.clip.visual.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
        unit, logits = read(learner.student, batch.images)
        assert len(seen) == 1
        assert torch.equal(logits, learner.student(batch.images))
        assert torch.equal(unit, learner.student.embed_images(batch.images))


@pytest.mark.parametrize("attacks", ["prompted", "plain"])
def test_the_attack_meets_the_model_it_is_asked_to_meet(attacks, tiny_model, batch):
    """Its loss is the divergence by that model, whose prediction on the clean image stays as it is."""
    roles = roles_of(FAP(), tiny_model)
    met, other = (roles.student, roles.teacher) if attacks == "prompted" else (roles.teacher, roles.student)
    leaf, moved = batch.images.clone().requires_grad_(True), batch.images * 0.9
    scored = FAP(attacks=attacks).objective(roles, replace(batch, images=leaf))(moved.requires_grad_(True))
    assert torch.equal(scored.loss, divergence(met(batch.images), met(moved)))
    assert not torch.allclose(scored.loss, divergence(other(batch.images), other(moved)))
    assert torch.autograd.grad(scored.loss.sum(), leaf, allow_unused=True)[0] is None


def test_training_meets_other_images_by_either_attack(make_model, pictures):
    x, y, ids = pictures(8)
    found = {}
    for attacks in ("prompted", "plain"):
        learner = learner_of(make_model(), config(FAP(attacks=attacks), FAPS, batch=8, lr=0.3))
        step(learner, (pixels(x), y, ids))
        found[attacks] = learner.attacked(Batch(x, y, ids)).images
    assert not torch.equal(found["prompted"], found["plain"])
    with pytest.raises(UserError, match=r"defense\.lam is -1"):
        FAP(-1.0)
