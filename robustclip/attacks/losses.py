"""What an attack on a classifier raises, one number per image; any misclassification counts as success, whatever the loss."""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from robustclip.attacks.base import Objective, Scored
from robustclip.base.dtypes import wide
from robustclip.base.errors import UserError

LossName = Literal["ce", "margin", "dlr"]
TINY = 1e-12  # keeps a ratio of logits finite when the model says the same of all classes


def fools(logits: Tensor, labels: Tensor) -> Tensor:
    """Return which images [B] the model does not recognise by its logits [B,K]: another class is highest, or a logit is not finite.

    torch's argmax returns the place of a NaN, so by it alone a broken forward would be a right answer or a wrong one, as the label is.
    """
    return (logits.argmax(1) != labels) | ~logits.isfinite().all(1)


def cross_entropy(classifier: nn.Module, labels: Tensor, verdict: bool = True) -> Objective:
    """Return the objective of untargeted attacks: the cross-entropy of each image [B], and whether it is misclassified already.

    Training attacks, which take all their steps whatever they have found, ask for no `verdict`.
    """

    def objective(images: Tensor) -> Scored:
        logits = classifier(images)
        return Scored(F.cross_entropy(wide(logits), labels, reduction="none"), fools(logits, labels) if verdict else None)

    return objective


def margin(classifier: nn.Module, labels: Tensor) -> Objective:
    """Return max_{j != y} z_j - z_y of each image [B] (Carlini & Wagner 2017, f_6): positive exactly where the model is wrong.

    Raises UserError for a model of fewer than 2 classes.
    """

    def objective(images: Tensor) -> Scored:
        logits = _logits(classifier, images, "margin", 2, "more class names")
        own = logits.gather(1, labels[:, None])[:, 0]
        return Scored(_without(logits, labels).max(1).values - own, fools(logits, labels))

    return objective


def dlr(classifier: nn.Module, labels: Tensor) -> Objective:
    """Return the difference of logits ratio of each image [B] (Croce & Hein 2020, eq. 6), which no scaling of the logits changes.

    The margin over the gap between the first and the third logit; raises UserError for a model of fewer than 3 classes.
    """

    def objective(images: Tensor) -> Scored:
        logits = _logits(classifier, images, "dlr", 3, "ce or margin")
        own, top = logits.gather(1, labels[:, None])[:, 0], logits.topk(3, dim=1).values
        gap = (top[:, 0] - top[:, 2]).clamp(min=TINY)
        return Scored((_without(logits, labels).max(1).values - own) / gap, fools(logits, labels))

    return objective


def targeted_dlr(classifier: nn.Module, labels: Tensor, targets: Tensor) -> Objective:
    """Return the targeted difference of logits ratio of each image [B] (Croce & Hein 2020, eq. 7) towards the classes `targets` [B].

    (z_t - z_y) over the gap between the first logit and the mean of the third and fourth; raises UserError for fewer than 4 classes.
    """

    def objective(images: Tensor) -> Scored:
        logits = _logits(classifier, images, "targeted dlr", 4, "dlr")
        own, aim = (logits.gather(1, classes[:, None])[:, 0] for classes in (labels, targets))
        top = logits.topk(4, dim=1).values
        gap = (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp(min=TINY)
        return Scored((aim - own) / gap, fools(logits, labels))

    return objective


LOSSES: dict[LossName, Callable[[nn.Module, Tensor], Objective]] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
LEAST_CLASSES: dict[LossName, int] = {"ce": 2, "margin": 2, "dlr": 3}


def _logits(classifier: nn.Module, images: Tensor, loss: str, least: int, instead: str) -> Tensor:
    logits = wide(classifier(images))
    if logits.shape[1] < least:
        raise UserError(f"the {loss} loss needs at least {least} classes, this model has {logits.shape[1]}: use {instead}")
    return logits


def _without(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits [B,K] with those of the labels at -inf."""
    return logits.scatter(1, labels[:, None], float("-inf"))
