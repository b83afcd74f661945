"""What papers call an attack: what a paper's word stands for."""

from robustclip.attacks.apgd import APGD, APGDT
from robustclip.attacks.base import Attack
from robustclip.attacks.fab import FABT
from robustclip.attacks.pgd import PGD
from robustclip.attacks.square import Square

# AutoAttack "standard" (Croce & Hein 2020; their code: 1 restart of each, Square's schedule not scaled to its queries).
AUTOATTACK = (APGD(100), APGDT(100, targets=9), FABT(100, targets=9), Square(5000, rescale=False))
ENSEMBLES: dict[str, tuple[Attack, ...]] = {
    "autoattack": AUTOATTACK,
    # FARE (Schlarmann et al. 2024): AutoAttack "custom" with its two first attacks, whose APGD-CE runs 5 restarts.
    "fare": (APGD(100, restarts=5), APGDT(100, targets=9)),
    # "CW" of TeCoA, PMG-AFT, TGA-ZSR and TTC: PGD on the margin. Their cap at confidence 50 only spares images that are broken already.
    "cw": (PGD(100, loss="margin"),),
}
