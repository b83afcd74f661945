"""Are the attacks as strong as they claim: against larger balls, against each other, against attackers that need no gradient."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from robustclip.attacks import APGD, PGD, Attack, Noise
from robustclip.base.threat import Ball
from robustclip.evaluation.checks.ball import declared, has
from robustclip.evaluation.checks.base import Run, Subject, Verdict, by_chance, does_not_apply, share, verdict

LARGE = 64.0  # in 1/255: a ball in which a right answer is no longer defined
ABOUT_ZERO = 0.1
SURE, LIKELY = 0.01, 0.05  # one-sided p of a paired sign test: for a hard failure, for a warning
FORGIVEN = 0.002  # of the images: AutoAttack's margin before Square beating white-box is flagged


# From weak to strong: noise, one step (FGSM), many, and many with a step size that adapts.
LADDER: tuple[Attack, ...] = (Noise(draws=1), PGD(1, alpha=1.0, random_start=False), PGD(20), APGD(20))


def falls_with_effort(subject: Subject) -> Verdict:
    """Check 3: accuracy does not rise with eps, steps or restarts and is about 0 in a large ball (Carlini et al. 2019)."""
    attack, norm = strongest(subject), subject.protocol.norm
    size = LARGE if norm == "Linf" else LARGE / 2 * subject.images[0].numel() ** 0.5
    balls = (*subject.protocol.balls(), Ball(norm, max(size, 2 * subject.protocol.eps[-1])))  # type: ignore[arg-type]
    trials = [(str(ball), subject.run(attack, ball)) for ball in balls]
    faults = [rise(weaker, stronger) for weaker, stronger in pairwise(trials)]
    more = {name: value for name, value in (("steps", 2), ("restarts", 3)) if has(attack, name)}
    for name, times in more.items():
        longer = replace(attack, **{name: times * getattr(attack, name)})  # type: ignore[type-var]
        faults.append(rise(trials[-2], (f"{balls[-2]} with {times} times the {name}", subject.run(longer, balls[-2]))))
    left = trials[-1][1].right
    if share(left) > ABOUT_ZERO and int(left.sum()) > 1:
        faults.append(f"{attack.name} leaves {share(left):.0%} right at {balls[-1]}")
    figures = {title: share(run.right) for title, run in trials}
    return verdict(filter(None, faults), f"accuracy under {attack.name} only falls, to {share(left):.0%} at {balls[-1]}", figures)


def rise(weaker: tuple[str, Run], stronger: tuple[str, Run], p: float = LIKELY) -> str | None:
    """Return a fault where significantly more images break under the weaker of two attacks alone than under the stronger alone."""
    (weak, a), (strong, b) = weaker, stronger
    against, for_ = int((b.right & ~a.right).sum()), int((a.right & ~b.right).sum())
    return f"{strong} leaves {share(b.right):.0%} right, {weak} {share(a.right):.0%}" if by_chance(against, for_) < p else None


def stronger_is_stronger(subject: Subject) -> Verdict:
    """Check 4: APGD <= PGD <= FGSM <= noise, each run on its own on the same images; an attack of the protocol is held to its rung."""
    faults: list[str | None] = []
    figures: dict[str, Any] = {}
    for ball in subject.protocol.balls():
        trials = {attack: (f"{attack.name} at {ball}", subject.run(attack, ball)) for attack in (*LADDER, *subject.protocol.attacks)}
        figures |= {title: share(run.right) for title, run in trials.values()}
        faults += [rise(trials[weaker], trials[attack], SURE) for attack in trials for weaker in below(attack)]
    return verdict(filter(None, faults), "no attack is weaker than one it should beat", figures)


def below(attack: Attack) -> list[Attack]:
    """Return the rungs an attack must not be weaker than: those below its kind that take no more steps.

    An attack of another kind is held to FGSM if it takes several steps, else to noise; what takes none, but noise itself, to noise.
    """
    steps = declared(attack).get("steps", 0)
    own = [place for place, rung in enumerate(LADDER) if type(rung) is type(attack)]
    place = (own[-1] if steps > 1 else own[0]) if own else (2 if steps > 1 else 1)
    return [rung for rung in LADDER[:place] if declared(rung).get("steps", 0) <= steps]


def no_black_box_wins(subject: Subject) -> Verdict:
    """Check 5: neither the black-box attack nor examples made on the undefended model break what every white-box attack leaves right."""
    trials: list[tuple[str, Attack, nn.Module | None]] = []
    if subject.black_box is not None:
        trials.append((subject.black_box.name, subject.black_box, None))
    if subject.baseline is not None and subject.baseline is not subject.classifier:
        trials.append((f"transfer of {strongest(subject).name}", strongest(subject), subject.baseline))
    if not trials:
        return does_not_apply("no black-box attack and no other undefended model were given")
    faults, figures = [], {}
    for ball in subject.protocol.balls():
        white = subject.worst(ball)
        for title, attack, against in trials:
            # A black-box attack asks the pipeline that is scored, whatever the white-box attacks were given.
            run = subject.run(attack, ball, subject.classifier if against is None else against)
            broken = beyond(white, run.right)
            figures[f"{title} at {ball}: broken beyond white-box"] = broken
            if too_many(broken, len(white)):
                faults.append(f"{title} at {ball} breaks {broken} of {len(white)} images that white-box attacks leave right")
    return verdict(faults, "white-box attacks are the stronger ones", figures)


def strongest(subject: Subject) -> Attack:
    """Return the last attack of the protocol that takes steps (the dearest gradient attack), or simply the last."""
    return ([attack for attack in subject.protocol.attacks if has(attack, "steps")] or subject.protocol.attacks)[-1]


def beyond(white: Tensor, right: Tensor) -> int:
    """Return how many images one attack breaks that all others [N] leave right."""
    return int((white & ~right).sum())


def too_many(broken: int, n: int) -> bool:
    """Return whether so many images broken beyond the white-box attacks say that those are weak: at least two, and over 0.2 points."""
    return broken > max(1, FORGIVEN * n)
