"""Attacks that rewrite the class prompts: alone, beside an attack on the image, or together with it.

The prompts of all classes are rewritten once, without knowing any image's label: one classifier is then attacked and scored for a whole
test set. What is rewritten for the true class alone is `OracleText`: it tells the attacker the label and is never counted with the rest.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustclip.attacks.apgd import APGD
from robustclip.attacks.base import Example, Objective, Scored
from robustclip.attacks.losses import fools
from robustclip.attacks.pgd import PGD, Found, frozen, micro_batches, pgd_best, random_start, resisting
from robustclip.attacks.text.rewriting import Rewritten
from robustclip.attacks.text.search import TextAttack
from robustclip.base.dtypes import wide
from robustclip.base.errors import UserError
from robustclip.base.ranges import AMOUNT, NATURAL, check_fields
from robustclip.base.threat import Ball
from robustclip.base.values import to_json
from robustclip.models.classifier import ZeroShotClassifier

SCALES = (1.0, 0.5, 0.75, 1.25, 1.5)  # of the image, in SGA
TEXT_WEIGHT = 3.0  # of the text's term beside the image's, in Co-Attack


class Seen(NamedTuple):
    """Images [N,3,H,W] in [0,1] to attack, with labels [N] and ids, the ball they stay in, the seed, and the size of micro-batches."""

    images: Tensor
    labels: Tensor
    ids: list[str]
    ball: Ball
    seed: int
    micro_batch: int | None


@dataclass(frozen=True)
class Multimodal:
    """What all of them have: the attack on the prompts, and a name that says it."""

    text: TextAttack = field(default_factory=TextAttack)

    @property
    def mode(self) -> str:
        """What is attacked, and how the image is."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        return f"{self.mode}:{self.text.name}"

    @property
    def apart(self) -> bool:
        """Whether its numbers say something else than the others': with label changes allowed, they are never part of a worst case."""
        return self.text.collisions

    def __call__(
        self, classifier: nn.Module, images: Tensor, labels: Tensor, ids: list[str], ball: Ball, seed: int, micro_batch: int | None = None
    ) -> Example:
        if not isinstance(classifier, ZeroShotClassifier) or classifier.readout is not None:
            raise UserError(
                f"{self.name} rewrites class prompts, and this model does not classify by its own (a linear probe, an ensemble): "
                "leave the attacks on text out"
            )
        return self.example(classifier, Seen(images, labels, ids, ball, seed, micro_batch))

    def example(self, classifier: ZeroShotClassifier, seen: Seen) -> Example:
        """Return what the attack makes of what it sees."""
        raise NotImplementedError

    def prompts(self, classifier: ZeroShotClassifier) -> Rewritten:
        """Return the rewritten prompts of a classifier, from what it has kept if it was asked before."""
        return kept(classifier, self.text, lambda: self.text(classifier))


def kept(classifier: ZeroShotClassifier, text: TextAttack, rewrite: Callable[[], Rewritten], **about: object) -> Rewritten:
    """Return what a text attack makes of a classifier's prompts, computed once; `about` is what it depends on beside the two."""
    name = json.dumps([text.name, to_json(text), {key: str(value) for key, value in about.items()}], sort_keys=True)
    if name not in classifier.rewritten:
        classifier.rewritten[name] = rewrite()
    return classifier.rewritten[name]


@dataclass(frozen=True)
class Text(Multimodal):
    """The prompts rewritten, the images clean ("text")."""

    @property
    def mode(self) -> str:
        return "text"

    def example(self, classifier: ZeroShotClassifier, seen: Seen) -> Example:
        return Example(seen.images, self.prompts(classifier).texts)


@dataclass(frozen=True)
class OracleText(Multimodal):
    """Only the prompt of each image's own class rewritten: an attacker who knows the label, which no deployed classifier tells."""

    @property
    def mode(self) -> str:
        return "oracle-text"

    @property
    def apart(self) -> bool:
        return True

    def example(self, classifier: ZeroShotClassifier, seen: Seen) -> Example:
        return Example(seen.images, self.prompts(classifier).texts, label_known=True)


@dataclass(frozen=True)
class Separate(Multimodal):
    """The image attacked under the clean prompts, the prompts rewritten, and both scored together ("both1": neither knows the other)."""

    image: PGD | APGD = field(default_factory=lambda: PGD(100))

    @property
    def mode(self) -> str:
        return f"separate+{self.image.name}"

    def example(self, classifier: ZeroShotClassifier, seen: Seen) -> Example:
        found = self.image(classifier, *seen)
        return replace(found, class_texts=self.prompts(classifier).texts)


@dataclass(frozen=True)
class CoAttack(Multimodal):
    """Co-Attack (Zhang et al. 2022): the prompts first, then PGD of the image away from its clean self and from its rewritten prompt.

    The image raises KL(u(x) || u(x')) + 3 KL(u(t') || u(x')) of softmaxed unit features u, t' the rewritten prompt of its class; the start
    is uniform in the whole ball. `alpha` is the step as a share of eps.
    """

    revision: ClassVar[int] = 2  # 1 took raw features in the first term, which drowned the second: another, weaker attack
    steps: int = 100
    alpha: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, "Co-Attack: ", steps=NATURAL, alpha=AMOUNT)

    @property
    def mode(self) -> str:
        return f"co-attack-{self.steps}"

    def example(self, classifier: ZeroShotClassifier, seen: Seen) -> Example:
        texts = self.prompts(classifier).texts
        attacked = classifier.reworded(texts)
        clean = F.normalize(features_of(classifier, seen.images, seen.micro_batch), dim=-1)

        def objective_of(places: Tensor) -> Objective:
            return away_from_both(attacked, clean[places], seen.labels[places])

        with frozen(classifier), frozen(attacked):
            found, trace = climb(objective_of, seen, self.mode, self.steps, self.alpha)
        return Example(found, texts, trace)


def away_from_both(attacked: ZeroShotClassifier, clean: Tensor, labels: Tensor) -> Objective:
    """Return Co-Attack's objective for images of unit clean features [B,D], and whether they fool the classifier of rewritten prompts."""
    image, text = clean.softmax(1), attacked.class_embeddings[labels].softmax(1)

    def objective(images: Tensor) -> Scored:
        unit = attacked.embed_images(images)
        loss = kl(image, unit) + TEXT_WEIGHT * kl(text, unit)
        return Scored(loss, fools(wide(attacked.scores(unit)), labels))

    return objective


def kl(p: Tensor, logits: Tensor) -> Tensor:
    """Return KL(p || softmax(logits)) of each row [B]."""
    return F.kl_div(logits.log_softmax(1), p, reduction="none").sum(1)


@dataclass(frozen=True)
class GuidedCoAttack(Multimodal):
    """Set-level guidance as in SGA (Lu et al. 2023): prompts, images by those prompts at several scales, prompts again by such images.

    The images go away from their rewritten prompt at all SCALES at once; then every class's prompt goes away from the mean of attacked
    images of its class, the classifier's `guides` (a class without any from its own clean prompt). So one classifier serves the whole set.
    `alpha` is the step as a share of eps. Raises UserError for a classifier without guides.
    """

    steps: int = 10
    alpha: float = 0.25

    def __post_init__(self) -> None:
        check_fields(self, "SGA: ", steps=NATURAL, alpha=AMOUNT)

    @property
    def mode(self) -> str:
        return f"sga-{self.steps}"

    def example(self, classifier: ZeroShotClassifier, seen: Seen) -> Example:
        guides, first = classifier.guides, classifier.reworded(self.prompts(classifier).texts)
        if guides is None:
            raise UserError(f"{self.name} is guided by images of the classes, and this classifier has none")
        guided = replace(self.text, score="image")

        def again() -> Rewritten:
            attacked, _ = self._images(first, first, seen._replace(images=guides.images, labels=guides.labels, ids=guides.ids))
            return guided(classifier, class_means(classifier, attacked, guides.labels, seen.micro_batch))

        about = {"guides": guides.ids, "ball": seen.ball, "seed": seen.seed, "steps": self.steps, "alpha": self.alpha, "first": self.text}
        texts = kept(classifier, guided, again, **about).texts
        found, trace = self._images(first, classifier.reworded(texts), seen)
        return Example(found, texts, trace)

    def _images(self, first: ZeroShotClassifier, scored: ZeroShotClassifier, seen: Seen) -> Found:
        """Return images attacked by the prompts of `first`, where the verdict is that of `scored`."""

        def objective_of(places: Tensor) -> Objective:
            return away_at_all_scales(first, scored, seen.labels[places])

        with frozen(first), frozen(scored):
            found, trace = climb(objective_of, seen, self.mode, self.steps, self.alpha)
        return found, replace(trace, forwards=len(SCALES) * trace.forwards)


def away_at_all_scales(first: ZeroShotClassifier, scored: ZeroShotClassifier, labels: Tensor) -> Objective:
    """Return minus the summed cosines of images at all SCALES to the class texts of `first`; `scored` says what fools."""

    def objective(images: Tensor) -> Scored:
        text, loss = first.class_embeddings[labels], torch.zeros_like(images[:, 0, 0, 0])
        for scale in SCALES:
            unit = first.embed_images(images if scale == 1 else F.interpolate(images, scale_factor=scale, mode="bilinear"))
            loss = loss - (unit * text).sum(1)
            if scale == 1:
                fooled = fools(wide(scored.scores(unit)), labels)
        return Scored(loss, fooled)

    return objective


def climb(objective_of: Callable[[Tensor], Objective], seen: Seen, name: str, steps: int, alpha: float) -> Found:
    """Return the best iterate of PGD on an objective from a start uniform in the ball, and its trace."""
    start = random_start(seen.ball, seen.images, seen.ids, seen.seed, name) if seen.ball.radius else None
    score, everyone = resisting(objective_of, seen.micro_batch), torch.ones_like(seen.labels, dtype=torch.bool)
    return pgd_best(score, seen.images, seen.ball, steps=steps, alpha=alpha, start=start, todo=everyone)


def features_of(classifier: ZeroShotClassifier, images: Tensor, micro_batch: int | None) -> Tensor:
    """Return the raw features [N,D] of images, without gradients and in micro-batches of one size (None: all at once)."""
    places = torch.arange(len(images))
    with torch.no_grad():
        parts = [classifier.features(images[padded])[: len(part)] for part, padded in micro_batches(places, micro_batch or len(images))]
    return torch.cat(parts)


def class_means(classifier: ZeroShotClassifier, images: Tensor, labels: Tensor, micro_batch: int | None) -> Tensor:
    """Return the unit mean of the unit features of each class's images [K,D], the class's text for a class that has none."""
    unit = F.normalize(features_of(classifier, images, micro_batch), dim=-1)
    own = F.one_hot(labels, len(classifier.class_names)).to(unit)
    sums = own.T @ unit
    return torch.where(own.any(0)[:, None], F.normalize(sums, dim=-1), classifier.class_embeddings)
