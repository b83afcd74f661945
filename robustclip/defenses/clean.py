"""Clean fine-tuning: the comparison that shows what adversarial images add."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from robustclip.attacks.base import Example
from robustclip.defenses.base import Batch, Defense, Roles


@dataclass(frozen=True)
class CleanCE(Defense):
    """Cross-entropy of the classifier on clean images, "(CE)" in TeCoA's tables (arXiv:2212.07016, section 4.1).

    With a linear head as what trains, it is their linear probe, "LP(CE)".
    """

    def objective(self, roles: Roles, batch: Batch) -> None:
        """Return None: nothing is attacked."""

    def loss(self, roles: Roles, batch: Batch, adversarial: Example) -> dict[str, Tensor]:
        """Return -log softmax_y(logits(x))."""
        return {"clean": F.cross_entropy(roles.student(batch.images), batch.labels)}
