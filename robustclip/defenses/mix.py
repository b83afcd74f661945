"""A weighted sum of defences, so that the weights of their losses can be swept."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn

from robustclip.attacks.base import Example, Objective, Scored
from robustclip.base.errors import UserError
from robustclip.defenses.base import Batch, Defense, Roles
from robustclip.defenses.fare import FARE
from robustclip.defenses.mmcoa import Paired
from robustclip.defenses.tecoa import TeCoA
from robustclip.models.classifier import ZeroShotClassifier


@dataclass(frozen=True)
class Mix(Defense):
    """sum_i weights[i] L_i: the optimiser lowers it, the attack raises the same sum of the members' objectives (ours, no arXiv number).

    A member of weight 0 takes no part. Raises UserError for a part that is a sum itself or no loss of single images, for another number of
    weights than parts, a negative weight, or all of them 0.
    """

    parts: tuple[Defense, ...] = (TeCoA(), FARE())
    weights: tuple[float, ...] = (1.0, 0.1)

    def __post_init__(self) -> None:
        for i, part in enumerate(self.parts):
            if isinstance(part, Mix | Paired) or part.reads in ("texts", "captions"):
                raise UserError(
                    f"defense.parts[{i}]: {type(part).__name__} has no loss of single images that could be summed: take another"
                )
        if len(self.parts) != len(self.weights) or any(w < 0 for w in self.weights) or not any(self.weights):
            raise UserError(f"defense.weights is {list(self.weights)}: give one weight, not negative, for each of {len(self.parts)} parts")
        if any(part.head_share for part in self.parts):
            raise UserError("defense.parts: LinearAT trains in two stages, which a sum cannot; take CoAdv or TeCoA")

    @property
    def least_classes(self) -> int:  # type: ignore[override]
        """As many as its most demanding part."""
        return max(part.least_classes for part, _ in self._members())

    @property
    def reads(self) -> str:  # type: ignore[override]
        """What its members read of the student: features, if one of them does."""
        return "features" if any(part.reads == "features" for part, _ in self._members()) else "logits"

    @property
    def whole_batch(self) -> bool:  # type: ignore[override]
        """Whether a member compares the images of a micro-batch."""
        return any(part.whole_batch for part, _ in self._members())

    def head(self, student: ZeroShotClassifier, seed: int) -> nn.Module | None:
        """Return the members' heads by their place."""
        heads = {str(i): head for i, part in enumerate(self.parts) if (head := part.head(student, seed)) is not None}
        return nn.ModuleDict(heads) if heads else None

    def objective(self, roles: Roles, batch: Batch) -> Objective | None:
        """Return the weighted sum of the members' objectives, None where all train on clean images."""
        found = [(weight, part.objective(own, batch)) for (part, weight), own in zip(self._members(), self._roles(roles))]
        attacked = [(weight, objective) for weight, objective in found if objective is not None]
        if not attacked:
            return None

        def objective(images: Tensor) -> Scored:
            losses = [weight * each(images).loss for weight, each in attacked]
            return Scored(sum(losses[1:], losses[0]))

        return objective

    def loss(self, roles: Roles, batch: Batch, adversarial: Example) -> dict[str, Tensor]:
        """Return every member's parts, weighted; two members of one kind have the second's place in its parts' names."""
        sums: dict[str, Tensor] = {}
        for place, ((part, weight), own) in enumerate(zip(self._members(), self._roles(roles))):
            for name, value in part.loss(own, batch, adversarial).items():
                sums[f"{name}_{place}" if name in sums else name] = weight * value
        return sums

    def _members(self) -> list[tuple[Defense, float]]:
        return [(part, weight) for part, weight in zip(self.parts, self.weights) if weight]

    def _roles(self, roles: Roles) -> Iterator[Roles]:
        for i, weight in enumerate(self.weights):
            if weight:
                own = roles.head[str(i)] if isinstance(roles.head, nn.ModuleDict) and str(i) in roles.head else None
                yield replace(roles, head=own)
