"""Prompt shift: an attack that saw the classes under other texts than those by which what it made is then scored."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor, nn

from robustclip.attacks.apgd import APGD, APGDT
from robustclip.attacks.base import Example
from robustclip.attacks.fab import FABT
from robustclip.attacks.library import Library
from robustclip.attacks.noise import Noise
from robustclip.attacks.pgd import PGD
from robustclip.attacks.square import Square
from robustclip.attacks.transfer import MIFGSM
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball
from robustclip.models.class_texts import Descriptions, title
from robustclip.models.classifier import check_prompts

LEVEL = "grey-box prompt shift"
Shiftable = PGD | MIFGSM | APGD | APGDT | FABT | Square | Noise | Library


@dataclass(frozen=True)
class Shifted:
    """An `attack` made on the model under `texts`, templates or descriptions, and scored under its own: transfer between prompts.

    Its attacker lacks the prompts that are scored, so it stands apart and is part of no worst case (the question: arXiv:2602.12461; how it
    is counted is ours). Raises UserError for templates without one place for the name, for a classifier that does not say what it is
    under other texts, and for one that brings words or scores of its own.
    """

    apart: ClassVar[bool] = True
    texts: tuple[str, ...] | Descriptions = ("a photo of a {}.",)
    attack: Shiftable = field(default_factory=lambda: APGD(20))

    def __post_init__(self) -> None:
        check_prompts(("x",), self.texts)

    @property
    def name(self) -> str:
        return f"prompt shift (transfer from {title(self.texts)}) {self.attack.name}"

    @property
    def restarts(self) -> int | None:
        """The restarts of its attack, if that has any."""
        return getattr(self.attack, "restarts", None)

    def says(self, classifier: nn.Module) -> str:
        """Return the attacker level of its records."""
        return LEVEL

    def target(self, classifier: nn.Module) -> nn.Module:
        """Return what is attacked: the same model under the texts."""
        under = getattr(classifier, "under", None)
        if under is None:
            raise UserError(f"{self.name} sees a model under other texts, and this classifier does not say what it is under them")
        target = under(self.texts)
        for member in getattr(target, "members", [target]):
            shown = getattr(member, "start", member)  # of a defence that adapts
            if getattr(shown, "readout", None) is not None or getattr(shown, "wording", self.texts) != self.texts:
                raise UserError(f"{self.name}: this model brings words or scores of its own, no other texts change it: leave the shift out")
        return target

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, ids: list[str], ball: Ball, seed: int, micro_batch: int | None = None
    ) -> Example:
        target = self.target(classifier)
        return replace(self.attack(target, images, labels, ids, ball, seed, micro_batch), seen=target)
