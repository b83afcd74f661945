"""Universal adversarial perturbations: one perturbation for all images, learned on other images than those it is scored on."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustclip.attacks.base import Example, Objective, Scored, Trace
from robustclip.attacks.losses import cross_entropy
from robustclip.attacks.pgd import frozen, gradient, micro_batches, move, resisting
from robustclip.base.errors import UserError
from robustclip.base.ranges import AMOUNT, COUNT, check_fields
from robustclip.base.seeds import derive
from robustclip.base.threat import Ball
from robustclip.base.values import key
from robustclip.models.adaptive import meeting
from robustclip.models.classifier import Surrogates


@dataclass(frozen=True)
class Universal:
    """UAP: one perturbation, learned over `epochs` of other images by sign ascent on the loss of batches, then added to every image.

    Algorithm 2 of Shafahi et al. 2020 (arXiv:1811.11304) with steps of sign: a step raises the summed cross-entropy of a batch, each
    image's counted up to `clip`, so that no image that is far gone decides, by `alpha` as a share of eps, and returns to the ball. It
    starts at 0; up to `images` of the classifier's surrogates take part, in an order keyed by seed, epoch and id. Batch, step and number
    of images are ours. An image that is misclassified as it is stays as it is.
    """

    epochs: int = 10
    images: int = 200
    batch: int = 20
    alpha: float = 0.25
    clip: float = 9.0

    def __post_init__(self) -> None:
        check_fields(self, "UAP: ", epochs=COUNT, images=COUNT, batch=COUNT, alpha=AMOUNT, clip=AMOUNT)

    @property
    def name(self) -> str:
        return f"uap-{self.epochs}"

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, ids: list[str], ball: Ball, seed: int, micro_batch: int | None = None
    ) -> Example:
        return self.transferred(classifier, classifier, images, labels, ids, ball, seed, micro_batch)

    def transferred(
        self,
        source: nn.Module,
        classifier: nn.Module,
        images: Tensor,
        labels: Tensor,
        ids: list[str],
        ball: Ball,
        seed: int,
        micro_batch: int | None = None,
    ) -> Example:
        """Return what a perturbation learned on the model `source` makes of images [B,3,H,W] that a classifier, the same or not, meets.

        Raises UserError for a source without surrogates, for surrogates among the images, and for surrogates of another size.
        """
        if ball.radius == 0:
            return Example(images)
        delta = self.delta(source, ids, ball, seed, micro_batch).to(images)
        if delta.shape != images.shape[1:]:
            raise UserError(f"{self.name} was learned on images {list(delta.shape)}, these are {list(images.shape[1:])}: show it one size")
        score = resisting(lambda places: cross_entropy(meeting(classifier, ids, places), labels[places]), micro_batch)
        with frozen(classifier):
            clean = score(images, torch.ones_like(labels, dtype=torch.bool), ahead=False)
            right = ~clean.fooled
            moved = torch.where(right[:, None, None, None], move(images, delta[None], ball), images)
            scored = score(moved, right, ahead=False)
        loss, unseen = torch.where(right, scored.loss, clean.loss), torch.full_like(clean.loss, torch.nan)
        success = torch.where(scored.fooled, 1, -1).masked_fill(clean.fooled, 0)
        return Example(moved, trace=Trace(clean.loss, loss, loss, success, unseen, unseen, 1 + right.long()))

    def delta(self, source: nn.Module, ids: list[str], ball: Ball, seed: int, micro_batch: int | None) -> Tensor:
        """Return the perturbation [3,H,W] learned on a model's surrogates, from what they have kept if it was learned before."""
        surrogates: Surrogates | None = getattr(source, "surrogates", None)
        if surrogates is None:
            raise UserError(
                f"{self.name} is learned on other images than it is scored on, and this classifier was given none: evaluate a set by its "
                "name, or set classifier.surrogates (robustclip.models.classifier.Surrogates)"
            )
        if both := sorted(set(ids) & set(surrogates.ids)):
            raise UserError(
                f"{self.name}: {len(both)} of {len(ids)} images are learned on and scored, such as {both[0]!r}: "
                "a universal perturbation counts on images that it has not seen; give it others"
            )
        ours = replace(surrogates, ids=surrogates.ids[: self.images])
        return surrogates.kept(key(self, ball, seed, micro_batch, ours.ids), lambda: self.learned(source, ours, ball, seed, micro_batch))

    def learned(self, source: nn.Module, surrogates: Surrogates, ball: Ball, seed: int, micro_batch: int | None) -> Tensor:
        """Return the perturbation [3,H,W] after all epochs; raises UserError for a gradient that is not finite."""
        ids = list(surrogates.ids)
        images, labels = (each[: len(ids)] for each in surrogates.read())
        delta = images.new_zeros((1, *images.shape[1:]))
        with frozen(source):
            for epoch in range(self.epochs):
                order = sorted(range(len(ids)), key=lambda i: derive(seed, "universal", epoch, ids[i]))
                for batch in torch.tensor(order).split(self.batch):
                    rise = torch.zeros_like(delta, dtype=torch.float64)
                    for part, padded in micro_batches(batch, micro_batch or len(batch)):
                        plain = cross_entropy(meeting(source, ids, padded), labels[padded])
                        _, g = gradient(of_perturbations(plain, images[padded], self.clip), delta.expand(len(padded), -1, -1, -1))
                        rise += finite(g[: len(part)], [ids[i] for i in part.tolist()], self.name).double().sum(0)
                    delta = ball.project(delta + self.alpha * ball.radius * ball.ascent(rise).to(delta))
        return delta[0]


def of_perturbations(objective: Objective, images: Tensor, clip: float) -> Objective:
    """Return the objective at images [B,3,H,W] plus perturbations of that shape, kept in [0,1], each loss counted up to `clip`.

    A pixel at 0 or 1 has its derivative, one beyond has none: releases of torch differ in what clamp says of the ends of its range.
    """

    def of(perturbations: Tensor) -> Scored:
        moved = images + perturbations
        inside = (moved >= 0) & (moved <= 1)
        return Scored(objective(torch.where(inside, moved, moved.detach().clamp(0, 1))).loss.clamp(max=clip))

    return of


def finite(gradients: Tensor, ids: list[str], name: str) -> Tensor:
    """Return the gradients [B,3,H,W] of images `ids`; raises UserError naming the first that is not finite."""
    if bad := (~gradients.isfinite()).flatten(1).any(1).nonzero()[:, 0].tolist():
        raise UserError(
            f"{name}: the gradient at image {ids[bad[0]]!r} is not finite, so nothing is learned: look for NaN in the model's weights"
        )
    return gradients
