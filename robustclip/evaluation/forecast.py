"""What an evaluation will take: the passes of every attack, counted, times the seconds of a pass, measured."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustclip import names as models
from robustclip.attacks.classes import for_classes
from robustclip.attacks.multimodal import Multimodal
from robustclip.attacks.pgd import logits_of, meeting
from robustclip.attacks.shift import Shifted
from robustclip.base import storage
from robustclip.base.forecast import Forecast, amount, duration, held, memory, number, span, timed
from robustclip.base.precision import full_precision
from robustclip.base.threads import one_thread
from robustclip.base.threat import Ball
from robustclip.evaluation.computing import on_device
from robustclip.evaluation.protocols import Cell, Resolved
from robustclip.evaluation.wanted import Wanted
from robustclip.models.class_texts import texts_of
from robustclip.models.classifier import Surrogates
from robustclip.models.model import Model
from robustclip.runtime.gpus import Footprint, begin, largest, taken

SHOWN = 8  # images on which a pass is measured on a CPU, where more take as much longer
READ = 32  # prompts on which the text tower is
COPIES = 8  # of a cell's images that an attack holds at once, counted in APGD: points, gradients, the best of each, what it compares
SIDES = (8, 8)  # of the image on which passes are counted, in pixels
FILE, ROW = 16_500, 22  # bytes of a cell's records, and of a row more: as 818 files were that hold 180 to 900 rows


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


class Cost(NamedTuple):
    """The seconds of a model on one evaluator: of an image forward, of one with its gradient, of a prompt read."""

    forward: float
    both: float
    text: float = 0.0


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
    """Images, how often they go through a model at most, prompts, and seconds: at most, and at least, where every image breaks at once.

    `cell` are the seconds of the cell that takes longest, `written` the bytes of records at most.
    """

    images: int = 0
    shown: int = 0
    prompts: int = 0
    most: float = 0.0
    least: float = 0.0
    cell: float = 0.0
    written: int = 0

    def meet(self, cells: Sequence[Cell], resolved: Resolved, cost: Cost, evaluators: int) -> None:
        """Add cells of one model of such a cost, with what so many evaluators read and learn for them."""
        for cell in cells:
            self.add(cell, resolved, cost)
        for dataset, n in Counter(cell.dataset for cell in cells).items():
            self.read(dataset, resolved, cost, min(n, evaluators))
        for dataset in {cell.dataset for cell in cells if cell.attacks} & resolved.surrogates.keys():
            self.learn(dataset, resolved, cost)

    def times(self, models: int) -> "Work":
        """Return the work of so many models, each of which takes this."""
        whole = {name: models * value for name, value in vars(self).items()}
        return Work(**whole | {"cell": self.cell})

    def add(self, cell: Cell, resolved: Resolved, cost: Cost) -> None:
        """Add a cell under a model of such a cost."""
        (forward, both, _), protocol, n, each = cost, resolved.protocol, len(cell.rows), []
        classes = resolved.classes[cell.dataset]
        attacks = for_classes(cell.attacks, classes).values() if cell.attacks else ()
        for ball in protocol.balls():
            for attack in attacks:
                forwards, backwards = passes(attack, classes, ball)  # type: ignore[arg-type]
                forwards += 1 + isinstance(attack, Shifted)  # a look at what came of it, and one under the texts that it saw
                self.shown += n * forwards
                each.append((forwards - backwards) * forward + backwards * both)
        self.images, self.shown, self.written = self.images + n, self.shown + n, self.written + FILE + ROW * n * (1 + len(each))
        self.most += n * (forward + sum(each))
        self.cell = max(self.cell, n * (forward + sum(each)))
        self.least += n * (forward + (sum(each) if protocol.independent else sum(each[:1])))

    def read(self, dataset: str, resolved: Resolved, cost: Cost, evaluators: int = 1) -> None:
        """Add the prompts of a set, which each of the evaluators that meet it reads once for a model."""
        test_set = resolved.sets[dataset]
        prompts = evaluators * sum(map(len, texts_of(test_set.card.class_names, test_set.templates)))
        self.prompts += prompts
        self.most += prompts * cost.text
        self.least += prompts * cost.text

    def learn(self, dataset: str, resolved: Resolved, cost: Cost) -> None:
        """Add what a set's universal perturbations take to be learned on a model: nothing, where a cascade breaks all images before."""
        protocol, there = resolved.protocol, len(resolved.surrogates[dataset].rows)
        shown = len(protocol.eps) * sum(attack.epochs * min(attack.images, there) for attack in protocol.universal_on(dataset))
        self.shown += shown
        self.most += shown * cost.both
        self.least += shown * cost.both if protocol.independent else 0.0


def forecast(names: Sequence[str], resolved: Resolved, out: str, actors: int, gpus: float) -> Forecast:
    """Return what is missing of an evaluation and what it will take `actors` of this machine, without Ray's start and the checks."""
    wanted, work = Wanted(names, resolved, out), Work()
    costs = {name: measure(name, resolved) for name in sorted({wanted.name_of[cell.key] for cell in wanted.missing})}
    for name, cost in costs.items():
        work.meet([cell for cell in wanted.missing if wanted.name_of[cell.key] == name], resolved, cost, actors)
    facts = facts_of({cell.dataset for cell in wanted.missing}, resolved, work, [*costs.values()], actors, gpus)
    facts["images"] += f"; {number(wanted.found, 'cell')} found finished"
    return Forecast(f"evaluation: {resolved.protocol.name}", facts, work.most / actors, gpus * actors, work.least / actors)


def of_later(name: str, later: int, resolved: Resolved, evaluators: int, at_once: int, gpus: float) -> Forecast:
    """Return what `later` models that are not there yet will take: each what `name` takes so many evaluators, so many models at once."""
    cost, one, actors = measure(name, resolved), Work(), evaluators * at_once
    one.meet(resolved.cells(name, ""), resolved, cost, evaluators)
    work = one.times(later)
    seconds, of_one = ((each.least / n, each.most / n) for each, n in ((work, actors), (one, evaluators)))
    facts = {
        "evaluation": f"{number(later, 'model')}, {number(actors, 'evaluator')}: about {span(seconds, duration)}",
        "a model": f"{one.images:,} images, at most {one.shown:,} passes, {number(one.prompts, 'prompt')}: about {span(of_one, duration)}",
        **facts_of(resolved.sets, resolved, work, [cost] * later, actors, gpus),
    }
    return Forecast(f"evaluation: {resolved.protocol.name}", facts, seconds[1], gpus * actors, seconds[0])


def facts_of(sets: Collection[str], resolved: Resolved, work: Work, costs: Sequence[Cost], actors: int, gpus: float) -> dict[str, str]:
    """Return what a forecast says beside its time, of models of such costs on some sets."""
    protocol = resolved.protocol
    files = [file for name in sets for file in resolved.sets[name].index.files]
    slowest = max(costs, default=Cost(0.0, 0.0), key=lambda cost: cost.both)
    return {
        "images": f"{work.images:,} to attack, under {number(len(costs), 'model')}, of {number(len(sets), 'set')}",
        "attacks": f"{', '.join(attack.name for attack in protocol.attacks)} at ε {', '.join(f'{eps:g}' for eps in protocol.eps)}",
        "passes": f"at most {work.shown:,} images through a model, and {number(work.prompts, 'prompt')}",
        "a cell": f"at most {duration(work.cell)}",
        "measured": f"{slowest.forward:.3g} s an image forward, {slowest.both:.3g} s with its gradient, {slowest.text:.3g} s a prompt, "
        f"on {number(actors, 'evaluator')}" + (f" with {gpus:g} GPU each" if gpus else ""),
        "memory": memory(held(), "an evaluator", actors),
        "bytes": f"{amount(sum(storage.sizes(files)))} of images read, at most {amount(work.written)} of records written",
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
def measure(name: str, resolved: Resolved) -> Cost:
    """Return what a model costs, on the first images of the protocol's first set."""
    dataset, model = next(iter(resolved.sets)), models.load(name)
    few = resolved if model.readout is not None else with_few_classes(resolved, dataset)
    n = min(resolved.protocol.micro_batch if torch.cuda.is_available() else SHOWN, len(few.sets[dataset].rows))
    classifier, images, _, ids = on_device(model, few, dataset, few.sets[dataset].rows[:n])

    def forward() -> None:
        logits_of(classifier, images, ids, n)

    def both() -> None:
        shown = images.clone().requires_grad_()
        torch.autograd.grad(meeting(classifier, ids, torch.arange(n))(shown).sum(), shown)

    return Cost(fastest(forward) / n, fastest(both) / n, sum(map(seconds_a_prompt, getattr(model, "members", (model,)))))


def with_few_classes(resolved: Resolved, dataset: str) -> Resolved:
    """Return the protocol with the first classes of a set alone: a thousand under eighty templates take long to read."""
    test_set = resolved.sets[dataset]
    card = replace(test_set.card, class_names=test_set.card.class_names[:SHOWN])
    return replace(resolved, sets={**resolved.sets, dataset: replace(test_set, card=card)})


def seconds_a_prompt(model: Model) -> float:
    """Return the seconds that a model reads a prompt in."""
    classifier = Model.classifier(model, ("thing",), ("a photo of a {}",)) if model.readout is None else None
    return fastest(lambda: classifier.embed_texts(["a photo of a thing"] * READ)) / READ if classifier else 0.0


def fastest(work: Callable[[], object]) -> float:
    """Return the seconds of some work, warm where it is short."""
    first = timed(work)
    return first if first > SHOWN else min(timed(work) for _ in range(2))
