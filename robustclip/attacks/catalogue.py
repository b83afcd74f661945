"""Attacks by name: every single one, those that rewrite prompts, and what papers call by one word."""

from collections.abc import Iterable

from robustclip.attacks import ATTACKS, Attack
from robustclip.attacks.ensembles import ENSEMBLES
from robustclip.attacks.modes import MODES
from robustclip.base.errors import UserError, did_you_mean

KNOWN: dict[str, tuple[Attack, ...]] = {**{name: (attack,) for name, attack in (ATTACKS | MODES).items()}, **ENSEMBLES}


def named(names: Iterable[str]) -> tuple[Attack, ...]:
    """Return the attacks that some names stand for, each once; raises UserError with a suggestion for an unknown one."""
    names = tuple(names)
    unknown = [name for name in names if name not in KNOWN]
    if unknown:
        raise UserError(f"no attack {unknown[0]!r}{did_you_mean(unknown[0], KNOWN)}; there are {', '.join(KNOWN)}")
    return tuple(dict.fromkeys(attack for name in names for attack in KNOWN[name]))
