"""Our attacks beside the original AutoAttack code at equal settings: accuracy of both, and on how many images they agree.

    python benchmarks/parity.py [--norms L2] [--images 200] [--seeds 0 1]                # the published settings
    python benchmarks/parity.py --square 200 --images 125                                # a random search alone

The package `pyautoattack` 0.2.0 is the authors' own code (Croce & Hein 2020), loops, batches and random numbers included. Here it runs
at the published settings, for hours on one core; `tests/test_parity.py` runs this code at smaller ones in minutes.

What differs by design: ours draws random numbers per image, so seeds mean other starts; FAB tries the projection of its last iterate too;
Square draws a window per image instead of per batch and reaches the last row and column, as the paper says and the original does not. A
random search alone would be compared by its luck, so Square's original is fed with our random numbers, image by image, and must then find
what ours finds. Square's schedule of window sizes is scaled to the queries on both sides. The original's
AutoAttack leaves it as it is for 10,000 queries, which is weaker: on 160 scans at eps 2 and 1000 queries 74.4 % stay right with it, 68.8 %
with the scaled one.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from robustclip import names as models
from robustclip.attacks import APGD, APGDT, FABT, Attack, Square
from robustclip.attacks.pgd import logits_of
from robustclip.attacks.square import FIRST, HALVINGS, P_INIT, SCHEDULE, SECOND, SIGNS, TURN, signs
from robustclip.base.draws import uniform
from robustclip.base.threat import Ball
from robustclip.data import world
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.models.model import Model
from robustclip.training.learner import Learner
from robustclip.training.recipes import DEMO

Norm = Literal["Linf", "L2"]
NORMS: tuple[Norm, ...] = ("Linf", "L2")
BATCH = 50
# In 1/255; robust accuracies lie between 25 and 60 %, which takes a larger ball for a search without gradients.
EPS, SQUARE_EPS = {"Linf": 2.0, "L2": 75.0}, {"Linf": 6.0, "L2": 300.0}
ZERO_SHOT = ("shapes", "tools", "sketch", "colours")
TRAINED = {"scans": 1200, "steps": 60}  # scans the linear head learns from; optimiser steps of the fine-tuned tower


@dataclass(frozen=True)
class Case:
    """A model with images [N,3,H,W] in [0,1] and labels [N] that it is attacked on; `group` names the model over several sets."""

    group: str
    classifier: nn.Module
    images: Tensor
    labels: Tensor
    ids: list[str]


@dataclass(frozen=True)
class Comparison:
    """One attack on one model in one norm with one seed: which images [N] stay right under ours and under the original."""

    group: str
    attack: str
    norm: str
    seed: int
    ours: np.ndarray
    theirs: np.ndarray

    @property
    def difference(self) -> float:
        """Our accuracy minus theirs in points: positive where ours is weaker."""
        return 100 * float(self.ours.mean() - self.theirs.mean())

    @property
    def spread(self) -> float:
        """The standard deviation of the difference, in points, if each image they disagree on fell to either by chance (McNemar)."""
        return 100 * float((self.ours != self.theirs).sum()) ** 0.5 / len(self.ours)

    def __str__(self) -> str:
        ours, theirs, same = (100 * float(flags.mean()) for flags in (self.ours, self.theirs, self.ours == self.theirs))
        what = f"{self.group:12s} {self.attack:14s} {self.norm:4s} {self.seed:4d}"
        return f"{what} {ours:7.1f} {theirs:9.1f} {self.difference:+6.1f} {same:7.1f}"


HEADER = f"{'model':12s} {'attack':14s} {'norm':4s} {'seed':>4s} {'ours':>7s} {'original':>9s} {'diff':>6s} {'agree %':>7s}"


def original(attack: Attack, classifier: nn.Module, ball: Ball, seed: int) -> Any:
    """Return the original's attack of the same settings, called as `perturb(images, labels)`."""
    shared = {"norm": ball.norm, "eps": ball.radius, "seed": seed, "device": "cpu"}
    match attack:
        case APGD():
            return APGDAttack(classifier, n_iter=attack.steps, n_restarts=attack.restarts, loss=attack.loss, **shared)
        case APGDT():
            return APGDAttack_targeted(classifier, n_iter=attack.steps, n_target_classes=attack.targets, **shared)
        case FABT():
            return FABAttack_PT(classifier, n_iter=attack.steps, n_target_classes=attack.targets, targeted=True, **shared)
        case Square():
            return SquareAttack(classifier, n_queries=attack.queries, resc_schedule=True, **shared)
    raise TypeError(f"the original has no {attack.name}")


class Replayed(SquareAttack):
    """The original's Square on one image, its random numbers and its schedule those of ours: chance is no part of a difference.

    Its own windows never reach the last row and column (the paper's do), it asks once more than it says, and every batch draws anew.
    """

    def __init__(self, classifier: nn.Module, ball: Ball, attack: Square, seed: int, id_: str, shape: torch.Size):
        super().__init__(classifier, norm=ball.norm, eps=ball.radius, n_queries=attack.queries - 1, device="cpu")
        key, (channels, height, width) = (seed, "square", 0, id_), shape
        first, self.queries = uniform([(*key, "first")], channels + 1, height, width)[0], attack.queries
        if ball.norm == "Linf":
            self.signs, self.turns = iter([signs(first[:-1, :1])]), iter(())
        else:  # bumps side by side, row by row
            side = height // 5
            of_tiles = first[:, : height // side, : width // side].flatten(1)
            self.signs, self.turns = iter(signs(of_tiles[:-1].T)[:, :, None, None]), iter(of_tiles[-1])
        self.rows = iter(uniform([key], attack.queries, 5 + channels)[0])
        self.corners = iter(torch.empty(0))

    def p_selection(self, it: int) -> float:
        row = next(self.rows)
        self.corners, self.turns = iter(torch.cat([row[FIRST], row[SECOND]]).tolist()), iter(row[TURN, None])
        self.signs = iter([signs(row[SIGNS])[:, None, None]])
        return P_INIT / 2 ** sum(it * SCHEDULE // self.queries > after for after in HALVINGS)

    def random_int(self, low: int = 0, high: int = 1, shape: Sequence[int] = (1,)) -> Tensor:
        return torch.tensor([min(int(next(self.corners) * (high + 1)), high)])

    def random_choice(self, shape: Sequence[int]) -> Tensor:
        return next(self.signs).view(*shape)

    def eta(self, s: int) -> Tensor:
        drawn = super().eta(s)
        upright = drawn if float(drawn[0].min()) > 0 else drawn.T  # as it was before it was turned by a number that is not ours
        return upright.T if float(next(self.turns)) < 0.5 else upright


def replayed(case: "Case", attack: Square, seed: int, ball: Ball) -> Tensor:
    """Return what the original's Square makes of images [N,3,H,W], one by one, by our random numbers."""
    found = []
    for i, id_ in enumerate(case.ids):
        oracle = Replayed(case.classifier, ball, attack, seed, id_, case.images.shape[1:])
        found.append(oracle.perturb(case.images[i : i + 1], case.labels[i : i + 1]).detach())
    return torch.cat(found)


def compare(cases: Sequence[Case], attacks: Sequence[Attack], seeds: Sequence[int], norms: Sequence[Norm]) -> Iterator[Comparison]:
    """Yield the comparison of every attack on every model in every norm with every seed; each attack meets every image, no cascade."""
    groups = dict.fromkeys(case.group for case in cases)
    for attack, norm, group, seed in itertools.product(attacks, norms, groups, seeds):
        ball = Ball(norm, (SQUARE_EPS if isinstance(attack, Square) else EPS)[norm])
        flags = [np.stack(_stands(case, attack, seed, ball)) for case in cases if case.group == group]
        yield Comparison(group, attack.name, norm, seed, *np.concatenate(flags, axis=1))


def _stands(case: Case, attack: Attack, seed: int, ball: Ball) -> tuple[np.ndarray, np.ndarray]:
    """Return which images [N] are still right under our attack and under the original."""
    ours = attack(case.classifier, case.images, case.labels, case.ids, ball, seed, BATCH).images
    if isinstance(attack, Square):
        theirs = replayed(case, attack, seed, ball)
    else:
        oracle = original(attack, case.classifier, ball, seed)
        theirs = torch.cat([oracle.perturb(x, y).detach() for x, y in zip(case.images.split(BATCH), case.labels.split(BATCH))])
    for images in (ours, theirs):
        if float(ball.size(images - case.images).max()) > ball.radius + 1e-5:  # an L2 norm adds up what fp32 rounds
            raise RuntimeError(f"{attack.name} left its ball")
    right = [(logits_of(case.classifier, images, case.ids, BATCH).argmax(1) == case.labels).numpy() for images in (ours, theirs)]
    return right[0], right[1]


def cases(images: int) -> list[Case]:
    """Return a linear head on the undefended tower (500 scans) and the embedded CLIP after a little TeCoA (`images` of each ZERO_SHOT)."""
    pixels, labels = world.images("digits", TRAINED["scans"] + 500, 0, "test")
    scans, first = pixels.float() / 255, TRAINED["scans"]
    head = linear_head(models.load("tiny-vit8").classifier(("a",), ("{}",)), scans[:first], labels[:first])
    ids = [f"digits/{i}" for i in range(len(scans) - first)]
    found = [Case("linear head", head, scans[first:], labels[first:], ids)]
    tuned = fine_tuned()
    for name in ZERO_SHOT:
        pixels, labels = world.images(name, images, 3, "test")
        classifier = tuned.classifier(world.SETS[name].class_names, world.SETS[name].templates).requires_grad_(False)
        ids = [f"{name}/{i}" for i in range(images)]
        found.append(Case("TeCoA", classifier, pixels.float() / 255, labels, ids))
    return found


def fine_tuned() -> Model:
    """Return the embedded CLIP after the first steps of the demo recipe."""
    steps, size = TRAINED["steps"], DEMO.optim.batch
    config = replace(DEMO, optim=replace(DEMO.optim, lr=3e-4, warmup=steps // 3))
    labelled = world.SETS["labelled"]
    learner = Learner(config, models.load(DEMO.model), labelled.class_names, labelled.templates, steps)
    pixels, labels = world.images("labelled", steps * size, 0, "train")
    for part in torch.arange(steps * size).split(size):
        learner.accumulate(pixels[part].permute(0, 2, 3, 1), labels[part], [f"labelled/{i}" for i in part.tolist()])
        learner.update()
    return learner.model


def linear_head(tower: ZeroShotClassifier, images: Tensor, labels: Tensor) -> nn.Module:
    """Return a logistic regression on the frozen image features of a tower: images [B,3,H,W] in [0,1] -> logits [B,K]."""
    with torch.no_grad():
        features = torch.cat([tower.embed_images(part) for part in images.split(BATCH)])
    weight = torch.zeros(int(labels.max()) + 1, features.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight.T, labels) + 1e-4 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return LinearHead(tower, weight.detach())


class LinearHead(nn.Module):
    """Logits [B,K] that are linear in a tower's image features."""

    def __init__(self, tower: ZeroShotClassifier, weight: Tensor):
        super().__init__()
        self.tower, self.weight = tower.requires_grad_(False), nn.Parameter(weight, requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.tower.embed_images(images) @ self.weight.T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200, help="of each zero-shot set")
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=list(NORMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--square", type=int, metavar="QUERIES", help="Square alone, with so many queries")
    args = parser.parse_args()
    torch.set_num_threads(1)
    published = (APGD(100), APGD(100, loss="dlr"), APGDT(100), FABT(100), Square(5000))
    print(HEADER)
    attacks = (Square(args.square),) if args.square else published
    for comparison in compare(cases(args.images), attacks, args.seeds, args.norms):
        print(comparison, flush=True)


if __name__ == "__main__":
    main()
