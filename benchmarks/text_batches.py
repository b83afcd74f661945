"""A text attack in batches against one sentence at a time, as the published codes encode them: seconds and their ratio, in one run.

    python benchmarks/text_batches.py [--pairs 5]

The same attack, one word of the token embedding's neighbours, on the same prompts: its candidates are encoded 32 at a time, each once and
no further than its end (attacks/text/vocabulary.py), or every one alone in the tower's whole context. Both choose the same prompts, or it
ends with an error. On the embedded CLIP and on the text tower of a ViT-B/32 with random weights, where one sentence keeps a CPU nearly as
busy as 32, and of so few prompts padding is a part of what is encoded.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from unittest.mock import patch

import torch
from batched_tuning import names
from row import PAIRS, Row, paired, seconds, show
from torch import Tensor

from robustclip import names as models
from robustclip.attacks.modes import TEXTS
from robustclip.attacks.text import search
from robustclip.models.classifier import ZeroShotClassifier

AIM = 20.0
TEMPLATE = "a photo of a {}."
MODELS = {"tiny-vit8": ("the embedded CLIP", 50), "open_clip:ViT-B-32-quickgelu/random[seed=0]": ("a ViT-B/32's text tower", 6)}


def one_at_a_time(classifier: ZeroShotClassifier, texts: Sequence[str], unit: bool = True) -> Tensor:
    """Return what `encode` does, each text computed alone and every time."""
    look = classifier.embed_texts if unit else classifier.text_features
    with torch.no_grad():
        return torch.cat([look([text]) for text in texts])


def attack(classifier: ZeroShotClassifier, encode: Callable[..., Tensor], found: list[tuple[str, ...]]) -> None:
    """Attack the classifier's prompts, encoding by `encode`, and add what they became to `found`."""
    with patch.object(search, "encode", encode):
        found.append(TEXTS["clip_knn"](classifier).texts)


def rows(sizes: dict[str, tuple[str, int]] = MODELS, pairs: int = PAIRS) -> list[Row]:
    """Return a row for each model, with so many prompts."""
    rows_ = []
    for model, (title, prompts) in sizes.items():
        classifier, found = models.load(model).classifier(names(prompts), (TEMPLATE,)), list[tuple[str, ...]]()
        alone, batched = (partial(attack, classifier, encode, found) for encode in (one_at_a_time, search.encode))
        batched()  # the words of the vocabulary are read once
        took = paired(partial(seconds, alone), partial(seconds, batched), pairs)
        if len({*found}) > 1:
            raise SystemExit(f"{model}: one sentence at a time chose other prompts")
        why = "a sentence alone keeps a CPU busy"
        rows_.append(took.row(f"a text attack on {prompts} prompts, {title}", "one sentence at a time", "in batches", AIM, why=why))
    return rows_


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    show("text", rows(pairs=parser.parse_args().pairs))


if __name__ == "__main__":
    main()
