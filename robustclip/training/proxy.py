"""The proxy that trials compete on, PGD on held-out images, and the stronger attack that says whether it can be trusted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustclip.attacks import APGD, PGD, Attack
from robustclip.attacks.pgd import frozen
from robustclip.base.precision import full_precision
from robustclip.base.threat import Ball
from robustclip.models.adaptive import meeting
from robustclip.training.config import Config

PROXY, STRONG = "val/robust", "val/strong"
STRONG_ATTACK = APGD(steps=50)
TRUSTED = 0.8  # the least rank correlation of a proxy that is no warning
FEWEST = 3  # trials: two are always in perfect order or in perfect disorder


def strong(config: Config, classifier: nn.Module, images: Tensor, labels: Tensor, ids: Sequence[str]) -> dict[str, float]:
    """Return val/strong in [0,1]: accuracy on held-out images [N,3,H,W] under APGD-CE at the validation's eps; dear, so measured once."""
    return {STRONG: share_right(config, classifier, images, labels, ids, STRONG_ATTACK)[1]}


def measure(config: Config, classifier: nn.Module, images: Tensor, labels: Tensor, ids: Sequence[str]) -> dict[str, float]:
    """Return val/clean, val/robust and val/strong in [0,1] of a model that was not validated while it trained."""
    clean, robust = share_right(config, classifier, images, labels, ids, PGD(config.validation.steps))
    return {"val/clean": clean, PROXY: robust} | strong(config, classifier, images, labels, ids)


@full_precision()
def share_right(
    config: Config, classifier: nn.Module, images: Tensor, labels: Tensor, ids: Sequence[str], attack: Attack
) -> tuple[float, float]:
    """Return the shares of images [N,3,H,W] that are right, and right also under an attack at the validation's eps, as training counts."""
    ball, size = Ball("Linf", config.validation.eps), config.optim.micro_batch
    clean, robust = 0, 0
    for part in torch.arange(len(images)).split(8 * size):  # room for the attack to repack what resists
        x, y = images[part], labels[part].to(images.device)
        example = attack(classifier, x, y, [ids[i] for i in part.tolist()], ball, config.seed, size)
        with torch.no_grad(), frozen(classifier):
            met = meeting(classifier, ids, part)
            right = met(x).argmax(1) == y
            clean += int(right.sum())
            robust += int((right & (met(example.images).argmax(1) == y)).sum())
    return clean / len(images), robust / len(images)


@dataclass(frozen=True)
class Agreement:
    """Whether the proxy orders n trials as the strong attack does: Spearman's rank correlation and the best by each.

    `correlation` is None where it says nothing: under FEWEST trials, or all alike in one of the two.
    """

    n: int
    correlation: float | None
    by_proxy: str
    by_strong: str
    same_best: bool

    @property
    def misleads(self) -> bool:
        """Whether choosing by the proxy would be a mistake, as far as these trials tell."""
        return self.correlation is not None and (self.correlation < TRUSTED or not self.same_best)

    def lines(self) -> list[str]:
        """Return what to print: one sentence, and a warning where the proxy misleads."""
        between = f"Spearman's rank correlation of {PROXY} (PGD) and {STRONG} ({STRONG_ATTACK.name}) on the same held-out images"
        if self.correlation is None:
            why = f"it takes {FEWEST} finished trials" if self.n < FEWEST else "the trials are all alike in one of them"
            return [f"The proxy cannot be judged: {between} cannot be told from n = {self.n}, {why}."]
        said = [f"{between}: {self.correlation:.2f}, n = {self.n} finished trials."]
        if self.misleads:
            low = f"the correlation is below {TRUSTED}; " if self.correlation < TRUSTED else ""
            best = "the best is the same" if self.same_best else f"{PROXY} would choose {self.by_proxy}, {STRONG} chooses {self.by_strong}"
            said.append(f"WARNING: the proxy misleads: {low}{best}.")
        return said


def agreement(scores: Mapping[str, tuple[float, float]]) -> Agreement:
    """Return how (val/robust, val/strong) of at least one trial, by name, agree; the best is the same if some trial is best in both."""
    from scipy.stats import spearmanr

    cheap, dear = zip(*scores.values(), strict=True)
    tells = len(scores) >= FEWEST and len(set(cheap)) > 1 and len(set(dear)) > 1
    correlation = round(float(spearmanr(cheap, dear).statistic), 9) if tells else None  # 0.7999999999999999 is 0.8
    first, second = (max(scores, key=lambda name: (scores[name][i], scores[name][1 - i])) for i in (0, 1))
    return Agreement(len(scores), correlation, first, second, scores[first] == scores[second])
