"""Half adversarial, half clean: how TAPT trains the prompts it starts from (its stage 0, "adv_half" in its code), CVPR 2025."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustclip.attacks.base import Example, Objective, Scored
from robustclip.attacks.losses import cross_entropy
from robustclip.defenses.base import Batch, Defense, Roles


@dataclass(frozen=True)
class HalfTeCoA(Defense):
    """TeCoA's loss where only the second half of a micro-batch is attacked (Wang et al., arXiv:2411.13136, published code of stage 0).

    L = mean CE(p(x~), y) with x~ = [x_1 .. x_h, x_h+1 + delta .. x_n + delta], h = floor(n / 2), delta raising the same cross-entropy.
    Which images are attacked follows from their places, which are drawn anew every epoch; so the micro-batch is part of the method, and
    one of a single image, which would always be attacked, is refused. The published batch is one micro-batch of 32.
    """

    whole_batch = True

    def objective(self, roles: Roles, batch: Batch) -> Objective:
        """Return CE(p(x + delta), y) for the second half and 0 for the first, which the attack leaves where it starts."""
        half = len(batch.labels) // 2
        attacked = cross_entropy(roles.student, batch.labels[half:], verdict=False)

        def objective(images: Tensor) -> Scored:
            loss = attacked(images[half:]).loss
            return Scored(torch.cat([loss.new_zeros(half), loss]))

        return objective

    def loss(self, roles: Roles, batch: Batch, adversarial: Example) -> dict[str, Tensor]:
        """Return the cross-entropy of the clean first half and the attacked second one, one mean over both."""
        half = len(batch.labels) // 2
        images = torch.cat([batch.images[:half], adversarial.images[half:]])
        return {"half_tecoa": F.cross_entropy(roles.student(images), batch.labels)}
