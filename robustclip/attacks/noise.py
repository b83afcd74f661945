"""Uniform noise in the ball: no attack but its control, which every attack must beat."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustclip.attacks.base import Example, Trace
from robustclip.attacks.losses import fools
from robustclip.attacks.pgd import Found, frozen, micro_batches, move, random_start, with_restarts
from robustclip.base.dtypes import wide
from robustclip.base.ranges import COUNT, check_fields
from robustclip.base.threat import Ball
from robustclip.models.adaptive import meeting


@dataclass(frozen=True)
class Noise:
    """The best of the clean image and `draws` uniform draws from the ball: one that fools the model, else the highest cross-entropy."""

    draws: int = 10

    def __post_init__(self) -> None:
        check_fields(self, "Noise: ", draws=COUNT)

    @property
    def name(self) -> str:
        return f"noise-{self.draws}"

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, ids: list[str], ball: Ball, seed: int, micro_batch: int | None = None
    ) -> Example:
        def run(draw: int, todo: Tensor) -> Found:
            # The first is the clean image: noise, too, must never turn a mistake into a right answer.
            x = move(images, random_start(ball, images, ids, seed, "noise", draw), ball) if draw and ball.radius else images
            loss, success = torch.zeros_like(images[:, 0, 0, 0]), torch.full_like(labels, -1)
            with torch.no_grad():
                for part, padded in micro_batches(todo.nonzero()[:, 0], micro_batch or len(images)):
                    logits = wide(meeting(classifier, ids, padded)(x[padded]))
                    loss[part] = F.cross_entropy(logits, labels[padded], reduction="none")[: len(part)]
                    success[part] = torch.where(fools(logits, labels[padded]), draw, -1)[: len(part)]
            unseen = torch.full_like(loss, torch.nan)  # no gradient was asked for
            return x, Trace(loss, loss, loss, success, unseen, unseen, todo.long())

        with frozen(classifier):
            noisy, trace = with_restarts(run, self.draws + 1, images)
        return Example(noisy, trace=trace)
