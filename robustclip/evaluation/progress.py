"""How far an evaluation is, which cells wait, which run, and which of them is late: plain values, without Ray."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from robustclip.base.forecast import duration, left
from robustclip.evaluation.protocols import Cell

ATTEMPTS = 3  # of one cell before it is reported as failed: a poison cell must not loop
LATE = 5.0  # times as long as the slowest finished cell: then an idle worker computes the cell too, and the first of them counts


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is: of the `total` cells it must compute those done, the seconds that took, and the cells found finished."""

    done: int
    total: int
    seconds: float
    found: int

    def __str__(self) -> str:
        said = f"evaluated {self.done}/{self.total} cells"
        if self.done:
            return f"{said} ({duration(self.seconds)}{left(self.done, self.total, self.seconds)})"
        return f"{said}; {self.found} were found finished" if self.found else said


def by_turns(cells: Iterable[Cell]) -> list[Cell]:
    """Return the first cell of every model and set, then the second of each, and so on: what those of a set share is made side by side."""
    seen: Counter[tuple[str, str]] = Counter()
    turns: dict[int, list[Cell]] = {}
    for cell in cells:
        turns.setdefault(seen[cell.model_sha256, cell.dataset], []).append(cell)
        seen[cell.model_sha256, cell.dataset] += 1
    return [cell for turn in turns.values() for cell in turn]


@dataclass
class Queue:
    """Cells still to do and how often each was tried; failures keep their reason and never stop the others."""

    todo: list[Cell]
    attempts: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def again(self, cell: Cell, reason: str) -> None:
        """Put a cell back after its worker failed, or give it up."""
        self.attempts[cell.key] = self.attempts.get(cell.key, 0) + 1
        if self.attempts[cell.key] < ATTEMPTS:
            self.todo.append(cell)
        else:
            self.failed[cell.key] = f"{cell.dataset} under {cell.model}: {reason}"


@dataclass(frozen=True)
class Running:
    """A cell on its worker, since when (monotonic seconds)."""

    worker: Any
    cell: Cell
    since: float


def late(running: Collection[Running], slowest: float, now: float) -> Cell | None:
    """Return the cell that runs longest if that is LATE times the slowest finished one and no second worker computes it yet."""
    times = Counter(each.cell.key for each in running)
    alone = [each for each in running if times[each.cell.key] == 1 and slowest and now - each.since > LATE * slowest]
    return min(alone, key=lambda each: each.since).cell if alone else None
