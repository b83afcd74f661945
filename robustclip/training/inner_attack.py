"""The training attack: PGD on what the defence raises, from a start that seed, step and image id draw."""

from collections.abc import Callable

from torch import Tensor

from robustclip.attacks.base import Example
from robustclip.attacks.pgd import frozen, pgd, random_start
from robustclip.base.precision import computing
from robustclip.base.threat import Ball
from robustclip.defenses import Batch, Roles
from robustclip.training.config import Config


def attacked(config: Config, roles: Roles, batch: Batch, step: int, seen: Callable[[Tensor], None] = lambda images: None) -> Example:
    """Return images [B,3,H,W] in [0,1] after the attack of a step, clean where the defence attacks none; `seen` is shown the iterates.

    Parameters get no gradient of it.
    """
    ball, settings = config.threat.image or Ball(eps=0), config.attack
    with frozen(roles.student), computing(settings.precision, batch.images.device):
        objective = config.defense.objective(roles, batch)
        if objective is None:
            return Example(batch.images)
        start = random_start(ball, batch.images, batch.ids, config.seed, "train", step) if ball.radius else None
        return Example(pgd(objective, batch.images, ball, steps=settings.steps, alpha=settings.alpha, start=start, seen=seen))
