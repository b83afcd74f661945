"""Every attack of the list: in its ball, never a help to the model, a function of image, label, id and seed alone."""

import sys

import pytest
import torch
import torch.nn.functional as F
from toys import LISTED, others, short

from robustclip.attacks import APGD, APGDT, ATTACKS, FABT, MIFGSM, PGD, Library, Noise
from robustclip.attacks.pgd import random_start
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball
from robustclip.models.classifier import ZeroShotClassifier

NAMES, TEMPLATES = ["red", "green", "blue", "grey"], ["a photo of a {}."]
TOLERANCE = 1e-6


def ball_of(attack):
    return Ball("L2", 60.0) if "L2" in getattr(attack, "kind", "") else Ball("Linf", 3.0)


def is_random(attack):
    if isinstance(attack, Library):
        return attack.kind == "PGDL2"
    if isinstance(attack, FABT):
        return attack.restarts > 1  # its first run starts from the image itself
    return attack.diversity > 0 if isinstance(attack, MIFGSM) else getattr(attack, "random_start", True)


@pytest.fixture(params=LISTED)
def attack(request):
    """Return an attack of the list as it runs on the four classes of the task."""
    return short(request.param, len(NAMES))


@pytest.fixture
def task(tiny_model, pictures) -> tuple[ZeroShotClassifier, torch.Tensor, torch.Tensor, list[str]]:
    """Return a classifier that knows 12 other images, 8 images, labels of which it gets 6 right, and ids."""
    classifier = tiny_model.classifier(NAMES, TEMPLATES)
    classifier.surrogates = others(classifier, pictures)
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
        noisy = [classifier((x + random_start(ball, x, ids, i)).clamp(0, 1)) for i in range(10)]
    rises = (torch.stack([F.cross_entropy(logits, y, reduction="none") for logits in noisy]) - clean)[:, 2:]
    if isinstance(attack, Noise):  # the control: the best of ten draws, but no attack
        assert clean[2:].mean() < loss[2:].mean() < clean[2:].mean() + 3 * rises.abs().mean()
    else:
        assert loss[2:].mean() > clean[2:].mean() + 3 * rises.mean(1).abs().mean()


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
    pytest.importorskip("torchattacks")
    classifier, x, y, ids = task
    with pytest.raises(UserError, match=said):
        library(classifier, x, y, ids, ball, 0)


def test_without_torchattacks_its_attacks_say_how_to_get_it(task, monkeypatch):
    classifier, x, y, ids = task
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(UserError, match=r"^torchattacks-fgsm needs torchattacks.*: pip install --no-deps torchattacks$"):
        Library("FGSM")(classifier, x, y, ids, Ball(), 0)


def test_names_tell_attacks_apart():
    assert len({attack.name for attack in ATTACKS.values()}) == len(ATTACKS)
    assert (PGD(10, restarts=5).name, APGD(100).name) == ("pgd-10x5", "apgd-ce-100")
    assert (PGD(1, alpha=1.0, random_start=False).name, PGD(1).name, PGD(10, loss="margin").name) == ("fgsm", "pgd-1", "pgd-10-margin")
    assert (APGD(50, loss="dlr").name, APGDT(100).name, APGDT(20, targets=5).name) == ("apgd-dlr-50", "apgd-t-100", "apgd-t-20[t=5]")
    kinds = (MIFGSM(5), MIFGSM(5, decay=0.0), MIFGSM(5, diversity=0.7, kernel=15))
    assert [kind.name for kind in kinds] == ["mi-fgsm-5", "i-fgsm-5", "ti-di-mi-fgsm-5"]
    assert Library("MIFGSM", (("steps", 10),)).name == "torchattacks-mifgsm-steps=10"
