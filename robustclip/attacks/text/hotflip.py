"""HotFlip: Ebrahimi, Rao, Lowd, Dou, "HotFlip: White-Box Adversarial Examples for Text Classification", ACL 2018."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustclip.attacks.pgd import frozen
from robustclip.attacks.text.sources import Asked, WordSource, usable
from robustclip.attacks.text.vocabulary import batches, token_embedding, whole_words
from robustclip.attacks.text.words import Prompt
from robustclip.base.ranges import COUNT, check_fields
from robustclip.models.classifier import ZeroShotClassifier


@dataclass(frozen=True)
class HotFlip(WordSource):
    """The `k` whole-word tokens v with the largest g . E_v, g the score's gradient at the embedding of the word's place (section 3).

    All tokens of the word give way to one. The gradient is taken where that one is the mean word of the vocabulary: at the clean prompt
    1 - cos has none. An upper bound of what one word can do, never called BERT-Attack.
    """

    k: int = 10
    name = "hotflip"

    def __post_init__(self) -> None:
        check_fields(self, "hotflip: ", k=COUNT)

    def words(self, asked: Asked) -> list[dict[int, list[str]]]:
        known, ids = whole_words(asked.classifier.tokenizer)
        weight = token_embedding(asked.classifier.clip).weight.detach()
        table = weight[ids.to(weight.device)]
        wanted = [(i, place) for i, some in enumerate(asked.places) for place in some]
        ranked = [(table @ g).topk(min(2 * self.k, len(known))).indices.tolist() for g in gradients(asked, wanted, table.mean(0))]
        found: list[dict[int, list[str]]] = [{} for _ in asked.prompts]
        for (i, place), best in zip(wanted, ranked, strict=True):
            found[i][place] = usable([known[j] for j in best], asked.prompts[i].words[place], self.k)
        return found


def gradients(asked: Asked, wanted: Sequence[tuple[int, int]], embedding: Tensor) -> list[Tensor]:
    """Return the gradient [W] of the score at each wanted (prompt, place), where a token of that `embedding` [W] stands for the word.

    It is zero for a word behind the end of the model's context.
    """
    found: list[Tensor] = []
    classifier = asked.classifier
    texts = [asked.prompts[i].with_word(place, "x").text for i, place in wanted]
    at = token_places(classifier, asked.prompts, wanted)
    own = torch.tensor([i for i, _ in wanted], device=embedding.device)
    with frozen(classifier):
        for padded, count in batches(texts):
            first = len(found)
            rows = torch.arange(count, device=embedding.device)
            put = embedding.expand(count, -1).clone().requires_grad_(True)
            with embedded(token_embedding(classifier.clip), rows, at[first : first + count].to(rows), put):
                score = asked.score(classifier.embed_texts(padded)[:count], own[first : first + count])
            found += list(torch.autograd.grad(score.sum(), put)[0])
    return found


def token_places(classifier: ZeroShotClassifier, prompts: Sequence[Prompt], wanted: Sequence[tuple[int, int]]) -> Tensor:
    """Return where the one token of each wanted word would stand, -1 for a word behind the end of the context."""
    one, other = (classifier.tokenizer([prompts[i].with_word(place, letter).text for i, place in wanted]) for letter in "xy")
    differ = one != other
    return torch.where(differ.any(1), differ.int().argmax(1), -1)


@contextmanager
def embedded(embedding: nn.Module, rows: Tensor, places: Tensor, put: Tensor) -> Iterator[None]:
    """Put the embeddings `put` [N,W] at the given rows and places of what a token embedding returns inside this context."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inside = places >= 0
        return output.index_put((rows[inside], places[inside]), put[inside].to(output))

    handle = embedding.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
