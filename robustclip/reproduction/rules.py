"""Decision rules: when a measured statistic shows a claim, refutes it, or decides nothing. They know no paper and no world."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from robustclip.records.metrics import MIN_DISCORDANT

SHOWN, REFUTED, UNDECIDED = "shown", "refuted", "undecided"
LEAST = 100  # images: of fewer that all agree, a bootstrap draws an interval without a width


@dataclass(frozen=True)
class Rule:
    """The 95 % interval of a statistic lies `above`, or `below`, so many points: then a claim is shown; on the other side, refuted."""

    side: Literal["above", "below"]
    than: float


@dataclass(frozen=True)
class Measured:
    """A statistic in points with its 95 % interval over n images, of which `deciding` have a value other than 0; `seeds`: each alone."""

    estimate: float
    low: float
    high: float
    n: int
    deciding: int
    seeds: tuple[float, ...]


def judge(rule: Rule, found: Measured) -> tuple[str, str]:
    """Return the verdict on one statistic, and why it is undecided ("" where it is not).

    Decided is what the interval says and every training seed by itself, on LEAST images or more; a side of 0 also by as many images as
    an exact paired test needs.
    """
    sign = 1 if rule.side == "above" else -1
    nearest, farthest = sorted(sign * (end - rule.than) for end in (found.low, found.high))
    side = 1 if nearest > 0 else -1 if farthest < 0 else 0
    if found.n < LEAST:
        return UNDECIDED, f"{found.n} images, of {LEAST} that it takes"
    if not side:
        return UNDECIDED, f"the interval holds {rule.than:g}"
    if not rule.than and found.deciding < MIN_DISCORDANT:
        return UNDECIDED, f"{found.deciding} images decide, of {MIN_DISCORDANT} that it takes"
    if any(side * sign * (each - rule.than) <= 0 for each in found.seeds):
        return UNDECIDED, f"seeds disagree: {', '.join(f'{each:+.1f}' for each in found.seeds)}"
    return (SHOWN if side > 0 else REFUTED), ""


def together(verdicts: Sequence[str]) -> str:
    """Return the verdict on a claim of several statistics: each must show it, and any can refute it."""
    if REFUTED in verdicts:
        return REFUTED
    return SHOWN if set(verdicts) == {SHOWN} else UNDECIDED
