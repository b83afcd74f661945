"""Attacks on the image side, each a frozen dataclass of its settings."""

from robustclip.attacks.apgd import APGD
from robustclip.attacks.base import Attack, Example, Objective, Scored, Trace
from robustclip.attacks.fab import FABT
from robustclip.attacks.library import Library
from robustclip.attacks.pgd import PGD
from robustclip.attacks.square import Square

# Every attack that a protocol may name; the contract tests run over this dict.
ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        PGD(steps=1, alpha=1.0, random_start=False),
        PGD(steps=10),
        PGD(steps=100),
        APGD(steps=20),
        APGD(steps=100),
        FABT(steps=10, targets=3),
        Square(queries=100),
        Library("FGSM"),
        Library("MIFGSM", (("steps", 10),)),
        Library("PGDL2", (("steps", 10),)),
    )
}

__all__ = ["APGD", "ATTACKS", "FABT", "PGD", "Attack", "Example", "Library", "Objective", "Scored", "Square", "Trace"]
