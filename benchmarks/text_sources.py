"""What one word or one character does to a prompt's features, by where the words come from, and what it costs.

    python benchmarks/text_sources.py [--classes 60] [--large 20]

The embedded CLIP on its 276 `things` (the first `--classes`), and a ViT-B/32 of CLIP's full vocabulary with random weights on the first
`--large`, one template each. Mean cosine between the rewritten prompt and the clean one: the lower, the stronger; for the embedded model
also its accuracy on four images of each class. Seconds are CPU seconds of one thread, scaled to 1,000 classes. `random` draws one word a
place and takes what the model likes least; with ten draws it is an attack itself.

Measured 2026-11-25, cosine, accuracy before and after, seconds per 1,000 classes on one shared core:

                 embedded CLIP, 60 classes       ViT-B/32, random weights, 20 classes
    random       0.63   79.7 -> 12.9    2 s      0.93    1,542 s
    clip_knn     0.63   79.7 ->  8.8    7 s      0.92    4,136 s
    hotflip      0.01   79.7 ->  0.0    8 s      0.87    3,848 s
    char         0.33   79.7 ->  0.9   35 s      0.70   11,397 s
    random, ten  0.48   79.7 ->  3.7    9 s      0.90    3,374 s

All beat one random word, clip_knn by little and not by its cosine on the embedded model; the best of ten random words beats clip_knn, whose
neighbours are near by design.
"""

import argparse
import time
from collections.abc import Sequence

import torch

from robustclip import names as models
from robustclip.attacks.modes import TEXTS
from robustclip.attacks.text.search import TextAttack
from robustclip.attacks.text.sources import RandomWords
from robustclip.data import world
from robustclip.models.model import Model

SET, IMAGES, RENDER_SEED = "things", 4, 11
UNTRAINED = "open_clip:ViT-B-32-quickgelu/random[seed=0]"
ATTACKS = {**TEXTS, "random, ten": TextAttack(RandomWords(10))}


def line(model: Model, names: Sequence[str], title: str, text: TextAttack, seen: bool) -> str:
    """Return the line of one source on one model."""
    classifier = model.classifier(names, world.SETS[SET].templates[:1])
    started = time.process_time()
    found = text(classifier)
    seconds = (time.process_time() - started) / len(names) * 1000
    cosine = sum(found.cosines) / len(found.cosines)
    said = f"{title:12s} mean cosine {cosine:5.2f}   collisions {100 * found.collisions:3.0f} %   {seconds:7.0f} s per 1,000 classes"
    if not seen:
        return said
    pixels, labels = world.images(SET, IMAGES * len(world.SETS[SET].class_names), RENDER_SEED, "test")
    chosen = labels < len(names)
    attacked = classifier.reworded(found.texts)
    with torch.no_grad():
        right = [float((c(pixels[chosen].float() / 255).argmax(1) == labels[chosen]).float().mean()) for c in (classifier, attacked)]
    return f"{said}   accuracy {100 * right[0]:.1f} -> {100 * right[1]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=60)
    parser.add_argument("--large", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, count in (("tiny-vit8", args.classes), (UNTRAINED, args.large)):
        model, names = models.load(name), world.SETS[SET].class_names[:count]
        print(f"{name}, {count} classes")
        for title, text in ATTACKS.items():
            print(f"  {line(model, names, title, text, name != UNTRAINED)}", flush=True)


if __name__ == "__main__":
    main()
