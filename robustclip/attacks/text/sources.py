"""Where a text attack takes its candidates from; what a source says depends on the prompt and the vocabulary, never on the images."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import torch.nn.functional as F

from robustclip.attacks.text.scores import Score
from robustclip.attacks.text.vocabulary import token_embedding, whole_words
from robustclip.attacks.text.words import STOP_WORDS, Prompt, Scope
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.ranges import COUNT, check_fields
from robustclip.base.seeds import py_random
from robustclip.models.classifier import ZeroShotClassifier

Unit = Literal["words", "edits"]
Proposals = list[dict[int, list[Prompt]]]  # of each prompt: place -> rewritten prompts
LETTERS = "abcdefghijklmnopqrstuvwxyz "


@dataclass(frozen=True)
class Asked:
    """What a source is asked: for some `places` of each of some `prompts`, by an attack that raises `score` on a model's texts."""

    classifier: ZeroShotClassifier
    prompts: Sequence[Prompt]
    places: Sequence[Sequence[int]]
    scope: Scope
    score: Score

    def each(self, words: Callable[[Prompt, int], list[str]]) -> list[dict[int, list[str]]]:
        """Return, for each prompt, place -> the words for it."""
        return [{place: words(prompt, place) for place in some} for prompt, some in zip(self.prompts, self.places, strict=True)]


class WordSource:
    """A source that puts other words in the place of one; what it costs to rewrite once is its `unit`."""

    unit: Unit = "words"

    def places(self, prompt: Prompt, scope: Scope) -> list[int]:
        """Return the places of a prompt where something may be rewritten."""
        return prompt.places(scope)

    def masked(self, prompt: Prompt, place: int, scope: Scope) -> Prompt:
        """Return the prompt without what stands at a place: how much that moves it is the importance of the place."""
        return prompt.with_word(place, "[UNK]")

    def propose(self, asked: Asked) -> Proposals:
        """Return the rewritten prompts, one unit away, at each of the given places of each prompt."""
        return [
            {place: [prompt.with_word(place, word) for word in words] for place, words in found.items()}
            for prompt, found in zip(asked.prompts, self.words(asked), strict=True)
        ]

    def words(self, asked: Asked) -> list[dict[int, list[str]]]:
        """Return, for each prompt, place -> the words that may stand there."""
        raise NotImplementedError


def usable(words: Sequence[str], instead_of: str, k: int) -> list[str]:
    """Return the first k of the words that are neither stop words nor what stands there."""
    return [word for word in dict.fromkeys(words) if word.lower() not in STOP_WORDS and word.lower() != instead_of.lower()][:k]


@dataclass(frozen=True)
class RandomWords(WordSource):
    """`k` words of the vocabulary drawn at random for a place, keyed by (seed, prompt, place).

    One is the control that every attack must beat: the best of ten by the model's own scores is an attack already.
    """

    k: int = 1
    seed: int = 0
    name = "random"

    def __post_init__(self) -> None:
        check_fields(self, "random words: ", k=COUNT)

    def words(self, asked: Asked) -> list[dict[int, list[str]]]:
        known, _ = whole_words(asked.classifier.tokenizer)

        def drawn(prompt: Prompt, place: int) -> list[str]:
            draw = py_random(self.seed, "random words", prompt.text, place).sample(known, self.k + 1)
            return usable(draw, prompt.words[place], self.k)

        return asked.each(drawn)


@dataclass(frozen=True)
class Neighbours(WordSource):
    """The `k` whole-word tokens nearest by cosine in the token embedding, a word of several tokens by their mean; never BERT-Attack."""

    k: int = 10
    name = "clip_knn"

    def __post_init__(self) -> None:
        check_fields(self, "clip_knn: ", k=COUNT)

    def words(self, asked: Asked) -> list[dict[int, list[str]]]:
        known, ids = whole_words(asked.classifier.tokenizer)
        weight = token_embedding(asked.classifier.clip).weight.detach()
        table = F.normalize(weight[ids.to(weight.device)], dim=1)

        @cache
        def near(word: str) -> list[str]:
            tokens = asked.classifier.tokenizer([word])[0]
            own = tokens[1 : int(tokens.argmax())].to(weight.device)  # between the start and the end token, which has the highest number
            cosines = table @ F.normalize(weight[own].mean(0), dim=0)
            return usable([known[i] for i in cosines.topk(min(self.k + 1, len(known))).indices.tolist()], word, self.k)

        return asked.each(lambda prompt, place: near(prompt.words[place]))


@dataclass(frozen=True)
class Table(WordSource):
    """Candidates from a JSON file {prompt: [[place, [words]], ...]}, such as a masked language model wrote once; `sha256` is the file's.

    Raises UserError for a prompt that the file does not have.
    """

    file: str
    sha256: str
    entries: Mapping[str, Mapping[int, Sequence[str]]] = field(repr=False, compare=False, metadata={"loaded": True})
    name = "table"

    @classmethod
    def read(cls, path: str) -> "Table":
        """Return the source of a file; raises UserError for one that is not such a table."""
        try:
            content = storage.read_bytes(storage.resolve(path))
        except OSError as error:
            raise UserError(f"the table {path} cannot be read: {' '.join(str(error).split())}") from error
        try:
            entries = {text: {int(place): [str(w) for w in words] for place, words in rows} for text, rows in json.loads(content).items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is no table of candidates, {{prompt: [[place, [words]], ...]}}: {error}") from error
        return cls(storage.name_of(path), hashlib.sha256(content).hexdigest(), entries)

    def words(self, asked: Asked) -> list[dict[int, list[str]]]:
        for prompt in asked.prompts:
            if prompt.text not in self.entries:
                raise UserError(f"{self.file} has no candidates for {prompt.text!r}: make the table of this set's prompts")
        return asked.each(lambda prompt, place: list(self.entries[prompt.text].get(place, ())))


@dataclass(frozen=True)
class Characters:
    """Every prompt one character away: a letter or blank deleted, replaced or inserted (Levenshtein distance 1 an edit)."""

    letters: str = LETTERS
    name = "char"
    unit: Unit = "edits"

    def places(self, prompt: Prompt, scope: Scope) -> list[int]:
        return list(range(len(prompt.name if scope == "class name" else prompt.text) + 1))

    def masked(self, prompt: Prompt, place: int, scope: Scope) -> Prompt:
        return next(prompt.edits(scope, place, " "))

    def propose(self, asked: Asked) -> Proposals:
        return [
            {place: list(prompt.edits(asked.scope, place, self.letters)) for place in some}
            for prompt, some in zip(asked.prompts, asked.places, strict=True)
        ]
