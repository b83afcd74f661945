"""FARE's "How to know it is right" (fare.md, section 10), item by item: what needs no real weights."""

from dataclasses import replace

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from parts import Given, config, learned, learner_of, pixels, roles_of, step
from summing import heard
from torch import nn
from toys import Linear, Wavy, ids_of, middle

from robustclip.attacks import APGD, APGDT
from robustclip.attacks.base import Example, Scored
from robustclip.attacks.losses import cross_entropy
from robustclip.attacks.pgd import gradient, move, pgd, random_start
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball
from robustclip.defenses import FARE, Batch, Roles
from robustclip.evaluation.cascade import run_cascade
from robustclip.evaluation.presets import PRESETS
from robustclip.evaluation.protocols import Protocol
from robustclip.models import checkpoints, zoo
from robustclip.training.config import InnerAttack, Optim
from robustclip.training.optimiser import lr_at
from robustclip.training.recipes import RECIPES


class Tower(nn.Module):
    """A tower that is one linear map of the pixels."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def features(self, x):
        return x.flatten(1) @ self.weight.T


@pytest.fixture
def batch(pictures):
    return Batch(*pictures(8))


def distance(a, b, **settings):
    """Return FARE's loss where the student says a and the teacher b."""
    a, b = torch.tensor(a), torch.tensor(b)
    student, teacher = Given(torch.eye(2)), Given(torch.eye(2))
    teacher.features = lambda images: b
    return FARE(**settings).loss(Roles(student, teacher), Batch(b, torch.zeros(len(b)), ids_of(len(b))), Example(a))["fare"].item()


def test_fare_item_1_without_a_perturbation_the_loss_is_exactly_0_and_stays_0(tiny_model, pictures):
    x, y, ids = pictures(8)
    learner = learner_of(tiny_model, config(FARE(), eps=0.0, batch=8, lr=0.1, weight_decay=0.0))
    before = learned(learner)
    assert [step(learner, (pixels(x), y, ids))["loss"] for _ in range(3)] == [0.0] * 3
    assert torch.equal(learned(learner), before)


def test_fare_item_1_an_attack_from_delta_0_does_not_move_so_the_random_start_is_required(tiny_model, batch):
    learner = learner_of(tiny_model, config(FARE()))
    objective, ball = FARE().objective(learner.roles, batch), Ball("Linf", 4.0)
    assert gradient(objective, batch.images)[1].abs().max() == 0
    assert torch.equal(pgd(objective, batch.images, ball, steps=10, alpha=0.25), batch.images)
    start = random_start(ball, batch.images, batch.ids, 0)
    moved = pgd(objective, batch.images, ball, steps=10, alpha=0.25, start=start)
    assert objective(moved).loss.min() > 2 * objective(move(batch.images, start, ball)).loss.max() > 0


def test_fare_item_2_the_loss_is_summed_over_features_and_averaged_over_images():
    """|(1,2) - (0,4)|^2 = 5 and |(3,0) - (0,0)|^2 = 9: 7 on average; their sums of absolute differences are 3 and 3."""
    a, b = [[1.0, 2.0], [3.0, 0.0]], [[0.0, 4.0], [0.0, 0.0]]
    assert distance(a, b) == 7.0
    assert distance(a, b, distance="l1") == 3.0
    assert distance(a[:1], b[:1]) == 5.0  # a batch of one works
    assert distance([2 * row for row in a], [2 * row for row in b]) == 14.0  # each feature twice (a list doubles by repetition)
    assert distance([[10.0, 0.0]], [[5.0, 0.0]]) == 25.0  # not normalised: of unit features it would be 0


def test_fare_item_3_the_original_is_bit_identical_after_100_steps(tiny_model, pictures):
    x, y, ids = pictures(4)
    learner = learner_of(tiny_model, config(FARE(), batch=4, eps=4.0, attack=InnerAttack(1, 0.75)), steps=100)
    before = {name: value.clone() for name, value in learner.teacher.state_dict().items()}
    learner.attacked(Batch(x, y, ids))
    assert all(p.grad is None for p in learner.student.parameters())
    start = learned(learner)
    for _ in range(100):
        learner.accumulate(pixels(x), y, ids)
        texts = [p for name, p in learner.model.clip.named_parameters() if not name.startswith("visual.")]
        assert all(p.grad is None for p in (*learner.teacher.parameters(), *texts))
        learner.update()
    assert all(torch.equal(value, before[name]) for name, value in learner.teacher.state_dict().items())
    assert not any(p.requires_grad for p in learner.teacher.parameters())
    assert (learned(learner) - start).abs().max() > 1e-3


def test_fare_item_4_pgd_reaches_the_closed_form_of_a_linear_tower():
    """phi(x) = w x: both eps sign(w) and -eps sign(w) are optimal, with (eps |w|_1)^2."""
    g = torch.Generator().manual_seed(0)
    w, x, ball = torch.randn(1, 48, generator=g), middle(6), Ball("Linf", 8.0)
    tower = Tower(w)
    objective = FARE().objective(Roles(tower, tower), Batch(x, torch.zeros(6), ids_of(6)))
    found = pgd(objective, x, ball, steps=10, alpha=0.5, start=random_start(ball, x, ids_of(6), 0))
    delta = (found - x).flatten(1)
    side = (delta @ w[0]).sign()[:, None]
    torch.testing.assert_close(delta, side * ball.radius * w.sign().expand(6, -1), atol=1e-6, rtol=0)
    torch.testing.assert_close(objective(found).loss, ((ball.radius * w.abs().sum()) ** 2).expand(6))
    assert side.unique().numel() == 2  # starts differ, so both are met


def test_fare_item_5_the_published_momentum_is_plain_sign_pgd(tiny_model, batch):
    """v <- sign(0.9 v + sign(g)), delta <- clip(delta + alpha v): the same delta from the same start, bit for bit."""
    roles, ball = roles_of(FARE(), tiny_model), Ball("Linf", 4.0)
    objective, start = FARE().objective(roles, batch), random_start(ball, batch.images, batch.ids, 0)
    x, v = move(batch.images, start, ball), torch.zeros_like(batch.images)
    for _ in range(10):
        _, g = gradient(objective, x)
        assert (g == 0).sum() == 0
        v = (0.9 * v + g.sign()).sign()
        x = move(batch.images, x - batch.images + 0.25 * ball.radius * v, ball)
    assert torch.equal(x, pgd(objective, batch.images, ball, steps=10, alpha=0.25, start=start))


def test_fare_item_6_the_current_target_moves_with_the_model_and_the_original_does_not(tiny_model, batch):
    found, adversarial = {}, Example((batch.images + 0.02).clamp(0, 1))
    roles = roles_of(FARE(), tiny_model)
    for target in ("original", "current"):
        found[target] = FARE(target=target).loss(roles, batch, adversarial)["fare"]
    features = roles.student.features(adversarial.images)
    for target, model in (("original", roles.teacher), ("current", roles.student)):
        expected = (features - model.features(batch.images).detach()).square().sum(1).mean()
        torch.testing.assert_close(found[target], expected)
    assert found["current"] < found["original"] / 2
    roles.student.clip.visual.requires_grad_(True)
    leaf = batch.images.clone().requires_grad_(True)  # the target is held fixed, so nothing flows through the clean image
    loss = FARE(target="current").loss(roles, replace(batch, images=leaf), Example(batch.images * 0.9))["fare"]
    assert torch.autograd.grad(loss, leaf, allow_unused=True)[0] is None


def test_fare_item_6_a_clean_weight_of_1_ignores_the_attack_and_0_the_clean_image(tiny_model, batch):
    roles, near, far = roles_of(FARE(), tiny_model), Example(batch.images * 0.95), Example(batch.images * 0.5)
    parts = {w: [FARE(clean_weight=w).loss(roles, batch, adversarial) for adversarial in (near, far)] for w in (0.0, 0.25, 1.0)}
    assert list(parts[1.0][0]) == ["fare_clean"]
    assert torch.equal(parts[1.0][0]["fare_clean"], parts[1.0][1]["fare_clean"])
    clean = (roles.student.features(batch.images) - roles.teacher.features(batch.images)).square().sum(1).mean()
    torch.testing.assert_close(parts[1.0][0]["fare_clean"], clean)
    assert list(parts[0.0][0]) == ["fare"]
    torch.testing.assert_close(parts[0.25][1]["fare"], 0.75 * parts[0.0][1]["fare"])
    torch.testing.assert_close(parts[0.25][1]["fare_clean"], 0.25 * clean)
    both = FARE(target="current", clean_weight=0.25).loss(roles, batch, near)["fare_clean"]
    torch.testing.assert_close(both, 0.25 * clean)  # of the current model's own target there is nothing to learn on clean images
    with pytest.raises(UserError, match="share between 0 and 1"):
        FARE(clean_weight=1.5)


def test_fare_item_7_two_workers_with_half_a_batch_have_the_gradient_of_one(make_model, pictures):
    x, y, ids = pictures(8)
    sent = []
    for rows in (range(8), range(4), range(4, 8)):  # what a worker would send is its share of the step
        options = {"dtype": torch.float64, "world": heard(sent)}
        learner = learner_of(make_model(), config(FARE(), batch=8), **options)
        learner.accumulate(pixels(x[list(rows)]), y[list(rows)], [ids[i] for i in rows])
        learner.update()
    (whole, _), (first, _), (second, _) = zip(sent[::2], sent[1::2], strict=True)  # gradients, losses
    torch.testing.assert_close(first + second, whole, atol=1e-12, rtol=1e-9)
    assert whole.abs().max() > 1e-3


def test_fare_item_7_the_schedule_of_the_paper():
    """lr (t+1)/1400 in the warm-up, the peak at 1400, next to nothing at the end of 20,000 steps."""
    optim = Optim(lr=1e-5, warmup=1400)
    at = [lr_at(t, optim, 20_000) for t in (0, 699, 1399, 1400, 10_700, 20_000)]
    assert at == pytest.approx([1e-5 / 1400, 0.5e-5, 1e-5, 1e-5, 0.5e-5, 0.0], abs=1e-12)
    assert lr_at(19_999, optim, 20_000) < 1e-12


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-L-14"])
def test_fare_item_8_openai_weights_get_quickgelu_in_every_mlp(name):
    """The architecture that the recipes name has it; the one without the suffix has not, and is refused for these weights."""
    found = {}
    for architecture in (f"{name}-quickgelu", name):
        with torch.device("meta"):
            clip = checkpoints.build({"model_cfg": open_clip.get_model_config(architecture)})
        found[architecture] = {type(block.mlp.gelu) for block in clip.modules() if isinstance(block, ResidualAttentionBlock)}
    assert found == {f"{name}-quickgelu": {QuickGELU}, name: {nn.GELU}}
    with pytest.raises(UserError, match=f"{name}-quickgelu/openai"):
        zoo.check(f"open_clip:{name}/openai")
    used = {recipe.config.model for recipe in RECIPES.values() if recipe.config.model.endswith("/openai")}
    assert f"open_clip:{name}-quickgelu/openai" in used
    assert all(each.endswith("-quickgelu/openai") for each in used)


def test_fare_item_9_a_binary_set_meets_apgd_ce_alone():
    attacks = PRESETS["fare-13"].attacks
    assert attacks == (APGD(100, restarts=5), APGDT(100, targets=9))
    assert PRESETS["fare-13"].attacks_on("pcam") == attacks[:1]
    assert PRESETS["fare-13"].attacks_on("cifar10") == attacks


def test_fare_item_9_each_attack_only_lowers_accuracy_and_restarts_only_help():
    """After APGD-T no more images are right than after APGD-CE, with 5 restarts no more than with 1, in batches of any size."""
    classifier, x, ids = Wavy(seed=2).eval(), middle(24, 6), ids_of(24)
    y = classifier(x).argmax(1)

    def right(attacks, size=8):
        settings = {"name": "test", "sets": ("toy",), "attacks": attacks, "eps": (4.0,), "micro_batch": size}
        rows = run_cascade(classifier, x, y, ids, Protocol(**settings))
        return {id_ for id_ in ids if all(row["correct"] for row in rows if row["image_id"] == id_)}

    one, five = (APGD(3, restarts=n) for n in (1, 5))
    assert right((five,)) < right((one,)) < set(ids)
    assert right((one, APGDT(3, targets=3))) < right((one,))
    assert right((five,), 6) == right((five,))


def test_fare_item_10_a_short_training_lowers_l_adv_much_more_than_l_clean_rises(tiny_model, pictures):
    """Table 14's pattern: at a fixed eps and from fixed starts, before and after 20 steps."""
    x, y, ids = pictures(32)
    learner = learner_of(tiny_model, config(FARE(), eps=8.0, batch=32, lr=5e-4, weight_decay=0.0), steps=20)
    batch, ball = Batch(x, y, ids), Ball("Linf", 8.0)

    def losses():
        start = random_start(ball, x, ids, 9)
        adversarial = pgd(FARE().objective(learner.roles, batch), x, ball, steps=10, alpha=0.25, start=start)
        with torch.no_grad():
            parts = FARE(clean_weight=0.5).loss(learner.roles, batch, Example(adversarial))
        return 2 * parts["fare_clean"].item(), 2 * parts["fare"].item()

    clean, adv = losses()
    for _ in range(20):
        step(learner, (pixels(x), y, ids))
    later_clean, later_adv = losses()
    print(f"L_clean {clean:.3g} -> {later_clean:.3g}, L_adv {adv:.3g} -> {later_adv:.3g}")
    assert clean < 1e-9
    assert later_adv < 0.8 * adv
    assert later_clean < 0.5 * (adv - later_adv)


def test_the_objective_scores_without_a_verdict_for_there_are_no_labels(tiny_model, batch):
    scored = FARE().objective(roles_of(FARE(), tiny_model), batch)(batch.images)
    assert isinstance(scored, Scored)
    assert scored.fooled is None
    assert cross_entropy(Linear(4, size=16), batch.labels)(batch.images).fooled is not None
