"""PMG-AFT, TRADES and mixtures by hand, on two images of two classes whose logits are the images."""

from math import log

import pytest
import torch
from parts import Given, config, learned, learner_of, pixels, roles_of, step

from robustclip.attacks.base import Example
from robustclip.attacks.pgd import gradient
from robustclip.base.errors import UserError
from robustclip.defenses import FARE, PMGAFT, TRADES, Batch, CleanCE, CoAdv, ImgCoAdv, LinearAT, Mix, PseudoTeCoA, Roles, TeCoA
from robustclip.defenses.guided import divergence

SURE, EVEN = [log(3), 0.0], [0.0, 0.0]  # p = (3/4, 1/4) and (1/2, 1/2)
CE = -log(3 / 4)
SURE_EVEN = 3 / 4 * log(3 / 2) + 1 / 4 * log(1 / 2)  # KL((3/4, 1/4) || (1/2, 1/2))
EVEN_SURE = 1 / 2 * log(2 / 3) + 1 / 2 * log(2)


def roles(scale=1.0, teacher_scale=2.0):
    return Roles(Given(torch.eye(2), scale), Given(torch.eye(2), teacher_scale))


def loss(defense, clean, adversarial, labels=(0,)):
    batch = Batch(torch.tensor(clean), torch.tensor(labels), [str(i) for i in range(len(labels))])
    return {name: value.item() for name, value in defense.loss(roles(), batch, Example(torch.tensor(adversarial))).items()}


def near(values):
    return pytest.approx(values, abs=1e-6)


def test_the_divergence_by_hand_and_its_direction():
    p, q = torch.tensor([SURE, EVEN, SURE]), torch.tensor([EVEN, SURE, SURE])
    assert divergence(p, q).tolist() == near([SURE_EVEN, EVEN_SURE, 0.0])
    assert abs(SURE_EVEN - 0.130812) < 1e-6
    torch.testing.assert_close(divergence(p + 5, q - 3), divergence(p, q))  # logits have no zero
    assert divergence(p.double(), q.double()).dtype == torch.float64
    assert divergence(p.bfloat16(), q.bfloat16()).dtype == torch.float32


def test_pmg_aft_by_hand():
    """p(x_a) = (3/4, 1/4), p(x) = (1/2, 1/2), and the original model, twice as sure, says (9/10, 1/10) of x_a."""
    general = 9 / 10 * log(9 / 10 / (3 / 4)) + 1 / 10 * log(1 / 10 / (1 / 4))
    assert loss(PMGAFT(), [EVEN], [SURE]) == near({"pmg_robust": CE, "pmg_general": general, "pmg_clean": EVEN_SURE})
    weighted = loss(PMGAFT(general=2.0, clean=0.5), [EVEN, SURE], [SURE, SURE], (0, 1))
    assert weighted == near({"pmg_robust": (CE + log(4)) / 2, "pmg_general": 2 * general, "pmg_clean": 0.25 * EVEN_SURE})


def test_pmg_aft_learns_through_the_adversarial_and_the_clean_prediction_but_not_the_original():
    clean, adversarial = torch.tensor([EVEN], requires_grad=True), torch.tensor([SURE], requires_grad=True)
    parts = PMGAFT().loss(roles(), Batch(clean, torch.tensor([0]), ["a"]), Example(adversarial))
    (g,) = torch.autograd.grad(parts["pmg_clean"], clean, retain_graph=True)
    # d KL(p || q) / d z_k = p_k (log p_k/q_k - KL) for the logits of p, q_k - p_k for those of q.
    p, q = torch.tensor([[1 / 2, 1 / 2]]), torch.tensor([[3 / 4, 1 / 4]])
    ratio = (p / q).log()
    torch.testing.assert_close(g, p * (ratio - (p * ratio).sum()))
    (g,) = torch.autograd.grad(parts["pmg_clean"], adversarial, retain_graph=True)
    torch.testing.assert_close(g, q - p)
    (g,) = torch.autograd.grad(parts["pmg_general"], adversarial)
    torch.testing.assert_close(g, q - torch.tensor([[9 / 10, 1 / 10]]))


def test_trades_by_hand():
    assert loss(TRADES(), [SURE], [EVEN]) == near({"trades_clean": CE, "trades_kl": 6 * SURE_EVEN})
    two = loss(TRADES(beta=2.0), [SURE, EVEN], [EVEN, SURE], (0, 0))
    assert two == near({"trades_clean": (CE + log(2)) / 2, "trades_kl": SURE_EVEN + EVEN_SURE})


def test_trades_attacks_the_divergence_and_needs_a_start():
    """Its objective is KL(p(x) || p(x + delta)) with p(x) fixed: 0 with gradient 0 at x, q - p beside it, and blind to the label."""
    x = torch.tensor([SURE])
    for label in (0, 1):
        objective = TRADES().objective(roles(), Batch(x, torch.tensor([label]), ["a"]))
        scored, g = gradient(objective, x)
        assert scored.loss.item() == 0.0
        assert g.abs().max() < 1e-7
        scored, g = gradient(objective, torch.tensor([EVEN]))
        assert scored.loss.item() == near(SURE_EVEN)
        torch.testing.assert_close(g, torch.tensor([[-1 / 4, 1 / 4]]))


def test_trades_learns_through_both_predictions():
    clean, adversarial = torch.tensor([SURE], requires_grad=True), torch.tensor([EVEN], requires_grad=True)
    parts = TRADES().loss(roles(), Batch(clean, torch.tensor([0]), ["a"]), Example(adversarial))
    for images in (clean, adversarial):
        (g,) = torch.autograd.grad(parts["trades_kl"], images, retain_graph=True)
        assert g.abs().min() > 0.5


# --- mixtures -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def batch(pictures):
    return Batch(*pictures(8))


def test_a_mix_is_the_weighted_sum_of_losses_and_of_objectives(tiny_model, batch):
    mix = Mix((TeCoA(), FARE(), CoAdv(), CleanCE()), (1.0, 0.5, 0.25, 2.0))
    both, moved = roles_of(mix, tiny_model), batch.images * 0.9
    own = [Roles(both.student, both.teacher, both.head["2"] if isinstance(part, CoAdv) else None) for part in mix.parts]
    parts = mix.loss(both, batch, Example(moved))
    assert list(parts) == ["tecoa", "fare", "coadv", "clean"]
    for part, weight, alone, name in zip(mix.parts, mix.weights, own, parts):
        torch.testing.assert_close(parts[name], weight * part.loss(alone, batch, Example(moved))[name])
    attacked = zip(mix.parts[:3], mix.weights, own)
    expected = sum(weight * part.objective(alone, batch)(moved).loss for part, weight, alone in attacked)
    torch.testing.assert_close(mix.objective(both, batch)(moved).loss, expected)


def test_members_of_one_kind_keep_both_their_parts(tiny_model, batch):
    mix = Mix((FARE(), TeCoA(), FARE("l1"), FARE(clean_weight=0.5)), (1.0, 1.0, 3.0, 1.0))
    parts = mix.loss(roles_of(mix, tiny_model), batch, Example(batch.images * 0.9))
    assert list(parts) == ["fare", "tecoa", "fare_2", "fare_3", "fare_clean"]
    torch.testing.assert_close(parts["fare_3"], 0.5 * parts["fare"])


@pytest.mark.parametrize(
    ("mix", "alone"),
    [(Mix((TeCoA(), FARE()), (1.0, 0.0)), TeCoA()), (Mix((CoAdv(), TRADES()), (0.0, 1.0)), TRADES()), (Mix((CoAdv(),), (1.0,)), CoAdv())],
    ids=["TeCoA", "TRADES", "CoAdv"],
)
def test_a_member_of_weight_0_takes_no_part(mix, alone, make_model, pictures):
    """The run is the other member's to the bit, whatever the member without weight would read of the student."""
    x, y, ids = pictures(8)
    assert (mix.reads, mix.whole_batch) == (alone.reads, alone.whole_batch)
    learners = [learner_of(make_model(), config(defense, batch=8, lr=1e-3)) for defense in (mix, alone)]
    reports = [[step(learner, (pixels(x), y, ids)) for _ in range(2)] for learner in learners]
    assert reports[0] == reports[1]
    assert torch.equal(learned(learners[0]), learned(learners[1]))


def test_what_a_mix_reads_and_attacks_is_what_its_members_do(tiny_model, batch):
    assert Mix((TeCoA(), TRADES()), (1.0, 1.0)).reads == "logits"
    assert Mix((TeCoA(), ImgCoAdv()), (1.0, 1.0)).reads == "features"
    assert Mix((TeCoA(), ImgCoAdv()), (1.0, 1.0)).whole_batch
    assert not Mix((TeCoA(), CoAdv()), (1.0, 1.0)).whole_batch
    clean = Mix((CleanCE(), CleanCE()), (1.0, 1.0))
    assert clean.objective(roles_of(clean, tiny_model), batch) is None
    assert Mix((TeCoA(), PseudoTeCoA()), (1.0, 1.0)).head(tiny_model.classifier(["a"], ["{}"]), 0) is None


def test_a_mix_of_tecoa_and_its_teacher_by_hand():
    """Weights (1, 2) of TeCoA (2/2 images right by 3 to 1) and FARE (the teacher sees what the student sees: the images)."""
    mix = Mix((TeCoA(), FARE()), (1.0, 2.0))
    assert loss(mix, [[1.0, 0.0], [0.0, 0.0]], [SURE, [0.0, log(3)]], (0, 1)) == near(
        {"tecoa": CE, "fare": 2 * ((log(3) - 1) ** 2 + log(3) ** 2) / 2}
    )


@pytest.mark.parametrize(
    ("parts", "weights", "said"),
    [
        ((TeCoA(),), (1.0, 1.0), "one weight, not negative, for each of 1 parts"),
        ((TeCoA(), FARE()), (1.0, -0.5), "not negative"),
        ((TeCoA(), FARE()), (0.0, 0.0), "one weight"),
        ((), (), "one weight"),
        ((TeCoA(), LinearAT()), (1.0, 1.0), "LinearAT trains in two stages"),
    ],
)
def test_a_mix_that_makes_no_sense_is_refused(parts, weights, said):
    with pytest.raises(UserError, match=said):
        Mix(parts, weights)


def test_the_loss_is_linear_in_the_weights(tiny_model, batch):
    """(1 - w) TeCoA + w FARE: what a sweep over weights rests on."""
    roles, found = roles_of(TeCoA(), tiny_model), []
    for w in (0.25, 0.5, 0.75):
        parts = Mix((TeCoA(), FARE()), (1 - w, w)).loss(roles, batch, Example(batch.images * 0.9))
        found.append(sum(value.item() for value in parts.values()))
    assert found[1] == pytest.approx((found[0] + found[2]) / 2)
    assert abs(found[0] - found[2]) > 0.1
