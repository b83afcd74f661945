"""Defences: TeCoA's loss by its definition and by hand, and the contract every defence keeps."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustclip.attacks.base import Example
from robustclip.attacks.pgd import PGD
from robustclip.config import Config, InnerAttack, Optim
from robustclip.defenses import DEFENSES, Batch, TeCoA
from robustclip.learner import Learner
from robustclip.threat import Ball, ThreatModel

NAMES, TEMPLATES = ["red", "green", "blue", "grey"], ["a photo of a {}."]


class Given(nn.Module):
    """A classifier whose unit image features are the images themselves: logits s z T^t."""

    def __init__(self, texts, scale=100.0):
        super().__init__()
        self.texts, self.scale = texts, scale

    def forward(self, z):
        return self.scale * z @ self.texts.T


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def tecoa(z, texts, y, scale=100.0):
    batch = Batch(z, y, [str(i) for i in range(len(y))])
    return TeCoA().loss(Given(texts, scale), Given(texts, scale), batch, Example(z))["tecoa"]


@pytest.mark.parametrize("seed", range(5))
def test_item_1_the_loss_is_the_cross_entropy_over_text_features(seed):
    z, texts, y = unit(6, 8, seed=seed), unit(9, 8, seed=seed + 50), torch.randint(9, (6,), generator=torch.Generator().manual_seed(seed))
    logits = 100 * z @ texts.T
    by_definition = torch.stack([torch.logsumexp(row, 0) - row[label] for row, label in zip(logits, y)]).mean()
    torch.testing.assert_close(tecoa(z, texts, y), by_definition)


def test_item_1_permuting_images_or_classes_changes_nothing():
    z, texts, y = unit(6, 8, seed=0), unit(9, 8, seed=1), torch.tensor([0, 3, 3, 8, 1, 5])
    images, classes = torch.tensor([4, 1, 5, 0, 3, 2]), torch.tensor([8, 2, 5, 0, 1, 7, 3, 6, 4])
    place = torch.argsort(classes)
    torch.testing.assert_close(tecoa(z[images], texts, y[images]), tecoa(z, texts, y))
    torch.testing.assert_close(tecoa(z, texts[classes], place[y]), tecoa(z, texts, y))


def test_item_1_with_one_image_per_class_it_is_the_image_half_of_infonce():
    z, texts = unit(7, 8, seed=2), unit(7, 8, seed=3)
    similarity = (100 * z @ texts.T).exp().double()
    infonce = -(similarity.diagonal() / similarity.sum(1)).log().mean()
    torch.testing.assert_close(tecoa(z, texts, torch.arange(7)).double(), infonce, rtol=1e-4, atol=1e-5)
    two_images_of_a_class = tecoa(torch.cat([z, z]), texts, torch.arange(7).repeat(2))
    torch.testing.assert_close(two_images_of_a_class, tecoa(z, texts, torch.arange(7)))  # in-batch InfoNCE would have false negatives


def test_item_1_two_images_of_two_classes_by_hand():
    """Scale 1; logits (1, 0) and (0.6, 0.8) with labels 0 and 0: (ln(1 + e^-1) + ln(1 + e^0.2)) / 2."""
    z, texts = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.eye(2)
    assert tecoa(z, texts, torch.tensor([0, 0]), scale=1.0).item() == pytest.approx((0.3132617 + 0.7981389) / 2, abs=1e-6)


def test_the_loss_is_that_of_the_adversarial_images_alone(tiny_classifier, pictures):
    x, y, ids = pictures(6)
    other = (x + 0.1).clamp(0, 1)
    parts = TeCoA().loss(tiny_classifier, tiny_classifier, Batch(x, y, ids), Example(other))
    assert list(parts) == ["tecoa"]
    torch.testing.assert_close(parts["tecoa"], F.cross_entropy(tiny_classifier(other), y))


def test_item_2_attack_and_step_leave_text_tower_and_scale_alone(tiny_model, pictures):
    """After an attack alone every .grad is None; after a step every text parameter and logit_scale is as before and without grad."""
    x, y, ids = pictures(8)
    frozen = {name: p.detach().clone() for name, p in tiny_model.clip.named_parameters() if not name.startswith("visual.")}
    learner = Learner(config(TeCoA(), batch=8), tiny_model, NAMES, TEMPLATES, 1)
    learner.attacked(Batch(x, y, ids))
    PGD(2)(learner.student, x, y, ids, Ball(), 0)
    assert all(p.grad is None for p in learner.student.parameters())
    embeddings = learner.student.class_embeddings.clone()
    learner.accumulate(pixels(x), y, ids)
    for name, p in learner.model.clip.named_parameters():
        assert (p.grad is None) == (name in frozen), name
    learner.update()
    assert "logit_scale" in frozen
    assert "token_embedding.weight" in frozen
    now = dict(learner.model.clip.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    assert torch.equal(learner.student.class_embeddings, embeddings)


def config(defense, batch=32, **changes):
    optim = Optim(lr=1e-3, batch=batch, micro_batch=batch, weight_decay=0.0)
    return Config(defense=defense, threat=ThreatModel(Ball("Linf", 4.0)), attack=InnerAttack(2, 0.75), optim=optim, **changes)


def pixels(x):
    return (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


# --- every defence --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=DEFENSES, ids=lambda kind: kind.__name__)
def defense(request):
    return request.param()


def test_the_objective_scores_each_image_alone(defense, tiny_model, pictures):
    x, y, ids = pictures(6)
    student, teacher = (m.classifier(NAMES, TEMPLATES) for m in (tiny_model, tiny_model.copy()))
    scored = defense.objective(student, teacher, Batch(x, y, ids))(x)
    assert scored.loss.shape == (6,)
    assert scored.loss.dtype == torch.float32
    assert torch.isfinite(scored.loss).all()
    assert scored.fooled is None or scored.fooled.dtype == torch.bool
    part = defense.objective(student, teacher, Batch(x[2:4], y[2:4], ids[2:4]))(x[2:4])
    torch.testing.assert_close(part.loss, scored.loss[2:4])


def test_the_training_attack_raises_the_objective_inside_the_ball(defense, tiny_model, pictures):
    x, y, ids = pictures(16)
    learner = Learner(config(defense), tiny_model, NAMES, TEMPLATES, 1)
    batch, ball = Batch(x, y, ids), Ball("Linf", 4.0)
    adversarial = learner.attacked(batch).images
    assert bool((ball.size(adversarial - x) <= ball.radius + 1e-6).all())
    assert not adversarial.requires_grad
    objective = defense.objective(learner.student, learner.teacher, batch)
    assert objective(adversarial).loss.mean() > objective(x).loss.mean()


def test_parts_are_finite_means_over_the_batch(defense, tiny_model, pictures):
    x, y, ids = pictures(8)
    student, teacher = (m.classifier(NAMES, TEMPLATES) for m in (tiny_model, tiny_model.copy()))

    def parts(rows):
        return defense.loss(student, teacher, Batch(x[rows], y[rows], [ids[i] for i in rows]), Example(x[rows] * 0.9))

    whole, halves = parts(list(range(8))), [parts(list(range(4))), parts(list(range(4, 8)))]
    assert whole
    for name, value in whole.items():
        assert value.shape == ()
        assert math.isfinite(value.item())
        torch.testing.assert_close(value, (halves[0][name] + halves[1][name]) / 2)


def test_a_defence_is_a_value(defense):
    assert defense == type(defense)()
    assert hash(defense) == hash(type(defense)())
    assert "arXiv" in type(defense).__doc__
