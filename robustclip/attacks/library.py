"""torchattacks by name behind the house's signature, one image at a time so that a result depends on its image alone."""

import inspect
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from robustclip.attacks.base import Example
from robustclip.attacks.pgd import frozen
from robustclip.base.errors import UserError
from robustclip.base.seeds import derive
from robustclip.base.threat import Ball
from robustclip.models.adaptive import meeting


@dataclass(frozen=True)
class Library:
    """The class `kind` of torchattacks with its own settings, e.g. Library("MIFGSM", (("steps", 10),)).

    Slow on purpose: torchattacks draws from torch's global generator, so every image is attacked alone under a seed of its own.
    Its settings are its own defaults (steps, restarts) unless given. Raises UserError for a name, a setting or a norm it does not have.
    """

    kind: str
    settings: tuple[tuple[str, float | int | str | bool], ...] = ()

    @property
    def name(self) -> str:
        return "torchattacks-" + "-".join([self.kind.lower(), *(f"{key}={value}" for key, value in self.settings)])

    def _build(self, classifier: nn.Module, ball: Ball) -> Any:
        torchattacks = _library(self.name)
        cls: Any = getattr(torchattacks, self.kind, None)
        known_class = inspect.isclass(cls) and issubclass(cls, torchattacks.attack.Attack)
        if not known_class:
            raise UserError(f"torchattacks has no attack {self.kind!r}")
        known = inspect.signature(cls.__init__).parameters
        unknown = [key for key, _ in self.settings if key not in known or key == "eps"]
        if "eps" not in known or unknown:
            raise UserError(f"torchattacks.{self.kind} has no setting {(unknown or ['eps'])[0]!r}: it takes {', '.join(list(known)[2:])}")
        norm = {"norm": ball.norm} if "norm" in known else {}
        if not norm and ball.norm != ("L2" if self.kind.endswith("L2") else "Linf"):
            raise UserError(f"torchattacks.{self.kind} does not attack in {ball.norm}")
        return cls(classifier, eps=ball.radius, **norm, **dict(self.settings))

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, ids: list[str], ball: Ball, seed: int, micro_batch: int | None = None
    ) -> Example:
        if ball.radius == 0:
            return Example(images)
        with frozen(classifier), torch.random.fork_rng():
            adversarial = []
            for i, id_ in enumerate(ids):
                attack = self._build(meeting(classifier, ids, torch.tensor([i])), ball)
                torch.manual_seed(derive(seed, self.name, id_))
                if hasattr(attack, "seed"):
                    attack.seed = derive(seed, self.name, id_) % 2**32
                adversarial.append(attack(images[i : i + 1], labels[i : i + 1]))
        return Example(torch.cat(adversarial).detach())


def _library(wanted_by: str) -> Any:
    """Return torchattacks; raises UserError where it is not there: its pin of requests keeps it out of what robustclip requires."""
    try:
        return import_module("torchattacks")
    except ImportError as error:
        raise UserError(f"{wanted_by} needs torchattacks, which is not here ({error}): pip install --no-deps torchattacks") from error
