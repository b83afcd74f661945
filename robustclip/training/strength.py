"""Whether a training attack that computes in less than fp32, or compiled, is as strong as the same in fp32, on held-out images."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from robustclip.attacks.base import Example
from robustclip.attacks.pgd import frozen
from robustclip.base.precision import full_precision
from robustclip.defenses import Batch, Roles
from robustclip.training import inner_attack
from robustclip.training.config import Config, InnerAttack

OURS, REFERENCE, CHANCE = "val/attacked", "val/attacked_fp32", "val/attacked_p"
DOUBT = 0.05  # a difference that chance makes this seldom is one


def differs(attack: InnerAttack) -> bool:
    """Return whether an attack computes otherwise than in fp32 by the model's own forward."""
    return attack.precision != "fp32" or attack.compile != "off"


def measured(config: Config, roles: Roles, batches: Iterable[Batch], attacked: Callable[[Batch], Example]) -> dict[str, float]:
    """Return the shares in [0,1] of images right under the training attack as it trained and in fp32, and the chance of such a difference.

    Nothing where the defence attacks no images. Both begin at the same starts and are scored in true fp32. The chance is that of a sign
    test on the images of which they say different things.
    """
    from scipy.stats import binomtest

    plain = replace(config, attack=replace(config.attack, precision="fp32", compile="off"))
    ours, reference = [], []
    for batch in batches:
        example = attacked(batch)
        if example.images is batch.images:
            return {}
        ours.append(right(roles, batch, example))
        reference.append(right(roles, batch, inner_attack.attacked(plain, roles, batch, batch.step)))
    a, b = torch.cat(ours), torch.cat(reference)
    only, apart = int((a & ~b).sum()), int((a != b).sum())
    chance = float(binomtest(only, apart).pvalue) if apart else 1.0
    return {OURS: float(a.double().mean()), REFERENCE: float(b.double().mean()), CHANCE: chance}


@full_precision()
def right(roles: Roles, batch: Batch, example: Example) -> Tensor:
    """Return which images of a batch [B] the student has right after an attack."""
    with torch.no_grad(), frozen(roles.student):
        return roles.student(example.images).argmax(1) == batch.labels


def said(attack: InnerAttack, metrics: Mapping[str, float]) -> str:
    """Return the sentence that a run ends with, a warning where the attack was another one than in fp32; "" where nothing was compared."""
    if CHANCE not in metrics:
        return ""
    how = attack.precision + ("" if attack.compile == "off" else ", compiled")
    shares = f"{metrics[OURS]:.1%} of the held-out images are right under the training attack in {how}, {metrics[REFERENCE]:.1%} in fp32"
    if metrics[CHANCE] >= DOUBT:
        return f"{shares}: as strong, as far as they tell (p = {metrics[CHANCE]:.2g})"
    kind = "weaker" if metrics[OURS] > metrics[REFERENCE] else "stronger"
    return f"WARNING: {shares}: it is {kind} (p = {metrics[CHANCE]:.2g}); --attack.precision fp32 and --attack.compile off attack in full"
