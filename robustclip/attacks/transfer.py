"""FGSM in steps with momentum, diverse inputs and a smoothed gradient: attacks made to transfer to models they have not seen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustclip.attacks.base import Example, Objective, Scored
from robustclip.attacks.losses import cross_entropy
from robustclip.attacks.pgd import Score, Scores, frozen, pgd_best, resisting
from robustclip.base.draws import Key, uniform
from robustclip.base.errors import UserError
from robustclip.base.ranges import AMOUNT, COUNT, NATURAL, check_fields
from robustclip.base.threat import Ball
from robustclip.models.adaptive import meeting

SMALLEST_SIDE = 0.9  # of a diverse input, as a share of its image: the published 299 of 330 pixels


@dataclass(frozen=True)
class MIFGSM:
    """PGD without a random start, on the cross-entropy, whose gradient goes through up to three parts; `alpha` is a share of eps.

    `decay` > 0 adds momentum (MI-FGSM, Dong et al. 2018, Algorithm 1), `diversity` is the chance that a step looks at the image resized
    and zero-padded at random (DI-FGSM, Xie et al. 2019), `kernel` > 1 smooths the gradient by a Gaussian of so many pixels a side (TI-FGSM,
    Dong et al. 2019; 15 there). Raises UserError for a chance outside [0,1] or an even kernel.
    """

    steps: int = 10
    alpha: float = 0.1
    decay: float = 1.0
    diversity: float = 0.0
    kernel: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "MIFGSM: ", steps=NATURAL, alpha=AMOUNT, decay=AMOUNT, kernel=COUNT)
        if not 0 <= self.diversity <= 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError(f"MIFGSM: diversity is a chance in [0,1] and kernel an odd side, not {self.diversity} and {self.kernel}")

    @property
    def name(self) -> str:
        parts = [part for part, there in (("ti", self.kernel > 1), ("di", self.diversity > 0), ("mi", self.decay > 0)) if there]
        return "-".join([*(parts or ["i"]), "fgsm", str(self.steps)])

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, ids: list[str], ball: Ball, seed: int, micro_batch: int | None = None
    ) -> Example:
        def objective_of(places: Tensor) -> Objective:
            plain = cross_entropy(meeting(classifier, ids, places), labels[places])
            keys: list[Key] = [(seed, "diversity", ids[i], momentum.step) for i in places.tolist()]
            return diverse(plain, keys, self.diversity) if self.diversity else plain

        momentum = Momentum(resisting(objective_of, micro_batch), self.decay, self.kernel)
        everything = torch.ones_like(labels, dtype=torch.bool)
        with frozen(classifier):
            adversarial, trace = pgd_best(
                momentum, images, ball, steps=self.steps, alpha=self.alpha, start=None, todo=everything, remembers=True
            )
        passes = 2 if self.diversity else 1  # the image itself is scored beside its diverse form
        return Example(adversarial, trace=replace(trace, forwards=passes * trace.forwards))


class Momentum:
    """A Score whose gradient is the smoothed gradients of all steps so far, each of mean size 1, the older the less by `decay`."""

    def __init__(self, score: Score, decay: float, kernel: int):
        self.score, self.decay, self.kernel = score, decay, kernel
        self.step, self.sum = 0, torch.zeros(())

    def __call__(self, images: Tensor, active: Tensor, ahead: bool = True) -> Scores:
        scores = self.score(images, active, ahead)
        # One by one: a convolution or a sum may round differently in batches of another size.
        g = torch.stack([of_mean_size_1(smoothed(each, self.kernel)) for each in scores.gradient])
        self.step, self.sum = self.step + 1, self.decay * self.sum.to(g) + g
        return scores._replace(gradient=self.sum)


def of_mean_size_1(gradient: Tensor) -> Tensor:
    """Return the gradient of one image [C,H,W] divided by the mean of its absolute values (0 stays 0)."""
    return gradient / gradient.abs().mean().clamp(min=torch.finfo(gradient.dtype).tiny)


def smoothed(gradient: Tensor, kernel: int) -> Tensor:
    """Return the gradient of one image [C,H,W] convolved with a Gaussian of `kernel` pixels a side, 3 standard deviations each way."""
    if kernel == 1:
        return gradient
    line = torch.exp(-(torch.linspace(-3, 3, kernel) ** 2) / 2)
    weights = (line[:, None] * line / line.sum() ** 2).to(gradient).expand(len(gradient), 1, kernel, kernel)
    return F.conv2d(gradient[None], weights, padding=kernel // 2, groups=len(gradient))[0]


def diverse(objective: Objective, keys: list[Key], chance: float) -> Objective:
    """Return the objective with its gradient taken at diverse inputs; loss and verdict stay those of the images themselves."""

    def through_diversity(images: Tensor) -> Scored:
        with torch.no_grad():
            scored = objective(images)
        draws = uniform(keys, 4).tolist()
        loss = objective(torch.stack([resized_and_padded(x, draw, chance) for x, draw in zip(images, draws, strict=True)])).loss
        return Scored(scored.loss + (loss - loss.detach()), scored.fooled)

    return through_diversity


def resized_and_padded(image: Tensor, draw: Sequence[float], chance: float) -> Tensor:
    """Return the image [C,H,W] shrunk to 90-100 % of its sides and zero-padded back to them at a random place, or as it is.

    The published code pads 299 pixels to 330 instead; the shares are the same, and no model meets a size that is not its own.
    """
    applied, side, top, left = draw
    if applied >= chance:
        return image
    height, width = image.shape[1:]
    h, w = (max(1, int((SMALLEST_SIDE + (1 - SMALLEST_SIDE) * side) * full)) for full in (height, width))
    small = F.interpolate(image[None], (h, w), mode="bilinear")[0]
    above, before = int(top * (height - h + 1)), int(left * (width - w + 1))
    return F.pad(small, (before, width - w - before, above, height - h - above))
