"""Attacks: inside their ball, as strong as theory where theory knows, and a function of image, label, id and seed alone."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustclip.attacks import APGD, ATTACKS, PGD, Library, Scored
from robustclip.attacks.apgd import StepSize, apgd, surface_start
from robustclip.attacks.pgd import cross_entropy, frozen, gradient, pgd, pgd_best, random_start
from robustclip.classifier import ZeroShotClassifier
from robustclip.errors import UserError
from robustclip.threat import Ball
from robustclip.trainables import PadPrompt, TokenPrompt

NAMES, TEMPLATES = ["red", "green", "blue", "grey"], ["a photo of a {}."]
TOLERANCE = 1e-6


class Linear(nn.Module):
    """K classes with logits W x + b over the pixels."""

    def __init__(self, classes=2, size=4, scale=1.0, seed=0):
        super().__init__()
        w = torch.randn(classes, 3 * size * size, generator=torch.Generator().manual_seed(seed)) * scale
        self.w = nn.Parameter(torch.stack([w[0], -w[0]]) if classes == 2 else w)

    def forward(self, x):
        return x.flatten(1) @ self.w.T


class Wavy(nn.Module):
    """A tower with many local maxima, dropout and batch statistics."""

    def __init__(self, size=6, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = nn.Linear(8 * (size - 2) ** 2, 5)
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten(), head)

    def forward(self, x):
        return 3 * torch.sin(25 * self.layers(x))


def middle(n, size=4, seed=0):
    """Return images [n,3,size,size] in [0.3, 0.7]: no ball of eps <= 64 is clipped by [0,1]."""
    return 0.3 + 0.4 * torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def only_loss(objective):
    """Return the objective without its verdict: no attack stops early."""
    return lambda x: Scored(objective(x).loss)


def ids_of(n):
    return [f"image/{i}" for i in range(n)]


# --- the ball -------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    norm=st.sampled_from(["Linf", "L2"]),
    eps=st.floats(0, 80),
    steps=st.integers(0, 4),
    alpha=st.floats(0, 3),
    seed=st.integers(0, 9),
    kind=st.sampled_from([pgd, pgd_best, apgd]),
)
def test_every_perturbation_stays_in_its_ball_and_every_image_in_range(norm, eps, steps, alpha, seed, kind):
    ball, g = Ball(norm, eps), torch.Generator().manual_seed(seed)
    x = (torch.rand(3, 3, 4, 4, generator=g) * 1.5 - 0.25).clamp(0, 1)  # a quarter of the pixels are at the border
    objective = cross_entropy(Linear(4, seed=seed), torch.arange(3))
    start = random_start(ball, x, ids_of(3), seed)
    step = {} if kind is apgd else {"alpha": alpha}
    found = kind(objective, x, ball, steps=steps, start=start, **step)
    adversarial = found if kind is pgd else found[0]
    assert bool((ball.size(adversarial - x) <= ball.radius + TOLERANCE).all())
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert torch.equal(adversarial, x) or eps > 0


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_no_eps_or_no_steps_return_the_images_bit_for_bit(norm):
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


# --- strength -------------------------------------------------------------------------------------------------------------------------


def on_linear(name, classifier, x, y, ball):
    objective = only_loss(cross_entropy(classifier, y))
    start = random_start(ball, x, ids_of(len(x)), 0)
    if name == "pgd":
        return pgd(objective, x, ball, steps=40, alpha=0.5, start=start)
    if name == "pgd_best":
        return pgd_best(objective, x, ball, steps=40, alpha=0.5, start=start)[0]
    return apgd(objective, x, ball, steps=40, start=start)[0]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", ["pgd", "pgd_best", "apgd"])
def test_a_linear_model_is_attacked_to_the_closed_form(norm, name):
    classifier, x, y, ball = Linear(scale=0.1), middle(6), torch.tensor([0, 1] * 3), Ball(norm, 8.0)
    w, side = classifier.w[0].detach(), 1 - 2 * y.float()  # class 0 is left by going against w
    direction = w.sign() if norm == "Linf" else w / w.norm()
    best = -side[:, None] * ball.radius * direction
    delta = (on_linear(name, classifier, x, y, ball) - x).flatten(1)
    # In L2 the last percent of a direction gains less loss than fp32 can tell.
    torch.testing.assert_close(delta, best, atol=1e-6 if norm == "Linf" else ball.radius / 500, rtol=0)
    reach = ball.radius * (w.abs().sum() if norm == "Linf" else w.norm())
    expected = F.softplus(-2 * (side * (x.flatten(1) @ w) - reach))
    torch.testing.assert_close(F.cross_entropy(classifier(x + delta.view_as(x)), y, reduction="none"), expected, atol=1e-5, rtol=1e-4)


def test_apgd_is_on_average_no_worse_than_pgd_with_as_many_steps():
    classifier, ball, gains = Wavy().eval(), Ball("Linf", 16.0), []
    for seed in range(4):
        x, y = middle(32, 6, seed), torch.arange(32) % 5
        objective = only_loss(cross_entropy(classifier, y))
        start = random_start(ball, x, ids_of(32), seed)
        ours, theirs = apgd(objective, x, ball, steps=20, start=start), pgd_best(objective, x, ball, steps=20, alpha=0.25, start=start)
        gains.append((ours[1].loss_best - theirs[1].loss_best).mean())
    assert sum(gains) > 0


def test_the_best_iterate_is_returned_and_never_worse_than_the_last_or_the_start():
    classifier, x, y, ball = Wavy().eval(), middle(16, 6), torch.arange(16) % 5, Ball("Linf", 16.0)
    objective = only_loss(cross_entropy(classifier, y))
    for run, alpha in ((apgd, {}), (pgd_best, {"alpha": 1.0})):
        images, trace = run(objective, x, ball, steps=10, start=random_start(ball, x, ids_of(16), 0), **alpha)
        torch.testing.assert_close(objective(images).loss.detach(), trace.loss_best)
        assert bool((trace.loss_best >= torch.maximum(trace.loss_end, trace.loss_start)).all())
        assert bool((trace.loss_best > trace.loss_end).any())
        assert trace.forwards == 11


@pytest.mark.parametrize("kind", [PGD, APGD])
def test_an_image_is_left_alone_from_its_first_success_on(kind):
    """The trace says at which step it came, and the image returned fools the model; whole batches stop early."""
    classifier, x, ball = Wavy().eval(), middle(24, 6), Ball("Linf", 24.0)
    y = classifier(x).argmax(1)
    example = kind(10)(classifier, x, y, ids_of(24), ball, 0)
    fooled = classifier(example.images).argmax(1) != y
    assert torch.equal(fooled, example.trace.first_success >= 0)
    assert len(set(example.trace.first_success.tolist())) > 2
    already = kind(10)(classifier, x, (y + 1) % 5, ids_of(24), Ball("Linf", 0.01), 0)
    assert already.trace.first_success.tolist() == [0] * 24
    assert already.trace.forwards == 1


def test_restarts_only_help_and_are_skipped_when_nothing_is_left():
    classifier, x, ball = Wavy().eval(), middle(24, 6), Ball("Linf", 6.0)
    y = classifier(x).argmax(1)
    for kind in (PGD, APGD):
        one, three = (kind(3, restarts=n)(classifier, x, y, ids_of(24), ball, 0) for n in (1, 3))
        assert three.trace.forwards > one.trace.forwards
        assert not ((one.trace.first_success >= 0) & (three.trace.first_success < 0)).any()
        assert (three.trace.first_success >= 0).sum() > (one.trace.first_success >= 0).sum()
        everything = kind(3, restarts=3)(classifier, x, (y + 1) % 5, ids_of(24), Ball("Linf", 0.01), 0)
        assert bool((everything.trace.first_success >= 0).all())
        assert everything.trace.forwards == 1


# --- gradients ------------------------------------------------------------------------------------------------------------------------


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


def test_sum_and_mean_and_batch_sizes_give_the_same_delta_in_fp32():
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


def test_fp16_with_a_mean_fails_that_very_check():
    """This documents the trap (TeCoA section 7): confident images of a large batch lose their gradient and look robust."""
    classifier, x, y = confident()
    ball = Ball("Linf", 4.0)
    alone = delta_in_batches_of(1, in_fp16_with_mean, classifier, x, y, ball)
    together = delta_in_batches_of(16, in_fp16_with_mean, classifier, x, y, ball)
    assert not torch.equal(alone, together)


def test_confident_images_keep_their_gradient(tiny_model, pictures):
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
    images, trace = pgd_best(objective, x, ball, steps=2, alpha=1.0, start=None)
    assert trace.nonfinite_gradient.tolist() == [1.0, 0.0]
    torch.testing.assert_close(images[0], x[0])
    torch.testing.assert_close(images[1], x[1] + ball.radius)


def state_of(module):
    return {n: m.training for n, m in module.named_modules()}, {n: p.requires_grad for n, p in module.named_parameters()}


def test_an_attack_leaves_no_gradient_and_restores_every_mode(tiny_classifier, pictures):
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


def test_dropout_is_off_so_two_attacks_agree():
    tower, x, y = Wavy().train(), middle(4, 6), torch.arange(4)
    statistics = tower.layers[1].running_mean.clone()
    runs = [PGD(3)(tower, x, y, ids_of(4), Ball("Linf", 8.0), 0).images for _ in range(2)]
    assert torch.equal(*runs)
    assert torch.equal(tower.layers[1].running_mean, statistics)
    assert not torch.equal(tower(x), tower(x))  # in training mode it would differ


def test_the_resize_is_inside_the_graph(tiny_model):
    """Delta has the native size, and what the tower sees moves by at most eps/std (bilinear: bicubic may overshoot by its lobes)."""
    classifier = tiny_model.classifier(NAMES, TEMPLATES)
    classifier.preprocess = type(classifier.preprocess)(**{**vars(classifier.preprocess), "interpolation": "bilinear"})
    seen = []
    for size in (8, 16, 24):
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


@pytest.mark.parametrize("trainable", [PadPrompt(2), TokenPrompt(3), TokenPrompt(2, deep=True)], ids=str)
@pytest.mark.parametrize("kind", ["pgd", "apgd"])
def test_gradients_flow_through_the_prompt(tiny_model, pictures, trainable, kind):
    """The prompted model is attacked: its own attack beats the one found on plain CLIP."""
    x, y, ids = pictures(16)
    plain = tiny_model.classifier(NAMES, TEMPLATES)
    prompted = trainable.install(tiny_model, seed=0)[0].classifier(NAMES, TEMPLATES)
    ball = Ball("Linf", 8.0)
    start = random_start(ball, x, ids, 0)
    losses = []
    for classifier in (prompted, plain):
        objective = only_loss(cross_entropy(classifier, y))
        run = apgd if kind == "apgd" else pgd_best
        images, _ = run(objective, x, ball, steps=5, start=start, **({} if kind == "apgd" else {"alpha": 0.5}))
        losses.append(cross_entropy(prompted, y)(images).loss.detach())
    assert (losses[0] - losses[1]).mean() > 0
    with frozen(prompted):
        g_prompted, g_plain = (gradient(cross_entropy(c, y), x)[1] for c in (prompted, plain))
    assert not torch.allclose(g_prompted, g_plain, rtol=1e-2)


# --- APGD's rules ---------------------------------------------------------------------------------------------------------------------


def published_checkpoints(steps):
    """Return w_0, w_1, ... of Croce & Hein 2020, section 3.2, as their code rounds them."""
    period, points = max(int(0.22 * steps), 1), [0]
    while points[-1] + period <= steps:
        points.append(points[-1] + period)
        period = max(period - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return points


def published_step_sizes(losses, eta):
    """Return eta after every step for one image: conditions 1 and 2 of Algorithm 1, by plain loops. losses[0] is before any step."""
    steps, best, points = len(losses) - 1, [max(losses[: i + 1]) for i in range(len(losses))], published_checkpoints(len(losses) - 1)
    etas, previous = [eta], {"eta": None, "best": None}
    for k in range(1, steps + 1):
        if k in points[1:]:
            j = points.index(k)
            rises = sum(losses[i + 1] > losses[i] for i in range(points[j - 1], k))
            first = rises <= 0.75 * (k - points[j - 1])
            second = j > 1 and previous["eta"] == eta and previous["best"] == best[k]
            previous = {"eta": eta, "best": best[k]}
            eta = eta / 2 if first or second else eta
        etas.append(eta)
    return etas


@settings(max_examples=80)
@given(st.integers(1, 60), st.integers(0, 10_000), st.floats(0, 1))
def test_step_sizes_are_halved_as_published(steps, seed, trend):
    """Hand-made losses [steps+1, 5]: random walks that rise with chance `trend`, with plateaus."""
    g = torch.Generator().manual_seed(seed)
    rising = torch.rand(steps, 5, generator=g) < trend
    walk = torch.where(rising, 1.0, torch.randint(-2, 1, (steps, 5), generator=g).float())
    losses = torch.cat([torch.zeros(1, 5), walk]).cumsum(0)
    rule, best = StepSize(Ball("Linf", 255.0), steps, losses[0]), losses[0]
    found = [rule.size]
    for k in range(1, steps + 1):
        best = torch.maximum(best, losses[k])
        size = rule.size
        back = rule.after(losses[k], best)
        assert torch.equal(back, rule.size < size)  # who is halved goes back to the best point
        found.append(rule.size)
    expected = torch.tensor([published_step_sizes(losses[:, i].tolist(), 2.0) for i in range(5)]).T
    torch.testing.assert_close(torch.stack(found), expected, rtol=0, atol=0)


def test_the_checkpoints_of_100_steps_are_the_papers():
    assert published_checkpoints(100) == [0, 22, 41, 57, 70, 80, 87, 93, 99]


def test_an_image_that_rises_below_its_best_is_halved_at_every_other_checkpoint():
    """Ten steps have checkpoints after 2, 3 and 4. Image 0 falls, then rises but never to its best; image 1 makes progress."""
    rule, sizes = StepSize(Ball("Linf", 255.0), 10, torch.tensor([5.0, 0.0])), []
    for k in range(1, 5):
        rule.after(torch.tensor([1.0 + 0.1 * k, float(k)]), torch.tensor([5.0, float(k)]))
        sizes.append(rule.size.tolist())
    assert sizes == [[2.0, 2.0], [1.0, 2.0], [1.0, 2.0], [0.5, 2.0]]


def test_the_first_step_has_full_weight():
    """From delta = -eps the first step of 2 eps reaches +eps; with the momentum's 0.75 it would stop at eps/2."""
    x, ball = middle(2), Ball("Linf", 4.0)
    start = torch.full_like(x, -ball.radius)
    images, _ = apgd(lambda x: Scored(x.flatten(1).sum(1)), x, ball, steps=1, start=start)
    torch.testing.assert_close(images, x + ball.radius)


def test_later_steps_carry_momentum():
    """By hand, with a gradient that turns after the first step: x2 = x1 + 0.75 (P(x1 - eta) - x1) + 0.25 (x1 - x0)."""
    x, ball, seen = torch.full((1, 3, 1, 1), 0.5), Ball("Linf", 8.0), []

    def objective(images):
        seen.append(images.detach().clone())
        return Scored(images.flatten(1).sum(1) * (1.0 if len(seen) == 1 else -1.0))

    apgd(objective, x, ball, steps=10, start=torch.zeros_like(x))
    r = ball.radius
    first, second = ((s - x).flatten()[0].item() for s in seen[1:3])
    assert first == pytest.approx(r, rel=1e-4)
    assert second == pytest.approx(r + 0.75 * (-r - r) + 0.25 * r, rel=1e-3)


def test_apgd_agrees_with_torchattacks(tiny_model, pictures):
    """The same published attack written by others breaks the same images, but for a few that hang on the random start."""
    classifier = tiny_model.classifier(NAMES, TEMPLATES)
    x, _, ids = pictures(24)
    y, counts = classifier(x).argmax(1), []
    for eps in (4.0, 8.0, 16.0):
        ours, theirs = (
            classifier(attack(classifier, x, y, ids, Ball("Linf", eps), 0).images).argmax(1) == y
            for attack in (APGD(10), Library("APGD", (("steps", 10), ("n_restarts", 1))))
        )
        assert (ours != theirs).sum() <= 2
        counts.append(int(ours.sum()))
    assert counts[0] > counts[-1]
    assert {0, 24} != set(counts)


# --- every attack ---------------------------------------------------------------------------------------------------------------------


def ball_of(attack):
    return Ball("L2", 60.0) if "L2" in getattr(attack, "kind", "") else Ball("Linf", 3.0)


def is_random(attack):
    return attack.random_start if isinstance(attack, PGD) else isinstance(attack, APGD) or attack.kind == "PGDL2"


@pytest.fixture(params=ATTACKS.values(), ids=ATTACKS.keys())
def attack(request):
    return request.param


@pytest.fixture
def task(tiny_model, pictures) -> tuple[ZeroShotClassifier, torch.Tensor, torch.Tensor, list[str]]:
    """Return a classifier, 8 images, labels of which it gets 6 right, and ids."""
    classifier = tiny_model.classifier(NAMES, TEMPLATES)
    x, _, ids = pictures(8)
    with torch.no_grad():
        y = classifier(x).argmax(1)
    y[:2] = (y[:2] + 1) % 4
    return classifier, x, y, ids


def test_an_attack_stays_in_its_ball_and_never_raises_accuracy(attack, task):
    classifier, x, y, ids = task
    images, ball = attack(classifier, x, y, ids, ball_of(attack), 0).images, ball_of(attack)
    assert images.shape == x.shape
    assert not images.requires_grad
    assert bool((ball.size(images - x) <= ball.radius + TOLERANCE).all())
    assert images.min() >= 0
    assert images.max() <= 1
    with torch.no_grad():
        assert not (classifier(images).argmax(1) == y)[classifier(x).argmax(1) != y].any()
        loss, clean = (F.cross_entropy(classifier(i), y, reduction="none") for i in (images, x))
        noise = F.cross_entropy(classifier((x + random_start(ball, x, ids, 1)).clamp(0, 1)), y, reduction="none")
    assert loss[2:].mean() > clean[2:].mean() + 3 * (noise - clean)[2:].mean().abs()


def test_a_result_is_a_function_of_its_image_alone(attack, task, pictures):
    """In batches of one size: order, neighbours and repetitions change no bit."""
    classifier, x, y, ids = task
    ball = ball_of(attack)
    expected = attack(classifier, x, y, ids, ball, 0).images
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    permuted = attack(classifier, x[order], y[order], [ids[i] for i in order], ball, 0).images
    assert torch.equal(permuted, expected[order])
    others, other_y, other_ids = pictures(8, seed=9)
    others[3], other_y[3], other_ids[3] = x[4], y[4], ids[4]
    assert torch.equal(attack(classifier, others, other_y, other_ids, ball, 0).images[3], expected[4])


def test_a_seed_fixes_the_start_and_another_changes_it(attack, task):
    classifier, x, y, ids = task
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = attack(classifier, x, y, ids, ball_of(attack), 0).images
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(attack(classifier, x, y, ids, ball_of(attack), 0).images, first)
    other = attack(classifier, x, y, ids, ball_of(attack), 1).images
    assert torch.equal(other, first) != is_random(attack)


@pytest.mark.parametrize(
    ("library", "ball", "said"),
    [
        (Library("PDG"), Ball(), "no attack 'PDG'"),
        (Library("nn"), Ball(), "no attack 'nn'"),
        (Library("PGD", (("stepz", 3),)), Ball(), "'stepz'.*steps"),
        (Library("PGD", (("eps", 0.5),)), Ball(), "'eps'"),
        (Library("MultiAttack"), Ball(), "no setting 'eps'"),
        (Library("FGSM"), Ball("L2", 60.0), "does not attack in L2"),
        (Library("PGDL2"), Ball("Linf", 2.0), "does not attack in Linf"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_torchattacks_cannot_do_is_refused(library, ball, said, task):
    classifier, x, y, ids = task
    with pytest.raises(UserError, match=said):
        library(classifier, x, y, ids, ball, 0)


def test_names_tell_attacks_apart():
    assert len({attack.name for attack in ATTACKS.values()}) == len(ATTACKS)
    assert (PGD(10, restarts=5).name, APGD(100).name) == ("pgd-10x5", "apgd-ce-100")
    assert Library("MIFGSM", (("steps", 10),)).name == "torchattacks-mifgsm-steps=10"
