"""What a text tower reads of class names: those it reads as one, those of which nothing is left, those that do not fit into its context."""

import logging
from dataclasses import dataclass
from functools import cache

from robustclip.models.class_texts import Descriptions, some, texts_of
from robustclip.models.classifier import token_ids
from robustclip.models.tokenizers import Tokenizer

log = logging.getLogger(__name__)

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


@cache
def reading(tokenizer: Tokenizer, names: tuple[str, ...], templates: tuple[str, ...] | Descriptions) -> Reading:
    """Return what a tokenizer makes of class names in templates, or of descriptions; classes are one where they are so in every text."""
    texts = texts_of(names, templates)

    def read(place: int, number: int) -> tuple[int, ...]:
        return tuple(token_ids(tokenizer, texts[place][number]).tolist()) if number < len(texts[place]) else ()

    # By the first text, and only those that are one there by the others: a thousand names have eighty.
    groups = [tuple(range(len(names)))]
    for number in range(max(map(len, texts))):
        parted: dict[tuple[int, ...], list[int]] = {}
        for first, group in enumerate(groups):
            for place in group:
                parted.setdefault((first, *read(place, number)), []).append(place)
        groups = [tuple(group) for group in parted.values() if len(group) > 1]
        if not groups:
            break
    longest = [max(each, key=len) for each in texts]
    nothing = token_ids(tokenizer, "" if isinstance(templates, Descriptions) else max(templates, key=len).format("")).tolist()
    found = [token_ids(tokenizer, text).tolist() for text in longest]
    empty = tuple(i for i, ids in enumerate(found) if ids == nothing)
    full = tuple(i for i, ids in enumerate(found) if ids == token_ids(tokenizer, longest[i] + MORE).tolist())
    return Reading(names, tuple(groups), empty, full, len(nothing))


@cache
def tell(tokenizer: Tokenizer, names: tuple[str, ...], templates: tuple[str, ...] | Descriptions, where: str) -> None:
    """Warn on the log of class names that a tokenizer cannot tell apart or cuts, once in a process; `where` says whose they are."""
    for said in reading(tokenizer, names, templates).said:
        log.warning("%s: %s", where, said)
