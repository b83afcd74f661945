"""The images' dtype decides in what attacks and losses compute: fp64 all through where the images are, fp32 as ever elsewhere."""

import pytest
import torch
from parts import NAMES, TEMPLATES, made, roles_of

from robustclip.attacks import APGD, APGDT, FABT, MIFGSM, PGD, Square
from robustclip.attacks.base import Example
from robustclip.attacks.modes import TEXTS, joint
from robustclip.attacks.noise import Noise
from robustclip.base.dtypes import wide
from robustclip.base.threat import Ball
from robustclip.defenses import DEFENSES, Batch
from robustclip.models.classifier import Guides

ATTACKS = (
    PGD(2),
    PGD(2, restarts=2, loss="margin"),
    APGD(3, restarts=2),
    APGD(3, loss="dlr"),
    APGDT(3, targets=3),
    FABT(3, 3),
    Square(8),
    MIFGSM(2, alpha=0.5, diversity=0.5),
    Noise(),
    *joint(TEXTS["random"]),
)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_on_fp64_images_is_one_in_fp64(attack, norm, tiny_model, pictures):
    x, y, ids = pictures(6)
    classifier = tiny_model.classifier(NAMES, TEMPLATES).double()
    x = x.double()
    classifier.guides = Guides(x[:4], y[:4], ids[:4])
    seen = []
    classifier.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    example = attack(classifier, x, y, ids, Ball(norm, 8.0), 0, 4)
    assert example.images.dtype == torch.float64
    assert {*seen} <= {torch.float64}
    assert (Ball(norm, 8.0).size(example.images - x) <= Ball(norm, 8.0).radius * (1 + 1e-12)).all(), "to the rounding of fp64"
    if example.trace is not None:
        assert example.trace.loss_best.dtype == torch.float64


@pytest.mark.parametrize("kind", DEFENSES, ids=lambda kind: kind.__name__)
def test_a_defence_on_fp64_images_attacks_and_learns_in_fp64(kind, tiny_model, pictures):
    defense = made(kind)
    x, y, ids = pictures(4)
    roles = roles_of(defense, tiny_model)
    for part in (roles.student, roles.teacher, roles.head):
        if part is not None:
            part.double()
    batch = Batch(x.double(), y, ids)
    objective = defense.objective(roles, batch)
    if objective is not None:
        assert objective(batch.images * 0.9).loss.dtype == torch.float64
    assert {part.dtype for part in defense.loss(roles, batch, Example(batch.images * 0.9)).values()} == {torch.float64}


def test_wide_is_never_less_than_fp32():
    for dtype, found in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)):
        assert wide(torch.zeros(1, dtype=dtype)).dtype == found
