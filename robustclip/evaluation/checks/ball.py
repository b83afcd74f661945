"""Does the attack do what its ball says: nothing at radius 0, never more than the radius, never a smaller one."""

from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from robustclip.attacks import FABT, Attack
from robustclip.base.threat import Ball
from robustclip.evaluation.cascade import TOLERANCE
from robustclip.evaluation.checks.base import Subject, Verdict, does_not_apply, verdict

# Half-way between a full ball and the one of eps/256: the largest of thousands of coordinates comes closer to the full radius than that.
FULL = (1 + 255 / 256) / 2


def nothing_at_zero(subject: Subject) -> Verdict:
    """Check 1: radius 0, and 0 steps, return images off the 8-bit grid bit for bit, and so their predictions (Carlini et al. 2019)."""
    images, faults, largest = subject.off_grid, [], 0.0
    clean = subject.predictions(images)
    for attack in subject.protocol.attacks:
        nowhere, first = Ball(subject.protocol.norm, 0.0), subject.protocol.balls()[0]  # type: ignore[arg-type]
        trials = [("eps 0", attack, nowhere)]
        trials += [("0 steps", replace(attack, steps=0), first)] if has(attack, "steps") else []  # type: ignore[type-var]
        for title, tried, ball in trials:
            found = subject.attack(tried, ball, subject.attacked, images).images
            largest = max(largest, float((found - images).abs().max()) * 255)
            if not torch.equal(found, images):
                faults.append(f"{attack.name} at {title} moves images by up to {float((found - images).abs().max()) * 255:.3g}/255")
            elif not torch.equal(subject.predictions(found), clean):
                faults.append(f"{attack.name} at {title} changes predictions")
    return verdict(faults, "radius 0 and 0 steps change no bit", {"largest change in 1/255": largest})


def inside_the_ball(subject: Subject) -> Verdict:
    """Check 2: ||x' - x|| <= k/255 in pixel space, x' in [0,1] and finite, and the ball is used to its edge; eps is a simple k/255."""
    faults: list[str] = []
    figures: dict[str, Any] = {}
    for ball in subject.protocol.balls():
        if ball.radius != float(Fraction(ball.eps) / 255) or disguised(ball.eps):
            faults.append(f"eps {ball.eps:g}/255 is k/256 written as k/255")
        for attack in subject.protocol.attacks:
            off_grid = subject.attack(attack, ball, subject.attacked, subject.off_grid).images
            found = subject.run(attack, ball).images
            for title, moved, images in (("", found, subject.images), (", off the 8-bit grid", off_grid, subject.off_grid)):
                where = f"{attack.name} at {ball}{title}"
                faults += outside(moved, images, ball, where)
                # FAB looks for the nearest adversarial image: a small step says that the model is weak, not that the ball is.
                faults += [] if isinstance(attack, FABT) else held_back(moved, images, ball, where)
                figures[f"{where}: size/eps"] = float(ball.size(moved - images).max()) / ball.radius
            rounded = (found * 255).round() / 255
            figures[f"{attack.name} at {ball}: size/eps after rounding to 8 bits"] = (
                float(ball.size(rounded - subject.images).max()) / ball.radius
            )
    faults += outside_rows(subject)
    leaves = any("8 bits" in name and value > 1 + 1e-4 for name, value in figures.items())
    note = "; stored as 8 bits they would leave it" if leaves else ""
    return verdict(faults, f"every attacked image is in its ball{note}", figures)


def outside(found: Tensor, images: Tensor, ball: Ball, where: str) -> list[str]:
    """Return what is wrong with attacked images: too far, out of range, or not finite."""
    size = ball.size(found - images)
    if not bool(torch.isfinite(found).all()):
        return [f"{where} returns pixels that are not finite"]
    if bool((size > ball.radius + TOLERANCE).any()):
        return [f"{where} goes {float(size.max()) * 255:.4f}/255 far"]
    if bool((found < 0).any() | (found > 1).any()):
        return [f"{where} leaves [0,1]"]
    return []


def held_back(found: Tensor, images: Tensor, ball: Ball, where: str) -> list[str]:
    """Return what is wrong where an attack stays away from the edge of an Linf ball on every image it moves."""
    size = ball.size(found - images)
    if ball.norm == "Linf" and 0 < float(size.max()) < FULL * ball.radius:
        return [f"{where} uses {float(size.max()) / ball.radius:.4f} of eps at most: a smaller ball than declared"]
    return []


def outside_rows(subject: Subject) -> list[str]:
    """Return what is wrong with the sizes the records hold."""
    if subject.records is None:
        return []
    column = "linf" if subject.protocol.norm == "Linf" else "l2"
    rows = subject.records.select(["image_id", "eps", column]).to_pylist()
    far = [row for row in rows if row[column] is not None and not row[column] <= row["eps"] / 255 + TOLERANCE]
    return [f"{len(far)} records hold images outside their ball, such as {far[0]['image_id']!r}"] if far else []


def disguised(eps: float) -> bool:
    """Return whether eps in 1/255 is really a simple k/256."""
    return not simple(eps) and simple(eps * 256 / 255)


def simple(number: float) -> bool:
    return abs(float(Fraction(number).limit_denominator(10)) - number) < 1e-9


def has(attack: Attack, setting: str) -> bool:
    """Return whether an attack declares a setting."""
    return is_dataclass(attack) and setting in {each.name for each in fields(attack)}


def declared(attack: Attack) -> dict[str, Any]:
    """Return the settings of an attack; those of a library attack are a tuple of pairs."""
    own: dict[str, Any] = {each.name: getattr(attack, each.name) for each in fields(attack)} if is_dataclass(attack) else {}
    return own | dict(own.get("settings") or ())


def moves_stored_values(subject: Subject) -> Verdict:
    """Guard: at every eps some attack moves some value of some image by a step of the 8 bits that images are stored in."""
    attacks = [attack for attack in subject.protocol.attacks if not isinstance(attack, FABT)]  # it moves what it fools, and nothing else
    if not attacks or not bool(subject.clean.any()):
        return does_not_apply("no attack that has to move an image met one that was right")
    faults: list[str] = []
    figures: dict[str, Any] = {}
    stored = (subject.images[subject.clean] * 255).round()
    for ball in subject.protocol.balls():
        found = [(subject.run(attack, ball).images[subject.clean] * 255).round() for attack in attacks]
        moved = max(float((images - stored).abs().max()) for images in found)
        figures[f"{ball}: 8-bit steps"] = moved
        if moved == 0:
            faults.append(f"{ball} moves no value of an 8-bit image, so its number is clean accuracy by another name; eps is in 1/255")
    return verdict(faults, "every eps moves 8-bit values", figures)
