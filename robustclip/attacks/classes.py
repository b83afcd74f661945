"""Which attacks are defined on how many classes, and what they aim at there."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from robustclip.attacks.base import Attack
from robustclip.attacks.levels import Aimed
from robustclip.attacks.shift import Shifted
from robustclip.base.errors import UserError


def for_classes(attacks: Iterable[Attack], classes: int) -> dict[str, Attack]:
    """Return name -> the attack as it runs on so many classes, in order, without those that are not defined there.

    Where there are fewer wrong classes than an attack's `targets`, it aims at all of them and its own name says so; losses that look at the
    third or fourth logit (`min_classes`) and, on 2 classes, targets of any kind are left out. Raises UserError for one class and for
    what leaves nothing.
    """
    attacks = tuple(attacks)
    if classes < 2:
        raise UserError("one class is there, which nothing can be mistaken for: no attack is defined on it; give two classes or more")
    found = {attack.name: _fewer_targets(attack, classes) for attack in attacks if classes >= _least(attack)}
    if not found:
        raise UserError(f"none of {', '.join(attack.name for attack in attacks)} is defined on {classes} classes: add apgd-ce-100")
    return found


def _least(attack: Attack) -> int:
    # On 2 classes a targeted attack has one class to go to: it would repeat an untargeted one.
    inner = attack.attack if isinstance(attack, Aimed | Shifted) else attack
    return getattr(inner, "min_classes", 3 if hasattr(inner, "targets") else 2)


def _fewer_targets(attack: Any, classes: int) -> Attack:
    if isinstance(attack, Aimed | Shifted):
        return dataclasses.replace(attack, attack=_fewer_targets(attack.attack, classes))  # type: ignore[arg-type]
    targets = getattr(attack, "targets", 0)
    return dataclasses.replace(attack, targets=classes - 1) if targets >= classes else attack


def reductions(attacks: Iterable[Attack], classes: int) -> dict[str, str | None]:
    """Return what differs on so many classes: name -> the name of what runs instead, None for an attack that is left out."""
    attacks = tuple(attacks)
    runs = for_classes(attacks, classes)
    return {attack.name: runs[attack.name].name if attack.name in runs else None for attack in attacks if runs.get(attack.name) != attack}
