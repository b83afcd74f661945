"""FAP: Zhou, Xia, Lin, Han, Liu, "Few-Shot Adversarial Prompt Learning on Vision-Language Models", NeurIPS 2024."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robustclip.attacks.base import Example, Objective, Scored
from robustclip.base.dtypes import wide
from robustclip.base.errors import UserError
from robustclip.defenses.base import Batch, Defense, Roles
from robustclip.defenses.guided import divergence
from robustclip.models.classifier import ZeroShotClassifier


@dataclass(frozen=True)
class FAP(Defense):
    """Predictions held together the more, the more alike the features are (arXiv:2403.14774, the objective of its training).

    L = CE(p(x), y) + lam mean_i [KL(p(x_i) || p(x_i + d_i)) (cos(f(x_i), f(x_i + d_i)) + 1)], d = argmax KL(p(x) || p(x + d)) where the
    attack holds p(x) fixed. lam = 1.5 as its scripts set it (its code's default is TeCoA's loss). `attacks`: whose KL the attack raises,
    the model that learns ("prompted") or CLIP before training ("plain"). Its gradient at d = 0 is zero: it needs its random start.
    """

    lam: float = 1.5
    attacks: Literal["prompted", "plain"] = "prompted"

    def __post_init__(self) -> None:
        if self.lam < 0:
            raise UserError(f"defense.lam is {self.lam}: a weight cannot be negative")

    def objective(self, roles: Roles, batch: Batch) -> Objective:
        """Return KL(p(x) || p(x + d)) by the model that is attacked."""
        model = roles.student if self.attacks == "prompted" else roles.teacher
        with torch.no_grad():
            clean = model(batch.images)
        return lambda images: Scored(divergence(clean, model(images)))

    def loss(self, roles: Roles, batch: Batch, adversarial: Example) -> dict[str, Tensor]:
        """Return both terms."""
        (unit, logits), (moved_unit, moved_logits) = (read(roles.student, images) for images in (batch.images, adversarial.images))
        cosine = (wide(unit) * wide(moved_unit)).sum(1)
        held = divergence(logits, moved_logits) * (cosine + 1)
        return {"fap_clean": F.cross_entropy(logits, batch.labels), "fap_kl": self.lam * held.mean()}


def read(student: ZeroShotClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unit features [B,D] and the logits [B,K] of images, both of one forward."""
    features = student.features(images)
    unit = F.normalize(features, dim=-1)
    return unit, student.scores(unit) if student.readout is None else student.readout(features)
