"""Momentum, diverse inputs and smoothed gradients: the published formulas by hand, and their draws by key."""

import pytest
import torch
from torch import nn
from toys import Linear, ids_of, middle

from robustclip.attacks import MIFGSM, PGD, Library, Noise
from robustclip.attacks.losses import cross_entropy
from robustclip.attacks.pgd import Scores, gradient
from robustclip.attacks.transfer import Momentum, diverse, resized_and_padded, smoothed
from robustclip.base.draws import uniform
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball

NAMES, TEMPLATES = ["red", "green", "blue", "grey"], ["a photo of a {}."]


def drawn(i: int) -> list[float]:
    """Return what a key of its own draws."""
    return uniform([("test", i)], 4)[0].tolist()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_without_its_parts_it_is_pgd_without_a_random_start(norm):
    classifier, x, y, ball = Linear(4), middle(6), torch.arange(6) % 4, Ball(norm, 4.0)
    ours, theirs = (
        attack(classifier, x, y, ids_of(6), ball, 0).images for attack in (MIFGSM(4, decay=0.0), PGD(4, alpha=0.1, random_start=False))
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0 if norm == "Linf" else 1e-6)


def test_momentum_by_hand():
    """Two images, gradients (2, -2, 2) and (0, 4, 2) twice: sizes 2 and 2, then the older one counts for half."""
    first = torch.tensor([[2.0, -2.0, 2.0], [0.0, 4.0, 2.0]]).view(2, 3, 1, 1)
    steps = iter([first, -first, torch.zeros(2, 3, 1, 1)])
    momentum = Momentum(lambda images, active, ahead: Scores(torch.zeros(2), active, next(steps)), decay=0.5, kernel=1)
    seen = [momentum(torch.zeros(2, 3, 1, 1), torch.ones(2, dtype=torch.bool)).gradient for _ in range(3)]
    for found, share in zip(seen, (1.0, 0.5 - 1.0, 0.25 - 0.5)):
        torch.testing.assert_close(found, share * first / 2)


def test_the_gradient_is_smoothed_by_the_published_kernel():
    """A single 1 comes out as the kernel itself: the normal density at 15 points from -3 to 3, in each direction, of sum 1."""
    impulse = torch.zeros(3, 31, 31)
    impulse[1, 15, 15] = 1
    density = torch.distributions.Normal(0.0, 1.0).log_prob(torch.linspace(-3, 3, 15)).exp()
    expected = density[:, None] * density / density.sum() ** 2
    found = smoothed(impulse, 15)
    torch.testing.assert_close(found[1, 8:23, 8:23], expected)
    assert found[[0, 2]].abs().max() == 0  # colours stay apart
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert torch.equal(smoothed(impulse, 1), impulse)


@pytest.mark.parametrize("side", [8, 32, 224])
def test_a_diverse_input_is_shrunk_by_up_to_a_tenth_and_put_anywhere(side):
    sides, places = set(), set()
    for i in range(100):
        out = resized_and_padded(torch.ones(3, side, side), drawn(i), chance=1.0)
        assert out.shape == (3, side, side)
        down, across = out[0].amax(1), out[0].amax(0)
        torch.testing.assert_close(out, (down[:, None] * across).expand(3, side, side))  # a rectangle of ones in zeros
        rows, columns = down.nonzero()[:, 0], across.nonzero()[:, 0]
        assert len(rows) == len(columns)
        sides.add(len(rows))
        places.add((int(rows[0]), int(columns[0])))
    assert min(sides) == int(0.9 * side)
    assert side - 3 < max(sides) < side
    assert len(places) > (3 if side == 8 else 9)


def test_diversity_happens_by_chance_and_by_key():
    x = torch.rand(3, 64, 64)
    shrunk = [not torch.equal(resized_and_padded(x, drawn(i), 0.3), x) for i in range(300)]
    assert 60 < sum(shrunk) < 120
    assert torch.equal(resized_and_padded(x, drawn(1), 1.0), resized_and_padded(x, drawn(1), 1.0))
    assert not torch.equal(resized_and_padded(x, drawn(1), 1.0), resized_and_padded(x, drawn(2), 1.0))


def test_loss_and_verdict_are_of_the_image_and_the_gradient_of_the_diverse_input():
    classifier, x, y = Linear(4), middle(6), torch.arange(6) % 4
    keys = [("test", i) for i in range(6)]
    plain, through = (gradient(o, x) for o in (cross_entropy(classifier, y), diverse(cross_entropy(classifier, y), keys, 1.0)))
    assert torch.equal(through[0].loss, plain[0].loss)
    assert torch.equal(through[0].fooled, plain[0].fooled)
    by_hand = x.clone().requires_grad_(True)
    shrunk = torch.stack([resized_and_padded(image, drawn(i), 1.0) for i, image in enumerate(by_hand)])
    (expected,) = torch.autograd.grad(cross_entropy(classifier, y)(shrunk).loss.sum(), by_hand)
    torch.testing.assert_close(through[1], expected)
    assert not torch.allclose(through[1], plain[1], rtol=0.1)


class Remembers(nn.Module):
    """A model that keeps what it was shown with gradients on."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        if torch.is_grad_enabled():
            self.seen.append(x.detach()[0].clone())
        return torch.stack([x.sum((1, 2, 3)) + 1e4, -x.sum((1, 2, 3))], 1)


def test_every_step_draws_anew():
    model = Remembers()
    MIFGSM(5, diversity=1.0)(model, torch.ones(1, 3, 20, 20), torch.zeros(1, dtype=torch.long), ["a"], Ball(eps=0.1), 0)
    borders = {tuple((image[0] > 0.5).flatten().tolist()) for image in model.seen}
    assert len(model.seen) == 6
    assert len(borders) >= 4


@pytest.mark.parametrize(
    ("eps", "ours", "theirs"),
    [
        (4.0, MIFGSM(10), Library("MIFGSM", (("steps", 10), ("alpha", 0.4 / 255)))),
        (16.0, MIFGSM(10, decay=0.0, kernel=15), Library("TIFGSM", (("steps", 10), ("alpha", 1.6 / 255), ("diversity_prob", 0.0)))),
    ],
    ids=["mi", "ti"],
)
@pytest.mark.slow
def test_it_breaks_what_torchattacks_breaks(eps, ours, theirs, tiny_model, pictures):
    pytest.importorskip("torchattacks")
    classifier = tiny_model.classifier(NAMES, TEMPLATES)
    x, _, ids = pictures(32)
    y = classifier(x).argmax(1)
    broken = [classifier(attack(classifier, x, y, ids, Ball("Linf", eps), 0).images).argmax(1) != y for attack in (ours, theirs)]
    assert 2 < broken[1].sum() < 32
    assert (broken[0] != broken[1]).sum() <= 1


@pytest.mark.parametrize("settings", [{"diversity": 1.1}, {"diversity": -0.1}, {"kernel": 4}, {"kernel": 0}], ids=str)
def test_settings_without_a_meaning_are_refused(settings):
    with pytest.raises(UserError, match=r"odd side|at least 1"):
        MIFGSM(**settings)


def test_noise_is_the_best_of_its_draws_and_no_gradient():
    classifier, x, ball = Linear(4), middle(32), Ball("Linf", 24.0)
    y = classifier(x).argmax(1)
    traces = {draws: Noise(draws)(classifier, x, y, ids_of(32), ball, 0).trace for draws in (1, 10)}
    assert bool((traces[1].loss_best >= cross_entropy(classifier, y)(x).loss).all())
    assert bool((traces[1].loss_best <= traces[10].loss_best).all())
    assert traces[1].loss_best.mean() < traces[10].loss_best.mean()
    assert (traces[1].first_success >= 0).sum() < (traces[10].first_success >= 0).sum()
    assert (traces[10].first_success >= 0).sum() < (PGD(1)(classifier, x, y, ids_of(32), ball, 0).trace.first_success >= 0).sum()
    assert bool(traces[10].zero_gradient.isnan().all())
    resisted = traces[10].first_success < 0
    assert traces[10].forwards[resisted].unique().tolist() == [11]
