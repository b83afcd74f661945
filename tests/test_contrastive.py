"""CoAdv, ImgCoAdv, LinearAT and CleanCE by hand: what takes the place of texts, and what does not."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from parts import TEMPLATES, Given, config, learned, learner_of, pixels, roles_of, step

from robustclip.attacks.base import Example
from robustclip.base.errors import UserError
from robustclip.base.seeds import generator
from robustclip.defenses import Batch, CleanCE, CoAdv, ImgCoAdv, LinearAT, Roles
from robustclip.defenses.codes import Codes

HALF, FIFTH = 0.3132617, 0.7981389  # ln(1 + e^-1), ln(1 + e^0.2)


def codes(temperature=1.0):
    """Return a head whose two codes are the unit vectors of the plane."""
    head = Codes(2, 2, temperature, generator(0))
    head.codes.copy_(torch.eye(2))
    return Roles(Given(torch.randn(2, 2)), Given(torch.randn(2, 2)), head)


def batch_of(images, labels):
    return Batch(torch.as_tensor(images), torch.tensor(labels), [str(i) for i in range(len(labels))])


@pytest.fixture
def batch(pictures):
    return Batch(*pictures(8))


# --- random codes ---------------------------------------------------------------------------------------------------------------------


def test_coadv_by_hand():
    """Cosines (1, 0) and (3/5, 4/5) with the codes, labels 0 and 0, whatever the length of the features and the texts."""
    adversarial, batch = Example(torch.tensor([[2.0, 0.0], [3.0, 4.0]])), batch_of(torch.zeros(2, 2), [0, 0])
    assert CoAdv().loss(codes(), batch, adversarial)["coadv"].item() == pytest.approx((HALF + FIFTH) / 2, abs=1e-6)
    assert CoAdv().objective(codes(), batch)(adversarial.images).loss.tolist() == pytest.approx([HALF, FIFTH], abs=1e-6)
    colder = torch.tensor([1 / 0.1, 0.0]).logsumexp(0).item() - 10.0
    assert CoAdv().objective(codes(0.1), batch)(adversarial.images).loss[0].item() == pytest.approx(colder, abs=1e-6)


def test_the_codes_are_fixed_unit_vectors_that_a_seed_draws(tiny_model):
    student = tiny_model.classifier(["a", "b", "c"], TEMPLATES)
    heads = [CoAdv().head(student, seed) for seed in (0, 0, 1)]
    assert heads[0].codes.shape == (3, 16)
    torch.testing.assert_close(heads[0].codes.norm(dim=1), torch.ones(3))
    assert torch.equal(heads[0].codes, heads[1].codes)
    assert not torch.equal(heads[0].codes, heads[2].codes)
    assert list(heads[0].parameters()) == []
    assert heads[0].temperature == CoAdv().temperature == 0.01  # CLIP's 1/100


def test_the_codes_carry_no_language(tiny_model, batch):
    """Other class names change nothing; in TeCoA they would."""
    found = []
    for names in (["red", "green", "blue", "grey"], ["one", "two", "three", "four"]):
        roles = roles_of(CoAdv(), tiny_model.copy(), names)
        found.append((CoAdv().loss(roles, batch, Example(batch.images))["coadv"], roles.student(batch.images)))
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][1], found[1][1])


# --- two views ------------------------------------------------------------------------------------------------------------------------


def test_img_coadv_by_hand():
    """Cosines (1, 3/5) of the first image with both views, (0, 4/5) of the second: ln(1 + e^-0.4) and ln(1 + e^-0.8)."""
    anchors, views = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert ImgCoAdv(temperature=1.0).contrast(anchors, views).tolist() == pytest.approx([0.5130153, 0.3711007], abs=1e-6)
    assert ImgCoAdv(temperature=0.5).contrast(anchors, views).tolist() == pytest.approx([0.3711007, 0.1839010], abs=1e-6)
    assert ImgCoAdv().contrast(anchors[:1], views[:1]).tolist() == [0.0]  # alone there is nothing to tell apart


def test_the_loss_pulls_the_attacked_image_to_its_own_clean_view(tiny_model, batch):
    defense, roles = ImgCoAdv(), roles_of(ImgCoAdv(), tiny_model)
    adversarial = (batch.images + 0.03).clamp(0, 1)
    anchors, views = roles.student.embed_images(adversarial), roles.student.embed_images(defense.view(batch))
    similarity = (anchors @ views.T / defense.temperature).double().exp()
    expected = -(similarity.diagonal() / similarity.sum(1)).log()
    loss = defense.loss(roles, batch, Example(adversarial))["img_coadv"]
    torch.testing.assert_close(loss.double(), expected.mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(defense.objective(roles, batch)(adversarial).loss.double(), expected, rtol=1e-4, atol=1e-5)


def test_training_goes_through_both_views_and_the_attack_through_one(monkeypatch):
    seen, views = Example(torch.eye(2, requires_grad=True)), torch.tensor([[1.0, 0.2], [0.6, 0.8]], requires_grad=True)
    monkeypatch.setattr(ImgCoAdv, "view", lambda self, batch: views)
    roles, batch = Roles(Given(torch.eye(2)), Given(torch.eye(2))), batch_of(torch.eye(2), [0, 0])
    ImgCoAdv().loss(roles, batch, seen)["img_coadv"].backward()
    assert all(leaf.grad.abs().max() > 1e-3 for leaf in (seen.images, views))
    attacked = ImgCoAdv().objective(roles, batch)(seen.images).loss.sum()
    assert torch.autograd.grad(attacked, views, allow_unused=True)[0] is None


def test_a_view_is_keyed_by_seed_step_and_the_images_id(batch):
    defense = ImgCoAdv()

    def views(rows=slice(None), ids=batch.ids, seed=0, step=0):
        return defense.view(Batch(batch.images[rows], batch.labels[rows], list(ids[rows]), seed, step))

    assert torch.equal(views(), views())
    assert torch.equal(views(slice(3, 5)), views()[3:5])
    for other in (views(seed=1), views(step=1), views(ids=[f"other/{id_}" for id_ in batch.ids])):
        assert (other - views()).abs().flatten(1).max(1).values.min() > 0.01


def test_a_view_is_the_image_cropped_flipped_and_recoloured_inside_the_range(batch):
    x = batch.images
    views = ImgCoAdv().view(batch)
    assert views.shape == x.shape
    assert views.min() >= 0
    assert views.max() <= 1
    bare = ImgCoAdv(crop=1.0, jitter=0.0).view(batch)
    kept, mirrored = ((bare - each).abs().flatten(1).amax(1) < 1e-6 for each in (x, x.flip(-1)))
    assert bool((kept ^ mirrored).all())
    assert kept.any()
    assert mirrored.any()
    flat = torch.full((8, 3, 16, 16), 0.5)
    levels = ImgCoAdv(crop=0.2, jitter=0.3).view(Batch(flat, batch.labels, batch.ids)).flatten(1)
    assert (levels.amax(1) - levels.amin(1)).max() < 1e-5  # no border comes into a crop
    assert 0.35 - 1e-6 <= levels.min() < 0.45 < 0.55 < levels.max() <= 0.65 + 1e-6


# --- a linear head --------------------------------------------------------------------------------------------------------------------


def test_linear_at_by_hand():
    """C(f) = (f_1 + 1, f_2): scores (1, 0) and (1, 1.2) for the features (0, 0) and (0, 1.2), not normalised."""
    head = torch.nn.Linear(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
        head.bias.copy_(torch.tensor([1.0, 0.0]))
    roles, batch = Roles(Given(torch.randn(2, 2)), Given(torch.eye(2)), head), batch_of(torch.randn(2, 2), [0, 0])
    adversarial = torch.tensor([[0.0, 0.0], [0.0, 1.2]])
    assert LinearAT().loss(roles, batch, Example(adversarial))["linear_at"].item() == pytest.approx((HALF + FIFTH) / 2, abs=1e-6)
    assert LinearAT().objective(roles, batch)(adversarial).loss.tolist() == pytest.approx([HALF, FIFTH], abs=1e-6)


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5])
def test_a_head_cannot_take_all_steps(share):
    with pytest.raises(UserError, match="head_share"):
        LinearAT(head_share=share)


def test_item_9_adv_trains_phi_first_on_clean_images_and_leaves_it_alone_in_phase_2(tiny_model, pictures):
    """Phase 1 moves phi and no theta, phase 2 theta and no phi; the rates and parts in the report are each phase's own."""
    x, y, ids = pictures(16)
    learner = learner_of(tiny_model, config(LinearAT(head_share=0.4, head_lr=0.1), batch=16), steps=5)
    head, x8 = learner.roles.head, torch.from_numpy(pixels(x)).permute(0, 3, 1, 2) / 255

    def state():
        return learned(learner), torch.cat([p.detach().flatten() for p in head.parameters()])

    with torch.no_grad():
        clean = F.cross_entropy(head(learner.student.features(x8)), y).item()
    found, states = [], [state()]
    for _ in range(5):
        found.append(step(learner, (pixels(x), y, ids)))
        states.append(state())
        assert all(p.grad is None for p in head.parameters())
    moved = [[not torch.equal(a, b) for a, b in zip(before, after)] for before, after in pairwise(states)]
    assert moved == [[False, True]] * 2 + [[True, False]] * 3
    assert [set(report) for report in found] == [{"loss", "loss/head", "lr"}] * 2 + [{"loss", "loss/linear_at", "lr"}] * 3
    assert [report["lr"] for report in found] == pytest.approx([0.1, 0.1, 3e-3, 3e-3 * 0.75, 3e-3 * 0.25])
    assert found[0]["loss"] == pytest.approx(clean)
    assert found[1]["loss"] < found[0]["loss"]


def test_the_head_is_drawn_by_the_seed_and_is_no_part_of_the_model(tiny_model):
    student = tiny_model.classifier(["a", "b", "c"], TEMPLATES)
    heads = [LinearAT().head(student, seed) for seed in (0, 0, 1)]
    assert heads[0].weight.shape == (3, 16)
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)
    learner = learner_of(tiny_model, config(LinearAT()))
    assert {id(p) for p in learner.roles.head.parameters()}.isdisjoint({id(p) for p in learner.student.parameters()})


# --- clean images ---------------------------------------------------------------------------------------------------------------------


def test_clean_ce_by_hand_looks_at_clean_images_alone():
    roles = Roles(Given(torch.eye(2)), Given(torch.eye(2)))
    batch = batch_of(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), [0, 0])
    assert CleanCE().loss(roles, batch, Example(torch.zeros(2, 2)))["clean"].item() == pytest.approx((HALF + FIFTH) / 2, abs=1e-6)
    assert CleanCE().objective(roles, batch) is None


def test_clean_ce_costs_no_attack(tiny_model, pictures):
    """One forward and no start: the images that train are the clean ones, at any eps."""
    x, y, ids = pictures(4)
    learner, passes = learner_of(tiny_model, config(CleanCE(), eps=16.0, batch=4)), []
    learner.student.register_forward_hook(lambda module, args, output: passes.append(args[0]))
    learner.accumulate(pixels(x), y, ids)
    (images,) = passes
    torch.testing.assert_close(images, torch.from_numpy(pixels(x)).permute(0, 3, 1, 2) / 255)
