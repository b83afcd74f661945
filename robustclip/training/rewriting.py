"""What the defence's text attack makes of the student's prompts while it trains."""

from functools import cached_property

from torch import Tensor

from robustclip.attacks.text.search import TextAttack
from robustclip.attacks.text.vocabulary import encode
from robustclip.defenses import Defense
from robustclip.models.classifier import ZeroShotClassifier


class Rewriting:
    """The student's prompts after the defence's last text attack, class by class: `texts`, () where it has none or none was due yet."""

    def __init__(self, defense: Defense, student: ZeroShotClassifier, teacher: ZeroShotClassifier):
        self.attack: TextAttack | None = getattr(defense, "text", None)
        self.refresh: int = getattr(defense, "refresh", 1)
        self.student, self.teacher = student, teacher
        self.texts: tuple[str, ...] = ()

    def rewrite(self, labels: Tensor, step: int, first: bool) -> None:
        """Rewrite the prompts of the classes in labels [B], or, with a `refresh` above 1, all of them in a step that is due.

        `first`: the labels are those of the step's first micro-batch, the only one before which all are rewritten.
        """
        if self.attack is None:
            return
        if self.refresh > 1:
            if first and step % self.refresh == 0:
                self.texts = self.attack(self.student, self.guide).texts
            return
        classes, templates = labels.unique().tolist(), len(self.student.templates)
        _, now, _ = self.attack.rewrite(self.student, classes, self.guide)
        texts = list(self.texts or self.student.texts)
        for place, c in enumerate(classes):
            texts[c * templates : (c + 1) * templates] = [p.text for p in now[place * templates : (place + 1) * templates]]
        self.texts = tuple(texts)

    @cached_property
    def guide(self) -> Tensor | None:
        """What the original model says of the clean prompts, where the attack goes away from that."""
        if self.attack is None or self.attack.score != "distance":
            return None
        return encode(self.teacher, self.teacher.texts, unit=False)
