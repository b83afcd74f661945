"""What a text attack makes of a classifier's prompts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rewritten:
    """What became of the prompts [P] of a classifier, class by class: how they read now, and cos(clean, now) of each [P].

    `collisions` is the share of prompts whose best candidate, had it been allowed, names another class.
    """

    clean: tuple[str, ...]
    texts: tuple[str, ...]
    cosines: tuple[float, ...]
    collisions: float
