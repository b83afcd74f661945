"""What a text tower reads of class names: those it reads as one, those of which nothing is left, those that do not fit into its context."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from robustclip.models.classifier import token_ids
from robustclip.models.tokenizers import Tokenizer

log = logging.getLogger(__name__)

SHOWN = 5  # names or pairs that a sentence names; it counts the others
MORE = " x"  # a text that fills the context is read as before with this behind it


@dataclass(frozen=True)
class Reading:
    """What a tokenizer makes of `names`: places of those it reads as one, of those that leave nothing, of those that fill its context."""

    names: tuple[str, ...]
    same: tuple[tuple[int, ...], ...]
    empty: tuple[int, ...]
    full: tuple[int, ...]
    context: int

    @property
    def twins(self) -> frozenset[int]:
        """The places of all names that are read as another one."""
        return frozenset(place for group in self.same for place in group)

    @property
    def groups(self) -> str:
        """The names that are read as one, as a sentence names them."""
        return some([" = ".join(repr(self.names[place]) for place in group) for group in self.same])

    @property
    def said(self) -> list[str]:
        """A sentence for every kind of trouble that there is."""
        found = []
        if self.same:
            found.append(f"{self.groups}: one text to the model, so no image of the one can be told from one of the other: rename them")
        if self.empty:
            found.append(f"{some([repr(self.names[place]) for place in self.empty])}: the tokenizer leaves nothing of it: rename it")
        if self.full:
            names = [repr(self.names[place]) for place in self.full]
            found.append(f"{some(names)}: the prompt fills the {self.context} tokens that the model reads, the rest is cut: shorten it")
        return found


def some(words: Sequence[str]) -> str:
    """Return the first words, and how many there are besides."""
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return f"{', '.join(words[:SHOWN])}{more}"


@cache
def reading(tokenizer: Tokenizer, names: tuple[str, ...], templates: tuple[str, ...]) -> Reading:
    """Return what a tokenizer makes of class names in templates; names are one where they are so in every template."""

    def read(place: int, template: str) -> tuple[int, ...]:
        return tuple(token_ids(tokenizer, template.format(names[place])).tolist())

    # By the first template, and only those that are one there by the others: a thousand names have eighty.
    groups = [tuple(range(len(names)))]
    for template in templates:
        parted: dict[tuple[int, ...], list[int]] = {}
        for number, group in enumerate(groups):
            for place in group:
                parted.setdefault((number, *read(place, template)), []).append(place)
        groups = [tuple(group) for group in parted.values() if len(group) > 1]
        if not groups:
            break
    longest = max(templates, key=len)
    nothing = token_ids(tokenizer, longest.format("")).tolist()
    empty = tuple(i for i in range(len(names)) if list(read(i, longest)) == nothing)
    full = tuple(i for i in range(len(names)) if list(read(i, longest)) == token_ids(tokenizer, longest.format(names[i]) + MORE).tolist())
    return Reading(names, tuple(groups), empty, full, len(nothing))


@cache
def tell(tokenizer: Tokenizer, names: tuple[str, ...], templates: tuple[str, ...], where: str) -> None:
    """Warn on the log of class names that a tokenizer cannot tell apart or cuts, once in a process; `where` says whose they are."""
    for said in reading(tokenizer, names, templates).said:
        log.warning("%s: %s", where, said)
