"""Small models and images that attack tests share."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from robustclip.attacks import ATTACKS, MIFGSM, Attack, Library, Scored, Universal
from robustclip.attacks.classes import for_classes
from robustclip.attacks.pgd import resisting
from robustclip.models.classifier import Surrogates

NEEDS_LIBRARY = pytest.mark.skipif(find_spec("torchattacks") is None, reason="torchattacks, which need not be there, is not")
# Every attack of the list by name, for contract tests; those of 100 steps, whose class is there with fewer, are slow.
LISTED = [
    pytest.param(
        name,
        id=name,
        marks=[pytest.mark.slow] * (getattr(attack, "steps", 0) >= 100) + [NEEDS_LIBRARY] * isinstance(attack, Library),
    )
    for name, attack in ATTACKS.items()
]


def short(name: str, classes: int) -> Attack:
    """Return an attack of the list as it runs on so many classes, of few steps: enough for what holds of every step."""
    attack = ATTACKS[name]
    if isinstance(attack, Library):
        attack = replace(attack, settings=tuple((key, 3) for key, _ in attack.settings))
    if isinstance(attack, MIFGSM):
        attack = replace(attack, alpha=0.25)  # of steps as small as its own, five do not reach the edge of the ball
    if isinstance(attack, Universal):
        attack = replace(attack, batch=4)  # of batches of its own size a few images make one, whatever their order
    for field, most in (("steps", 5), ("queries", 30), ("epochs", 3)):
        if getattr(attack, field, 0) > most:
            attack = replace(attack, **{field: most})
    return for_classes((attack,), classes)[attack.name]


def others(classifier: nn.Module, pictures: Callable[..., tuple[torch.Tensor, torch.Tensor, list[str]]]) -> Surrogates:
    """Return 12 other pictures as a classifier sees them: what universal perturbations are learned on."""
    images, _, ids = pictures(12, seed=5)
    with torch.no_grad():
        labels = classifier(images).argmax(1)
    return Surrogates(ids, lambda: (images, labels))


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


def scored_by(objective):
    """Return an objective as what an attack asks: every image is scored in every pass."""
    score = resisting(lambda places: objective, None)
    return lambda images, active, ahead=True: score(images, torch.ones_like(active), ahead)


def all_of(x):
    """Return the mask that an attack works on every image."""
    return torch.ones(len(x), dtype=torch.bool)


def ids_of(n):
    return [f"image/{i}" for i in range(n)]
