"""A published accuracy beside ours: what it is of, and whether the two can be told apart."""

from dataclasses import dataclass

from robustclip.records import metrics
from robustclip.records.survival import Column, Outcomes


@dataclass(frozen=True)
class Expected:
    """A published accuracy: the `share` in [0, 1] of images that the `row` of a `source` has right, on one of `sets` or as their mean.

    It is held against `column` of `model`. `n` is how many images of each set were counted in print. `besides` names attacks that our
    column counts and the printed one does not.
    """

    model: str
    row: str
    source: str
    sets: tuple[str, ...]
    column: Column
    share: float
    n: tuple[int, ...]
    besides: tuple[str, ...] = ()

    @property
    def printed(self) -> metrics.Estimate:
        """The published share with the interval that its images give it: of a mean, at their effective number."""
        return metrics.of_share(self.share, len(self.n) ** 2 / sum(1 / n for n in self.n))

    def ours(self, outcomes: Outcomes) -> metrics.Estimate:
        """Return our number for it."""
        if len(self.sets) == 1:
            return metrics.accuracy(outcomes[self.sets[0]], self.column)
        return metrics.macro(outcomes, self.column, dict.fromkeys(self.sets, 1), self.sets)


@dataclass(frozen=True)
class Gap:
    """Ours minus what is printed, with its 95 % interval."""

    point: float
    low: float
    high: float

    @property
    def agrees(self) -> bool:
        """Whether the two cannot be told apart."""
        return self.low <= 0 <= self.high


def gap(ours: metrics.Estimate, printed: metrics.Estimate) -> Gap:
    """Return the difference of two shares of unpaired images, its interval from the intervals of both (Newcombe 1998, method 10)."""
    point = ours.mean - printed.mean
    low = ((ours.mean - ours.low) ** 2 + (printed.high - printed.mean) ** 2) ** 0.5
    high = ((ours.high - ours.mean) ** 2 + (printed.mean - printed.low) ** 2) ** 0.5
    return Gap(point, point - low, point + high)
