"""Defences that hold predictions together by their Kullback-Leibler divergence: PMG-AFT and TRADES."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from robustclip.attacks.base import Example, Objective, Scored
from robustclip.attacks.losses import cross_entropy
from robustclip.base.dtypes import wide
from robustclip.defenses.base import Batch, Defense, Roles


@dataclass(frozen=True)
class PMGAFT(Defense):
    """Pre-trained model guided fine-tuning: Wang, Zhang, Yuan, Shan, CVPR 2024 (arXiv:2401.04350).

    L = L_robust + general L_general + clean L_clean on x_a = x + delta*, delta* raising the cross-entropy:
    L_robust = CE(p(x_a), y); L_general = KL(p_org(x_a) || p(x_a)), the original model on the same adversarial image;
    L_clean = KL(p(x) || p(x_a)), all with gradient through p; the direction of both divergences is the authors' code's.
    That code sums the divergences over the batch while the cross-entropy is a mean, so with a batch of 256 its weights on a mean
    are 256 times these; and it takes its logits without CLIP's factor of 100.
    """

    revision: ClassVar[int] = 2  # 1 had both divergences the other way round
    general: float = 1.0
    clean: float = 1.0

    def objective(self, roles: Roles, batch: Batch) -> Objective:
        """Return CE(p(x + delta), y)."""
        return cross_entropy(roles.student, batch.labels, verdict=False)

    def loss(self, roles: Roles, batch: Batch, adversarial: Example) -> dict[str, Tensor]:
        """Return the three terms."""
        logits, clean = roles.student(adversarial.images), roles.student(batch.images)
        with torch.no_grad():
            original = roles.teacher(adversarial.images)
        return {
            "pmg_robust": F.cross_entropy(logits, batch.labels),
            "pmg_general": self.general * divergence(original, logits).mean(),
            "pmg_clean": self.clean * divergence(clean, logits).mean(),
        }


@dataclass(frozen=True)
class TRADES(Defense):
    """Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan, ICML 2019 (arXiv:1901.08573, Eq. 5), on CLIP's class scores.

    L = CE(p(x), y) + beta max_delta KL(p(x) || p(x + delta)). beta = 6 is the paper's for CIFAR-10.
    """

    beta: float = 6.0

    def objective(self, roles: Roles, batch: Batch) -> Objective:
        """Return KL(p(x) || p(x + delta)), p(x) held fixed."""
        with torch.no_grad():
            clean = roles.student(batch.images)
        return lambda images: Scored(divergence(clean, roles.student(images)))

    def loss(self, roles: Roles, batch: Batch, adversarial: Example) -> dict[str, Tensor]:
        """Return both terms."""
        clean, logits = roles.student(batch.images), roles.student(adversarial.images)
        return {"trades_clean": F.cross_entropy(clean, batch.labels), "trades_kl": self.beta * divergence(clean, logits).mean()}


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(softmax p || softmax q) of logits [B,K], [B,K] -> [B]."""
    log_p, log_q = F.log_softmax(wide(p), 1), F.log_softmax(wide(q), 1)
    return (log_p.exp() * (log_p - log_q)).sum(1)
