"""Standard adversarial training with a linear head, which knows the classes by number and not by name (Madry et al. 2018)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustclip.attacks.base import Example, Objective
from robustclip.base.errors import UserError
from robustclip.base.seeds import generator
from robustclip.defenses.base import Batch, Defense, Roles
from robustclip.defenses.codes import score_by_head
from robustclip.models.classifier import ZeroShotClassifier


@dataclass(frozen=True)
class LinearAT(Defense):
    """Adversarial training in two stages, "(Adv.)" in TeCoA's tables (arXiv:2212.07016, Alg. 1).

    First the head C_phi learns -log softmax_y(C_phi(f_theta(x))) on clean images, for `head_share` of the steps at `head_lr` (AdamW);
    then delta* = argmax CE(C_phi(f_theta(x + delta)), y) and only theta learns. The paper gives neither rate nor length of the first stage.
    """

    reads = "features"
    head_share: float = 0.25
    head_lr: float = 1e-2

    def __post_init__(self) -> None:
        if not 0 <= self.head_share < 1:
            raise UserError(f"defense.head_share is {self.head_share}: a share of the steps, from 0 and below 1, trains the head alone")

    def head(self, student: ZeroShotClassifier, seed: int) -> nn.Module:
        """Return C_phi: a linear layer on the raw features of the visual tower, small at first."""
        width, classes = student.class_embeddings.shape[1], len(student.class_names)
        layer = nn.Linear(width, classes)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(classes, width, generator=generator(seed, "linear head")) / width)
            layer.bias.zero_()
        return layer

    def objective(self, roles: Roles, batch: Batch) -> Objective:
        """Return CE(C_phi(f_theta(x + delta)), y)."""
        return score_by_head(roles, batch.labels)

    def loss(self, roles: Roles, batch: Batch, adversarial: Example) -> dict[str, Tensor]:
        """Return CE(C_phi(f_theta(x + delta*)), y)."""
        assert roles.head is not None
        return {"linear_at": F.cross_entropy(roles.head(roles.student.features(adversarial.images)), batch.labels)}
