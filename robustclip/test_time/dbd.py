"""DBD: Liu, Chen, Wu, Feng, Cheng, Yin, Yang, Zhang, "Adversarial Attacks Already Tell the Answer: Directional Bias-guided [...]"."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robustclip.base.draws import Key
from robustclip.base.errors import UserError
from robustclip.base.ranges import AMOUNT, COUNT, NATURAL, Number, check_fields
from robustclip.models.adaptive import Adaptive
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.test_time.tuning import most_confident
from robustclip.views import filters
from robustclip.views.crops import crops

ROUNDING = 1e-4  # a step of unit features this short has no direction
SOFT = 0.05  # of the score: how wide the threshold is for an attacker who differentiates it


@dataclass(frozen=True)
class DBD:
    """Features move on in the direction in which purified views of an image have moved (ICLR 2026, arXiv:2606.06186).

    Of `crops` random crops and 16 views with less detail (bits, JPEG, noise, filters) the `kept` of lowest entropy count; their unit
    features are f_i, the image's f_0. d = mean of f_i - f_0; score = mean cosine of f_i - f_0 with d. Answer: f_0 + `amplify` d where
    score > `threshold`, f_0 + d elsewhere. Kinds and number of views are the paper's; how strong each is, and how many of a kind, is ours.
    Raises UserError where fewer views are there than kept.
    """

    crops: int = 15
    kept: int = 16
    threshold: float = 0.8
    amplify: float = 2.5

    def __post_init__(self) -> None:
        check_fields(self, "DBD: ", crops=NATURAL, kept=COUNT, threshold=Number(-1.0, 1.0), amplify=AMOUNT)
        if self.kept > self.crops + filters.COUNT:
            raise UserError(f"DBD: keeps {self.kept} views of {self.crops} crops and {filters.COUNT} others: keep fewer, or crop more")

    def classifier(self, base: ZeroShotClassifier, seed: int) -> "Redirected":
        """Return the classifier that moves features; raises UserError for a linear probe."""
        if base.readout is not None:
            raise UserError("this model classifies by a linear readout: dbd moves unit features, which only class texts are compared with")
        return Redirected(base, self, seed)


class Choice(NamedTuple):
    """What is decided for S images: which views are kept [S,k], and how many times their mean step is taken [S]."""

    kept: Tensor
    factor: Tensor


class Redirected(Adaptive):
    """A classifier of features that were moved. Adaptation is what is chosen, and ends there: an attack meets all that is computed."""

    def __init__(self, base: ZeroShotClassifier, settings: DBD, seed: int = 0):
        super().__init__(base, seed=seed)
        self.settings = settings

    def views(self, images: Tensor, keys: Sequence[Key]) -> Tensor:
        """Return the purified views [S,V,3,H,W] of images, which are not among them."""
        made = filters.filtered(images, keys)
        return torch.cat([crops(images, keys, self.settings.crops), made], 1) if self.settings.crops else made

    def steps(self, images: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """Return the unit features [S,D] of images, and the step [S,V,D] from them to those of each view."""
        found = self.base.embed_images(torch.cat([images[:, None], views], 1).flatten(0, 1)).unflatten(0, (len(images), -1))
        return found[:, 0], found[:, 1:] - found[:, :1]

    def adapt(self, images: Tensor, keys: Sequence[Key], through: bool) -> Choice:
        """Return what is chosen; `through`: with the derivative of a threshold that is SOFT wide."""
        settings = self.settings
        with torch.set_grad_enabled(through):
            start, steps = self.steps(images, self.views(images, keys))
            kept = most_confident(self.base.scores(start[:, None] + steps), settings.kept)
            score = directional_bias(of_kept(steps, kept))
            factor = torch.where(score > settings.threshold, settings.amplify, 1.0).to(score)
            if through:
                soft = torch.sigmoid((score - settings.threshold) / SOFT)
                factor = factor + (settings.amplify - 1) * (soft - soft.detach())
        return Choice(kept, factor)

    def answer(self, images: Tensor, keys: Sequence[Key], adapted: Choice) -> Tensor:
        """Return the logits [B,K] of the moved features."""
        start, steps = self.steps(images, of_kept(self.views(images, keys), adapted.kept))
        return self.base.scores(F.normalize(start + adapted.factor[:, None] * steps.mean(1), dim=-1))


def of_kept(views: Tensor, kept: Tensor) -> Tensor:
    """Return what is there of the kept [S,k] of all views [S,V,...]."""
    return views[torch.arange(len(views), device=views.device)[:, None], kept]


def directional_bias(steps: Tensor) -> Tensor:
    """Return the DB-score [S] of steps [S,k,D]: the mean of their cosines with their mean, 1 where all go one way."""
    ways, way = (F.normalize(each, dim=-1, eps=ROUNDING) for each in (steps, steps.mean(1, keepdim=True)))
    return (ways * way).sum(-1).mean(1)
