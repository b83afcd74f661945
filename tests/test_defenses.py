"""Defences: TeCoA's loss by its definition and by hand, and the contract every defence keeps."""

import math

import pytest
import torch
import torch.nn.functional as F
from parts import Given, config, learner_of, made, part_of, pixels, roles_of, step
from toys import ids_of

from robustclip.attacks.base import Example
from robustclip.attacks.pgd import PGD
from robustclip.base.threat import Ball
from robustclip.defenses import DEFENSES, FARE, Batch, HalfTeCoA, PseudoTeCoA, Roles, TeCoA

UNLABELLED = ("PseudoTeCoA", "ImgCoAdv", "FARE")  # the defences that never look at a label


def unit(*shape, seed):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def tecoa(z, texts, y, scale=100.0):
    classifier = Given(texts, scale)
    return TeCoA().loss(Roles(classifier, classifier), Batch(z, y, ids_of(len(y))), Example(z))["tecoa"]


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


def test_the_loss_is_that_of_the_adversarial_images_alone(tiny_model, pictures):
    batch = Batch(*pictures(6))
    roles, other = roles_of(TeCoA(), tiny_model), (batch.images + 0.1).clamp(0, 1)
    parts = TeCoA().loss(roles, batch, Example(other))
    assert list(parts) == ["tecoa"]
    torch.testing.assert_close(parts["tecoa"], F.cross_entropy(roles.student(other), batch.labels))


def test_item_2_attack_and_step_leave_text_tower_and_scale_alone(tiny_model, pictures):
    """After an attack alone every .grad is None; after a step every text parameter and logit_scale is as before and without grad."""
    x, y, ids = pictures(8)
    frozen = {name: p.detach().clone() for name, p in tiny_model.clip.named_parameters() if not name.startswith("visual.")}
    learner = learner_of(tiny_model, config(TeCoA(), batch=8))
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


def test_item_9_unlabelled_is_labelled_where_clip_is_right(make_model, pictures):
    """Attack, loss and step are the same when CLIP is right on every image, and differ when it is wrong on one."""
    x, _, ids = pictures(8)
    with torch.no_grad():
        right = learner_of(make_model(), config(TeCoA())).teacher(x).argmax(1)
    wrong = torch.cat([(right[:1] + 1) % 4, right[1:]])
    assert len(set(right.tolist())) > 1
    found = {}
    for defense, labels in ((TeCoA(), right), (PseudoTeCoA(), right), (PseudoTeCoA(), wrong), (TeCoA(), wrong)):
        learner = learner_of(make_model(), config(defense, batch=8))
        losses = [step(learner, (pixels(x), labels, ids))["loss"] for _ in range(3)]
        found[type(defense).__name__, labels is right] = (losses, learner.model.sha256)
    assert found["TeCoA", True] == found["PseudoTeCoA", True] == found["PseudoTeCoA", False]
    assert found["TeCoA", False] != found["TeCoA", True]


@pytest.mark.parametrize("defense", [PseudoTeCoA(), FARE(), FARE(clean_weight=0.5)], ids=["pseudo", "fare", "fare-clean"])
def test_the_original_model_sees_the_clean_images_once_a_micro_batch(defense, make_model, pictures):
    """The attack's objective and the loss share what it says; the next micro-batch asks anew."""
    learner, seen = learner_of(make_model(), config(defense, batch=8)), []
    learner.teacher.clip.visual.register_forward_hook(lambda module, args, output: seen.append(args[0].clone()))
    for seed in range(2):
        x, y, ids = pictures(8, seed=seed)
        step(learner, (pixels(x), y, ids))
    assert len(seen) == 2
    assert not torch.equal(*seen)


# --- every defence --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=DEFENSES, ids=lambda kind: kind.__name__)
def defense(request):
    return made(request.param)


@pytest.fixture
def batch(pictures):
    return Batch(*pictures(8))


def test_the_objective_scores_each_image_alone_or_with_its_micro_batch(defense, tiny_model, batch):
    roles, near = roles_of(defense, tiny_model), (batch.images + 0.05).clamp(0, 1)
    objective = defense.objective(roles, batch)
    if objective is None:
        assert type(defense).__name__ == "CleanCE"
        return
    scored = objective(near)
    assert scored.loss.shape == (8,)
    assert scored.loss.dtype == torch.float32
    assert torch.isfinite(scored.loss).all()
    assert scored.fooled is None or scored.fooled.dtype == torch.bool
    if isinstance(defense, HalfTeCoA):
        assert torch.equal(scored.loss > 0, torch.arange(8) >= 4)  # by place
        return
    rows, order = [2, 3], [3, 1, 4, 0, 7, 5, 2, 6]
    part = defense.objective(roles, part_of(batch, rows))(near[rows]).loss
    torch.testing.assert_close(defense.objective(roles, part_of(batch, order))(near[order]).loss, scored.loss[order])
    if defense.whole_batch:
        assert (part - scored.loss[rows]).abs().min() > 0.1  # there were fewer to tell apart
    else:
        torch.testing.assert_close(part, scored.loss[rows])


def test_the_training_attack_raises_the_objective_inside_the_ball(defense, tiny_model, batch):
    learner, ball = learner_of(tiny_model, config(defense, eps=4.0)), Ball("Linf", 4.0)
    adversarial = learner.attacked(batch).images
    objective = defense.objective(learner.roles, batch)
    if objective is None:
        assert adversarial is batch.images
        return
    assert bool((ball.size(adversarial - batch.images) <= ball.radius + 1e-6).all())
    assert not adversarial.requires_grad
    assert objective(adversarial).loss.mean() > objective(batch.images).loss.mean()
    assert all(p.grad is None for p in (*learner.student.parameters(), *learner.optimiser.head_parameters))


def test_parts_are_finite_means_over_the_batch(defense, tiny_model, batch):
    roles = roles_of(defense, tiny_model)

    def parts(rows):
        return defense.loss(roles, part_of(batch, rows), Example(batch.images[rows] * 0.9))

    whole, halves = parts(list(range(8))), [parts(list(range(4))), parts(list(range(4, 8)))]
    assert whole
    for name, value in whole.items():
        mean = (halves[0][name] + halves[1][name]) / 2
        assert value.shape == ()
        assert math.isfinite(value.item())
        if isinstance(defense, HalfTeCoA):
            assert abs(value - mean) > 1e-4  # other images were attacked
        elif defense.whole_batch:
            assert value > mean + 0.1
        else:
            torch.testing.assert_close(value, mean)


def test_the_loss_teaches_the_student_and_no_one_else(defense, tiny_model, batch):
    roles = roles_of(defense, tiny_model)
    for part in (roles.student, roles.teacher):
        part.clip.visual.requires_grad_(True)
    if roles.head is not None:
        roles.head.requires_grad_(False)
    sum(defense.loss(roles, batch, Example(batch.images * 0.9)).values()).backward()
    assert all(p.grad is not None for p in roles.student.clip.visual.parameters())
    assert all(p.grad is None for p in roles.teacher.parameters())


def test_labels_are_looked_at_by_those_that_need_them(defense, tiny_model, batch):
    roles, moved = roles_of(defense, tiny_model), batch.images * 0.9
    other = Batch(batch.images, batch.labels.flip(0), batch.ids)
    found = [sum(defense.loss(roles, each, Example(moved)).values()) for each in (batch, other)]
    assert torch.equal(*found) == (type(defense).__name__ in UNLABELLED)
    if (objective := defense.objective(roles, batch)) is not None:
        blind = (*UNLABELLED, "TRADES", "FAP")
        assert torch.equal(objective(moved).loss, defense.objective(roles, other)(moved).loss) == (type(defense).__name__ in blind)


def test_a_defence_is_a_value(defense):
    assert defense == made(type(defense))
    assert hash(defense) == hash(made(type(defense)))
    assert "arXiv" in type(defense).__doc__
