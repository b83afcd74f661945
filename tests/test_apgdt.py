"""APGD-T: as strong as theory on a linear model, never behind one loss alone, aimed at the closest classes in turn."""

import pytest
import torch
from toys import Linear, Wavy, ids_of, middle

from robustclip.attacks import APGD, APGDT
from robustclip.attacks.apgd import closest_wrong
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball


def test_the_closest_wrong_classes_come_in_order():
    logits, labels = torch.tensor([[1.0, 3.0, 2.0, 0.5], [1.0, 3.0, 2.0, 0.5]]), torch.tensor([1, 0])
    assert closest_wrong(logits, labels, 3, "apgd-t").tolist() == [[2, 0, 3], [1, 2, 3]]
    assert closest_wrong(logits, labels, 2, "apgd-t").tolist() == [[2, 0], [1, 2]]


@pytest.mark.parametrize(
    ("attack", "classes", "said"),
    [
        (APGDT(2), 5, "apgd-t-2 aims at 9 wrong classes, this model has 5 in all: use targets=4"),
        (APGDT(2, targets=4), 4, "use targets=3"),
        (APGDT(2, targets=2), 3, "targeted dlr loss needs at least 4 classes"),
    ],
    ids=["9 of 5", "4 of 4", "3 classes"],
)
def test_too_few_classes_are_refused(attack, classes, said):
    with pytest.raises(UserError, match=said):
        attack(Linear(classes), middle(2), torch.zeros(2, dtype=torch.long), ids_of(2), Ball(), 0)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_on_a_linear_model_it_breaks_what_can_be_broken(norm):
    """Image x leaves class y for j iff z_y - z_j < eps |w_y - w_j|_dual for some j."""
    classifier, x = Linear(6), middle(64)
    w, z = classifier.w.detach(), classifier(x).detach()
    y = z.argmax(1)
    dual = (w[y][:, None] - w).abs().sum(2) if norm == "Linf" else (w[y][:, None] - w).norm(dim=2)
    gap = (z.gather(1, y[:, None]) - z) / dual.clamp(min=1e-9)
    needed = gap.scatter(1, y[:, None], torch.inf).min(1).values  # the radius at which each image breaks
    ball = Ball(norm, 255 * float(needed.median()))
    clear = (needed / ball.radius - 1).abs() > 0.03
    assert clear.sum() > 50
    found = APGDT(50, targets=5)(classifier, x, y, ids_of(64), ball, 0).trace.first_success >= 0
    assert torch.equal(found[clear], (needed < ball.radius)[clear])


def test_the_class_that_is_closest_in_logits_may_be_out_of_reach():
    """Class 1 is nearly class 0 (gap 0.24, radius 0.5 needed), class 2 is far in logits and near in pixels (gap 24, radius 0.06)."""
    classifier, x, y, ball = Linear(4), torch.full((3, 3, 4, 4), 0.5), torch.zeros(3, dtype=torch.long), Ball("Linf", 20.0)
    ones, stripes = torch.ones(48), torch.tensor([8.0, -8.0] * 24)
    classifier.w.data = torch.stack([ones, 0.99 * ones, stripes, -ones])
    found = [APGDT(10, targets=t)(classifier, x, y, ids_of(3), ball, 0).trace.first_success >= 0 for t in (1, 2)]
    assert [each.tolist() for each in found] == [[False] * 3, [True] * 3]


def test_it_breaks_no_fewer_than_the_untargeted_loss():
    classifier, ball, counts = Wavy().eval(), Ball("Linf", 4.0), {"dlr": 0, "targeted": 0}
    for seed in range(3):
        x = middle(32, 6, seed)
        y = classifier(x).argmax(1)
        for name, attack in (("dlr", APGD(20, loss="dlr")), ("targeted", APGDT(20, targets=4))):
            counts[name] += int((attack(classifier, x, y, ids_of(32), ball, seed).trace.first_success >= 0).sum())
    assert 0 < counts["dlr"] <= counts["targeted"] < 96


def test_every_target_and_restart_meets_only_what_still_resists():
    classifier, x, ball = Wavy().eval(), middle(32, 6), Ball("Linf", 4.0)
    y, broken = classifier(x).argmax(1), []
    for targets, restarts in ((1, 1), (2, 1), (4, 1), (4, 2)):
        trace = APGDT(3, targets=targets, restarts=restarts)(classifier, x, y, ids_of(32), ball, 0).trace
        resisted = trace.first_success < 0
        assert trace.forwards[resisted].unique().tolist() == [4 * targets * restarts + 1]
        assert trace.forwards[~resisted].max() <= 4 * targets * restarts + 1
        broken.append((trace.first_success >= 0).sum())
    assert broken[0] < broken[3]
    assert broken == sorted(broken)
