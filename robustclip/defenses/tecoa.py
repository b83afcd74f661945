"""TeCoA: Mao, Geng, Yang, Wang, Vondrick, "Understanding Zero-shot Adversarial Robustness for Large-Scale Models", ICLR 2023."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from robustclip.attacks.base import Example, Objective
from robustclip.attacks.losses import cross_entropy
from robustclip.classifier import ZeroShotClassifier
from robustclip.defenses.base import Batch


@dataclass(frozen=True)
class TeCoA:
    """Text-guided contrastive adversarial training (arXiv:2212.07016, Eqs. 3-5).

    delta* = argmax_{|delta| <= eps} L(x + delta, y);  theta <- argmin_theta L(x + delta*, y);
    L(x, y) = -log softmax_y(s z(x) T^t) with T the frozen text features of all class prompts and s = exp(logit_scale), fixed.
    It is the cross-entropy of the zero-shot classifier itself, adversarial images only; it is not an in-batch InfoNCE.
    """

    def objective(self, student: ZeroShotClassifier, teacher: ZeroShotClassifier, batch: Batch) -> Objective:
        """Return L(x + delta, y): the attack raises what the optimiser lowers (Eq. 4)."""
        return cross_entropy(student, batch.labels)

    def loss(self, student: ZeroShotClassifier, teacher: ZeroShotClassifier, batch: Batch, adversarial: Example) -> dict[str, Tensor]:
        """Return L(x + delta*, y) (Eq. 5)."""
        return {"tecoa": F.cross_entropy(student(adversarial.images), batch.labels)}
