"""Training-time defences, one paper a file."""

from robustclip.defenses.base import Batch, Defense
from robustclip.defenses.tecoa import TeCoA

DEFENSES: tuple[type, ...] = (TeCoA,)  # the contract tests run over every member

__all__ = ["DEFENSES", "Batch", "Defense", "TeCoA"]
