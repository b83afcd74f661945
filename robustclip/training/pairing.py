"""One step of a loss over all pairs of all workers, at the memory of one micro-batch: features first, their gradients, then the towers'.

Features are computed without a graph and gathered; the loss gives their gradients; a second forward of each micro-batch takes those into
the towers. The gradients of all workers then add up to those of the whole batch in one piece ("gradient caching", arXiv:2101.06983).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robustclip.attacks.base import Example
from robustclip.base.precision import computing
from robustclip.defenses import Batch, Paired
from robustclip.defenses.mmcoa import Pairs
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.training.config import Optim


class Waiting(NamedTuple):
    """A micro-batch that was attacked and waits for the others of its step: clean and attacked images, labels, the attack's iterates."""

    images: Tensor
    attacked: Tensor
    labels: Tensor
    iterates: Sequence[Tensor] = ()


@dataclass(frozen=True)
class World:
    """This worker's place among all: micro-batch j of `rank` is number j * workers + rank of the step.

    `begin` begins to sum a tensor over all, in place, and returns what waits until it is.
    """

    rank: int = 0
    workers: int = 1
    begin: Callable[[Tensor], Callable[[], object]] = lambda tensor: lambda: None

    def gather(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the rows of everybody's micro-batches, each of one size, in the order of the step."""
        size = len(parts[0])
        whole = parts[0].new_zeros(size * len(parts) * self.workers, *parts[0].shape[1:])
        for rows, part in zip(self.rows(len(parts), size), parts, strict=True):
            whole[rows] = part
        self.begin(whole)()
        return whole

    def rows(self, parts: int, size: int) -> list[slice]:
        """Return where this worker's micro-batches stand in the step."""
        firsts = [(j * self.workers + self.rank) * size for j in range(parts)]
        return [slice(first, first + size) for first in firsts]


class WholeStep:
    """The attacked micro-batches of a step of a loss over pairs: they wait for each other (`waiting`), their gradient comes at once."""

    def __init__(self, defense: Paired, student: ZeroShotClassifier, optim: Optim):
        self.defense, self.student, self.optim = defense, student, optim
        self.waiting: list[Waiting] = []

    def add(self, batch: Batch, attack: Callable[[Batch, Callable[[Tensor], None]], Example]) -> None:
        """Attack a micro-batch and let it wait; the attack's iterates wait with it where they leak."""
        iterates: list[Tensor] = []
        attacked = attack(batch, iterates.append if self.defense.leak_attack_grads else lambda images: None)
        self.waiting.append(Waiting(batch.images, attacked.images, batch.labels, iterates))

    def backward(self, rewritten: Sequence[str], world: World) -> dict[str, Tensor]:
        """Add the gradient of this worker's pairs to the student's parameters, let them go, and return its share of the loss by part."""
        with computing(self.optim.precision, self.waiting[0].images.device):
            parts = backward(self.defense, self.student, self.waiting, rewritten, world)
            if self.defense.leak_attack_grads:
                leak(self.student, self.waiting, self.optim.batch)
        self.waiting = []
        return parts


def backward(
    defense: Paired, student: ZeroShotClassifier, waiting: Sequence[Waiting], rewritten: Sequence[str], world: World
) -> dict[str, Tensor]:
    """Add this worker's share of the gradient of a step to the student's parameters; return its share of the loss by part.

    `rewritten` are the student's prompts after the text attack, class by class (none: they were not attacked).
    """
    labels = world.gather([each.labels for each in waiting])
    own = torch.cat([each.labels for each in waiting]).unique()
    texts = Texts(student, own, rewritten)
    sides: tuple[Callable[[Waiting], Tensor], ...] = (lambda each: each.images, lambda each: each.attacked)
    with torch.no_grad():
        clean = [F.normalize(student.features(each.images), dim=-1) for each in waiting]
        same = all(each.attacked is each.images for each in waiting)
        attacked = clean if same else [F.normalize(student.features(each.attacked), dim=-1) for each in waiting]
    leaves = [world.gather(parts).requires_grad_() for parts in (clean, attacked)]
    leaves += [world.gather([texts.rows(which, each.labels) for each in waiting]).requires_grad_() for which in (0, 1)]
    scale = student.clip.logit_scale.exp()  # type: ignore[operator]
    held = scale.detach().requires_grad_()
    parts = defense.pair_loss(Pairs(leaves[0], leaves[1], leaves[2], leaves[3], labels, held))
    sum(parts.values()).backward()  # type: ignore[union-attr]
    if scale.requires_grad:
        scale.backward(_gradient(held) / world.workers)
    places = world.rows(len(waiting), len(waiting[0].images))
    parts_of_tower = [student.clip.visual, *filter(None, [student.prompt])]
    learns = any(p.requires_grad for part in parts_of_tower for p in part.parameters())  # type: ignore[union-attr]
    for side, leaf in zip(sides, leaves[:2], strict=True):
        for each, place in zip(waiting, places, strict=True) if learns and leaf.grad is not None else ():
            F.normalize(student.features(side(each)), dim=-1).backward(_gradient(leaf)[place])
    for which in (0, 1):
        for each, place in zip(waiting, places, strict=True):
            texts.add(which, each.labels, _gradient(leaves[2 + which])[place])
    texts.backward()
    return {name: value.detach() / world.workers for name, value in parts.items()}


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


class Texts:
    """Unit features of the prompts of some classes, clean (0) and rewritten (1), with the graph that leads to the text tower."""

    def __init__(self, student: ZeroShotClassifier, classes: Tensor, rewritten: Sequence[str] = ()):
        templates = len(student.templates)
        self.place = torch.full((len(student.class_names),), -1, device=classes.device)
        self.place[classes] = torch.arange(len(classes), device=classes.device)
        self.features: list[Tensor] = []
        self.gradients: list[Tensor] = []
        for prompts in (student.texts, rewritten):
            if not prompts:  # nothing was rewritten: the clean ones stand for both
                self.features.append(self.features[0])
                self.gradients.append(torch.zeros_like(self.features[0]))
                continue
            some = [prompts[c * templates + t] for c in classes.tolist() for t in range(templates)]
            features = F.normalize(student.embed_texts(some).view(len(classes), templates, -1).mean(1), dim=-1)
            self.features.append(features)
            self.gradients.append(torch.zeros_like(features))

    def rows(self, which: int, labels: Tensor) -> Tensor:
        """Return the features of the prompts of some images' classes, without the graph."""
        return self.features[which].detach()[self.place[labels]]

    def add(self, which: int, labels: Tensor, gradient: Tensor) -> None:
        """Add the gradient of such rows."""
        self.gradients[which].index_add_(0, self.place[labels], gradient)

    def backward(self) -> None:
        """Take the gradients into the text tower, if it learns."""
        wanted = [(f, g) for f, g in zip(self.features, self.gradients, strict=True) if f.requires_grad]
        if wanted:
            torch.autograd.backward([f for f, _ in wanted], [g for _, g in wanted])


def leak(student: ZeroShotClassifier, waiting: Sequence[Waiting], batch: int) -> None:
    """Add sum_k grad CE(x + delta_k, y) over the attack's iterates, both towers learning: what the published MMCoA adds unasked."""
    classes = torch.arange(len(student.class_names), device=waiting[0].labels.device)
    texts = Texts(student, classes)
    held = texts.features[0].detach().requires_grad_()
    for each in waiting:
        for images in each.iterates:
            logits = student.clip.logit_scale.exp() * F.normalize(student.features(images), dim=-1) @ held.T  # type: ignore[operator]
            (F.cross_entropy(logits, each.labels, reduction="sum") / batch).backward()
    texts.gradients[0] += _gradient(held)
    texts.backward()
