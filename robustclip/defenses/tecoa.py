"""TeCoA: Mao, Geng, Yang, Wang, Vondrick, "Understanding Zero-shot Adversarial Robustness for Large-Scale Models", ICLR 2023."""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from robustclip.attacks.base import Example, Objective
from robustclip.attacks.losses import cross_entropy
from robustclip.defenses.base import Batch, Defense, Roles


@dataclass(frozen=True)
class TeCoA(Defense):
    """Text-guided contrastive adversarial training (arXiv:2212.07016, Eqs. 3-5).

    delta* = argmax_{|delta| <= eps} L(x + delta, y);  theta <- argmin_theta L(x + delta*, y);
    L(x, y) = -log softmax_y(s z(x) T^t) with T the frozen text features of all class prompts and s = exp(logit_scale), fixed.
    It is the cross-entropy of the zero-shot classifier itself, adversarial images only; it is not an in-batch InfoNCE.
    """

    def objective(self, roles: Roles, batch: Batch) -> Objective:
        """Return L(x + delta, y): the attack raises what the optimiser lowers (Eq. 4)."""
        return cross_entropy(roles.student, batch.labels, verdict=False)

    def loss(self, roles: Roles, batch: Batch, adversarial: Example) -> dict[str, Tensor]:
        """Return L(x + delta*, y) (Eq. 5)."""
        return {"tecoa": F.cross_entropy(roles.student(adversarial.images), batch.labels)}


@dataclass(frozen=True)
class PseudoTeCoA(Defense):
    """TeCoA without labels (arXiv:2212.07016, Alg. 5): y is what CLIP itself, before training, says of the clean image."""

    def objective(self, roles: Roles, batch: Batch) -> Objective:
        """Return L(x + delta, y')."""
        return TeCoA().objective(roles, pseudo_labelled(roles, batch))

    def loss(self, roles: Roles, batch: Batch, adversarial: Example) -> dict[str, Tensor]:
        """Return L(x + delta*, y')."""
        return {"pseudo_tecoa": TeCoA().loss(roles, pseudo_labelled(roles, batch), adversarial)["tecoa"]}


def pseudo_labelled(roles: Roles, batch: Batch) -> Batch:
    """Return the batch with the teacher's predictions on the clean images as labels."""
    return replace(batch, labels=batch.once(roles.teacher, "pseudo-labels", lambda: roles.teacher(batch.images).argmax(1)))
