"""AugMix: views mixed with chains of small changes of themselves, drawn from a key of their own and differentiable in the pixels."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robustclip.base.draws import Key, uniform

CHAINS, LONGEST = 3, 3  # chains that a view is mixed with, changes of the longest one
WEAKEST = 0.1  # of the levels, which reach 1: the published severity 1 of 10
BITS = 4  # that posterising leaves, at every level up to severity 2
DEGREES, SHEAR, SHIFT = 3.0, 0.03, 1 / 30  # at level 1: a tenth of 30 degrees, of 0.3, and of a third of the side
SOLAR = 0.1  # at level 1: how far below white pixels are inverted


def as_if_unchanged(x: Tensor, changed: Tensor) -> Tensor:
    """Return a change whose derivative is zero almost everywhere, with that of no change: else it would hide the pixels from attacks."""
    return x + (changed - x).detach()


def autocontrast(x: Tensor) -> Tensor:
    """Return images of which every channel, but a flat one, spans all of [0,1]."""
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    span = high - low
    return torch.where(span < 1 / 255, x, (x - low) / span.clamp(min=1 / 255))


def equalize(x: Tensor) -> Tensor:
    """Return images of which every channel has all levels equally often."""
    from torchvision.transforms.v2.functional import equalize_image  # late: seconds that every process of a sweep would pay

    return as_if_unchanged(x, equalize_image(x))


def posterize(x: Tensor) -> Tensor:
    """Return images of which every channel's upper bits are left."""
    coarse = 2 ** (8 - BITS)
    return as_if_unchanged(x, ((255 * x).round() / coarse).floor() * coarse / 255)


def solarize(x: Tensor, level: Tensor) -> Tensor:
    """Return images whose brightest pixels are inverted."""
    return torch.where(x >= 1 - SOLAR * level.abs().view(-1, 1, 1, 1), 1 - x, x)


def warped(x: Tensor, first: Sequence[Tensor | float], second: Sequence[Tensor | float]) -> Tensor:
    """Return images [N,C,H,W] under affine maps, black outside: each pixel shows the place that the two rows say, all in -1..1."""
    theta = torch.stack([torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(len(x)) for value in (*first, *second)], 1)
    return F.grid_sample(x, F.affine_grid(theta.view(-1, 2, 3), list(x.shape), align_corners=False), align_corners=False)


def rotate(x: Tensor, level: Tensor) -> Tensor:
    """Return images turned about their centre."""
    (height, width), angle = x.shape[-2:], torch.deg2rad(DEGREES * level)
    return warped(x, (angle.cos(), -angle.sin() * height / width, 0), (angle.sin() * width / height, angle.cos(), 0))


def shear_x(x: Tensor, level: Tensor) -> Tensor:
    """Return images whose rows slide, the more the lower they are."""
    slide = SHEAR * level * x.shape[-2] / x.shape[-1]
    return warped(x, (1, slide, slide), (0, 1, 0))


def shear_y(x: Tensor, level: Tensor) -> Tensor:
    """Return images whose columns slide, the more the further right they are."""
    slide = SHEAR * level * x.shape[-1] / x.shape[-2]
    return warped(x, (1, 0, 0), (slide, 1, slide))


# In the order of their numbers; each takes images [N,C,H,W] in [0,1] and signed levels [N].
CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": lambda x, level: autocontrast(x),
    "equalize": lambda x, level: equalize(x),
    "posterize": lambda x, level: posterize(x),
    "solarize": solarize,
    "rotate": rotate,
    "shear x": shear_x,
    "shear y": shear_y,
    "translate x": lambda x, level: warped(x, (1, 0, 2 * SHIFT * level), (0, 1, 0)),
    "translate y": lambda x, level: warped(x, (1, 0, 0), (0, 1, 2 * SHIFT * level)),
    "none": lambda x, level: x,
}
NONE = len(CHANGES) - 1


class Draws(NamedTuple):
    """What is drawn for N views: weights [N,3] of the chains, share [N] of the view itself, change and level [N,3,3] of every step."""

    weights: Tensor
    share: Tensor
    change: Tensor
    level: Tensor


def draws(keys: Sequence[Key], count: int, device: torch.device | str = "cpu") -> Draws:
    """Return what keys draw for `count` views each: weights by Dirichlet(1, 1, 1), shares by Beta(1, 1), chains of one to three changes."""
    steps = CHAINS * LONGEST
    u = uniform([(*key, "augmix") for key in keys], count, 1 + 2 * CHAINS + 3 * steps, device=device).flatten(0, 1)
    share, weights, length, change, level, sign = u.split([1, CHAINS, CHAINS, steps, steps, steps], dim=1)
    weights = -weights.clamp(min=1e-6).log()
    longest = 1 + (LONGEST * length).long()[:, :, None]
    change, level, sign = (each.unflatten(1, (CHAINS, LONGEST)) for each in (change, level, sign))
    chosen = torch.where(torch.arange(LONGEST, device=device) < longest, (NONE * change).long(), NONE)
    signed = torch.where(sign < 0.5, -1, 1) * (WEAKEST + (1 - WEAKEST) * level)
    return Draws(weights / weights.sum(1, keepdim=True), share[:, 0], chosen, signed)


def augmix(views: Tensor, keys: Sequence[Key]) -> Tensor:
    """Return views [S,V,C,H,W] in [0,1], each mixed with three chains of changes (Hendrycks et al. 2020, arXiv:1912.02781, severity 1).

    Levels are not rounded to whole pixels, degrees and grey values. What has no derivative of use has that of no change. Image i's draws
    come from keys[i] alone.
    """
    x = views.flatten(0, 1)
    drawn = draws(keys, views.shape[1], x.device)
    mixed = torch.zeros_like(x)
    for chain in range(CHAINS):
        made = x
        for step in range(LONGEST):
            made = changed(made, drawn.change[:, chain, step], drawn.level[:, chain, step].to(x.dtype))
        mixed = mixed + drawn.weights[:, chain].to(x.dtype).view(-1, 1, 1, 1) * made
    share = drawn.share.to(x.dtype).view(-1, 1, 1, 1)
    return (share * x + (1 - share) * mixed).view(views.shape)


def changed(x: Tensor, change: Tensor, level: Tensor) -> Tensor:
    """Return images [N,C,H,W], each under the change of its number [N] at its level [N]; all of one change at once."""
    rows = [(change == number).nonzero()[:, 0] for number in range(len(CHANGES))]
    parts = [apply(x[own], level[own]) for apply, own in zip(CHANGES.values(), rows, strict=True) if len(own)]
    return torch.cat(parts)[torch.cat(rows).argsort()]
