"""Are the gradients an attack follows the model's own: not zero, not rounded away, not hidden by a filter in front."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from robustclip.attacks import PGD, Scored
from robustclip.attacks.pgd import frozen, pgd_best, resisting
from robustclip.base.threat import Ball
from robustclip.evaluation.checks.base import Subject, Verdict, does_not_apply, input_gradient, margin, share, verdict
from robustclip.evaluation.checks.strength import beyond, strongest, too_many

TINY = 2.0**-24  # the smallest positive fp16; in fp32 a loss this flat is rounding
BLIND = 0.1  # share of images (or of gradient entries along the path) without a gradient that a healthy model stays under
MARGIN_STEPS = 20
AGREE = 0.99  # share of gradient signs that another order of summation leaves alone
FULL_PRECISION = {"torch.float32", "torch.float64"}


def gradients_are_there(subject: Subject) -> Verdict:
    """Check 6: shares of zero, tiny and non-finite gradients at the start and on the path, and a margin loss beside cross-entropy."""
    n, faults = len(subject.images), []
    figures: dict[str, Any] = {}
    for loss in ("ce", "margin"):
        g = input_gradient(subject.attacked, subject.images, subject.labels, loss=loss)
        if g is None:
            return Verdict(False, "the logits do not depend on the images", figures)
        largest = g.flatten(1).abs().amax(1)
        figures |= {f"{loss}: blind": share(largest <= TINY), f"{loss}: not finite": share(~torch.isfinite(g).flatten(1).all(1))}
        if figures[f"{loss}: blind"] > BLIND:
            faults.append(f"{figures[f'{loss}: blind']:.0%} of the images have a zero or tiny gradient of the {loss} loss")
    zero, bad = on_the_path(subject)
    figures |= {"path: zero": zero, "path: not finite": bad}
    if zero > 0.5:
        faults.append(f"{zero:.0%} of the gradient entries on an attack's path are exactly zero")
    if bad > 0 or figures["ce: not finite"] > 0:
        faults.append("some gradients are not finite")
    for ball in subject.protocol.balls():
        # Against as many steps of cross-entropy as well, so that it is the loss that is compared.
        by_ce = subject.worst(ball) & subject.run(PGD(MARGIN_STEPS), ball).right
        broken = beyond(by_ce, by_margin(subject, ball))
        figures[f"margin loss at {ball}: broken beyond cross-entropy"] = broken
        if too_many(broken, n):
            faults.append(f"a margin loss breaks {broken} of {n} images at {ball} that cross-entropy leaves right")
    return verdict(faults, "gradients are neither zero nor saturated", figures)


def on_the_path(subject: Subject) -> tuple[float, float]:
    """Return the largest mean share of zero and of non-finite gradient entries that an attack's trace tells of, at any ball."""
    runs = [subject.run(attack, ball) for ball in subject.protocol.balls() for attack in subject.protocol.attacks]
    traces = [(run, run.trace) for run in runs if run.trace is not None]
    zero = [float(trace.zero_gradient[run.right].mean()) for run, trace in traces if bool(run.right.any())]
    return max(zero, default=0.0), max((float(trace.nonfinite_gradient.mean()) for _, trace in traces), default=0.0)


def by_margin(subject: Subject, ball: Ball) -> Tensor:
    """Return which images [N] stay right under PGD on the margin loss: DLR without its scale, blind to the logit scale."""

    def objective_of(places: Tensor) -> Any:
        def objective(images: Tensor) -> Scored:
            values = margin(subject.attacked, images, subject.labels[places])
            return Scored(values, values > 0)

        return objective

    score, everyone = resisting(objective_of, subject.protocol.micro_batch), torch.ones_like(subject.labels, dtype=torch.bool)
    with frozen(subject.attacked):
        found, _ = pgd_best(score, subject.images, ball, steps=MARGIN_STEPS, alpha=0.25, start=None, todo=everyone)
    return subject.clean & (subject.predictions(found) == subject.labels)


def finite_gradients(subject: Subject) -> Verdict:
    """Guard: a gradient that is not finite fails loudly, on the probe and in every record (FARE zeroes them with a print)."""
    faults = []
    figures: dict[str, Any] = {}
    g = input_gradient(subject.attacked, subject.images, subject.labels, loss="ce")
    figures["probe: images"] = 0 if g is None else int((~torch.isfinite(g)).flatten(1).any(1).sum())
    figures["path: share"] = on_the_path(subject)[1]
    if any(figures.values()):
        faults.append(f"gradients are not finite on {figures['probe: images']} probe images, {figures['path: share']:.2%} of the path")
    if subject.records is not None:
        rows = [row for row in subject.records["nonfinite_gradient"].to_pylist() if row]
        figures["records"] = len(rows)
        faults += [f"{len(rows)} records saw gradients that are not finite"] if rows else []
    return verdict(faults, "every gradient is finite", figures)


def full_precision(subject: Subject) -> Verdict:
    """Check 7: every layer computes in true fp32, without autocast or TF32, while attacked, and its gradient is that of an fp32 copy."""
    ball = subject.protocol.balls()[-1]
    faults: list[str] = []
    figures: dict[str, Any] = {}
    for attack in subject.protocol.attacks:
        watch = subject.run(attack, ball).watch
        figures[attack.name] = sorted(watch.dtypes)
        if watch.autocast or watch.reduced or watch.dtypes - FULL_PRECISION:
            half = ", ".join(sorted(watch.dtypes - FULL_PRECISION)) or watch.reduced or "autocast"
            faults.append(f"{attack.name} computes in {half}")
    own = input_gradient(subject.attacked, subject.images, subject.labels, loss="ce")
    with torch.autocast(subject.images.device.type, enabled=False):
        reference = input_gradient(deepcopy(subject.attacked).float(), subject.images, subject.labels, loss="ce")
    if own is None or reference is None:
        return verdict([*faults, "the logits do not depend on the images"], "", figures)
    figures["signs that agree with fp32"] = share(own.sign() == reference.sign())
    if figures["signs that agree with fp32"] < AGREE:
        faults.append(f"only {figures['signs that agree with fp32']:.1%} of the gradient signs are those of an fp32 copy")
    return verdict(faults, "attacked in fp32", figures)


@contextmanager
def bpda(module: nn.Module, *, bypass: bool = False) -> Iterator[None]:
    """Let gradients pass a filter as if it were the identity, its values unchanged; with `bypass` drop it altogether (Athalye 2018)."""

    def straight_through(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return args[0] if bypass else args[0] + (output - args[0]).detach()

    handle = module.register_forward_hook(straight_through)
    try:
        yield
    finally:
        handle.remove()


def without_the_filter(subject: Subject) -> Verdict:
    """Check 20: an attack that passes the declared preprocessing by BPDA breaks no more than the protocol did."""
    if subject.preprocessing is None:
        return does_not_apply("the classifier declares no preprocessing module")
    faults, figures, attack = [], {}, strongest(subject)
    with bpda(subject.preprocessing, bypass=True):
        figures["clean without it"] = share(subject.clean)
    for ball in subject.protocol.balls():
        white = subject.worst(ball)
        with bpda(subject.preprocessing):
            found = subject.attack(attack, ball, subject.attacked)
        right = subject.clean & (subject.predictions(found.images) == subject.labels)
        with bpda(subject.preprocessing, bypass=True):
            bare = subject.attack(attack, ball, subject.attacked)
            figures[f"{attack.name} at {ball}: right without it"] = share(subject.predictions(bare.images) == subject.labels)
        figures |= {f"worst case at {ball}": share(white), f"{attack.name} through BPDA at {ball}": share(right)}
        if too_many(beyond(white, right), len(white)):
            faults.append(f"BPDA breaks {beyond(white, right)} of {len(white)} images at {ball} that the protocol leaves right")
    return verdict(faults, "the filter hides nothing", figures)
