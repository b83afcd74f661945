"""LEAF: Abad Rocamora et al., "Robustness in Both Domains: CLIP Needs a Robust Text Encoder", arXiv:2506.03355."""

from dataclasses import dataclass, field

from torch import Tensor

from robustclip.attacks.base import Example, Objective
from robustclip.attacks.text.search import TextAttack
from robustclip.attacks.text.sources import Characters
from robustclip.base.dtypes import wide
from robustclip.base.errors import UserError
from robustclip.base.threat import TextBudget
from robustclip.defenses.base import Batch, Defense, Roles


def one_edit() -> TextAttack:
    """Return the character edit, at one of the two places that matter most, that takes a prompt farthest from the original's clean one."""
    return TextAttack(Characters(), TextBudget(edits=1), score="distance", width=2)


@dataclass(frozen=True)
class LEAF(Defense):
    """FARE's objective for the text tower: rewritten prompts stay where the original model had the clean ones; images take no part.

    L = mean_i ||f(t'_i) - f_org(t_i)||_2^2 with raw features, t'_i at most one character from t_i and by the same distance the farthest.
    Its captions are the class prompts of the batch here, rewritten at every step, or, with `refresh` above 1, those of all classes every
    so many. With FARE's visual tower: `towers:A,B`.
    Ours on purpose: the authors' code draws 50 places, tries a blank at each, draws 50 of 95 printable characters for the farthest one and
    takes the best, nearer than the clean prompt or not; here all of 26 letters and a blank are tried at two places, and nothing nearer is
    taken. It allows a prompt only if it has fewer known English words than the clean one; here it may not name another class.
    """

    reads = "texts"
    least_classes = 1
    text: TextAttack = field(default_factory=one_edit)
    refresh: int = 1

    def __post_init__(self) -> None:
        if self.refresh < 1:
            raise UserError(f"defense.refresh is {self.refresh}: prompts are rewritten every so many steps, 1 or more")

    def objective(self, roles: Roles, batch: Batch) -> Objective | None:
        """Return nothing: the images are not attacked."""
        return None

    def loss(self, roles: Roles, batch: Batch, adversarial: Example) -> dict[str, Tensor]:
        """Return L over all prompts of the batch's classes."""
        templates = len(roles.student.templates)
        places = [label * templates + t for label in batch.labels.tolist() for t in range(templates)]
        clean, now = roles.teacher.texts, batch.rewritten or roles.student.texts
        wanted = batch.once(roles.teacher, "original texts", lambda: roles.teacher.text_features([clean[i] for i in places]))
        apart = wide(roles.student.text_features([now[i] for i in places])) - wide(wanted)
        return {"leaf": apart.square().sum(1).mean()}
