"""From what became of every image to numbers: accuracies with intervals, spreads, paired comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robustclip.base.errors import UserError
from robustclip.records.rows import CLEAN
from robustclip.records.survival import Column, Outcomes, Survival

DRAWS = 2000
MIN_DISCORDANT = 6  # with five or fewer no exact two-sided test reaches 5 %: 2 * 0.5 ** 5 = 0.0625


@dataclass(frozen=True)
class Estimate:
    """A share in [0, 1] with its 95 % interval, from n images."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Accuracy(Estimate):
    """The share of correct images of one set, with its Wilson interval."""

    correct: int


@dataclass(frozen=True)
class Macro(Estimate):
    """The plain mean of the accuracies of several sets; above_chance is the mean of (accuracy - 1/K)."""

    effective_n: float
    above_chance: float
    sets: tuple[str, ...]


@dataclass(frozen=True)
class SetDifference:
    """One set in a paired comparison: images that only a or only b gets right, exact McNemar p, and p after Holm over the sets."""

    n: int
    difference: float
    only_a: int
    only_b: int
    p: float
    p_holm: float


@dataclass(frozen=True)
class Difference:
    """Macro mean of a minus macro mean of b on the same images, with its paired 95 % bootstrap interval."""

    point: float
    low: float
    high: float
    n: int
    per_set: dict[str, SetDifference]

    @property
    def discordant(self) -> int:
        """Return the number of images that exactly one of the two models gets right."""
        return sum(each.only_a + each.only_b for each in self.per_set.values())

    @property
    def sign(self) -> int:
        """Return 1 when a is better, -1 when b is, 0 when this data cannot tell (a bootstrap of a handful of images is no evidence)."""
        if self.discordant < MIN_DISCORDANT or self.low <= 0 <= self.high:
            return 0
        return 1 if self.point > 0 else -1


def _wilson(correct: float, n: float) -> tuple[float, float]:
    from statsmodels.stats.proportion import proportion_confint  # late: a second that every process of a sweep would pay

    low, high = proportion_confint(correct, n, alpha=0.05, method="wilson")
    return max(0.0, float(low)), min(1.0, float(high))


def of_share(share: float, n: float) -> Estimate:
    """Return a share of n images, which need not be whole, with its Wilson interval."""
    return Estimate(share, *_wilson(share * n, n), round(n))


def accuracy(outcome: Survival, column: Column) -> Accuracy:
    """Return the clean accuracy or the worst-case accuracy of one model on one set."""
    flags = outcome.flags(column)
    n, correct = len(flags), int(flags.sum())
    return Accuracy(correct / n, *_wilson(correct, n), n, correct)


def macro(outcomes: Outcomes, column: Column, classes: Mapping[str, int], sets: Sequence[str] | None = None) -> Macro:
    """Return the plain mean over sets (default: all) of one model, with K classes per set for the mean above chance.

    The interval is Wilson's at the effective size S^2 / sum(1/n_i) for S sets of n_i images: the size of one sample whose mean is as
    uncertain as the mean of S accuracies around a common value. With equal sets it is the pooled n; unequal ones count for less.
    """
    sets = tuple(outcomes if sets is None else sets)
    if not sets or set(sets) - set(outcomes) or set(sets) - set(classes):
        raise UserError(f"cannot average over {sets}: there are records for {tuple(outcomes)} and class counts for {tuple(classes)}")
    each = [accuracy(outcomes[name], column) for name in sets]
    mean = float(np.mean([a.mean for a in each]))
    effective = len(sets) ** 2 / sum(1 / a.n for a in each)
    above = float(np.mean([a.mean - 1 / classes[name] for a, name in zip(each, sets, strict=True)]))
    return Macro(mean, *_wilson(mean * effective, effective), sum(a.n for a in each), effective, above, sets)


def at_chance(models: Mapping[str, Outcomes], classes: Mapping[str, int]) -> list[str]:
    """Return the sets on which some model's clean accuracy cannot be told from guessing: 1/K is inside its interval, or above it."""
    names = next(iter(models.values()))
    return [name for name in names if any(accuracy(outcomes[name], CLEAN).low <= 1 / classes[name] for outcomes in models.values())]


@dataclass(frozen=True)
class Spread:
    """What training luck does to a mean, apart from its interval: n seeds' mean, sample standard deviation, smallest and largest."""

    mean: float
    deviation: float
    smallest: float
    largest: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of one number over at least two training seeds."""
    if len(values) < 2:
        raise UserError(f"the spread over seeds needs two runs that differ in their seed alone, there is {len(values)}")
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)), min(values), max(values), len(values))


def check_same_images(models: Mapping[str, Outcomes]) -> None:
    """Raise UserError unless every model has the same sets and the same image ids in each."""
    first = next(iter(models))
    for model, outcomes in models.items():
        for name in {**models[first], **outcomes}:
            if name not in outcomes or name not in models[first]:
                lacking = model if name not in outcomes else first
                raise UserError(f"no comparison: model {lacking!r} has no records for set {name!r}; finish its evaluation")
            here, there = outcomes[name], models[first][name]
            other = np.union1d(np.setxor1d(here.ids, there.ids), np.setxor1d(here.ids[here.attacked], there.ids[there.attacked]))
            if len(other):
                raise UserError(
                    f"no comparison: {first!r} and {model!r} differ in {len(other)} images of set {name!r}, such as {str(other[0])!r}"
                )


def paired_difference(
    a: Outcomes, b: Outcomes, column: Column, sets: Sequence[str] | None = None, draws: int = DRAWS, seed: int = 0
) -> Difference:
    """Return macro mean of a minus that of b over the same images; raises UserError when the images differ.

    The 95 % percentile bootstrap resamples images within each set: sampling of images only, not of sets and not of training seeds.
    """
    check_same_images({"a": a, "b": b})
    names = sorted(a if sets is None else sets)
    gaps = {name: a[name].flags(column).astype(int) - b[name].flags(column).astype(int) for name in names}
    point = float(np.mean([gap.mean() for gap in gaps.values()]))
    side = -1 if point < 0 else 1  # a against b and b against a must mirror each other
    generator = np.random.default_rng(seed)
    total = np.zeros(draws)
    for gap in gaps.values():
        # Drawing images with replacement, the same for both models, only matters through how often each gap (1, 0, -1) is drawn.
        counts = np.array([(gap == side).sum(), (gap == 0).sum(), (gap == -side).sum()])
        drawn = generator.multinomial(len(gap), counts / len(gap), size=draws)
        total += side * (drawn[:, 0] - drawn[:, 2]) / len(gap)
    low, high = np.percentile(total / len(names), [2.5, 97.5])
    return Difference(point, float(low), float(high), sum(len(gap) for gap in gaps.values()), _per_set(gaps))


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values [N] adjusted for N comparisons by Holm's steps down (Scandinavian Journal of Statistics 6, 1979)."""
    # Not statsmodels' multipletests: it collects the garbage of the whole process at each call, a third of a second beside torch.
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return adjusted.tolist()


def _per_set(gaps: Mapping[str, np.ndarray]) -> dict[str, SetDifference]:
    from statsmodels.stats.contingency_tables import mcnemar

    only = {name: (int((gap == 1).sum()), int((gap == -1).sum())) for name, gap in gaps.items()}
    p = [min(1.0, float(mcnemar([[0, a], [b, 0]], exact=True).pvalue)) for a, b in only.values()]
    adjusted = holm(p)
    return {name: SetDifference(len(gap), float(gap.mean()), *only[name], p[i], adjusted[i]) for i, (name, gap) in enumerate(gaps.items())}


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points (clean, robust) that no other point beats in one and matches in the other, by ascending clean."""
    values = np.asarray(points, dtype=float).reshape(-1, 2)
    beaten = [bool(((values >= p).all(axis=1) & (values > p).any(axis=1)).any()) for p in values]
    return sorted((i for i, out in enumerate(beaten) if not out), key=lambda i: (values[i, 0], -values[i, 1]))
