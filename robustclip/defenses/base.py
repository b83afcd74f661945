"""The contract of a defence: what the attack raises and what the optimiser lowers are two different things."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustclip.attacks.base import Example, Objective
from robustclip.base.precision import reduced
from robustclip.models.classifier import ZeroShotClassifier


@dataclass(frozen=True)
class Batch:
    """A micro-batch: images [B,3,H,W] in [0,1], labels [B], and what keys its randomness: ids, the run's seed, the step.

    `rewritten` are the student's prompts after the defence's text attack, class by class, if it has one.
    """

    images: Tensor
    labels: Tensor
    ids: list[str]
    seed: int = 0
    step: int = 0
    rewritten: tuple[str, ...] = ()
    _made: dict[Any, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def once(self, model: nn.Module, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Return what `make` gets from a model that does not learn, without gradient and once per precision, for objective and loss."""
        key = model, name, torch.is_autocast_enabled(self.images.device.type), reduced()
        if key not in self._made:
            with torch.no_grad():
                self._made[key] = make()
        return self._made[key]


@dataclass(frozen=True)
class Roles:
    """Who takes part: `student` learns, `teacher` is the same classifier before training, `head` is what a defence adds for training alone.

    A head maps raw image features [B,D] to scores of the training classes [B,K]; it is never part of the trained model.
    """

    student: ZeroShotClassifier
    teacher: ZeroShotClassifier
    head: nn.Module | None = None


class Defense:
    """One frozen dataclass per paper, in one file; its fields are its hyper-parameters, its docstring citation and equation.

    `reads` says what of the student it uses: class scores ("logits"), the tower's features, which a trained readout would not change, the
    "texts" alone, or "captions": features of images and of single texts.
    `scores_classes`: attack or loss ask for scores of classes, so where the text tower learns these must follow it at every step.
    `least_classes` is the fewest classes on which it learns something.
    `whole_batch`: the images of a micro-batch are compared with each other, or share something, so it is part of the method.
    """

    reads: ClassVar[str] = "logits"
    least_classes: ClassVar[int] = 2
    whole_batch: ClassVar[bool] = False
    scores_classes: ClassVar[bool] = True
    head_share = 0.0  # of all steps: the first ones train the head alone, on clean images
    head_lr = 0.0

    def head(self, student: ZeroShotClassifier, seed: int) -> nn.Module | None:
        """Return the head that this defence trains with, if any."""
        return None

    def objective(self, roles: Roles, batch: Batch) -> Objective | None:
        """Return the inner maximisation: what the training attack raises, per image; None if this defence trains on clean images."""
        raise NotImplementedError

    def loss(self, roles: Roles, batch: Batch, adversarial: Example) -> dict[str, Tensor]:
        """Return the outer minimisation as named parts, each a mean over the batch; their sum is lowered."""
        raise NotImplementedError
