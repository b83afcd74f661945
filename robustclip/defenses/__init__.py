"""Training-time defences, one paper a file."""

from dataclasses import is_dataclass
from importlib import import_module
from pkgutil import iter_modules

from robustclip.defenses.adversarial import LinearAT
from robustclip.defenses.apt import APT
from robustclip.defenses.base import Batch, Defense, Roles
from robustclip.defenses.captions import Captioned
from robustclip.defenses.clean import CleanCE
from robustclip.defenses.codes import CoAdv
from robustclip.defenses.fap import FAP
from robustclip.defenses.fare import FARE
from robustclip.defenses.guided import PMGAFT, TRADES
from robustclip.defenses.half import HalfTeCoA
from robustclip.defenses.leaf import LEAF
from robustclip.defenses.mix import Mix
from robustclip.defenses.mmcoa import CleanContrastive, MMCoA, Paired
from robustclip.defenses.tecoa import PseudoTeCoA, TeCoA
from robustclip.defenses.views import ImgCoAdv

# A file of this folder is all that a new defence needs: a config reads it back by its name, and the contract tests run over it.
FILES = [import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__)]
ALL: tuple[type[Defense], ...] = tuple(
    kind
    for file in FILES
    for kind in vars(file).values()
    if is_dataclass(kind) and isinstance(kind, type) and issubclass(kind, Defense) and kind.__module__ == file.__name__
)
PAIRED: tuple[type[Paired], ...] = tuple(kind for kind in ALL if issubclass(kind, Paired))
DEFENSES = tuple(kind for kind in ALL if not issubclass(kind, Paired) and kind.reads not in ("texts", "captions"))

__all__ = [
    "APT",
    "DEFENSES",
    "FAP",
    "FARE",
    "LEAF",
    "PAIRED",
    "PMGAFT",
    "TRADES",
    "Batch",
    "Captioned",
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
