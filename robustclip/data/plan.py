"""Which rows train, and in what order: pure functions of the data, the seed and the epoch, never of workers, files' order or time.

The order is drawn in two levels. Row groups (random samples of the split, see shards.py) are permuted, rows are shuffled inside each, the
result is cut into units of one micro batch, and the units are permuted: a unit touches few row groups, so reading stays sequential.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robustclip.base.errors import UserError
from robustclip.base.seeds import derive
from robustclip.data.index import Index
from robustclip.data.shards import read_pixels


def select(index: Index, n: int | None = None, per_class: int | None = None, held_out: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (training rows, validation rows) as sorted positions in the index.

    Validation rows are the `held_out` with the smallest hash of their id; of the others, `n` in all or `per_class` of each class train
    (neither: all of them). Subsets are nested, n=100 inside n=1000, and depend on ids only. Asking for more than there is is a UserError.
    """
    if n is not None and per_class is not None:
        raise UserError(f"n={n} and per_class={per_class} were both given; give one of them")
    for name, value, least in (("n", n, 1), ("per_class", per_class, 1), ("held_out", held_out, 0)):
        if value is not None and value < least:
            raise UserError(f"{name}={value} must be at least {least}")
    if held_out >= len(index):
        raise UserError(f"held_out={held_out} leaves nothing to train on: the split has {len(index)} images")
    by_hash = np.argsort(index.hashed("val"), kind="stable")
    validation, rest = by_hash[:held_out], by_hash[held_out:]
    if n is not None and n > len(rest):
        raise UserError(f"n={n} is more than the {len(rest)} images left of {len(index)} after {held_out} held out for validation")
    rest = rest[np.argsort(index.hashed("subset")[rest], kind="stable")]
    if per_class is not None:
        rest = _first_of_each_class(index, rest, per_class)
    return np.sort(rest[:n]), np.sort(validation)


def _first_of_each_class(index: Index, rows: np.ndarray, k: int) -> np.ndarray:
    """Return the first k rows of every class, in the order given; a class with fewer is a UserError naming it."""
    counts = np.bincount(index.label[rows], minlength=len(index.class_names))
    for label in np.flatnonzero(counts < k)[:1]:
        raise UserError(f"per_class={k} is more than the {counts[label]} training images of the class {index.class_names[label]!r}")
    by_class = rows[np.argsort(index.label[rows], kind="stable")]
    starts = np.cumsum(counts) - counts
    place = np.arange(len(by_class)) - starts[index.label[by_class]]
    return by_class[place < k]


@dataclass(frozen=True, eq=False)
class Plan:
    """Chosen rows (arrays [n]: file, row_group, row, label) and how they are walked: `batch` is cut into units of `micro_batch` rows."""

    files: tuple[str, ...]
    file: np.ndarray
    row_group: np.ndarray
    row: np.ndarray
    label: np.ndarray
    micro_batch: int
    batch: int
    epochs: int
    seed: int
    _orders: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False)  # the order of the epoch in use

    def __post_init__(self) -> None:
        for name in ("micro_batch", "batch", "epochs"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.batch % self.micro_batch:
            raise UserError(f"batch={self.batch} is not a multiple of micro_batch={self.micro_batch}; change one of them")
        if self.steps_per_epoch == 0:
            raise UserError(f"batch={self.batch} is more than the {len(self)} training images; take a smaller batch or more images")

    @classmethod
    def of(cls, index: Index, rows: np.ndarray, *, micro_batch: int, batch: int, epochs: int, seed: int) -> "Plan":
        """Return the plan that walks the rows `rows` (positions in the index)."""
        chosen = {name: getattr(index, name)[rows] for name in ("file", "row_group", "row", "label")}
        return cls(index.files, **chosen, micro_batch=micro_batch, batch=batch, epochs=epochs, seed=seed)

    def __len__(self) -> int:
        return len(self.label)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_orders": {}}

    @property
    def units_per_step(self) -> int:
        """Micro batches in a batch."""
        return self.batch // self.micro_batch

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the remainder, other rows each time, waits for the next."""
        return len(self) // self.batch

    @property
    def steps(self) -> int:
        """Batches in all epochs."""
        return self.steps_per_epoch * self.epochs

    def check_world(self, workers: int) -> None:
        """Raise a UserError unless every worker gets the same number of units of each step."""
        if workers < 1 or self.units_per_step % workers:
            raise UserError(
                f"{workers} workers cannot share the {self.units_per_step} units of a batch equally (batch={self.batch}, "
                f"micro_batch={self.micro_batch}); change batch, micro_batch or the number of workers"
            )

    def order(self, epoch: int) -> np.ndarray:
        """Return [units, micro_batch] positions among the chosen rows: who is walked when in this epoch."""
        if epoch not in self._orders:
            self._orders.clear()
            self._orders[epoch] = self._draw(epoch)
        return self._orders[epoch]

    def _draw(self, epoch: int) -> np.ndarray:
        # Raw PCG64 words and sorting: unlike Generator.permutation, NumPy promises that this stream never changes.
        random = np.random.PCG64(derive("plan", self.seed, epoch))
        _, group = np.unique(self.file.astype(np.int64) << 32 | self.row_group, return_inverse=True)
        group_key = random.random_raw(int(group.max()) + 1)
        walk = np.lexsort((random.random_raw(len(self)), group_key[group]))
        units = walk[: len(walk) // self.micro_batch * self.micro_batch].reshape(-1, self.micro_batch)
        shuffled = units[np.argsort(random.random_raw(len(units)), kind="stable")]
        return shuffled[: self.steps_per_epoch * self.units_per_step]

    def unit(self, step: int, i: int) -> list[tuple[int, int, np.ndarray]]:
        """Return unit i of a step as (file, row_group, rows [k]) triples, `micro_batch` rows in all."""
        if not (0 <= step < self.steps and 0 <= i < self.units_per_step):
            raise IndexError(f"unit ({step}, {i}) of {self.steps} steps of {self.units_per_step} units")
        epoch, step = divmod(step, self.steps_per_epoch)
        rows = self.order(epoch)[step * self.units_per_step + i]
        places = sorted({(int(self.file[row]), int(self.row_group[row])) for row in rows})
        return [(f, g, np.sort(self.row[rows[(self.file[rows] == f) & (self.row_group[rows] == g)]])) for f, g in places]

    def items(self) -> Iterator[dict[str, int]]:
        """Yield one small dict per unit, {"step", "unit"}, in order."""
        for step in range(self.steps):
            yield from ({"step": step, "unit": i} for i in range(self.units_per_step))


def key_of(name: str) -> int:
    """Return the number that stands for an id in a stream, whose columns are numbers."""
    return derive("id", name)


def read_unit(plan: Plan, item: Mapping[str, Any], size: int | None = None, resize: int | None = None) -> dict[str, np.ndarray]:
    """Return one unit: key int64 [m] (a number per id), label int64 [m], pixels uint8 [m,H,W,3], step int64 [m].

    `item` is one of plan.items(), its values numbers or arrays of one number. A damaged image or images of several sizes are a UserError.
    """
    step, i = (int(np.ravel(item[name])[0]) for name in ("step", "unit"))
    ids: list[str] = []
    pixels: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for file, row_group, rows in plan.unit(step, i):
        names, images, some_labels = read_pixels(plan.files[file], row_group, rows, size, resize)
        ids, pixels = ids + names, pixels + images
        labels.append(some_labels)
    for name, image in zip(ids, pixels, strict=True):
        if image.shape != pixels[0].shape:
            (h, w), (h0, w0) = image.shape[:2], pixels[0].shape[:2]
            raise UserError(f"{name} has {w} x {h} pixels but {ids[0]} has {w0} x {h0}; set an image size to scale and crop to")
    return {
        "key": np.array([key_of(name) for name in ids], dtype=np.int64),
        "label": np.concatenate(labels),
        "pixels": np.stack(pixels),
        "step": np.full(len(ids), step, dtype=np.int64),
    }
