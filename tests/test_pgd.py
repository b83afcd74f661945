"""PGD: inside its ball, on the right gradient, of the model as it is; and what every gradient attack shares."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import NEEDS_LIBRARY, Linear, Wavy, all_of, ids_of, middle, only_loss, scored_by

from robustclip.attacks import APGD, APGDT, MIFGSM, PGD, Library, Scored
from robustclip.attacks.apgd import apgd, surface_start
from robustclip.attacks.losses import cross_entropy
from robustclip.attacks.pgd import frozen, gradient, micro_batches, pgd, pgd_best, random_start, resisting
from robustclip.base.threat import Ball
from robustclip.models.dress import PixelPrompt, TokenPrompt
from robustclip.training.installing import install

NAMES, TEMPLATES = ["red", "green", "blue", "grey"], ["a photo of a {}."]
TOLERANCE = 1e-6


@settings(max_examples=60)
@given(
    norm=st.sampled_from(["Linf", "L2"]),
    eps=st.floats(0, 80),
    steps=st.integers(0, 4),
    alpha=st.floats(0, 3),
    seed=st.integers(0, 9),
    kind=st.sampled_from([pgd, pgd_best, apgd]),
)
def test_item_3_every_perturbation_stays_in_its_ball_and_every_image_in_range(norm, eps, steps, alpha, seed, kind):
    ball, g = Ball(norm, eps), torch.Generator().manual_seed(seed)
    x = (torch.rand(3, 3, 4, 4, generator=g) * 1.5 - 0.25).clamp(0, 1)  # a quarter of the pixels are at the border
    classifier, labels, start = Linear(4, seed=seed), torch.arange(3), random_start(ball, x, ids_of(3), seed)
    if kind is pgd:
        adversarial = pgd(cross_entropy(classifier, labels), x, ball, steps=steps, alpha=alpha, start=start)
    else:
        score, step = resisting(lambda places: cross_entropy(classifier, labels[places]), None), {} if kind is apgd else {"alpha": alpha}
        adversarial, _ = kind(score, x, ball, steps=steps, start=start, todo=all_of(x), **step)
    assert bool((ball.size(adversarial - x) <= ball.radius + TOLERANCE).all())
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert torch.equal(adversarial, x) or eps > 0


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_item_3_no_eps_or_no_steps_return_the_images_bit_for_bit(norm):
    x = torch.rand(3, 3, 4, 4)
    objective = cross_entropy(Linear(), torch.zeros(3, dtype=torch.long))
    for eps, steps in ((0.0, 5), (4.0, 0)):
        start = random_start(Ball(norm, 4.0), x, ids_of(3), 0)
        assert torch.equal(pgd(objective, x, Ball(norm, eps), steps=steps, alpha=1.0, start=start), x)
    for attack in (PGD(5), APGD(5), PGD(5, restarts=2), Library("FGSM")):
        assert torch.equal(attack(Linear(), x, torch.zeros(3, dtype=torch.long), ids_of(3), Ball("Linf", 0.0), 0).images, x)
    assert torch.equal(PGD(0)(Linear(), x, torch.zeros(3, dtype=torch.long), ids_of(3), Ball(norm, 4.0), 0).images, x)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_starts_fill_the_ball_and_depend_on_their_id_alone(norm):
    ball, x = Ball(norm, 8.0), torch.zeros(64, 3, 4, 4)
    starts = random_start(ball, x, ids_of(64), 0, "test")
    sizes = ball.size(starts) / ball.radius
    assert sizes.max() <= 1 + 1e-6
    assert sizes.min() > 0.8  # in 48 dimensions nearly all of a ball is near its surface
    assert starts.mean().abs() < 0.1 * ball.radius
    alone = random_start(ball, x[:1], ["image/7"], 0, "test")
    assert torch.equal(alone[0], starts[7])
    assert not torch.equal(random_start(ball, x[:1], ["image/7"], 1, "test")[0], starts[7])
    torch.testing.assert_close(ball.size(surface_start(ball, x, ids_of(64), 0)), torch.full((64,), ball.radius))


def in_fp16_with_mean(classifier, y):
    """Return the trap of published codes: half precision and a mean over the batch."""

    def objective(x):
        logits = x.flatten(1).half() @ classifier.w.T.half()
        return Scored((F.cross_entropy(logits, y, reduction="none") / len(y)).float())

    return objective


def in_fp32_with_mean(classifier, y):
    return lambda x: Scored(F.cross_entropy(classifier(x), y, reduction="none") / len(y))


def delta_in_batches_of(size, objective_of, classifier, x, y, ball):
    parts = []
    for part in torch.arange(len(x)).split(size):
        start = random_start(ball, x[part], [ids_of(len(x))[i] for i in part], 0)
        parts.append(pgd(objective_of(classifier, y[part]), x[part], ball, steps=3, alpha=0.5, start=start) - x[part])
    return torch.cat(parts)


def confident(n=16, classes=10):
    """Return a linear classifier, n variations of an image [n,3,4,4] and their labels, with 1 - p of about 3e-7."""
    classifier, x = Linear(classes), middle(1) + 0.005 * torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first, second = classifier(x).mean(0).topk(2).values
        classifier.w *= 15 / (first - second)
    return classifier, x, classifier(x).argmax(1)


def test_item_4_sum_and_mean_and_batch_sizes_give_the_same_delta_in_fp32():
    classifier, x, y = confident()
    ball = Ball("Linf", 4.0)
    p = classifier(x).softmax(1).gather(1, y[:, None])
    assert p.min() > 0.9999
    alone = delta_in_batches_of(1, cross_entropy, classifier, x, y, ball)
    for size in (4, 16):
        assert torch.equal(delta_in_batches_of(size, cross_entropy, classifier, x, y, ball), alone)
    assert torch.equal(delta_in_batches_of(16, in_fp32_with_mean, classifier, x, y, ball), alone)


def test_the_gradient_is_of_the_sum_and_leaves_none_on_parameters():
    classifier, x, y = Linear(4), middle(6), torch.arange(6) % 4
    _, together = gradient(cross_entropy(classifier, y), x)
    alone = torch.cat([gradient(cross_entropy(classifier, y[i : i + 1]), x[i : i + 1])[1] for i in range(6)])
    torch.testing.assert_close(together, alone)
    assert classifier.w.requires_grad
    assert classifier.w.grad is None
    assert not x.requires_grad


def test_item_4_fp16_with_a_mean_fails_that_very_check():
    """This documents the trap (TeCoA section 7): confident images of a large batch lose their gradient and look robust."""
    classifier, x, y = confident()
    ball = Ball("Linf", 4.0)
    alone = delta_in_batches_of(1, in_fp16_with_mean, classifier, x, y, ball)
    together = delta_in_batches_of(16, in_fp16_with_mean, classifier, x, y, ball)
    assert not torch.equal(alone, together)


def test_item_4_confident_images_keep_their_gradient(tiny_model, pictures):
    x, _, ids = pictures(16)
    classifier = tiny_model.classifier(NAMES, TEMPLATES)
    with torch.no_grad():
        first, second = classifier(x).topk(2, 1).values.T
        classifier.clip.logit_scale += (20 / (first - second).median()).log()  # half of the images have p_y > 1 - 2e-9
        p, y = classifier(x).softmax(1).max(1)
    sure = p > 0.9999
    assert sure.sum() >= 8
    trace = PGD(2)(classifier, x, y, ids, Ball("Linf", 0.1), 0).trace
    assert trace.zero_gradient[sure].max() < 0.01
    assert trace.nonfinite_gradient.max() == 0


def test_non_finite_gradients_are_counted_and_do_not_move_the_image():
    def objective(x):
        return Scored(torch.stack([(x[0] * 0).sqrt().sum(), x[1].sum()]))

    x, ball = middle(2), Ball("Linf", 4.0)
    images, trace = pgd_best(scored_by(objective), x, ball, steps=2, alpha=1.0, start=None, todo=all_of(x))
    assert trace.nonfinite_gradient.tolist() == [1.0, 0.0]
    torch.testing.assert_close(images[0], x[0])
    torch.testing.assert_close(images[1], x[1] + ball.radius)


def state_of(module):
    return {n: m.training for n, m in module.named_modules()}, {n: p.requires_grad for n, p in module.named_parameters()}


@NEEDS_LIBRARY
def test_item_2_an_attack_leaves_no_gradient_and_restores_every_mode(tiny_classifier, pictures):
    x, y, ids = pictures(4)
    tiny_classifier.clip.visual.requires_grad_(True)
    tiny_classifier.clip.visual.transformer.train()
    before = state_of(tiny_classifier)
    weights = {name: value.clone() for name, value in tiny_classifier.state_dict().items()}
    for attack in (PGD(2), APGD(2), Library("FGSM")):
        attack(tiny_classifier, x, y, ids, Ball("Linf", 4.0), 0)
    assert state_of(tiny_classifier) == before
    assert {*before[0].values()} == {*before[1].values()} == {True, False}
    assert all(p.grad is None for p in tiny_classifier.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in tiny_classifier.state_dict().items())


def test_modes_are_restored_after_an_error():
    tower = Wavy().train()
    with pytest.raises(RuntimeError, match="shape"), frozen(tower):
        tower(torch.zeros(1, 3, 40, 40))
    assert all(m.training for m in tower.modules())
    assert all(p.requires_grad for p in tower.parameters())


def test_item_6_dropout_is_off_so_two_attacks_agree():
    tower, x, y = Wavy().train(), middle(4, 6), torch.arange(4)
    statistics = tower.layers[1].running_mean.clone()
    runs = [PGD(3)(tower, x, y, ids_of(4), Ball("Linf", 8.0), 0).images for _ in range(2)]
    assert torch.equal(*runs)
    assert torch.equal(tower.layers[1].running_mean, statistics)
    assert not torch.equal(tower(x), tower(x))  # in training mode it would differ


def test_item_5_the_resize_is_inside_the_graph(tiny_model):
    """Delta has the native size, and what the tower sees moves by at most eps/std (bilinear: bicubic may overshoot by its lobes)."""
    classifier = tiny_model.classifier(NAMES, TEMPLATES)
    classifier.preprocess = type(classifier.preprocess)(**{**vars(classifier.preprocess), "interpolation": "bilinear"})
    seen = []
    for size in (8, 16, 32):
        x, ball = torch.rand(3, 3, size, size), Ball("Linf", 8.0)
        adversarial = pgd(cross_entropy(classifier, torch.arange(3)), x, ball, steps=2, alpha=1.0)
        assert adversarial.shape == x.shape
        handle = classifier.clip.visual.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        with torch.no_grad():
            classifier(x), classifier(adversarial)
        handle.remove()
        change = (seen.pop() - seen.pop()).abs().amax((0, 2, 3))
        limit = ball.radius / classifier.std.flatten()
        assert bool((change <= limit * (1 + 1e-4)).all())
        assert bool((change > 0.2 * limit).all())


@pytest.mark.parametrize(
    "trainable", [PixelPrompt("pad", 2), PixelPrompt("random patch", 8), TokenPrompt(3), TokenPrompt(2, deep=True)], ids=str
)
@pytest.mark.parametrize("kind", ["pgd", "apgd"])
def test_item_7_gradients_flow_through_the_prompt(tiny_model, pictures, trainable, kind):
    """The prompted model is attacked: its own attack beats the one found on plain CLIP."""
    x, y, ids = pictures(16)
    plain = tiny_model.classifier(NAMES, TEMPLATES)
    prompted = install(trainable, tiny_model, 0, NAMES)[0].classifier(NAMES, TEMPLATES)
    ball = Ball("Linf", 8.0)
    start = random_start(ball, x, ids, 0)
    losses = []
    for classifier in (prompted, plain):
        objective = only_loss(cross_entropy(classifier, y))
        run = apgd if kind == "apgd" else pgd_best
        images, _ = run(scored_by(objective), x, ball, steps=5, start=start, todo=all_of(x), **({} if kind == "apgd" else {"alpha": 0.5}))
        losses.append(cross_entropy(prompted, y)(images).loss.detach())
    assert (losses[0] - losses[1]).mean() > 0
    with frozen(prompted):
        g_prompted, g_plain = (gradient(cross_entropy(c, y), x)[1] for c in (prompted, plain))
    assert not torch.allclose(g_prompted, g_plain, rtol=1e-2)


def test_micro_batches_cover_every_place_once_and_are_all_full():
    for n, size in ((0, 4), (1, 4), (4, 4), (9, 4)):
        parts = list(micro_batches(torch.arange(n) * 3, size))
        assert torch.cat([part for part, _ in parts] or [torch.arange(0)]).tolist() == [3 * i for i in range(n)]
        for part, padded in parts:
            assert len(padded) == size
            assert padded[: len(part)].tolist() == part.tolist()
            assert {*padded[len(part) :].tolist()} <= {int(part[-1])}


REPACKED = (
    PGD(6, restarts=2),
    APGD(6, restarts=2),
    APGD(6, loss="dlr"),
    APGDT(4, targets=3, restarts=2),
    MIFGSM(6, alpha=0.5, diversity=0.5),
)


@pytest.mark.parametrize("attack", REPACKED, ids=lambda attack: attack.name)
def test_an_attack_repacks_what_resists_and_changes_no_bit(attack, tiny_model, pictures):
    """In micro-batches of 4: fewer are computed than one by one slots would need, and every image's result is the one it has alone."""
    x, _, ids = pictures(16)
    classifier, sizes = tiny_model.classifier(NAMES, TEMPLATES), []
    with torch.no_grad():
        y = classifier(x).argmax(1)
    classifier.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    ball = Ball("Linf", 10.0)
    together = attack(classifier, x, y, ids, ball, 0, 4)
    computed, resist = len(sizes), together.trace.first_success < 0
    assert set(sizes) == {4}
    assert 0 < resist.sum() < 16
    sizes.clear()
    parts = [attack(classifier, x[p], y[p], [ids[i] for i in p], ball, 0, 4) for p in torch.arange(16).split(4)]
    assert computed < len(sizes)
    assert torch.equal(together.images, torch.cat([part.images for part in parts]))
    for name in vars(together.trace):
        assert torch.equal(getattr(together.trace, name), torch.cat([getattr(part.trace, name) for part in parts])), name
