"""Sets that are another one looked at otherwise, said by their names: nothing is stored of them, and images' ids and labels stay.

`typographic:SET` has words on its images (typographic.py). `among:OTHER:SET` are the images of SET among its class names and, behind them,
those of OTHER that are new.
"""

from collections.abc import Sequence

from robustclip.base.errors import UserError

TYPOGRAPHIC, AMONG = "typographic:", "among:"


def has_words(name: str) -> bool:
    """Return whether words are written on the images of a set."""
    return name.startswith(TYPOGRAPHIC)


def base_of(name: str) -> str:
    """Return the set whose images a set shows: of `typographic:SET` and `among:OTHER:SET` it is SET, of any other the set itself.

    Raises UserError for half a name.
    """
    return _among(name)[1] if name.startswith(AMONG) else name.removeprefix(TYPOGRAPHIC)


def other_of(name: str) -> str | None:
    """Return the set whose class names stand beside a set's own: of `among:OTHER:SET` it is OTHER; None where there is none."""
    return _among(name)[0] if name.startswith(AMONG) else None


def _among(name: str) -> tuple[str, str]:
    other, _, base = name.removeprefix(AMONG).partition(":")
    if not other or not base or ":" in base:
        raise UserError(f"{name!r} names no set: give the one that lends class names and the one whose images are shown, among:OTHER:SET")
    return other, base


def names_among(own: Sequence[str], others: Sequence[str], name: str) -> tuple[str, ...]:
    """Return the class names of the set `name`: its own, then those of the others that are not among them; UserError where none is new."""
    more = tuple(each for each in others if each not in own)
    if not more:
        raise UserError(f"{name!r}: no class name of {other_of(name)!r} is new to {base_of(name)!r}: name a set with other classes")
    return (*own, *more)
