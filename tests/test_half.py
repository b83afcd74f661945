"""TAPT's stage 0: which images of a micro-batch are attacked, and that the loss asks for no others."""

import pytest
import torch
import torch.nn.functional as F
from parts import config, learned, learner_of, pixels, roles_of, step

from robustclip.attacks.base import Example
from robustclip.attacks.losses import cross_entropy
from robustclip.base.errors import UserError
from robustclip.base.values import override
from robustclip.defenses import Batch, HalfTeCoA, TeCoA
from robustclip.training.config import Config


@pytest.mark.parametrize("n", [8, 7])
def test_the_loss_is_that_of_the_clean_first_half_and_the_attacked_second_one(n, tiny_model, pictures):
    batch, half = Batch(*pictures(n)), n // 2
    roles, moved = roles_of(HalfTeCoA(), tiny_model), batch.images * 0.8
    parts = HalfTeCoA().loss(roles, batch, Example(moved))
    assert list(parts) == ["half_tecoa"]
    mixed = torch.cat([batch.images[:half], moved[half:]])
    torch.testing.assert_close(parts["half_tecoa"], F.cross_entropy(roles.student(mixed), batch.labels))
    for rows, matters in ((slice(0, half), False), (slice(half, n), True)):
        other = moved.clone()
        other[rows] = 0.3
        assert torch.equal(HalfTeCoA().loss(roles, batch, Example(other))["half_tecoa"], parts["half_tecoa"]) != matters


def test_the_second_half_is_attacked_as_by_tecoa_and_the_first_not_moved_from_its_start(make_model, pictures):
    batch = Batch(*pictures(8))
    half, whole = (learner_of(make_model(), config(defense, batch=8)).attacked(batch).images for defense in (HalfTeCoA(), TeCoA()))
    assert torch.equal(half[4:], whole[4:])
    start = learner_of(make_model(), config(TeCoA(), batch=8, attack=override(Config(), {"attack.alpha": 0}).attack)).attacked(batch).images
    assert torch.equal(half[:4], start[:4])
    assert not torch.equal(half[4:], start[4:])


def test_the_attack_looks_at_no_image_of_the_first_half(tiny_model, pictures):
    batch, seen = Batch(*pictures(8)), []
    roles = roles_of(HalfTeCoA(), tiny_model)
    roles.student.clip.visual.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    loss = HalfTeCoA().objective(roles, batch)(batch.images).loss
    assert seen == [4]
    torch.testing.assert_close(loss[4:], cross_entropy(roles.student, batch.labels)(batch.images).loss[4:])
    assert torch.equal(loss[:4], torch.zeros(4))


def test_a_step_depends_on_who_stands_in_which_half(make_model, pictures):
    x, y, ids = pictures(8)
    found = []
    for order in (list(range(8)), [3, 2, 1, 0, 7, 6, 5, 4], [4, 5, 6, 7, 0, 1, 2, 3]):
        learner = learner_of(make_model(), config(HalfTeCoA(), batch=8), dtype=torch.float64)
        step(learner, (pixels(x[order]), y[order], [ids[i] for i in order]))
        found.append(learned(learner))
    torch.testing.assert_close(found[1], found[0], atol=1e-9, rtol=1e-9)
    assert (found[2] - found[0]).abs().max() > 1e-4


def test_a_micro_batch_of_one_has_no_halves():
    with pytest.raises(UserError, match=r"micro_batch is 1: HalfTeCoA works on the images of a micro-batch together"):
        override(Config(), {"defense": "HalfTeCoA", "optim.micro_batch": 1})
