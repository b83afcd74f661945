"""The contract of a defence: what the attack raises and what the optimiser lowers are two different things."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from robustclip.attacks.base import Example, Objective
from robustclip.classifier import ZeroShotClassifier


@dataclass(frozen=True)
class Batch:
    """A micro-batch: images [B,3,H,W] in [0,1], labels [B] and the ids that key its randomness."""

    images: Tensor
    labels: Tensor
    ids: list[str]


class Defense(Protocol):
    """One frozen dataclass per paper, in one file; its fields are its hyper-parameters, its docstring citation and equation.

    `student` is the classifier that learns, `teacher` the same classifier as it was before training.
    """

    def objective(self, student: ZeroShotClassifier, teacher: ZeroShotClassifier, batch: Batch) -> Objective:
        """Return the inner maximisation: what the training attack raises, per image."""
        ...

    def loss(self, student: ZeroShotClassifier, teacher: ZeroShotClassifier, batch: Batch, adversarial: Example) -> dict[str, Tensor]:
        """Return the outer minimisation as named parts, each a mean over the batch; their sum is lowered."""
        ...
