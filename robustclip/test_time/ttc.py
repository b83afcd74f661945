"""TTC: Xing, Zhao, Sebe, "CLIP is Strong Enough to Fight Back: Test-time Counterattacks towards [...] Robustness of CLIP", CVPR 2025."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustclip.base.draws import Key, uniform
from robustclip.base.ranges import AMOUNT, NATURAL, check_fields
from robustclip.base.threat import Ball
from robustclip.models.adaptive import Adaptive
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.test_time.tuning import smoothed_sign


@dataclass(frozen=True)
class TTC:
    """A counterattack at test time (CVPR 2025, arXiv:2503.03613): the image moves away from where its features stand.

    d_0 ~ U(-`eps`, `eps`)/255; d_{i+1} = clip(d_i + `alpha`/255 sign grad |f(x + d_i) - f(x)|^2), `steps` times, raw features;
    answer at x + sum_i w_i d_i, w_i ~ exp(`beta` i), where |f(x + d_0) - f(x)| / |f(x)| < `threshold`, at x + d_0 elsewhere: there the
    image is not suspiciously stable. As published, that share is asked of the original CLIP where the model was fine-tuned from one.
    """

    eps: float = 4.0
    alpha: float = 1.0
    steps: int = 2
    beta: float = 2.0
    threshold: float = 0.2
    asks_original: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, "TTC: ", eps=AMOUNT, alpha=AMOUNT, steps=NATURAL)

    def classifier(self, base: ZeroShotClassifier, seed: int) -> "Counterattack":
        """Return the classifier that moves its images first."""
        return Counterattack(base, self, seed)


class Counterattack(Adaptive):
    """A classifier that looks at images moved within a ball of its own."""

    def __init__(self, base: ZeroShotClassifier, settings: TTC, seed: int = 0):
        super().__init__(base, seed=seed)
        self.settings = settings
        self.judge = base

    def told(self, original: Callable[[], ZeroShotClassifier]) -> "Counterattack":
        """Return this defence, which asks the original CLIP how stable an image is."""
        self.judge = original()
        return self

    def adapt(self, images: Tensor, keys: Sequence[Key], through: bool) -> Tensor:
        """Return by how much each image is moved [B,3,H,W]."""
        settings, radius = self.settings, Ball("Linf", self.settings.eps).radius
        noise = (2 * uniform(keys, *images.shape[1:], device=images.device) - 1).to(images)
        clean = self.base.features(images)
        deltas = [(images + radius * noise).clamp(0, 1) - images]
        judged = clean if self.judge is self.base else self.judge.features(images)
        apart = self.judge.features(images + deltas[0]) - judged
        stable = apart.norm(dim=1) / judged.norm(dim=1) < settings.threshold
        for _ in range(settings.steps):
            delta = deltas[-1] if through else deltas[-1].detach().requires_grad_()
            away = (self.base.features(images + delta) - (clean if through else clean.detach())).square().sum()
            (g,) = torch.autograd.grad(away, delta, create_graph=through)
            moved = delta + Ball("Linf", settings.alpha).radius * direction(g, through)
            deltas.append((images + moved.clamp(-radius, radius)).clamp(0, 1) - images)
        weights = torch.softmax(settings.beta * torch.arange(len(deltas), dtype=images.dtype), 0).to(images)
        mixed = sum(w * delta for w, delta in zip(weights, deltas, strict=True))
        found = torch.where(stable[:, None, None, None], mixed, deltas[0])
        return found if through else found.detach()

    def answer(self, images: Tensor, keys: Sequence[Key], adapted: Tensor) -> Tensor:
        """Return the logits [B,K] of the images where they were moved to."""
        return self.base((images + adapted).clamp(0, 1))


def direction(gradient: Tensor, through: bool) -> Tensor:
    """Return the sign of a gradient; `through`: with the derivative of a smoothed one."""
    if not through:
        return gradient.sign()
    soft = smoothed_sign(gradient)
    return gradient.detach().sign() + soft - soft.detach()
