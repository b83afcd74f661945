"""Training-time defences, one paper a file."""

from robustclip.defenses.adversarial import LinearAT
from robustclip.defenses.apt import APT
from robustclip.defenses.base import Batch, Defense, Roles
from robustclip.defenses.clean import CleanCE
from robustclip.defenses.codes import CoAdv
from robustclip.defenses.fap import FAP
from robustclip.defenses.fare import FARE
from robustclip.defenses.guided import PMGAFT, TRADES
from robustclip.defenses.half import HalfTeCoA
from robustclip.defenses.leaf import LEAF
from robustclip.defenses.mix import Mix, Single
from robustclip.defenses.mmcoa import PAIRED, CleanContrastive, MMCoA, Paired
from robustclip.defenses.tecoa import PseudoTeCoA, TeCoA
from robustclip.defenses.views import ImgCoAdv

AnyDefense = Single | Mix | CleanContrastive | MMCoA | LEAF
# The contract tests run over every member.
DEFENSES: tuple[type[Defense], ...] = (
    TeCoA, PseudoTeCoA, CleanCE, LinearAT, CoAdv, ImgCoAdv, FARE, PMGAFT, TRADES, Mix, HalfTeCoA, APT, FAP,
)  # fmt: skip

__all__ = [
    "APT",
    "DEFENSES",
    "FAP",
    "FARE",
    "LEAF",
    "PAIRED",
    "PMGAFT",
    "TRADES",
    "AnyDefense",
    "Batch",
    "CleanCE",
    "CleanContrastive",
    "CoAdv",
    "Defense",
    "HalfTeCoA",
    "ImgCoAdv",
    "LinearAT",
    "MMCoA",
    "Mix",
    "Paired",
    "PseudoTeCoA",
    "Roles",
    "TeCoA",
]
