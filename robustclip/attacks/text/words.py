"""Class prompts as words and characters: what a text attack may change, how far it went, and which changes are really a label change."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

WORD = re.compile(r"[^\s.,;:!?\"()\[\]{}]+")  # anything but blanks and sentence punctuation: "ice-cream", "don't" and an emoji are words
Scope = Literal["class name", "any word"]

# Function words, which an attack leaves alone: another one in their place changes nothing that a class name is about.
FUNCTION_WORDS = """
a about above after again against all am an and any are as at be because been before being below between both but by can could did do does
doing down during each few for from further had has have having he her here hers him his how i if in into is it its just me more most my
no nor not now of off on once only or other our out over own same she should so some such than that the their them then there these they
this those through to too under until up very was we were what when where which while who whom why will with would you your
"""
STOP_WORDS = frozenset(FUNCTION_WORDS.split())


@dataclass(frozen=True)
class Prompt:
    """A class prompt in three parts, its class name in the middle, and the places of the words that were rewritten already."""

    before: str
    name: str
    after: str
    changed: frozenset[int] = frozenset()

    @property
    def text(self) -> str:
        """The prompt as a model reads it."""
        return self.before + self.name + self.after

    @property
    def words(self) -> list[str]:
        """The words of the prompt, in order; a word never reaches over the edge of the class name."""
        return [found.group() for _, found in self._words()]

    def places(self, scope: Scope) -> list[int]:
        """Return the places of the words that may be rewritten: not rewritten yet, in the class name or anywhere, stop words never."""
        return [
            place
            for place, (part, found) in enumerate(self._words())
            if place not in self.changed and (scope == "any word" or part == 1) and found.group().lower() not in STOP_WORDS
        ]

    def with_word(self, place: int, new: str) -> "Prompt":
        """Return the prompt with another word, or several, at a place."""
        part, found = self._words()[place]
        parts = [self.before, self.name, self.after]
        parts[part] = parts[part][: found.start()] + new + parts[part][found.end() :]
        more = len(WORD.findall(new)) - 1
        moved = {p + more if p > place else p for p in self.changed} | set(range(place, place + more + 1))
        before, name, after = parts
        return Prompt(before, name, after, frozenset(moved))

    def edits(self, scope: Scope, place: int, alphabet: Sequence[str]) -> Iterator["Prompt"]:
        """Yield the prompts one edit away at a character of the scope: it deleted or replaced, or (at the end also) a letter before it."""
        text = self.name if scope == "class name" else self.text
        head, tail = text[:place], text[place:]
        rest = tail[1:]
        for new in (*alphabet, ""):
            if tail and new != tail[0]:
                yield self._edited(scope, place, head + new + rest)
        for new in alphabet:
            yield self._edited(scope, place, head + new + tail)

    def _edited(self, scope: Scope, place: int, text: str) -> "Prompt":
        if scope == "class name":
            return replace(self, name=text)
        grown = len(text) - len(self.text)
        # An edit at the seam of two parts belongs to the later one.
        first = len(self.before) + (grown if place < len(self.before) else 0)
        last = first + len(self.name) + (grown if len(self.before) <= place < len(self.before) + len(self.name) else 0)
        return replace(self, before=text[:first], name=text[first:last], after=text[last:])

    def _words(self) -> list[tuple[int, re.Match[str]]]:
        parts = (self.before, self.name, self.after)
        return [(i, found) for i, part in enumerate(parts) for found in WORD.finditer(part)]


def prompts_of(class_names: Sequence[str], templates: Sequence[str]) -> list[Prompt]:
    """Return the prompts of a classifier, class by class, each class in all templates."""
    cut = [template.split("{}") for template in templates]
    return [Prompt(before, name, after) for name in class_names for before, after in cut]


def distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the Levenshtein distance of two strings, or two lists of words: insertions, deletions and replacements of one of them."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (left != right))
    return row[-1]


def plain(text: str) -> tuple[str, ...]:
    """Return the words of a text, in small letters and without the s of a plural."""
    return tuple(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in (w.lower() for w in WORD.findall(text)))


def within(a: Sequence[str], b: Sequence[str]) -> bool:
    """Return whether the words a stand in b, one after another."""
    return bool(a) and any(tuple(b[i : i + len(a)]) == tuple(a) for i in range(len(b) - len(a) + 1))


class OtherNames:
    """The class names of a set as a rewritten prompt of one class may not name them.

    A change of words that equal, contain or are contained in another class's name is a label change, not an attack: what the prompt then
    says is another class, or more of one.
    """

    def __init__(self, class_names: Sequence[str]):
        self.names = [plain(name) for name in class_names]
        self.having: dict[str, set[tuple[str, ...]]] = {}  # word -> names: a search asks for thousands of candidates among all names
        for words in self.names:
            for word in words:
                self.having.setdefault(word, set()).add(words)
        self.known = frozenset(self.names)

    def collide(self, own: int, clean: Prompt, rewritten: Prompt) -> bool:
        """Return whether the words that a rewriting brought into the prompt of class `own` collide with another class's name."""
        before, after = plain(clean.text), plain(rewritten.text)
        # The stretch of words that differs, whatever was before and after it.
        first = next((i for i, (a, b) in enumerate(zip(before, after)) if a != b), min(len(before), len(after)))
        left = min(len(before), len(after)) - first
        last = next((i for i in range(left) if before[-1 - i] != after[-1 - i]), left)
        new = after[first : len(after) - last]
        name = plain(rewritten.name)
        if name in self.known and name != self.names[own]:
            return True
        near = {words for word in new for words in self.having.get(word, ())} - {self.names[own]}
        return any(within(new, words) or within(words, new) for words in near)
