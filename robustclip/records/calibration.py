"""Is a model as often right as it says, and does it know when it is not: ECE, selective accuracy, the risk-coverage curve.

All images of some sets are taken together, every set weighing alike, so that accuracy at full coverage is the mean over sets of all other
tables. Of a set that was attacked, an image counts with the answer that decided: the first wrong one, or else the last right one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from robustclip.base.errors import UserError
from robustclip.records.metrics import Estimate, of_share
from robustclip.records.survival import Column, Outcomes

BINS = 15  # of equal width over [0, 1], as Guo et al. 2017
COVERAGES = (0.5, 0.8, 0.9)
DRAWS = 500
ECE = 1  # its place among what is measured of a resample
AT_ONCE = 1 << 21  # images of resamples that are held at once


@dataclass(frozen=True)
class Calibration:
    """What n answers and their confidences say, each with its 95 % interval.

    `gap`: mean confidence minus accuracy, in [-1, 1]. `ece`: expected calibration error (Guo et al. 2017, Eq. 3) in BINS bins. `selective`:
    accuracy of the shares COVERAGES of the images that the model is surest of. `aurc`: area under the risk-coverage curve (Geifman and
    El-Yaniv 2017), the mean over all coverages of the share of errors among the surest.

    The intervals of the selective accuracies are Wilson's, the others basic bootstrap intervals (Davison and Hinkley 1997, 5.2): few images
    in a bin raise an ECE, and a resample's once more, which the basic interval takes back. That of an ECE reaches
    0 where answers that are right as often as they say would show as much in one case of 20 (consistency resampling, Bröcker and Smith
    2007); a bootstrap alone misses the ECE of such answers, which is 0, in half of all cases.
    """

    gap: Estimate
    ece: Estimate
    selective: tuple[Estimate, ...]
    aurc: Estimate


def calibration(outcomes: Outcomes, column: Column, sets: Sequence[str] | None = None, draws: int = DRAWS) -> Calibration | None:
    """Return the calibration of one model over sets (default: all) at a column; None where a confidence was not recorded.

    Intervals cover which images were drawn: they are resampled within each set.
    """
    chosen = [outcomes[name] for name in (outcomes if sets is None else sets)]
    correct, confidence = ([getattr(each, what)(column) for each in chosen] for what in ("flags", "confidence"))
    if np.isnan(np.concatenate(confidence)).any():
        return None
    return of_answers(np.concatenate(correct), np.concatenate(confidence), list(map(len, correct)), draws)


def of_answers(
    correct: np.ndarray, confidence: np.ndarray, sizes: Sequence[int] | None = None, draws: int = DRAWS, seed: int = 0
) -> Calibration:
    """Return the calibration of answers [n] bool with confidences [n] in [0, 1]; `sizes` are those of the sets they lie in, set by set.

    Raises UserError without answers and for confidences outside of [0, 1].
    """
    sizes = [len(correct)] if sizes is None else list(sizes)
    if not len(correct) or not ((confidence >= 0) & (confidence <= 1)).all():
        raise UserError("calibration needs answers, with confidences from 0 to 1")
    # All that follows sees the surest first, and answers of one confidence as one: their order must not count.
    order = np.argsort(-confidence, kind="stable")
    weights = np.repeat([1 / (len(sizes) * n) for n in sizes], sizes)[order]
    right, sure = correct[order].astype(float), confidence[order]
    drawn = np.concatenate([_measures(right, sure, weights * times[:, order]) for times in _resampled(sizes, draws, seed)], axis=1)
    point = _measures(right, sure, weights[None])
    low, high = 2 * point[:, 0] - np.percentile(drawn, [97.5, 2.5], axis=1)
    if point[ECE, 0] <= _by_chance(sure, weights, draws, seed):
        low[ECE] = 0
    gap, ece, aurc = (
        Estimate(float(middle), float(max(least, min(bottom, middle))), float(min(1, max(top, middle))), len(sure))
        for least, middle, bottom, top in zip((-1, 0, 0), point[:, 0], low, high, strict=True)
    )
    effective = 1 / np.square(weights).sum()
    errors = (_errors(coverage, right, sure, weights) for coverage in COVERAGES)
    selective = (of_share(max(0.0, 1 - lost / coverage), coverage * effective) for lost, coverage in zip(errors, COVERAGES, strict=True))
    return Calibration(gap, ece, tuple(selective), aurc)


def _resampled(sizes: Sequence[int], draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each of n images is drawn when every set is resampled, [some draws, n] at a time."""
    generator, step = np.random.default_rng(seed), max(1, AT_ONCE // sum(sizes))
    for start in range(0, draws, step):
        some = range(min(step, draws - start))
        yield np.stack([np.concatenate([np.bincount(generator.integers(n, size=n), minlength=n) for n in sizes]) for _ in some])


def _by_chance(confidence: np.ndarray, weights: np.ndarray, draws: int, seed: int) -> float:
    """Return the ECE that answers right as often as they say exceed in one case of 20, the surest first."""
    generator = np.random.default_rng([seed, 1])
    found = [_ece(confidence - (generator.random(len(confidence)) < confidence), confidence, weights[None])[0] for _ in range(draws)]
    return float(np.percentile(found, 95))


def bins_of(confidence: np.ndarray) -> np.ndarray:
    """Return the bin of each confidence: of BINS of equal width, each with its upper edge and not its lower, as Guo et al. 2017."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence)


def _ece(surplus: np.ndarray, confidence: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return [draws] ECE of answers [n], the surest first, with confidence minus right `surplus` [n], under weights [draws, n]."""
    starts = np.flatnonzero(np.diff(bins_of(confidence), prepend=-1))
    return np.abs(np.add.reduceat(weights * surplus, starts, axis=1)).sum(1)


def _tied(confidence: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the sums of values [..., n] over answers of one confidence, the surest first."""
    return np.add.reduceat(values, np.flatnonzero(np.diff(confidence, prepend=np.inf)), axis=-1)


def _measures(right: np.ndarray, confidence: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return [3, draws] gap, ECE (at ECE) and AURC of answers [n], the surest first, under weights [draws, n]."""
    surplus = confidence - right
    mass, wrong = _tied(confidence, weights), _tied(confidence, weights * (1 - right))
    covered, errors = mass.cumsum(1), wrong.cumsum(1)
    before = covered - mass
    # Within a tie errors grow evenly, by wrong / mass: what lies under (errors before + rate * (c - before)) / c, from before to covered.
    rate = np.divide(wrong, mass, out=np.zeros_like(wrong), where=mass > 0)
    grown = np.log(np.divide(covered, before, out=np.ones_like(covered), where=(mass > 0) & (before > 0)))
    area = ((errors - wrong - rate * before) * grown + wrong).sum(1)
    return np.stack([weights @ surplus, _ece(surplus, confidence, weights), area])


def _errors(coverage: float, right: np.ndarray, confidence: np.ndarray, weights: np.ndarray) -> float:
    """Return the errors among the surest of a coverage, of the last answers, all of one confidence, an even share."""
    mass, wrong = _tied(confidence, weights), _tied(confidence, weights * (1 - right))
    return float(np.interp(coverage, [0.0, *mass.cumsum()], [0.0, *wrong.cumsum()]))
