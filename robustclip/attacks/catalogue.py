"""Attacks by name: every single one, those that rewrite prompts, and what papers call by one word."""

from collections.abc import Iterable

from robustclip.attacks import ATTACKS, Attack
from robustclip.attacks.ensembles import ENSEMBLES
from robustclip.attacks.modes import MODES
from robustclip.base.errors import UserError, did_you_mean

KNOWN: dict[str, tuple[Attack, ...]] = {**{name: (attack,) for name, attack in (ATTACKS | MODES).items()}, **ENSEMBLES}


def named(wanted: Iterable[str | Attack]) -> tuple[Attack, ...]:
    """Return the attacks that some names stand for, and those given themselves, each once.

    Raises UserError with a suggestion for an unknown name.
    """
    found: list[Attack] = []
    for each in wanted:
        if isinstance(each, str) and each not in KNOWN:
            raise UserError(f"no attack {each!r}{did_you_mean(each, KNOWN)}; there are {', '.join(KNOWN)}")
        found += KNOWN[each] if isinstance(each, str) else (each,)
    return tuple(dict.fromkeys(found))
