"""CoAdv: contrastive adversarial training whose class vectors carry no language."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustclip.attacks.base import Example, Objective, Scored
from robustclip.base.dtypes import wide
from robustclip.base.seeds import generator
from robustclip.defenses.base import Batch, Defense, Roles
from robustclip.models.classifier import ZeroShotClassifier


class Codes(nn.Module):
    """Fixed random unit vectors, one per class: raw features [B,D] -> cos(z, e_k) / temperature [B,K]."""

    codes: Tensor

    def __init__(self, classes: int, width: int, temperature: float, g: torch.Generator):
        super().__init__()
        self.temperature = temperature
        self.register_buffer("codes", F.normalize(torch.randn(classes, width, generator=g), dim=-1))

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1) @ self.codes.T / self.temperature


@dataclass(frozen=True)
class CoAdv(Defense):
    """TeCoA with a random code dictionary E in place of the text features, "(CoAdv.)" (arXiv:2212.07016, Eq. 6 and Alg. 2).

    -log softmax_y(cos(z, e_k) / temperature), attacked and trained on x + delta. E is kept fixed (the paper does not say whether it
    learns), and the temperature, which it does not give either, is CLIP's.
    """

    reads = "features"
    temperature: float = 0.01

    def head(self, student: ZeroShotClassifier, seed: int) -> nn.Module:
        """Return the dictionary E."""
        classes, width = student.class_embeddings.shape
        return Codes(classes, width, self.temperature, generator(seed, "code dictionary"))

    def objective(self, roles: Roles, batch: Batch) -> Objective:
        """Return the loss of x + delta (Eq. 6)."""
        return score_by_head(roles, batch.labels)

    def loss(self, roles: Roles, batch: Batch, adversarial: Example) -> dict[str, Tensor]:
        """Return the loss of x + delta* (Alg. 2)."""
        assert roles.head is not None
        return {"coadv": F.cross_entropy(roles.head(roles.student.features(adversarial.images)), batch.labels)}


def score_by_head(roles: Roles, labels: Tensor) -> Objective:
    """Return the objective that raises the cross-entropy of the head's scores for the student's features."""
    head = roles.head
    assert head is not None

    def objective(images: Tensor) -> Scored:
        scores = head(roles.student.features(images))
        return Scored(F.cross_entropy(wide(scores), labels, reduction="none"))

    return objective
