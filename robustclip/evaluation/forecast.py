"""What an evaluation will take: the passes of every attack, counted, times the seconds of a pass, measured."""

import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from robustclip import names as models
from robustclip.attacks.classes import for_classes
from robustclip.attacks.multimodal import Multimodal
from robustclip.attacks.pgd import logits_of, meeting
from robustclip.attacks.shift import Shifted
from robustclip.base import storage
from robustclip.base.forecast import Forecast, amount, number, timed
from robustclip.base.precision import full_precision
from robustclip.base.threads import one_thread
from robustclip.base.threat import Ball
from robustclip.evaluation.computing import on_device
from robustclip.evaluation.protocols import Cell, Resolved
from robustclip.evaluation.wanted import Wanted
from robustclip.models.classifier import Surrogates
from robustclip.runtime.gpus import Footprint, begin, largest, taken

SHOWN = 8  # images on which a pass is measured
COPIES = 8  # of a cell's images that an attack holds at once, counted in APGD: points, gradients, the best of each, what it compares
SIDES = (8, 8)  # of the image on which passes are counted, in pixels


class Unbroken(nn.Module):
    """A classifier of images [B,3,H,W] that no attack breaks, whose gradient is never zero: it counts the passes of images through it.

    It never answers twice the same, for an attack that repeats itself would end.
    """

    def __init__(self, classes: int):
        super().__init__()
        self.classes, self.forwards, self.backwards = classes, 0, 0
        self.surrogates = Surrogates((), lambda: (torch.empty(0), torch.empty(0)), lambda name, learn: torch.zeros(3, *SIDES))

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += len(images)
        logits = images.flatten(1).mean(1, keepdim=True) * torch.linspace(-1e-3, 1e-3, self.classes)
        logits = (logits + 10.0 * nn.functional.one_hot(torch.tensor(0), self.classes)) * (1 + 0.001 * (self.forwards % 101))
        if logits.requires_grad:
            logits.register_hook(self._back)
        return logits

    def _back(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)

    def undefended(self) -> "Unbroken":
        """Return what grey-box attacks are made on."""
        return self

    def under(self, texts: Any) -> "Unbroken":
        """Return what attacks under other texts are made on."""
        return self


@cache
def passes(attack: Any, classes: int, ball: Ball) -> tuple[int, int]:
    """Return how often an attack shows an image to a model and how often a gradient comes back, where the image does not break.

    An attack that rewrites prompts counts by the steps it takes in images; it rewrites once for a whole set. What a universal perturbation
    takes to learn is counted apart.
    """
    if isinstance(attack, Multimodal):
        steps = getattr(attack, "steps", 0) or getattr(getattr(attack, "image", None), "steps", 0)
        return steps + 1, steps
    counting = Unbroken(classes)
    labels = torch.zeros(1, dtype=torch.long)
    attack(counting, torch.full((1, 3, *SIDES), 0.5), labels, ["one"], ball, 0, 1)
    return counting.forwards, counting.backwards


@dataclass
class Work:
    """Images, how often they go through a model at most, and seconds: at most, and at least, where every image breaks at once."""

    images: int = 0
    shown: int = 0
    most: float = 0.0
    least: float = 0.0

    def add(self, cell: Cell, resolved: Resolved, cost: tuple[float, float]) -> None:
        """Add a cell under a model whose images take so many seconds, forward and with their gradient."""
        (forward, both), protocol, n, each = cost, resolved.protocol, len(cell.rows), []
        classes = resolved.classes[cell.dataset]
        attacks = for_classes(cell.attacks, classes).values() if cell.attacks else ()
        for ball in protocol.balls():
            for attack in attacks:
                forwards, backwards = passes(attack, classes, ball)  # type: ignore[arg-type]
                forwards += 1 + isinstance(attack, Shifted)  # a look at what came of it, and one under the texts that it saw
                self.shown += n * forwards
                each.append((forwards - backwards) * forward + backwards * both)
        self.images, self.shown = self.images + n, self.shown + n
        self.most += n * (forward + sum(each))
        self.least += n * (forward + (sum(each) if protocol.independent else sum(each[:1])))

    def learn(self, dataset: str, resolved: Resolved, cost: tuple[float, float]) -> None:
        """Add what a set's universal perturbations take to be learned on a model: nothing, where a cascade breaks all images before."""
        protocol, there = resolved.protocol, len(resolved.surrogates[dataset].rows)
        shown = len(protocol.eps) * sum(attack.epochs * min(attack.images, there) for attack in protocol.universal_on(dataset))
        self.shown += shown
        self.most += shown * cost[1]
        self.least += shown * cost[1] if protocol.independent else 0.0


def forecast(names: Sequence[str], resolved: Resolved, out: str, actors: int, gpus: float) -> Forecast:
    """Return what is missing of an evaluation and what it will take `actors` of this machine, without Ray's start and the checks."""
    wanted, work = Wanted(names, resolved, out), Work()
    costs = {name: measure(name, resolved) for name in sorted({wanted.name_of[cell.key] for cell in wanted.missing})}
    for cell in wanted.missing:
        work.add(cell, resolved, costs[wanted.name_of[cell.key]])
    learning = [cell for cell in wanted.missing if cell.attacks and cell.dataset in resolved.surrogates]
    for name, dataset in dict.fromkeys((wanted.name_of[cell.key], cell.dataset) for cell in learning):
        work.learn(dataset, resolved, costs[name])
    facts = facts_of(wanted, resolved, work, costs, actors, gpus)
    least = None if work.most == work.least else work.least / actors
    return Forecast(f"evaluation: {resolved.protocol.name}", facts, work.most / actors, gpus * actors, least)


def facts_of(
    wanted: Wanted, resolved: Resolved, work: Work, costs: Mapping[str, tuple[float, float]], actors: int, gpus: float
) -> dict[str, str]:
    """Return what a forecast says beside its time."""
    protocol, sets = resolved.protocol, {cell.dataset for cell in wanted.missing}
    files = [file for name in sets for file in resolved.sets[name].index.files]
    slowest = max(costs.values(), default=(0.0, 0.0), key=lambda cost: cost[1])
    cuda = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {
        "images": f"{work.images:,} to attack, under {number(len(costs), 'model')}, of {number(len(sets), 'set')}; "
        f"{number(wanted.found, 'cell')} found finished",
        "attacks": f"{', '.join(attack.name for attack in protocol.attacks)} at ε {', '.join(f'{eps:g}' for eps in protocol.eps)}",
        "passes": f"at most {work.shown:,} images through a model",
        "measured": f"{slowest[0]:.3g} s an image forward, {slowest[1]:.3g} s with its gradient, on {number(actors, 'evaluator')}"
        + (f" with {gpus:g} GPU each" if gpus else ""),
        "memory": f"{amount(cuda or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)} an evaluator",
        "bytes": f"{amount(sum(storage.sizes(files)) if files else 0)} of images",
    }


def footprint(names: Sequence[str], resolved: Resolved) -> Footprint:
    """Return what an evaluator of these models holds on a GPU at most: a cell's images, an attack's copies, a micro-batch's gradient."""
    return largest([_held(name, resolved) for name in names]) if torch.cuda.is_available() else Footprint()


def _held(name: str, resolved: Resolved) -> Footprint:
    begin()
    cell = resolved.cells(name, "")[0]
    classifier, images, _, ids = on_device(models.load(name), resolved, cell.dataset, cell.rows)
    n = min(resolved.protocol.micro_batch, len(ids))
    shown = images[:n].clone().requires_grad_()
    torch.autograd.grad(meeting(classifier, ids, torch.arange(n))(shown).sum(), shown)
    return taken(COPIES * images.nbytes)


@one_thread()
@full_precision()
def measure(name: str, resolved: Resolved) -> tuple[float, float]:
    """Return the seconds of an image's forward pass, and of one with its gradient, on the first images of the protocol's first set."""
    dataset, test_set = next(iter(resolved.sets.items()))
    n = min(SHOWN, resolved.protocol.micro_batch, len(test_set.rows))
    classifier, images, _, ids = on_device(models.load(name), resolved, dataset, test_set.rows[:n])

    def forward() -> None:
        logits_of(classifier, images, ids, n)

    def both() -> None:
        shown = images.clone().requires_grad_()
        torch.autograd.grad(meeting(classifier, ids, torch.arange(n))(shown).sum(), shown)

    times = {}
    for work in (forward, both):
        first = timed(work)  # which warms up
        times[work] = first if first > SHOWN else min(timed(work) for _ in range(2))
    return times[forward] / n, times[both] / n
