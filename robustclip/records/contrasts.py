"""Differences of differences: a weighted sum of models' accuracies over the same images, with a paired interval."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robustclip.records.metrics import DRAWS, Estimate, check_same_images
from robustclip.records.survival import Column, Outcomes

Term = tuple[float, Sequence[Outcomes]]  # a weight and the runs of one method, its training seeds, whose flags are averaged per image


def contrast(terms: Mapping[str, Term], column: Column, sets: Sequence[str] | None = None, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Return sum_i weight_i * macro mean of method i, between -sum|w| and sum|w|, with its 95 % percentile bootstrap interval.

    Images are resampled within each set, the same draw for all methods and seeds: sampling of images only, not of sets or training seeds.
    Raises UserError when the images differ.
    """
    check_same_images({f"{name}, run {i + 1}": run for name, (_, runs) in terms.items() for i, run in enumerate(runs)})
    first = next(iter(terms.values()))[1][0]
    names = sorted(first if sets is None else sets)
    values = {
        name: sum(weight * np.mean([run[name].flags(column).astype(float) for run in runs], axis=0) for weight, runs in terms.values())
        for name in names
    }
    return resampled(values, draws, seed)


def resampled(values: Mapping[str, Any], draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Return the macro mean over sets of a value of every image (set -> [n]) with its 95 % percentile bootstrap interval over images."""
    generator = np.random.default_rng(seed)
    total = np.zeros(draws)
    for name in values:
        each = np.asarray(values[name])
        total += each[generator.integers(len(each), size=(draws, len(each)))].mean(1)
    low, high = np.percentile(total / len(values), [2.5, 97.5])
    point = float(np.mean([np.mean(values[name]) for name in values]))
    return Estimate(point, float(low), float(high), sum(len(np.asarray(values[name])) for name in values))
