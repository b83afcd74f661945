"""A row of RESULTS.md: a claim, what it is measured against, the ratio of paired runs with its spread, its aim, and a status by rule."""

import ctypes
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

Found = TypeVar("Found")
PAIRS = 5
PRODUCT = 2048  # side of the square matrices whose product says how fast a machine is
HEAD = ("by", "claim", "baseline", "ours", "ratio", "aim", "spread", "machine", "date", "status")


@dataclass(frozen=True)
class Row:
    """What was found of one claim. A ratio above 1 is better than the baseline; none at all: it was not measured, `why` says why.

    `ratios` are those of the pairs, or a single one where nothing can vary, as in a count. `why` also follows an aim that is not met.
    """

    claim: str
    baseline: str
    ours: str
    ratios: tuple[float, ...] = ()
    aim: float | None = None
    why: str = ""

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> str:
        """The lowest and the highest ratio, and of how many pairs."""
        if len(self.ratios) < 2:
            return "a count" if self.ratios else "–"
        return f"{min(self.ratios):.3g} to {max(self.ratios):.3g}, {len(self.ratios)} pairs"

    @property
    def status(self) -> str:
        """Met, not met or not measured, by the median alone, and how many pairs disagree."""
        if not self.ratios:
            return f"not measured: {self.why or 'no run yet'}"
        if self.aim is None:
            return "measured, without an aim" + (f": {self.why}" if self.why else "")
        reached = sum(ratio >= self.aim for ratio in self.ratios)
        if self.ratio >= self.aim:
            return "met" if reached == len(self.ratios) else f"met, in {reached} of {len(self.ratios)} pairs"
        found = f"{self.ratio:.3g} of {self.aim:.3g}, {reached} of {len(self.ratios)} pairs reach it"
        return f"not met: {found}" + (f"; {self.why}" if self.why else "")


def not_measured(claim: str, baseline: str, ours: str, aim: float | None, why: str) -> Row:
    """Return the row of a claim that was not measured, with the reason."""
    return Row(claim, baseline, ours, (), aim, why)


@dataclass(frozen=True)
class Pairs:
    """What baseline and ours took, pair by pair, in one unit of which less is better."""

    baseline: tuple[float, ...]
    ours: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Baseline over ours, of each pair."""
        return tuple(theirs / ours for theirs, ours in zip(self.baseline, self.ours, strict=True))

    def row(self, claim: str, baseline: str, ours: str, aim: float | None = None, unit: str = "s", why: str = "") -> Row:
        """Return the row of a claim, the medians of both sides behind their names."""
        medians = ((name, statistics.median(took)) for name, took in ((baseline, self.baseline), (ours, self.ours)))
        sides = (f"{name}: {f'{took:,.0f}' if took >= 1000 else f'{took:.3g}'} {unit}" for name, took in medians)
        return Row(claim, *sides, self.ratios, aim, why)


def alternately(baseline: Callable[[], Found], ours: Callable[[], Found], pairs: int = PAIRS) -> tuple[list[Found], list[Found]]:
    """Return what both gave, pair by pair, the one that goes first changing from pair to pair."""
    found: tuple[list[Found], list[Found]] = ([], [])
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            found[side].append((baseline, ours)[side]())
    return found


def paired(baseline: Callable[[], float], ours: Callable[[], float], pairs: int = PAIRS) -> Pairs:
    """Return what both took, alternating."""
    return Pairs(*map(tuple, alternately(baseline, ours, pairs)))


def seconds(work: Callable[[], object]) -> float:
    """Return the wall seconds of some work, of a GPU's too."""
    import torch

    def done() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    started = done()
    work()
    return done() - started


def keep_memory() -> None:
    """Let this process keep the memory that it frees (mallopt(3): M_MMAP_MAX 0, M_TRIM_THRESHOLD none), where its C library is glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for parameter, value in ((-4, 0), (-1, -1)) if mallopt else ():
        mallopt(parameter, value)


def machine() -> str:
    """Return what this machine is: cores, the measured rate of a square fp32 product on them, torch's version, and the GPU."""
    import torch

    a, b = torch.rand(2, PRODUCT, PRODUCT)
    fastest = min(seconds(lambda: a @ b) for _ in range(8))
    cores = len(os.sched_getaffinity(0))
    said = f"{cores} cores, {2 * PRODUCT**3 / fastest / 1e9:.0f} GFLOP/s, torch {torch.__version__.partition('+')[0]}"
    return f"{said}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else said


def line(by: str, row: Row, where: str, date: str) -> str:
    """Return the line of a row in a table whose head is HEAD."""
    ratio = f"{row.ratio:.3g}" if row.ratios else "–"
    aim = "–" if row.aim is None else f"≥ {row.aim:.3g}"
    cells = (by, row.claim, row.baseline, row.ours, ratio, aim, row.spread, where, date, row.status)
    return f"| {' | '.join(' '.join(each.replace('|', '/').split()) for each in cells)} |"


def table(lines: Iterable[str]) -> str:
    """Return a table of such lines."""
    return "\n".join([f"| {' | '.join(HEAD)} |", "|" + " --- |" * len(HEAD), *lines])


def show(by: str, rows: Iterable[Row]) -> None:
    """Print the rows that were measured here, today, as a table."""
    where, date = machine(), time.strftime("%Y-%m-%d")
    print(table(line(by, row, where, date) for row in rows))
