"""APT's "How to know it is right" (tapt.md, section 10, item 8): what trains, and the three prompts that its attack may meet."""

import pytest
import torch
import torch.nn.functional as F
from parts import NAMES, TEMPLATES, config, learned, learner_of, pixels, step

from robustclip.attacks.losses import cross_entropy
from robustclip.attacks.pgd import frozen, gradient
from robustclip.base.errors import UserError
from robustclip.base.values import override
from robustclip.defenses import APT, Batch, TeCoA
from robustclip.models.dress import JointTokens, TokenPrompt
from robustclip.training.trainables import VisualTower

CONTEXT = JointTokens("text", 3, 1, "X X X {}.", "random")


@pytest.fixture
def batch(pictures):
    return Batch(*pictures(8))


def tuned(model, defense, trainable=CONTEXT, batch=8):
    """Return a learner whose context has moved away from its start."""
    learner = learner_of(model, config(defense, trainable, batch=batch))
    with torch.no_grad():
        for p in learner.parameters:
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    learner._follow()
    return learner


@pytest.mark.parametrize("prompt", ["onfly", "constant", "perturbed"])
def test_tapt_item_8_apt_leaves_the_image_tower_as_it_is_and_learns_the_context(prompt, tiny_model, pictures):
    x, y, ids = pictures(8)
    before = {name: value.clone() for name, value in tiny_model.clip.state_dict().items()}
    learner = learner_of(tiny_model, config(APT(prompt), CONTEXT, batch=8, lr=0.05))
    start, seen = learned(learner), learner.student.features(x)
    losses = [step(learner, (pixels(x), y, ids))["loss"] for _ in range(8)]
    learner.finish()
    assert all(torch.equal(value, before[name]) for name, value in learner.model.clip.state_dict().items())
    assert torch.equal(learner.student.features(x), seen)
    assert (learned(learner) - start).abs().min() > 1e-4
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("design", ["text", "text to visual", "visual to text"])
def test_tapt_item_8_apt_perturbs_a_context_that_is_as_it_was_after_the_attack(design, tiny_model, batch):
    learner = tuned(tiny_model, APT("perturbed", 50.0), JointTokens(design, 3, 1))
    before = {name: value.clone() for name, value in learner.student.state_dict(keep_vars=True).items()}
    embeddings = learner.student.class_embeddings.clone()
    moved = learner.attacked(batch).images
    for name, value in learner.student.state_dict(keep_vars=True).items():
        assert torch.equal(value, before[name]), name
        assert value.grad is None, name
    assert all(p.requires_grad for p in learner.parameters)
    assert torch.equal(learner.student.class_embeddings, embeddings)
    assert not torch.equal(moved, tuned(tiny_model.copy(), APT(), JointTokens(design, 3, 1)).attacked(batch).images)


def test_tapt_item_8_apt_a_perturbed_context_climbs_by_plain_sgd(tiny_model, batch):
    """c <- c + lr grad of the mean loss after each question, images of the second question met by what the first one left."""
    learner, lr = tuned(tiny_model, APT("perturbed", 2.0)), 2.0
    student, context = learner.student, learner.parameters[0]
    with frozen(student):
        objective = APT("perturbed", lr).objective(learner.roles, batch)
        asked = [gradient(objective, batch.images)[0].loss for _ in range(2)]
    found, start = [], context.detach().clone()
    for _ in range(2):
        student.class_embeddings = student.class_features()
        loss = F.cross_entropy(student(batch.images), batch.labels, reduction="none")
        (g,) = torch.autograd.grad(loss.mean(), context)
        found.append(loss.detach())
        with torch.no_grad():
            context += lr * g
    torch.testing.assert_close(torch.stack(asked), torch.stack(found))
    assert asked[1].mean() > asked[0].mean() + 1e-3
    assert (context - start).abs().max() > 1e-3


def test_a_context_that_cannot_climb_is_the_one_on_the_fly(tiny_model, batch):
    defenses = APT("perturbed", 0.0), APT(), APT("perturbed", 50.0)
    attacked = [tuned(tiny_model.copy(), defense).attacked(batch).images for defense in defenses]
    assert torch.equal(attacked[0], attacked[1])
    assert not torch.equal(attacked[0], attacked[2])


@pytest.mark.parametrize("design", ["text", "independent"])
def test_tapt_item_8_apt_a_constant_attack_meets_the_hand_written_prompt(design, tiny_model, batch):
    """The texts of the model before training, and images as the student sees them: with tokens in the texts alone, the teacher itself."""
    learner = tuned(tiny_model, APT("constant"), JointTokens(design, 3, 1))
    student, teacher = learner.student, learner.teacher
    moved, objective = batch.images * 0.9, APT("constant").objective(learner.roles, batch)
    by_hand = tiny_model.copy().classifier(NAMES, TEMPLATES).class_embeddings
    logits = teacher.clip.logit_scale.exp() * student.embed_images(moved) @ by_hand.T
    expected = F.cross_entropy(logits, batch.labels, reduction="none")
    torch.testing.assert_close(objective(moved).loss, expected)
    plain, own = (cross_entropy(model, batch.labels)(moved).loss for model in (teacher, student))
    assert not torch.allclose(expected, own)
    assert torch.allclose(expected, plain) == (design == "text")


def test_on_the_fly_it_is_tecoa_for_any_trainable(make_model, pictures):
    x, y, ids = pictures(8)
    for trainable in (CONTEXT, VisualTower()):
        learners = [learner_of(make_model(), config(defense, trainable, batch=8)) for defense in (APT(), TeCoA())]
        losses = [[step(learner, (pixels(x), y, ids))["loss"] for _ in range(2)] for learner in learners]
        assert losses[0] == losses[1]
        assert torch.equal(*map(learned, learners))


@pytest.mark.parametrize("prompt", ["constant", "perturbed"])
@pytest.mark.parametrize("trainable", [VisualTower(), TokenPrompt(2), JointTokens("visual", 2, 1)], ids=str)
def test_without_a_context_there_is_nothing_to_hold_or_to_perturb(prompt, trainable, tiny_model, batch):
    learner = learner_of(tiny_model, config(APT(prompt), trainable, lr=0.1))
    with pytest.raises(UserError, match=f"attack_prompt is '{prompt}', but no context is learned"):
        learner.attacked(batch)


def test_a_shared_context_makes_the_micro_batch_part_of_the_method():
    assert APT("perturbed").whole_batch
    assert not APT("constant").whole_batch
    alone = {"defense.attack_prompt": "perturbed", "optim.micro_batch": 1}
    with pytest.raises(UserError, match=r"micro_batch is 1: APT works on the images of a micro-batch together"):
        override(config(APT(), CONTEXT), alone)
    with pytest.raises(UserError, match=r"context_lr is -1"):
        APT(context_lr=-1)
