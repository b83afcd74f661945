"""What text attacks know of a model's vocabulary: its whole words and their embeddings, and texts encoded in batches of one size."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from robustclip.attacks.text.words import STOP_WORDS
from robustclip.base.errors import UserError
from robustclip.models.classifier import ZeroShotClassifier

MICRO_BATCH = 64  # texts computed together, the last batch padded: how a matrix product rounds may depend on the number of its rows
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
    """Return the features [N,D] of texts, unit or raw, each text computed once, without gradients and in batches of MICRO_BATCH."""
    look = classifier.embed_texts if unit else classifier.text_features
    places = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    with torch.no_grad():
        features = torch.cat([look(padded)[:count] for padded, count in batches(list(places))])
    return features[torch.tensor([places[text] for text in texts], device=features.device)]


def batches(texts: list[str]) -> Iterator[tuple[list[str], int]]:
    """Yield MICRO_BATCH texts at a time, the last batch filled up with its last text, and how many of them count."""
    for first in range(0, len(texts), MICRO_BATCH):
        part = texts[first : first + MICRO_BATCH]
        yield part + part[-1:] * (MICRO_BATCH - len(part)), len(part)
