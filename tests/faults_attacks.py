"""Faults planted in attacks: each takes a healthy subject and pytest's monkeypatch and returns the faulty subject."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from faults_models import Before, Do, front
from probes import PROTOCOL, changed
from toys import Wavy, ids_of, middle

from robustclip.attacks import APGD, PGD, Example, Scored, apgd
from robustclip.attacks.losses import cross_entropy
from robustclip.attacks.pgd import pgd, random_start
from robustclip.base import values
from robustclip.base.threat import Ball
from robustclip.evaluation import cascade

STD = 0.27


def floor(x):
    return (x * 255).floor() / 255


def eight_bits(x):
    """Round images, which changes no stored one."""
    return (x * 255).round() / 255


@dataclass(frozen=True)
class Spoiled:
    """PGD-10 with something done to its ball or its images."""

    kind: str
    steps: int = 10

    @property
    def name(self):
        return self.kind

    def __call__(self, classifier, images, labels, ids, ball, seed, micro_batch=None):
        if self.kind == "k/256":
            ball = replace(ball, eps=ball.eps * 255 / 256)
        found = PGD(self.steps)(classifier, images, labels, ids, ball, seed, micro_batch).images
        delta = found - images
        kinds = {
            "rounds to 8 bits": lambda: eight_bits(found),
            "starts anywhere": lambda: (found + random_start(Ball("Linf", 1.0), images, ids, seed)).clamp(0, 1),
            "floors to 8 bits": lambda: floor(found),
            "normalised space": lambda: images + STD * delta,
            "leaves [0,1]": lambda: images + 0.9 * ball.radius,
            "not a number": lambda: found * torch.nan,
            "k/256": lambda: found,
        }
        return Example(kinds[self.kind]())


def spoiled(kind):
    return lambda subject, patch: changed(subject, protocol=replace(subject.protocol, attacks=(Spoiled(kind),)))


def kept_as_png(level):
    """What is attacked is kept as 8-bit PNG until it is scored, as published code keeps it: torchvision floors on the way there."""

    def plant(subject, patch):
        honest = cascade.logits_of
        patch.setattr(cascade, "logits_of", lambda classifier, images, *rest: honest(classifier, floor(images), *rest))
        return changed(subject, protocol=replace(subject.protocol, level=level))

    return plant


def rounds_when_scored(subject, patch):
    """The defence rounds to 8 bits, and the attacks get what is behind that."""
    return changed(subject, classifier=Before(subject.classifier, Do(eight_bits)).eval())


def no_projection(subject, patch):
    patch.setattr(Ball, "project", lambda self, delta: delta)
    return changed(subject)


def eps_in_256(subject, patch):
    return changed(subject, protocol=replace(subject.protocol, eps=(255 * 4 / 256,)))


def sign_flipped(subject, patch):
    def objective(classifier, labels):
        honest = cross_entropy(classifier, labels)

        def flipped(images):
            scored = honest(images)
            return Scored(-scored.loss, scored.fooled)

        return flipped

    patch.setattr(apgd, "LOSSES", apgd.LOSSES | {"ce": objective})
    return changed(subject, protocol=replace(subject.protocol, eps=(16.0,)))


def on_other_weights(subject, patch):
    honest, other = APGD.__call__, OTHER[0]
    patch.setattr(APGD, "__call__", lambda self, classifier, *args: honest(self, other, *args))
    return changed(subject, protocol=replace(subject.protocol, eps=(16.0,)))


OTHER = []  # the classifier of other weights; the test puts it here


@dataclass(frozen=True)
class HalfMean:
    """FGSM on a mean loss under bf16 autocast, as three published codes attack."""

    name: str = "half-mean"

    def __call__(self, classifier, images, labels, ids, ball, seed, micro_batch=None):
        x = images.clone().requires_grad_(True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(classifier(x), labels)
        (g,) = torch.autograd.grad(loss, x)
        return Example((images + ball.radius * g.sign()).clamp(0, 1).detach())


def half_mean(subject, patch):
    return changed(subject, protocol=replace(subject.protocol, attacks=(HalfMean(),)))


def two_steps(subject, patch):
    return changed(subject, protocol=replace(subject.protocol, attacks=(PGD(2, alpha=0.1),)))


@dataclass(frozen=True)
class LastIterate:
    """PGD that returns where it ended, however good it was on the way."""

    name: str = "last-iterate"

    def __call__(self, classifier, images, labels, ids, ball, seed, micro_batch=None):
        return Example(pgd(cross_entropy(classifier, labels), images, ball, steps=10, alpha=1.0))


def silent_success(subject, patch):
    classifier, x = Wavy().eval().requires_grad_(False), middle(16, 6)
    labels = classifier(x).argmax(1)
    protocol = replace(subject.protocol, attacks=(LastIterate(),), eps=(12.0,))
    toy = {"classifier": classifier, "attacked": classifier, "images": x, "labels": labels, "ids": ids_of(16), "classes": 5}
    return changed(subject, protocol=protocol, **toy)


@dataclass(frozen=True)
class IgnoresRestarts:
    """PGD that takes `restarts` and makes one run."""

    steps: int = 5
    restarts: int = 4
    name: str = "ignores-restarts"

    def __call__(self, *args):
        return PGD(self.steps)(*args)


@dataclass(frozen=True)
class Miscounts:
    """PGD whose trace tells of passes it did not make."""

    steps: int = 5
    name: str = "miscounts"

    def __call__(self, *args):
        found = PGD(self.steps)(*args)
        return replace(found, trace=replace(found.trace, forwards=found.trace.forwards + 100))


def miscounts(subject, patch):
    return changed(subject, protocol=replace(subject.protocol, attacks=(Miscounts(),)))


def restarts_ignored(subject, patch):
    return changed(subject, protocol=replace(subject.protocol, attacks=(IgnoresRestarts(),)))


def misspelt_key(subject, patch):
    honest = values.from_json

    def lenient(kind, data, path="config"):
        known = data if not isinstance(data, dict) else {name: value for name, value in data.items() if name != "stepz"}
        return honest(kind, known, path)

    patch.setattr(values, "from_json", lenient)
    return changed(subject)


@dataclass(frozen=True)
class Leaking:
    """FGSM by loss.backward(): every parameter that wants a gradient gets one."""

    name: str = "leaking"

    def __call__(self, classifier, images, labels, ids, ball, seed, micro_batch=None):
        x = images.clone().requires_grad_(True)
        F.cross_entropy(classifier(x), labels, reduction="sum").backward()
        return Example((images + ball.radius * x.grad.sign()).clamp(0, 1).detach())


def leaking(subject, patch):
    return changed(subject, protocol=replace(subject.protocol, attacks=(Leaking(),)))


@dataclass(frozen=True)
class Trains:
    """An attack that puts the model in train mode first."""

    name: str = "trains"

    def __call__(self, classifier, images, *args):
        classifier.train()
        classifier(images)
        classifier.eval()
        return Example(images)


def attacked_in_train_mode(subject, patch):
    return changed(subject, protocol=replace(subject.protocol, attacks=(Trains(),)))


@dataclass(frozen=True)
class Needs:
    """An attack by its loss and its number of targets alone."""

    loss: str
    targets: int | None = None

    @property
    def name(self):
        return f"apgd-{self.loss}"


def class_guard(classes, loss, targets=None):
    def plant(subject, patch):
        classifier = subject.model.classifier([f"class {i}" for i in range(classes)], ("a {}.",))
        protocol = replace(PROTOCOL, attacks=(Needs(loss, targets),))
        labels = subject.labels % classes
        return changed(subject, classifier=classifier, attacked=classifier, labels=labels, classes=classes, protocol=protocol)

    return plant


FAULTS = [
    ("1", "images take a round trip through 8 bits", spoiled("rounds to 8 bits")),
    ("1", "a random start whatever eps is", spoiled("starts anywhere")),
    ("2", "no projection", no_projection),
    ("2", "projection in normalised space", spoiled("normalised space")),
    ("2", "floor to 8 bits", spoiled("floors to 8 bits")),
    ("2", "a ball of eps/256", spoiled("k/256")),
    ("2", "eps written as 4/256", eps_in_256),
    ("2", "pixels outside [0,1]", spoiled("leaves [0,1]")),
    ("2", "pixels that are not finite", spoiled("not a number")),
    ("4", "the strong attack's loss with the other sign", sign_flipped),
    ("4", "the strong attack made on other weights", on_other_weights),
    ("6", "a defence that rounds to 8 bits, gradient 0", front(eight_bits)),
    ("7", "a mean loss under autocast", half_mean),
    ("8", "2 short steps for 100", two_steps),
    ("8", "the last iterate crosses the boundary and comes back", silent_success),
    ("9", "restarts accepted and ignored", restarts_ignored),
    ("9", "passes that were not made", miscounts),
    ("9", "a misspelt key accepted", misspelt_key),
    ("11", "attacked images kept as 8-bit PNG until they are scored", kept_as_png("white-box")),
    ("11", "the same where the attacker is grey-box", kept_as_png("grey-box A0")),
    ("11", "a defence that rounds to 8 bits, attacked without it", rounds_when_scored),
    ("11", "a defence that rounds to 8 bits, gradient 0", front(eight_bits)),
    ("15", "2 classes with DLR", class_guard(2, "dlr")),
    ("15", "3 classes with targeted DLR", class_guard(3, "dlr-targeted")),
    ("15", "5 classes with 9 targets", class_guard(5, "ce", 9)),
    ("G1", "an attack by loss.backward()", leaking),
    ("G5", "attacked in train mode", attacked_in_train_mode),
]
