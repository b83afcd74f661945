"""Attacks on the image side, each a frozen dataclass of its settings."""

from robustclip.attacks.apgd import APGD, APGDT
from robustclip.attacks.base import Attack, Example, Objective, Scored, Trace
from robustclip.attacks.fab import FABT
from robustclip.attacks.library import Library
from robustclip.attacks.noise import Noise
from robustclip.attacks.pgd import PGD
from robustclip.attacks.square import Square
from robustclip.attacks.transfer import MIFGSM
from robustclip.attacks.universal import Universal

# Every attack that a protocol may name; the contract tests run over this dict.
ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        Noise(10),
        PGD(steps=1, alpha=1.0, random_start=False),
        PGD(steps=10),
        PGD(steps=100),
        PGD(steps=10, loss="margin"),
        PGD(steps=10, loss="dlr"),
        MIFGSM(steps=10),
        MIFGSM(steps=10, decay=0.0, diversity=0.5),
        MIFGSM(steps=10, decay=0.0, kernel=15),
        MIFGSM(steps=10, diversity=0.5, kernel=15),
        APGD(steps=20),
        APGD(steps=100),
        APGD(steps=20, loss="dlr"),
        APGDT(steps=20),
        FABT(steps=10, targets=3),
        Square(queries=100),
        Universal(epochs=10),
        Library("FGSM"),
        Library("MIFGSM", (("steps", 10),)),
        Library("PGDL2", (("steps", 10),)),
    )
}

__all__ = [
    "APGD",
    "APGDT",
    "ATTACKS",
    "FABT",
    "MIFGSM",
    "PGD",
    "Attack",
    "Example",
    "Library",
    "Noise",
    "Objective",
    "Scored",
    "Square",
    "Trace",
    "Universal",
]
