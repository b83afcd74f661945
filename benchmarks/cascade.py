"""What the cascade saves against attacking every image with everything, and how it stands beside other loops, as ratios in one run.

    python benchmarks/cascade.py [CHECKPOINT] [--images 50] [--others 100]
    python benchmarks/results.py --only cascade     # fewer images, in pairs

The undefended CLIP, and a fine-tuned one when its folder is given, on `--images` of each of the twelve sets under PGD-10 and APGD-CE-20 at
the eps of the protocol `demo`. The independent mode runs the same attacks, every one at every eps on every image; both give the same worst
case per image. "full budget" counts the passes that the independent mode would take if no attack left an image alone after its first
success, as the loops of other libraries do not. Then the published AutoAttack at eps 4 on as many images of one set, in the evaluator's
cells, and AutoAttack at small settings: our cascade, the original's own loop, torchattacks' MultiAttack.

Measured 2026-11-25 on 2 shared cores, `--images 42`, so 504 images; the fine-tuned model is the demo recipe's:

    undefended   robust 53.2 / 23.2 / 3.8 at 1 / 2 / 4    independent x 1.23 passes, x 1.19 time    full budget x 3.11 passes
    fine-tuned   robust 47.8 / 34.5 / 16.9                independent x 1.14 passes, x 1.14 time    full budget x 2.76 passes
    AutoAttack   robust 1.4 at 4, undefended              independent x 12.90 passes, x 3.59 time
    small        100 images of tools                      the original x 0.95 time                  torchattacks x 0.98 time

An attack that leaves an image alone at its first success has done most of the cascade's work already: what is left to save is the second
and later breaks of one image, and an image that resists costs both modes the same. AutoAttack saves more, because its last attacks do not
break what its first ones do. Passes are not time: a handful of survivors still fills a micro-batch.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torchattacks
from parity import original
from pyautoattack import AutoAttack
from row import PAIRS, Row, paired
from tables import counted
from torch import Tensor, nn

from robustclip import names as models
from robustclip.attacks import APGD, APGDT, FABT, PGD, Square
from robustclip.attacks.ensembles import ENSEMBLES
from robustclip.data import world
from robustclip.evaluation.cascade import predict, run_cascade
from robustclip.evaluation.protocols import CELL_IMAGES, DEMO, Protocol
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.models.model import Model

RENDER_SEED = 11
PAIR = replace(DEMO, attacks=(PGD(10), APGD(20)))
# What papers mean by AutoAttack; few images survive it, so small micro-batches.
STANDARD = replace(DEMO, attacks=ENSEMBLES["autoattack"], eps=(4.0,), sets=("tools",), micro_batch=8)
SMALL = (APGD(10), APGDT(10, targets=4), FABT(10, targets=4), Square(100))  # of the comparison with other loops
Cell = tuple[ZeroShotClassifier, Tensor, Tensor, list[str]]
Records = list[dict[str, Any]]


def cells_of(model: Model, sets: tuple[str, ...], n: int) -> list[Cell]:
    """Return the cells of n images of every set: its classifier, images [up to 200,3,32,32] in [0,1], labels and ids."""
    found = []
    for name in sets:
        pixels, labels = world.images(name, n, RENDER_SEED, "test")
        classifier = model.classifier(world.SETS[name].class_names, world.SETS[name].templates)
        found += [
            (classifier, pixels[rows].float() / 255, labels[rows], [f"{name}/{i}" for i in rows.tolist()])
            for rows in torch.arange(n).split(CELL_IMAGES)
        ]
    return found


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """Return a result and the CPU seconds it took: with one thread the wall time of an idle core, whatever the neighbours do."""
    started = time.process_time()
    return run(), time.process_time() - started


def robust(rows: list[dict[str, Any]], protocol: Protocol) -> np.ndarray:
    """Return the flags [eps,n] of images that are right when clean and under every attack up to each eps, by the metrics."""
    outcomes = counted(rows, protocol)
    return np.stack([outcomes.flags(eps) for eps in protocol.eps])


def against_independent(name: str, protocol: Protocol, n: int) -> None:
    """Print cascade and independent mode of one model; raises AssertionError if an image's worst case differs."""
    seconds, forwards, flags = {True: 0.0, False: 0.0}, {True: 0, False: 0}, []
    for cell in cells_of(models.load(name), protocol.sets, n):
        rows = {}
        for mode in (False, True):
            chosen = replace(protocol, independent=mode)
            rows[mode], took = timed(lambda c=cell, p=chosen: run_cascade(*c, p))
            seconds[mode] += took
            forwards[mode] += sum(row.get("forwards", 1) for row in rows[mode])
        flags.append(robust(rows[False], protocol))
        assert np.array_equal(flags[-1], robust(rows[True], protocol)), f"{cell[3][0]}: the cascade has another worst case"
    images = n * len(protocol.sets)
    accuracy = ", ".join(f"{100 * share:.1f} at {eps:g}" for eps, share in zip(protocol.eps, np.concatenate(flags, axis=1).mean(1)))
    attacks = ", ".join(attack.name for attack in protocol.attacks)
    print(f"{name}, {images} images, {attacks}: robust {accuracy}; identical worst case of every image")
    print(f"  cascade     {forwards[False]:8d} forward passes {seconds[False]:7.1f} s")
    print(
        f"  independent {forwards[True]:8d} forward passes {seconds[True]:7.1f} s   "
        f"x {forwards[True] / forwards[False]:.2f} passes, x {seconds[True] / seconds[False]:.2f} time"
    )
    if all(isinstance(attack, PGD | APGD) for attack in protocol.attacks):
        full = images * (1 + len(protocol.eps) * sum(attack.steps + 1 for attack in protocol.attacks))  # type: ignore[attr-defined]
        print(f"  full budget {full:8d} forward passes             x {full / forwards[False]:.2f} passes")


def rows(images: int = 24, pairs: int = PAIRS) -> list[Row]:
    """Return the rows of the undefended model on `images` images of each of four sets, and on as many of one under AutoAttack."""
    torch.set_num_threads(1)
    found, sets = [], PAIR.sets[:4]
    for protocol, n in ((replace(PAIR, sets=sets), images), (STANDARD, images)):
        cells, made = cells_of(models.load("tiny-vit8"), protocol.sets, n), {}

        def run(independent: bool, cells: list[Cell] = cells, protocol: Protocol = protocol, made: dict[bool, Records] = made) -> float:
            mode = replace(protocol, independent=independent)
            made[independent], took = timed(lambda: [row for cell in cells for row in run_cascade(*cell, mode)])
            return took

        took = paired(partial(run, True), partial(run, False), pairs)
        attacks = "AutoAttack" if protocol is STANDARD else ", ".join(attack.name for attack in protocol.attacks)
        claim = f"{attacks} at eps {', '.join(f'{eps:g}' for eps in protocol.eps)} on {n * len(protocol.sets)} images"
        sides = {True: "every image meets every attack", False: "the cascade"}
        found.append(took.row(claim, sides[True], sides[False], unit="CPU s"))
        passes = {mode: sum(row.get("forwards", 1) for row in rows) for mode, rows in made.items()}
        counts = (f"{sides[mode]}: {passes[mode]:,} passes" for mode in (True, False))
        found.append(Row("the same, its forward passes", *counts, (passes[True] / passes[False],)))
    return [*found, in_order(made[False], STANDARD)]


def in_order(rows: Records, protocol: Protocol) -> Row:
    """Return the row that says whether the stages of a cascade come in the order of the images that each breaks in a second."""
    rates = []
    for attack in protocol.attacks:
        met = [row for row in rows if row["attack"] == attack.name]
        rates.append(sum(not row["correct"] for row in met) / max(sum(row["seconds"] for row in met), 1e-9))
    first, *others = (f"{attack.name}: {rate:.3g}" for attack, rate in zip(protocol.attacks, rates, strict=True))
    ratio = min((a / b for a, b in pairwise(rates) if b), default=math.inf)
    return Row("AutoAttack's order: survivors that a stage breaks in a second, to the next one's", ", ".join(others), first, (ratio,), 1.0)


def against_others(name: str, n: int) -> None:
    """Print our AutoAttack beside the original's loop and torchattacks' MultiAttack, at the settings of SMALL and equal batches."""
    protocol = replace(DEMO, attacks=SMALL, eps=(1.0,))
    ((classifier, images, labels, ids),) = cells_of(models.load(name), ("tools",), n)
    eps, size = protocol.balls()[0].radius, protocol.micro_batch
    multi = multi_attack(classifier, eps)
    loops: dict[str, Callable[[], Tensor]] = {
        "the original": lambda: original_loop(classifier, eps).run_standard_evaluation(images, labels, batch_size=size)[0],
        "torchattacks": lambda: torch.cat([multi(x, y) for x, y in zip(images.split(size), labels.split(size))]),
    }
    rows, ours = timed(lambda: run_cascade(classifier, images, labels, ids, protocol))
    settings = ", ".join(attack.name for attack in SMALL)
    print(f"{name}, {n} images of tools, eps 1, {settings}")
    print(f"  {'our cascade':14s} robust {100 * robust(rows, protocol).mean():5.1f} {ours:7.1f} s")
    for other, run in loops.items():
        attacked, seconds = timed(run)
        right = predict(classifier, attacked, ids, protocol.micro_batch) == labels
        print(f"  {other:14s} robust {100 * float(right.float().mean()):5.1f} {seconds:7.1f} s   x {seconds / ours:.2f} time")


def original_loop(classifier: nn.Module, eps: float) -> AutoAttack:
    """Return the original AutoAttack with the settings of SMALL."""
    loop = AutoAttack(classifier, attacks=["apgd-ce", "apgd-t", "fab-t", "square"], eps=eps, seed=0, version="custom")
    loop.apgd, loop.apgd_targeted, loop.fab, loop.square = (original(attack, classifier, eps, 0) for attack in SMALL)
    return loop


def multi_attack(classifier: nn.Module, eps: float) -> torchattacks.MultiAttack:
    """Return torchattacks' attacks of the settings of SMALL one after another; it has one target fewer than the classes it is told of."""
    apgd, apgd_t, fab_t, square = SMALL
    return torchattacks.MultiAttack(
        [
            torchattacks.APGD(classifier, eps=eps, steps=apgd.steps),
            torchattacks.APGDT(classifier, eps=eps, steps=apgd_t.steps, n_classes=apgd_t.targets + 1),
            torchattacks.FAB(classifier, eps=eps, steps=fab_t.steps, multi_targeted=True, n_classes=fab_t.targets + 1),
            torchattacks.Square(classifier, eps=eps, n_queries=square.queries),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="folder of a fine-tuned model, compared as well")
    parser.add_argument("--images", type=int, default=50, help="of each set, cascade against independent mode; all of one for AutoAttack")
    parser.add_argument("--others", type=int, default=100, help="images, against other loops")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in filter(None, ("tiny-vit8", args.checkpoint)):
        against_independent(name, PAIR, args.images)
    against_independent("tiny-vit8", STANDARD, args.images * len(PAIR.sets))
    against_others("tiny-vit8", args.others)


if __name__ == "__main__":
    main()
