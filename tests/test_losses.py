"""The losses of attacks: the published formulas by hand, what scaling does to them, and too few classes."""

import pytest
import torch
from torch import nn
from toys import Linear, ids_of, middle

from robustclip.attacks import APGD, PGD
from robustclip.attacks.losses import LEAST_CLASSES, LOSSES, cross_entropy, dlr, margin, targeted_dlr
from robustclip.attacks.pgd import gradient
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball


class Says(nn.Module):
    """A model that answers the same logits [K] whatever it sees."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x):
        return self.logits.expand(len(x), -1) + 0 * x.flatten(1)[:, :1]


FOUR, X, LABELS = Says(1.0, 3.0, 2.0, 0.5), torch.zeros(2, 3, 2, 2), torch.tensor([1, 0])


def test_the_losses_by_hand():
    """Logits 1, 3, 2, 0.5: image 0 is right by 1, image 1 wrong by 2; first and third logit are 3 - 1 apart."""
    total = sum(torch.tensor(z).exp() for z in (1.0, 3.0, 2.0, 0.5)).log()
    expected = {cross_entropy: [total - 3, total - 1], margin: [-1.0, 2.0], dlr: [-1 / 2, 2 / 2]}
    for loss, values in expected.items():
        scored = loss(FOUR, LABELS)(X)
        torch.testing.assert_close(scored.loss, torch.tensor(values))
        assert scored.fooled.tolist() == [False, True]
    scored = targeted_dlr(FOUR, LABELS, torch.tensor([2, 1]))(X)
    torch.testing.assert_close(scored.loss, torch.tensor([(2 - 3) / 2.25, (3 - 1) / 2.25]))  # 2.25 = 3 - (1 + 0.5) / 2
    assert scored.fooled.tolist() == [False, True]
    missed = targeted_dlr(FOUR, LABELS, torch.tensor([2, 3]))(X)
    assert missed.loss[1] < 0
    assert missed.fooled.tolist() == [False, True]  # wrong is wrong, whatever was aimed at


def test_two_classes_have_a_margin():
    scored = margin(Says(1.0, 3.0), LABELS)(X)
    assert scored.loss.tolist() == [-2.0, 2.0]


def test_the_gradient_of_the_margin_is_the_difference_of_two_rows():
    classifier, x, y = Linear(4), middle(5), torch.arange(5) % 4
    rival = classifier(x).scatter(1, y[:, None], -torch.inf).argmax(1)
    _, g = gradient(margin(classifier, y), x)
    torch.testing.assert_close(g.flatten(1), (classifier.w[rival] - classifier.w[y]).detach())


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_dlr_does_not_change_with_the_scale_and_the_offset_of_the_logits(scale):
    labels, targets = torch.tensor([1, 0]), torch.tensor([3, 2])
    other = Says(*(5.0 + scale * z for z in (1.0, 3.0, 2.0, 0.5)))
    torch.testing.assert_close(dlr(other, labels)(X).loss, dlr(FOUR, labels)(X).loss, rtol=1e-3, atol=0)
    torch.testing.assert_close(targeted_dlr(other, labels, targets)(X).loss, targeted_dlr(FOUR, labels, targets)(X).loss, rtol=1e-3, atol=0)
    for loss in (cross_entropy, margin):
        assert not torch.allclose(loss(other, labels)(X).loss, loss(FOUR, labels)(X).loss, rtol=0.1)


def test_equal_logits_stay_finite():
    for loss in (dlr(Says(1.0, 1.0, 1.0, 1.0), LABELS), targeted_dlr(Says(1.0, 1.0, 1.0, 1.0), LABELS, 1 - LABELS)):
        scored, g = gradient(loss, X)
        assert scored.loss.tolist() == [0.0, 0.0]
        assert bool(torch.isfinite(g).all())


@pytest.mark.parametrize("attack", [PGD, APGD])
def test_a_saturated_model_hides_from_the_cross_entropy_only(attack):
    """Logits times 1e4: p_y is exactly 1, the cross-entropy has no gradient, and the model looks robust to it."""
    classifier, x, ball = Linear(4, scale=1e3), middle(8), Ball("Linf", 24.0)
    y = classifier(x).argmax(1)
    hidden, seen = (attack(10, loss=loss)(classifier, x, y, ids_of(8), ball, 0).trace for loss in ("ce", "dlr"))
    blind = hidden.zero_gradient == 1
    assert blind.sum() >= 4
    assert bool((hidden.first_success[blind] < 0).all())
    assert (seen.first_success[blind] >= 0).sum() >= 3
    assert seen.zero_gradient.max() < 1


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (margin(Says(1.0), LABELS * 0), "margin loss needs at least 2 classes, this model has 1"),
        (dlr(Says(1.0, 2.0), LABELS), "dlr loss needs at least 3 classes, this model has 2: use ce or margin"),
        (targeted_dlr(Says(1.0, 2.0, 3.0), LABELS, LABELS), "targeted dlr loss needs at least 4 classes, this model has 3: use dlr"),
    ],
    ids=["margin", "dlr", "targeted dlr"],
)
def test_too_few_classes_are_refused(objective, said):
    with pytest.raises(UserError, match=said):
        objective(X)


@pytest.mark.parametrize("name", LOSSES)
def test_the_fewest_classes_are_enough(name):
    classes = LEAST_CLASSES[name]
    assert bool(torch.isfinite(LOSSES[name](Says(*map(float, range(classes))), LABELS)(X).loss).all())
