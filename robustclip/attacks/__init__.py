"""Attacks on the image side, each a frozen dataclass of its settings."""

from robustclip.attacks.apgd import APGD
from robustclip.attacks.base import Attack, Example, Objective, Scored, Trace
from robustclip.attacks.library import Library
from robustclip.attacks.pgd import PGD

# Every attack that a protocol may name; the contract tests run over this dict.
ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        PGD(steps=1, alpha=1.0, random_start=False),
        PGD(steps=10),
        PGD(steps=100),
        APGD(steps=20),
        APGD(steps=100),
        Library("FGSM"),
        Library("MIFGSM", (("steps", 10),)),
        Library("PGDL2", (("steps", 10),)),
    )
}

__all__ = ["APGD", "ATTACKS", "PGD", "Attack", "Example", "Library", "Objective", "Scored", "Trace"]
