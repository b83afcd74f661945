"""What one PGD step costs per image on one core, and what two ideas save, as ratios inside one run.

    python benchmarks/attack_step.py [MODEL] [--images 60] [--rounds 5]

Compared, alternating, medians over rounds: the attack as it is (gradient of the perturbation only, class embeddings computed once);
the same with parameter gradients too; the same with the text tower run again at every step, as several published codes do. Then what
an attack's random start costs, of which it needs one.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from robustclip import names as models
from robustclip.attacks.losses import cross_entropy
from robustclip.attacks.pgd import frozen, gradient, random_start
from robustclip.base.threat import Ball
from robustclip.data import world
from robustclip.models.classifier import ZeroShotClassifier


def as_it_is(classifier: ZeroShotClassifier, images: torch.Tensor, labels: torch.Tensor) -> None:
    with frozen(classifier):
        gradient(cross_entropy(classifier, labels), images)


def with_parameter_gradients(classifier: ZeroShotClassifier, images: torch.Tensor, labels: torch.Tensor) -> None:
    classifier.requires_grad_(True)
    images = images.detach().requires_grad_(True)
    cross_entropy(classifier, labels)(images).loss.sum().backward()
    classifier.zero_grad(set_to_none=True)


def with_text_every_step(classifier: ZeroShotClassifier, images: torch.Tensor, labels: torch.Tensor) -> None:
    texts = [template.format(name) for name in classifier.class_names for template in classifier.templates]
    with torch.no_grad():
        classifier.embed_texts(texts)
    as_it_is(classifier, images, labels)


def start(classifier: ZeroShotClassifier, images: torch.Tensor, labels: torch.Tensor) -> None:
    random_start(Ball("Linf", 4.0), images, [str(i) for i in range(len(images))], 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tiny-vit8")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = world.images("things", args.images, 0, "test")
    classifier = models.load(args.model).classifier(world.SETS["things"].class_names, world.SETS["things"].templates)
    variants: dict[str, Callable[..., None]] = {
        "as it is": as_it_is,
        "with parameter gradients": with_parameter_gradients,
        "with the text tower every step": with_text_every_step,
        "a random start alone": start,
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(args.rounds):
        for name, step in variants.items():
            started = time.perf_counter()
            step(classifier, images.float() / 255, labels)
            seconds[name].append(time.perf_counter() - started)
    base = statistics.median(seconds["as it is"])
    print(f"{args.model}, {args.images} images a batch, {len(classifier.class_names)} classes, one thread, median of {args.rounds} rounds")
    for name, each in seconds.items():
        median = statistics.median(each)
        print(f"{name:32s} {median / args.images * 1e3:6.2f} ms per step and image   x {median / base:.2f}")


if __name__ == "__main__":
    main()
