"""What a check looks at and what it says: a subject, a verdict, a finding."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustclip.attacks import Attack, Trace
from robustclip.attacks.pgd import frozen
from robustclip.base.dtypes import wide
from robustclip.base.seeds import generator
from robustclip.base.threat import Ball
from robustclip.evaluation.cascade import predict
from robustclip.evaluation.checks.watch import Watch, watching
from robustclip.evaluation.protocols import Protocol, Resolved
from robustclip.models.model import Model

SMALL = 1e-4  # of the largest logit: what another batch size may cost in fp32


class Verdict(NamedTuple):
    """What a check function returns; run_checks adds its number, name and level."""

    passed: bool | None
    reason: str
    figures: dict[str, Any]


def does_not_apply(why: str) -> Verdict:
    """Return the verdict of a check that has nothing to look at."""
    return Verdict(None, f"not applicable: {why}", {})


def verdict(faults: Iterable[str], healthy: str, figures: dict[str, Any]) -> Verdict:
    """Return a failure that names its first three faults, or a pass."""
    found = list(faults)
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return Verdict(not found, "; ".join(found[:3]) + more if found else healthy, figures)


class Run(NamedTuple):
    """One attack on every probe image, on its own: attacked images [N,3,H,W], which stay right [N], the trace and what a watch saw."""

    images: Tensor
    right: Tensor
    trace: Trace | None
    watch: Watch


@dataclass(frozen=True, eq=False)
class Subject:
    """Everything a check may look at: one model under one protocol on a probe of one set.

    `classifier` is what is scored, `attacked` what the attacks are given; `images` [N,3,H,W] in [0,1] are as stored, with `labels` [N],
    `ids` and the number of `classes`. `records` holds the rows of the whole run, in which this model is `name` and the undefended one
    `baseline_name` with classifier `baseline`. `source` is what `model` was loaded from, `preprocessing` a submodule of the classifier
    that declares itself a filter, `selection_ids` the images that training or selection saw. What is None is not checked, and says so.
    """

    classifier: nn.Module
    attacked: nn.Module
    images: Tensor
    labels: Tensor
    ids: list[str]
    classes: int
    protocol: Protocol
    dataset: str = ""
    model: Model | None = None
    source: str | None = None
    model_sha256: str = ""
    resolved: Resolved | None = None
    records: pa.Table | None = None
    name: str = ""
    baseline: nn.Module | None = None
    baseline_name: str = ""
    black_box: Attack | None = None
    preprocessing: nn.Module | None = None
    selection_ids: frozenset[str] | None = None
    _runs: dict[Any, Run] = field(default_factory=dict, repr=False)

    @property
    def off_grid(self) -> Tensor:
        """The probe moved by up to half an 8-bit step, so that rounding to 8 bits shows."""
        draw = torch.rand(self.images.shape, generator=generator(self.protocol.seed, "checks", "off grid"))
        return (self.images + (draw.to(self.images) - 0.5) / 255).clamp(0, 1)

    @property
    def clean(self) -> Tensor:
        """Which probe images [N] are right before any attack."""
        return self.predictions(self.images) == self.labels

    def predictions(self, images: Tensor) -> Tensor:
        """Return the predicted classes [N] as the cascade computes them."""
        with seeded():
            return predict(self.classifier, images, self.ids, self.protocol.micro_batch)

    def run(self, attack: Attack, ball: Ball, against: nn.Module | None = None) -> Run:
        """Return the attack on all probe images, crafted on `against` (default: what the attacks are given), scored by the classifier."""
        target = self.attacked if against is None else against
        key = (attack, ball, id(target))
        if key not in self._runs:
            with seeded(), watching(target, self.images, self.labels) as watch:
                found = self.attack(attack, ball, target)
            right = self.clean & (self.predictions(found.images) == self.labels)
            self._runs[key] = Run(found.images, right, found.trace, watch)
        return self._runs[key]

    def attack(self, attack: Attack, ball: Ball, target: nn.Module, images: Tensor | None = None) -> Any:
        """Return what the attack makes of the probe, called as the cascade calls it."""
        images = self.images if images is None else images
        return attack(target, images, self.labels, self.ids, ball, self.protocol.seed, self.protocol.micro_batch)

    def worst(self, ball: Ball) -> Tensor:
        """Return which probe images [N] stay right under every attack of the protocol, each run on its own."""
        return torch.stack([self.run(attack, ball).right for attack in self.protocol.attacks]).all(0)


class seeded:
    """Give everything inside one fixed state of torch's generators and put the old one back: a random model then repeats itself."""

    def __enter__(self) -> None:
        self.fork = torch.random.fork_rng()
        self.fork.__enter__()
        torch.manual_seed(0)

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)


def logits_of(classifier: nn.Module, images: Tensor) -> Tensor:
    """Return the logits [N,K] of images in one batch, without gradient, from one fixed random state."""
    with seeded(), torch.no_grad():
        return wide(classifier(images))


def apart(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of logits as a share of the largest logit (at least 1); nan where one is not finite."""
    return float((a - b).abs().max() / a.abs().max().clamp(min=1))


def by_chance(against: int, for_: int) -> float:
    """Return the exact one-sided p of a sign test: as many as `against` of the discordant images, were both sides equally likely."""
    n = against + for_
    return sum(math.comb(n, k) for k in range(against, n + 1)) / 2**n


def share(flags: Tensor) -> float:
    """Return the share of True."""
    return float(flags.float().mean())


def margin(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the largest other logit minus the label's [N]: positive where the image is misclassified; no scale saturates it."""
    logits = wide(classifier(images))
    at = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(at, -torch.inf).amax(1) - logits[at]


def input_gradient(classifier: nn.Module, images: Tensor, labels: Tensor, *, loss: str) -> Tensor | None:
    """Return the gradient [N,3,H,W] of the summed "ce" or "margin" loss at images, or None where the logits do not depend on them."""
    images = images.detach().clone().requires_grad_(True)
    with seeded(), frozen(classifier), torch.enable_grad():
        values = (
            margin(classifier, images, labels) if loss == "margin" else F.cross_entropy(wide(classifier(images)), labels, reduction="sum")
        )
        if not values.requires_grad:
            return None
        return torch.autograd.grad(values.sum(), images)[0]
