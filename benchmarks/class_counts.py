"""How a text attack's damage grows with the number of classes: nested random subsets of one set of 276, ten draws.

    python benchmarks/class_counts.py [CHECKPOINT] [--source clip_knn] [--set NAME]

The set is the embedded `things`, or a prepared one. A draw orders the classes at random; its subsets are the first 5, 10, 20, 50, 100 and
200 of them, and all. Each subset is a data set of its
own: its prompts, in the set's first template, are rewritten (once without and once with candidates that name another class of the
subset), and its images, four of every class, are classified clean and under the rewritten prompts. Damage is clean accuracy minus
accuracy under attack; relative: its share of clean accuracy; above chance: the share of what clean accuracy has above 1/K, where it has
any. Means over the draws, and their standard deviation: the draws share images, so it is no interval. The figure is written to --to.

Measured 2026-11-25, clip_knn, one word, ten draws, in percent:

    classes               5            10            20            50           100           200       276
    clean         99.1 ± 2.9    97.0 ± 2.5    96.6 ± 2.4    91.2 ± 2.0    86.8 ± 1.1    79.5 ± 0.5      75.9
    attacked     66.5 ± 16.7    43.2 ± 7.6    30.5 ± 7.7    17.9 ± 3.1    10.7 ± 1.7     5.7 ± 0.5       4.3
    free to name 66.5 ± 16.7    43.2 ± 7.6    29.9 ± 7.8    16.0 ± 2.3     9.9 ± 1.5     5.1 ± 0.7       3.8
    relative     32.8 ± 16.7    55.4 ± 8.4    68.4 ± 7.9    80.4 ± 3.6    87.6 ± 2.0    92.8 ± 0.7      94.3

Damage grows with the number of classes, relative and above chance; absolute damage does until clean accuracy itself falls. HotFlip's words
leave nothing at any number from ten on (`--source hotflip --draws 2`).
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from robustclip import names as models
from robustclip.attacks.modes import TEXTS, with_collisions
from robustclip.attacks.text.search import TextAttack
from robustclip.base import storage
from robustclip.base.forecast import timed
from robustclip.base.seeds import generator
from robustclip.data import world
from robustclip.data.datasets import ensure_set
from robustclip.data.index import scan
from robustclip.data.reading import decoded_size, read_images, stratified, to_images
from robustclip.models.model import Model
from robustclip.results.figures import COLOURS, blank_figure, plain, png

THINGS, SIZES, IMAGES, RENDER_SEED = "things", (5, 10, 20, 50, 100, 200), 4, 11
ROUNDING = 1e-6  # of an accuracy in fp32, which may be 1/K


@dataclass(frozen=True)
class Damage:
    """Accuracies in [0,1] of one subset: clean, under rewritten prompts, under those that may name another class; and collisions."""

    classes: int
    clean: float
    attacked: float
    free: float
    collisions: float

    def relative(self) -> float:
        """Return the share of clean accuracy that is lost, NaN where there is none to lose."""
        return (self.clean - self.attacked) / self.clean if self.clean > 0 else math.nan

    def above_chance(self) -> float:
        """Return the share of what clean accuracy has above 1/K that is lost, NaN where it has nothing."""
        above = self.clean - 1 / self.classes
        return (self.clean - self.attacked) / above if above > ROUNDING else math.nan


@dataclass(frozen=True)
class Pictures:
    """Unit features [N,D] and labels [N] of IMAGES images of each class, the names of the classes, and what they stand in."""

    features: Tensor
    labels: Tensor
    names: tuple[str, ...]
    template: str


def pictures_of(model: Model, name: str, out: str) -> Pictures:
    """Return the images of the embedded `things`, or of the test split of a set under `out`, as the model sees them."""
    if name == THINGS:
        known = world.SETS[THINGS]
        names, templates = known.class_names, known.templates
        pixels, labels = world.images(THINGS, IMAGES * len(names), RENDER_SEED, "test")
        images = pixels.float() / 255
    else:
        card = ensure_set(out, name, {}, 0)
        names, templates, index = card.class_names, card.templates, scan(card.folder, card, "test")
        rows = stratified(index, IMAGES * len(names))
        _, stored, own = read_images(index, rows, decoded_size(card, model.preprocess.size), None)
        images, labels = to_images(stored, "cpu"), torch.as_tensor(own)
    classifier = model.classifier(names[:2], templates)
    with torch.no_grad():
        features = torch.cat([classifier.embed_images(part) for part in images.split(64)])
    return Pictures(features, labels, tuple(names), templates[0])


def damage(model: Model, pictures: Pictures, chosen: list[int], text: TextAttack) -> Damage:
    """Return what a text attack does to the classes `chosen` alone."""
    names, features, labels = [pictures.names[k] for k in chosen], pictures.features, pictures.labels
    classifier = model.classifier(names, (pictures.template,))
    place = torch.full((len(pictures.names),), -1)
    place[torch.tensor(chosen)] = torch.arange(len(chosen))
    rows = place[labels] >= 0
    kept = text(classifier)
    free = with_collisions(text)(classifier) if kept.collisions else kept  # where no best candidate was left out, they are the same
    with torch.no_grad():
        clean, attacked, freely = (
            float((each.scores(features[rows]).argmax(1) == place[labels[rows]]).float().mean())
            for each in (classifier, classifier.reworded(kept.texts), classifier.reworded(free.texts))
        )
    return Damage(len(chosen), clean, attacked, freely, free.collisions)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation in percent of the values that there are."""
    there = 100 * np.array([value for value in values if not math.isnan(value)])
    return (float(there.mean()) if len(there) else math.nan), (float(there.std(ddof=1)) if len(there) > 1 else 0.0)


def cell(values: Sequence[float]) -> str:
    """Return "67.2 ± 4.0", and of how many draws that is where the others have nothing that could be lost."""
    there = sum(not math.isnan(value) for value in values)
    mean, deviation = spread(values)
    return f"{mean:6.1f} ± {deviation:3.1f}" + (f" (of {there} of {len(values)} draws: the others had none)" if there < len(values) else "")


def sizes_of(classes: int) -> list[int]:
    """Return the numbers of classes that are drawn of so many."""
    return sorted({k for k in SIZES if k < classes} | {classes})


def ahead(model: Model, pictures: Pictures, text: TextAttack, draws: int) -> float:
    """Return about how many seconds some draws take, by one of the fewest classes: the work grows with the classes whose prompts are."""
    few, *_ = sizes = sizes_of(len(pictures.names))
    return draws * sum(sizes) / few * timed(partial(damage, model, pictures, list(range(few)), text))


def draw(found: dict[int, list[Damage]], title: str) -> bytes:
    """Return the figure: accuracies on the left, damage on the right, against the number of classes."""
    figure = blank_figure(3.2)
    left, right = figure.subplots(1, 2)
    lines = {
        left: {"clean": lambda d: d.clean, "prompts rewritten": lambda d: d.attacked, "label changes allowed": lambda d: d.free},
        right: {"absolute": lambda d: d.clean - d.attacked, "relative": Damage.relative, "above chance": Damage.above_chance},
    }
    for axes, curves in lines.items():
        for i, (name, value) in enumerate(curves.items()):
            means, deviations = zip(*(spread([value(each) for each in found[k]]) for k in found), strict=True)
            axes.errorbar(list(found), means, deviations, color=COLOURS[i], label=name, marker="o", markersize=3)
        axes.set_xscale("log")
        axes.set_xticks(list(found), [str(k) if k != 200 or k == max(found) else "" for k in found])  # which would lie under 276
        axes.minorticks_off()
        axes.set_xlabel("classes", fontsize=9)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=7)
        plain(axes)
    left.set_ylabel(f"accuracy in percent, {title}", fontsize=9)
    right.set_ylabel("damage in percent", fontsize=9)
    return png(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="tiny-vit8")
    parser.add_argument("--source", choices=TEXTS, default="clip_knn")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--set", default=THINGS, help="a prepared one, its test split (default: the embedded %(default)s)")
    parser.add_argument("--out", default="outputs")
    parser.add_argument("--to", default="outputs/class_counts.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, text = models.load(args.checkpoint), TEXTS[args.source]
    pictures = pictures_of(model, args.set, storage.resolve(args.out))
    classes = len(pictures.names)
    found: dict[int, list[Damage]] = {k: [] for k in sizes_of(classes)}
    for number in range(args.draws):
        order = torch.randperm(classes, generator=generator(0, "class counts", number)).tolist()
        for k in found:
            found[k].append(damage(model, pictures, order[:k], text))
    print(f"{args.checkpoint}, {text.name}, {args.set}, {IMAGES} images of a class, {args.draws} draws: percent, mean ± standard deviation")
    print("classes        clean     attacked  label changes allowed      absolute      relative  above chance  collisions")
    for k, each in found.items():
        columns = (
            [d.clean for d in each],
            [d.attacked for d in each],
            [d.free for d in each],
            [d.clean - d.attacked for d in each],
            [d.relative() for d in each],
            [d.above_chance() for d in each],
            [d.collisions for d in each],
        )
        print(f"{k:7d}  " + "  ".join(map(cell, columns)))
    storage.write_bytes(args.to, draw(found, args.checkpoint))
    print(f"figure  {args.to}")


if __name__ == "__main__":
    main()
