"""The attacker's ladder: the same attacks, aimed at what an adversary of each level knows of a test-time defence."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robustclip.attacks.apgd import APGD, APGDT
from robustclip.attacks.base import Example, Objective, Scored
from robustclip.attacks.fab import FABT
from robustclip.attacks.losses import LOSSES
from robustclip.attacks.pgd import PGD, frozen, pgd_best, random_start, resisting
from robustclip.attacks.square import Square
from robustclip.attacks.transfer import MIFGSM
from robustclip.attacks.universal import Universal
from robustclip.base.errors import UserError
from robustclip.base.ranges import COUNT, check_fields
from robustclip.base.threat import Ball
from robustclip.models.adaptive import Adaptive, meeting

Level = Literal["A0", "A1", "A2", "A3", "A4", "A5", "A6"]
SAID: dict[Level, str] = {
    "A0": "grey-box, plain CLIP",  # what most published numbers of test-time defences are
    "A1": "grey-box, static model",
    "A2": "grey-box, start state",
    "A3": "BPDA",
    "A4": "end to end",
    "A5": "EOT",
    "A6": "black-box",
}
GREY = ("A0", "A1", "A2")
LEARNS = ("A0", "A1", "A3")  # what a universal perturbation can be learned on


@dataclass(frozen=True)
class Aimed:
    """An `attack` made on what a `level` of knowledge shows, and scored on the whole defence (Croce et al. 2022; Athalye et al. 2018).

    A0: plain CLIP. A1: the static model under the defence. A2: the state from which it adapts. A3: the defence, adapted at every step, its
    adaptation a constant (BPDA). A4: the same, through the adaptation. A5: A3's gradient, the mean over `draws` throws of the defence's
    dice, the scored one among them. A6: its answers alone. For a model that does not adapt, A1 to A6 are attacks on itself. A universal
    perturbation is learned on what the level shows, A0, A1 or A3, and added to all that the defence gets right. Raises UserError for a
    level that there is not, for A5 with anything but PGD, and for a universal perturbation at another level.
    """

    level: Level = "A3"
    attack: PGD | MIFGSM | APGD | APGDT | FABT | Square | Universal = field(default_factory=lambda: PGD(20))
    draws: int = 1

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            raise UserError(f"attack level {self.level!r}: choose {', '.join(get_args(Level))}")
        check_fields(self, "attack level: ", draws=COUNT)
        if (self.level == "A5") != (self.draws > 1) or (self.level == "A5" and not isinstance(self.attack, PGD)):
            raise UserError(
                f"attack level {self.level} with {self.draws} draws of {self.attack.name}: A5, and only it, is PGD over several"
            )
        if isinstance(self.attack, Universal) and self.level not in LEARNS:
            raise UserError(f"attack level {self.level} of {self.attack.name}: what all images share is learned at {', '.join(LEARNS)}")

    @property
    def name(self) -> str:
        draws = f" of {self.draws}" if self.draws > 1 else ""
        return f"{self.level} ({SAID[self.level]}{draws}) {self.attack.name}"

    @property
    def restarts(self) -> int | None:
        """The restarts of its attack, if that has any."""
        return getattr(self.attack, "restarts", None)

    def says(self, classifier: nn.Module) -> str:
        """Return the attacker level of its records: a model that does not adapt is seen whole from A1 on."""
        grey = self.level == "A0" or (self.level in GREY and isinstance(classifier, Adaptive))
        return f"grey-box {self.level}" if grey else "white-box"

    def target(self, classifier: nn.Module) -> nn.Module:
        """Return what is attacked; raises UserError where the plain CLIP is wanted and not known."""
        if self.level == "A0":
            undefended = getattr(classifier, "undefended", None)
            if undefended is None:
                raise UserError(f"{self.name} attacks plain CLIP, and this classifier does not say which that is")
            return undefended()
        if not isinstance(classifier, Adaptive):
            return classifier
        if self.level in GREY:
            return classifier.base if self.level == "A1" else classifier.start
        return classifier.end_to_end() if self.level == "A4" else classifier

    def _static(self, classifier: nn.Module, target: nn.Module) -> Level | None:
        """Return the level whose target, the same for several defences, a grey level sees: A2 sees A1's unless it starts elsewhere."""
        if self.level == "A0":
            return "A0"
        return "A1" if target is getattr(classifier, "base", classifier) else None

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, ids: list[str], ball: Ball, seed: int, micro_batch: int | None = None
    ) -> Example:
        target = self.target(classifier)
        if isinstance(self.attack, Universal):
            return self.attack.transferred(target, classifier, images, labels, ids, ball, seed, micro_batch)
        transfers = getattr(classifier, "transfers", None)
        if transfers is not None and self.level in GREY and (seen := self._static(classifier, target)):
            return transfers(seen, self.attack, target, images, labels, ids, ball, seed, micro_batch)
        if self.level != "A5" or not isinstance(self.attack, PGD):
            return self.attack(target, images, labels, ids, ball, seed, micro_batch)
        start = random_start(ball, images, ids, seed, f"eot-{self.draws}-{self.attack.name}") if ball.radius else None
        score = resisting(over_draws(target, labels, ids, self.attack, self.draws), micro_batch)
        everyone = torch.ones_like(labels, dtype=torch.bool)
        with frozen(target):
            found, trace = pgd_best(score, images, ball, steps=self.attack.steps, alpha=self.attack.alpha, start=start, todo=everyone)
        return Example(found, trace=replace(trace, forwards=self.draws * trace.forwards))


def over_draws(target: nn.Module, labels: Tensor, ids: list[str], attack: PGD, draws: int) -> Callable[[Tensor], Objective]:
    """Return, for images at some places, the mean of the attack's loss over throws of the dice; the verdict is the scored one's."""

    def objective_of(places: Tensor) -> Objective:
        each = [LOSSES[attack.loss](meeting(target, ids, places, draw), labels[places]) for draw in range(draws)]

        def objective(images: Tensor) -> Scored:
            scored = [one(images) for one in each]
            return Scored(torch.stack([one.loss for one in scored]).mean(0), scored[0].fooled)

        return objective

    return objective_of
