"""FARE: Schlarmann, Singh, Croce, Hein, "Robust CLIP: Unsupervised Adversarial Fine-Tuning of Vision Embeddings", ICML 2024."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustclip.attacks.base import Example, Objective, Scored
from robustclip.base.dtypes import wide
from robustclip.base.errors import UserError
from robustclip.defenses.base import Batch, Defense, Roles


@dataclass(frozen=True)
class FARE(Defense):
    """Embeddings of adversarial images stay where the original model had the clean ones (arXiv:2402.12336, App. C.4, Eq. 5).

    L = mean_i max_{|z_i - x_i| <= eps} ||phi(z_i) - phi_org(x_i)||_2^2 with raw, un-normalised features, summed over their D entries.
    `distance` "l1" takes the sum of absolute differences (Table 9); `clean_weight` w adds w ||phi(x) - phi_org(x)|| and weighs the
    adversarial part by 1 - w; `target` "current" takes phi(x), without gradient, in place of phi_org(x), as TRADES does.
    """

    reads = "features"
    least_classes = 1
    distance: Literal["l2", "l1"] = "l2"
    clean_weight: float = 0.0
    target: Literal["original", "current"] = "original"

    def __post_init__(self) -> None:
        if not 0 <= self.clean_weight <= 1:
            raise UserError(f"defense.clean_weight is {self.clean_weight}: it is a share between 0 and 1")

    def objective(self, roles: Roles, batch: Batch) -> Objective:
        """Return ||phi(z) - phi_org(x)||; its gradient at delta = 0 is zero before training, so an attack needs its random start."""
        wanted = self._target(roles, batch)
        return lambda images: Scored(self.apart(roles.student.features(images), wanted))

    def loss(self, roles: Roles, batch: Batch, adversarial: Example) -> dict[str, Tensor]:
        """Return (1 - w) L_adv and, with a clean weight w, w L_clean."""
        wanted, w = self._target(roles, batch), self.clean_weight
        parts = {}
        if w < 1:
            parts["fare"] = (1 - w) * self.apart(roles.student.features(adversarial.images), wanted).mean()
        if w > 0:
            parts["fare_clean"] = w * self.apart(roles.student.features(batch.images), original_features(roles, batch)).mean()
        return parts

    def apart(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance of features [B,D], [B,D] -> [B]."""
        apart = wide(a) - wide(b)
        return apart.square().sum(1) if self.distance == "l2" else apart.abs().sum(1)

    def _target(self, roles: Roles, batch: Batch) -> Tensor:
        if self.target == "original":
            return original_features(roles, batch)
        with torch.no_grad():
            return roles.student.features(batch.images)


def original_features(roles: Roles, batch: Batch) -> Tensor:
    """Return raw features [B,D] of the clean images by the model before training."""
    return batch.once(roles.teacher, "original features", lambda: roles.teacher.features(batch.images))
