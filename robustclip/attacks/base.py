"""The nouns of an attack: what it raises, what it returns, and what it saw on the way."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from robustclip.base.threat import Ball


class Scored(NamedTuple):
    """What an objective says of images [B]: the loss the attack raises and, where it knows, which images already fool the model."""

    loss: Tensor
    fooled: Tensor | None = None


Objective = Callable[[Tensor], Scored]  # images [B,3,H,W] in [0,1] -> per-image scores


@dataclass(frozen=True)
class Trace:
    """What an attack saw, per image [B]: losses, step of the first success (-1: none), shares of bad gradients, forward passes."""

    loss_start: Tensor
    loss_best: Tensor
    loss_end: Tensor
    first_success: Tensor
    zero_gradient: Tensor
    nonfinite_gradient: Tensor
    forwards: Tensor


@dataclass(frozen=True)
class Example:
    """What an attack returns: images [B,3,H,W] in [0,1], the class texts if it rewrote them, and its trace if it kept one.

    `label_known`: each image is scored with only the text of its own class rewritten, which tells the attacker its label. `spent` are the
    seconds that it took before, where it was only read again. `seen` is what was attacked, where that is the model under other prompts.
    """

    images: Tensor
    class_texts: tuple[str, ...] | None = None
    trace: Trace | None = None
    label_known: bool = False
    spent: float = 0.0
    seen: nn.Module | None = None


class Attack(Protocol):
    """A frozen dataclass whose fields are its settings; called with a classifier, images, labels and ids it returns an Example.

    `ids` are the names of the images: all randomness is keyed by (seed, id, restart), so a result depends on nothing else. The model sees
    batches of `micro_batch` images, filled with those that still resist (None: of all images).
    """

    @property
    def name(self) -> str: ...

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, ids: list[str], ball: Ball, seed: int, micro_batch: int | None = None
    ) -> Example: ...
