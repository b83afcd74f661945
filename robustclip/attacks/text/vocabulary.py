"""What text attacks know of a model's vocabulary: its whole words and their embeddings, and texts encoded in batches of one size."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from robustclip.attacks.text.words import STOP_WORDS
from robustclip.base.errors import UserError
from robustclip.models.classifier import ZeroShotClassifier, token_ids
from robustclip.models.insertion import read_of

# Texts computed together, the last batch padded: how a matrix product rounds may depend on the number of its rows. More would keep a tower
# of CLIP's size no busier, and padding would be most of what an attack on few prompts computes.
MICRO_BATCH = 32
LENGTHS = 8  # tokens of a text are computed by the multiple
END = "</w>"  # of a token of CLIP's byte-pair vocabulary that ends a word
INSTEAD = "choose the text source random, table or char"


def token_embedding(clip: nn.Module) -> nn.Embedding:
    """Return the token embedding of a model's text tower, open_clip's own; raises UserError for any other tower."""
    for tower in (clip, getattr(clip, "text", None)):
        if isinstance(found := getattr(tower, "token_embedding", None), nn.Embedding):
            return found
    raise UserError(f"this model's text tower has no token embedding that robustclip knows: {INSTEAD}")


@lru_cache(maxsize=8)
def whole_words(tokenizer: Callable[[list[str]], Tensor]) -> tuple[tuple[str, ...], Tensor]:
    """Return the tokens of a tokenizer that are whole words of small letters, stop words left out, and their ids [V].

    Raises UserError for a tokenizer that is not open_clip's byte-pair one.
    """
    inner: Any = getattr(tokenizer, "func", tokenizer)
    if not hasattr(inner, "encoder"):
        raise UserError(f"this model's tokenizer is not CLIP's byte-pair one, whose whole words are known: {INSTEAD}")
    tokens = {token.removesuffix(END): number for token, number in inner.encoder.items() if token.endswith(END)}
    words = tuple(word for word in tokens if word.isascii() and word.isalpha() and word.islower() and word not in STOP_WORDS)
    return words, torch.tensor([tokens[word] for word in words])


def encode(classifier: ZeroShotClassifier, texts: Sequence[str], unit: bool = True) -> Tensor:
    """Return the features [N,D] of texts, unit or raw, each text computed once, without gradients and in batches of MICRO_BATCH.

    A batch is of texts of the same length in multiples of LENGTHS: what is behind it is not computed.
    """
    look = classifier.embed_texts if unit else classifier.text_features
    alone = list(dict.fromkeys(texts))
    ids = torch.stack([token_ids(classifier.tokenizer, text) for text in alone])
    read = (read_of(classifier.clip, ids) / LENGTHS).ceil().long().mul(LENGTHS).clamp(max=ids.shape[1]).tolist()
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for length in sorted(set(read)):
            for padded, count in batches([text for text, own in zip(alone, read, strict=True) if own == length]):
                found |= zip(padded[:count], look(padded, length), strict=False)
    return torch.stack([found[text] for text in texts])


def batches(texts: list[str]) -> Iterator[tuple[list[str], int]]:
    """Yield MICRO_BATCH texts at a time, the last batch filled up with its last text, and how many of them count."""
    for first in range(0, len(texts), MICRO_BATCH):
        part = texts[first : first + MICRO_BATCH]
        yield part + part[-1:] * (MICRO_BATCH - len(part)), len(part)
