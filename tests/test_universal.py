"""Universal perturbations: the published ascent by hand, learned on other images, better than any random one, and scored as an attack."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import NAMES, TEMPLATES
from torch import nn
from toys import Linear, ids_of, middle

from robustclip.attacks import PGD, Universal
from robustclip.attacks.levels import Aimed
from robustclip.attacks.pgd import logits_of, move
from robustclip.base.errors import UserError
from robustclip.base.seeds import derive, generator
from robustclip.base.threat import Ball
from robustclip.models.adaptive import Adaptive
from robustclip.models.classifier import Surrogates

BALL, LARGE = Ball("Linf", 4.0), Ball("Linf", 16.0)


def learned(attack, model, images, labels, ids, ball=BALL, seed=0, micro_batch=None):
    """Return the perturbation [3,H,W] that an attack learns on images."""
    return attack.learned(model, Surrogates(ids, lambda: (images, labels)), ball, seed, micro_batch)


@pytest.fixture
def toy():
    """Return a linear model in float64, 11 images of which some touch 0 and 1, labels, and ids."""
    images = (3 * middle(11) - 1).clamp(0, 1).double()
    assert (images == 0).any()
    assert (images == 1).any()
    return Linear(4, scale=3.0).double(), images, torch.arange(11) % 4, ids_of(11)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("clip", [2.0, 1e9])
def test_it_is_the_published_ascent(toy, norm, clip):
    """Algorithm 2 of arXiv:1811.11304 written anew: the mean of the batch's clipped losses, by hand."""
    model, images, labels, ids = toy
    attack, ball = Universal(3, batch=4, alpha=0.3, clip=clip), Ball(norm, 12.0)
    delta, clipped = torch.zeros_like(images[0]), 0
    for epoch in range(3):
        order = sorted(range(11), key=lambda i: derive(7, "universal", epoch, ids[i]))
        for batch in (order[:4], order[4:8], order[8:]):
            moved = images[batch] + delta
            leaves = moved.clamp(0, 1).requires_grad_()
            losses = F.cross_entropy(model(leaves), labels[batch], reduction="none")
            clipped += int((losses > clip).sum())
            (each,) = torch.autograd.grad(losses.clamp(max=clip).mean(), leaves)
            g = (each * ((moved >= 0) & (moved <= 1))).sum(0)  # white and black pixels have a derivative too
            delta = delta + 0.3 * ball.radius * (g.sign() if norm == "Linf" else g / g.norm().clamp(min=1e-12))
            delta = delta.clamp(-ball.radius, ball.radius) if norm == "Linf" else delta * min(1.0, float(ball.radius / delta.norm()))
    assert (clipped > 0) == (clip == 2.0), "the clip acts where it is asked to"
    found = learned(attack, model, images, labels, ids, ball, 7, 3)
    torch.testing.assert_close(found, delta, rtol=0, atol=1e-12)
    assert float(ball.size(found[None])) == pytest.approx(ball.radius)


def test_neither_the_order_nor_the_micro_batch_decides(toy):
    model, images, labels, ids = toy
    attack, order = Universal(3, batch=4), torch.tensor([5, 2, 10, 7, 0, 8, 1, 6, 9, 3, 4])
    expected = learned(attack, model, images, labels, ids)
    assert torch.equal(learned(attack, model, images[order], labels[order], [ids[i] for i in order]), expected)
    for size in (1, 3, 20):
        torch.testing.assert_close(learned(attack, model, images, labels, ids, micro_batch=size), expected, rtol=0, atol=1e-12)
    assert not torch.equal(learned(attack, model, images, labels, ids, seed=1), expected)


def test_only_so_many_images_are_learned_on(toy):
    model, images, labels, ids = toy
    delta = Universal(2, images=5, batch=2)
    model.surrogates = Surrogates(ids, lambda: (images, labels))
    found = delta.delta(model, ["another"], BALL, 0, None)
    assert torch.equal(found, learned(delta, model, images[:5], labels[:5], ids[:5]))
    assert not torch.equal(found, learned(delta, model, images, labels, ids))


def accuracies(model, pictures):
    """Return accuracy on 32 images under what was learned on 24 others, and under eight random perturbations of the same size."""
    classifier, size = model.classifier(NAMES, TEMPLATES), model.preprocess.size
    (images, _, ids), (others, _, other_ids) = pictures(32, size), pictures(24, size, seed=5)
    labels, known = (logits_of(classifier, *each, 8).argmax(1) for each in ((images, ids), (others, other_ids)))
    classifier.surrogates = Surrogates(other_ids, lambda: (others, known))

    def right(attacked):
        return float((logits_of(classifier, attacked, ids, 8).argmax(1) == labels).float().mean())

    signs = [torch.randn(images.shape[1:], generator=generator(i, "signs")).sign() for i in range(8)]
    found = Universal(5, batch=8)(classifier, images, labels, ids, LARGE, 0, 8)
    return right(found.images), [right(move(images, LARGE.radius * each[None], LARGE)) for each in signs]


@pytest.mark.parametrize(("kind", "seed"), [("vit", 0), ("siglip", 1)])
def test_it_breaks_images_it_has_not_seen_as_no_random_one_does_and_planted_the_wrong_way_it_does_not(
    kind, seed, make_model, pictures, monkeypatch
):
    model = make_model(kind, seed)
    found, random = accuracies(model, pictures)
    assert found < min(random) - 0.3
    ascent = Ball.ascent
    monkeypatch.setattr(Ball, "ascent", lambda self, gradient: -ascent(self, gradient))
    planted, same = accuracies(model, pictures)
    assert same == random
    assert planted >= min(random)


@pytest.fixture
def task(tiny_model, pictures):
    """Return a classifier that knows 12 other images, 8 images, labels of which it gets 6 right, and ids."""
    classifier = tiny_model.classifier(NAMES, TEMPLATES)
    (images, _, ids), (others, _, other_ids) = pictures(8), pictures(12, seed=5)
    labels, known = (logits_of(classifier, *each, 4).argmax(1) for each in ((images, ids), (others, other_ids)))
    labels[:2] = (labels[:2] + 1) % 4
    classifier.surrogates = Surrogates(other_ids, lambda: (others, known))
    return classifier, images, labels, ids


def test_one_perturbation_is_added_to_every_image_that_is_right(task):
    classifier, images, labels, ids = task
    attack = Universal(3, batch=4)
    example, delta = attack(classifier, images, labels, ids, LARGE, 0, 4), attack.delta(classifier, ids, LARGE, 0, 4)
    assert float(delta.abs().max()) == pytest.approx(LARGE.radius)
    assert torch.equal(example.images[2:], (images[2:] + delta).clamp(0, 1))
    assert torch.equal(example.images[:2], images[:2]), "an image that is wrong may not become right"
    fooled = logits_of(classifier, example.images, ids, 4).argmax(1) != labels
    assert example.trace.first_success.tolist() == [0, 0, *torch.where(fooled[2:], 1, -1).tolist()]
    assert example.trace.forwards.tolist() == [1, 1, 2, 2, 2, 2, 2, 2]
    for name, shown in (("loss_start", images), ("loss_best", example.images)):
        losses = F.cross_entropy(logits_of(classifier, shown, ids, 4), labels, reduction="none")
        torch.testing.assert_close(getattr(example.trace, name), losses)


def test_planted_an_image_that_is_learned_on_is_not_scored(task):
    classifier, images, labels, ids = task
    Universal(1)(classifier, images, labels, ids, BALL, 0)
    overlapping = [*ids[:7], classifier.surrogates.ids[3]]
    with pytest.raises(UserError, match=r"1 of 8 images are learned on and scored, such as 'picture/5/3'"):
        Universal(1)(classifier, images, labels, overlapping, BALL, 0)


def test_what_it_cannot_learn_from_is_refused(task):
    classifier, images, labels, ids = task
    with pytest.raises(UserError, match=r"learned on images \[3, 16, 16\], these are \[3, 8, 8\]"):
        Universal(1)(classifier, images[..., :8, :8], labels, ids, BALL, 0)
    classifier.surrogates = None
    with pytest.raises(UserError, match="was given none: evaluate a set by its name"):
        Universal(1)(classifier, images, labels, ids, BALL, 0)
    assert torch.equal(Universal(1)(classifier, images, labels, ids, Ball(eps=0.0), 0).images, images)
    with pytest.raises(UserError, match="UAP: batch is 0"):
        Universal(batch=0)


def test_a_gradient_that_is_not_finite_is_named(toy):
    model, images, labels, ids = toy
    images[6, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="uap-2: the gradient at image 'image/6' is not finite"):
        learned(Universal(2), model, images, labels, ids)


def test_what_was_learned_is_asked_for_by_all_that_decides_it(task):
    classifier, images, labels, ids = task
    names: list[str] = []
    classifier.surrogates = replace(classifier.surrogates, kept=lambda name, learn: (names.append(name), learn())[1])
    changes = [{}, {"attack": Universal(2)}, {"attack": Universal(1, alpha=0.5)}, {"ball": LARGE}, {"seed": 1}, {"size": 3}]
    changes += [{"attack": Universal(1, images=5)}]

    def ask(attack=None, ball=BALL, seed=0, size=4):
        (attack or Universal(1))(classifier, images, labels, ids, ball, seed, size)

    for change in [*changes, *changes]:
        ask(**change)
    assert names[: len(changes)] == names[len(changes) :]
    assert len(set(names)) == len(changes)


class Turned(Adaptive):
    """A defence that shows the model under it every image upside down."""

    def adapt(self, images, keys, through):
        return None

    def answer(self, images, keys, adapted):
        return self.base(images.flip(-2))


class Lit(nn.Module):
    """Two classes by whether the mean pixel is above `level`."""

    def __init__(self, level):
        super().__init__()
        self.level = level

    def forward(self, images):
        light = images.flatten(1).mean(1) - self.level
        return 40 * torch.stack([light, -light], 1)


def test_what_is_learned_on_one_model_is_added_to_all_that_another_gets_right():
    """Also to what the one gets wrong, which a perturbation made for the one alone would leave as it is."""
    source, target, ball = Lit(0.5), Lit(0.45), Ball("Linf", 26.0)
    images, labels = torch.full((3, 3, 4, 4), 0.6), torch.zeros(3, dtype=torch.long)
    images[1], images[2] = 0.48, 0.4
    source.surrogates = Surrogates(("x",), lambda: (torch.full((1, 3, 4, 4), 0.55), torch.zeros(1, dtype=torch.long)))
    found = Universal(5).transferred(source, target, images, labels, ids_of(3), ball, 0)
    torch.testing.assert_close(found.images[:2], images[:2] - ball.radius)
    assert torch.equal(found.images[2], images[2])
    assert found.trace.first_success.tolist() == [-1, 1, 0]
    target.undefended = lambda: source
    assert torch.equal(Aimed("A0", Universal(5))(target, images, labels, ids_of(3), ball, 0).images, found.images)


def test_a_level_says_what_it_is_learned_on(task):
    base, images, _, ids = task
    defence = Turned(base)
    defence.surrogates, defence.undefended = base.surrogates, lambda: base
    labels = logits_of(defence, images, ids, 4).argmax(1)
    attack = Universal(3, batch=4)
    made = {level: Aimed(level, attack)(defence, images, labels, ids, LARGE, 0, 4).images for level in ("A0", "A1", "A3")}
    alone = attack.delta(base, ids, LARGE, 0, 4)
    assert torch.equal(made["A0"], made["A1"])
    assert torch.equal(made["A1"], (images + alone).clamp(0, 1))
    assert torch.equal(made["A3"], attack(defence, images, labels, ids, LARGE, 0, 4).images)
    assert not torch.equal(made["A3"], made["A1"])
    assert Aimed("A0", attack).name == "A0 (grey-box, plain CLIP) uap-3"
    for level in ("A2", "A4", "A6"):
        with pytest.raises(UserError, match=f"{level} of uap-3: what all images share is learned at A0, A1, A3"):
            Aimed(level, attack)
    Aimed("A2", PGD(3))
