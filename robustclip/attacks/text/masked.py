"""Words that a masked language model would put in a word's place: Li et al., "BERT-ATTACK", EMNLP 2020, as Co-Attack uses it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, Protocol

from robustclip.attacks.text.sources import Asked, WordSource, usable
from robustclip.attacks.text.words import Prompt
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.ranges import COUNT, check_fields

CONTINUES = "##"  # of a piece that goes on the word before it
PIECES, EACH, COMBINATIONS = 12, 4, 24  # of a word of several pieces: those looked at, candidates of each, combinations kept


class LanguageModel(Protocol):
    """A masked language model: `rows` are the special start token, then the pieces of all words."""

    special: frozenset[str]

    def pieces(self, word: str) -> list[str]:
        """Return the pieces of a word."""
        ...

    def likely(self, pieces: Sequence[str], k: int) -> list[list[str]]:
        """Return, for every row, the k most likely tokens, best first; nothing in the text is masked."""
        ...


@dataclass(frozen=True)
class MaskedWords(WordSource):
    """The `k` most likely tokens at a word's own row; of a word of several pieces, the first combinations of the likely ones of each.

    The model reads the words of the prompt in small letters, without the punctuation between them, and none of them masked.
    `cls_offset` 0 takes the row before it, as the code of Co-Attack and MMCoA does by mistake (it forgets the start token); 1 is right.
    `sha256` is the model's. Special tokens and pieces of words are no candidates.
    """

    folder: str
    sha256: str
    lm: LanguageModel = field(repr=False, compare=False, metadata={"loaded": True})
    k: int = 10
    cls_offset: Literal[0, 1] = 1
    name = "mlm"

    def __post_init__(self) -> None:
        check_fields(self, "masked words: ", k=COUNT)

    @classmethod
    def read(cls, folder: str, **settings: Any) -> "MaskedWords":
        """Return the source of a local folder of a BERT-like model; nothing is downloaded."""
        weights = [path for path in storage.list_files(folder) if path.endswith((".safetensors", "vocab.txt"))]
        if len(weights) < 2:
            raise UserError(f"{folder} holds no masked language model: it needs vocab.txt, config.json and model.safetensors")
        return cls(folder, "+".join(storage.sha256_file(path)[:16] for path in weights), Transformers(folder), **settings)

    def words(self, asked: Asked) -> list[dict[int, list[str]]]:
        return [{place: self.candidates(prompt, place) for place in some} for prompt, some in zip(asked.prompts, asked.places, strict=True)]

    def candidates(self, prompt: Prompt, place: int) -> list[str]:
        """Return what may stand at a place of a prompt."""
        pieces = [self.lm.pieces(word.lower()) for word in prompt.words]
        first = sum(len(each) for each in pieces[:place]) + self.cls_offset
        rows = self.lm.likely([piece for word in pieces for piece in word], self.k)[first : first + len(pieces[place])]
        if len(rows) == 1:
            whole = [token for token in rows[0] if not token.startswith(CONTINUES) and token not in self.lm.special]
            return usable(whole, prompt.words[place], self.k)
        some = [[token for token in row[:EACH] if token not in self.lm.special] for row in rows[:PIECES]]
        joined = (" ".join(tokens).replace(f" {CONTINUES}", "") for tokens in itertools.product(*some))
        return usable(list(itertools.islice(joined, COMBINATIONS)), prompt.words[place], COMBINATIONS)


class Transformers:
    """A masked language model of the package transformers, from a local folder."""

    def __init__(self, folder: str):
        try:
            from transformers import AutoModelForMaskedLM, AutoTokenizer
        except ImportError as error:
            raise UserError("masked language models need the package transformers: pip install 'robustclip[bert]'") from error
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        self.special = frozenset(self.tokenizer.all_special_tokens)
        self._likely = cache(self._computed)

    def pieces(self, word: str) -> list[str]:
        """Return the pieces of a word; the unknown token for what the vocabulary cannot spell."""
        return self.tokenizer.tokenize(word) or [self.tokenizer.unk_token]

    def likely(self, pieces: Sequence[str], k: int) -> list[list[str]]:
        """Return, for every row, the k most likely tokens, best first."""
        return self._likely(tuple(pieces), k)

    def _computed(self, pieces: tuple[str, ...], k: int) -> list[list[str]]:
        import torch

        ids = [self.tokenizer.cls_token_id, *self.tokenizer.convert_tokens_to_ids(list(pieces)), self.tokenizer.sep_token_id]
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids])).logits[0]
        rows = (self.tokenizer.convert_ids_to_tokens(row) for row in logits.topk(k).indices.tolist())
        return [[token for token in row if token] for row in rows]  # a model may have more rows than its vocabulary has tokens


def table_of(source: MaskedWords, prompts: Sequence[Prompt]) -> dict[str, list[list[Any]]]:
    """Return {prompt: [[place, [words]], ...]} of every word that may be rewritten: what `Table` reads, no language model needed then."""
    return {prompt.text: [[place, source.candidates(prompt, place)] for place in prompt.places("any word")] for prompt in prompts}
