"""From records to what became of every image: the worst case per image over all attacks. No row, no count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from robustclip.base.errors import UserError
from robustclip.records.rows import CLEAN, CLEAN_ONLY

CLEAN_ATTACKED = "clean_attacked"  # clean accuracy on the images that were attacked, where others were only looked at clean
# CLEAN or CLEAN_ATTACKED; worst case at an eps in 1/255; (eps, attack): worst case so far, after that attack
Column = str | float | tuple[float, str]


@dataclass(frozen=True)
class Kept:
    """The answers that decided, of n images at every stage (clean, then every attack of the first eps, ...): arrays [n, stages].

    To an image that broke it is the answer of the row that broke it, to any other that of its last row up to there. `classes` are what
    was answered, `confidence` the probability of that (NaN: not recorded); `written` [n] is the class whose name is written on the image
    (NaN: none).
    """

    classes: np.ndarray
    confidence: np.ndarray
    written: np.ndarray


@dataclass(frozen=True)
class Survival:
    """What became of the images of one set under one model: ids [n] sorted, clean [n] bool, stages [n, eps, attacks] bool.

    stages[:, e, a] is True for images that are correct when clean, under all of every smaller eps, and under attacks up to a at eps e; it
    means something for the images `attacked` selects (default: all). `kept` are the answers behind it.
    """

    attacks: tuple[str, ...]
    eps: tuple[float, ...]
    ids: np.ndarray
    clean: np.ndarray
    stages: np.ndarray
    attacked: np.ndarray | slice = field(default_factory=lambda: slice(None))
    kept: Kept | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """Return CLEAN and every eps."""
        return (CLEAN, *self.eps)

    def flags(self, column: Column) -> np.ndarray:
        """Return [n] bool: correct when clean, in the worst case over all attacks up to an eps, or up to one attack at an eps."""
        if column in (CLEAN, CLEAN_ATTACKED):
            return self.clean if column == CLEAN else self.clean[self.attacked]
        return self.stages[(self.attacked, *self._stage(column))]

    def _stage(self, column: Column) -> tuple[int, int]:
        """Return the places of a column's eps and attack."""
        eps, attack = column if isinstance(column, tuple) else (column, self.attacks[-1])
        if eps not in self.eps or attack not in self.attacks:
            raise UserError(f"these records have no column {column!r}: eps {self.eps}, attacks {self.attacks}")
        return self.eps.index(eps), self.attacks.index(attack)

    def confidence(self, column: Column) -> np.ndarray:
        """Return [n] probabilities of the answers that `flags` calls right or wrong; NaN where records hold none."""
        return np.full(len(self.flags(column)), np.nan) if self.kept is None else self._kept(self.kept.confidence, column)

    def lured(self, column: Column) -> np.ndarray | None:
        """Return [n] bool: whether the answer is the word on the image; None for a set without words."""
        if self.kept is None or np.isnan(self.kept.written).any():
            return None
        return self._kept(self.kept.classes == self.kept.written[:, None], column)

    def _kept(self, values: np.ndarray, column: Column) -> np.ndarray:
        if column in (CLEAN, CLEAN_ATTACKED):
            return values[:, 0] if column == CLEAN else values[self.attacked, 0]
        eps, attack = self._stage(column)
        return values[self.attacked, 1 + eps * len(self.attacks) + attack]


Outcomes = Mapping[str, Survival]  # data set -> what became of its images, for one model


def outcomes_of(table: pa.Table, protocol: Mapping[str, Any]) -> dict[str, dict[str, Survival]]:
    """Return the worst case of a protocol, which is given as the evaluator describes it (`protocols/<hash>.json`)."""
    return worst_case(table, protocol["attacks"], protocol["eps"], skips_of(protocol), protocol.get("apart", ()))


def skips_of(protocol: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """Return the attacks that are not run on each set of a described protocol."""
    return {name: each.get("skips", ()) for name, each in protocol["sets"].items()}


def classes_of(protocol: Mapping[str, Any]) -> dict[str, int]:
    """Return set -> number of classes of a described protocol, in its order."""
    return {name: len(each["class_names"]) for name, each in protocol["sets"].items()}


def worst_case(
    table: pa.Table,
    attacks: Sequence[str],
    eps: Sequence[float],
    skips: Mapping[str, Sequence[str]] | None = None,
    apart: Sequence[str] = (),
) -> dict[str, dict[str, Survival]]:
    """Return model -> set -> Survival from records, in the order of their first row; works for a cascade and for independent attacks.

    `skips` names, per set, attacks of the protocol that are not run on it, and `apart` those that do not count.

    Raises UserError for rows of several protocols or weights, for rows that contradict each other, are outside the protocol or are missing.
    """
    if not len(table):
        raise UserError("there are no records to count")
    attacks, eps = tuple(attacks), tuple(sorted(float(e) for e in eps))
    _one_protocol(table)
    _inside_protocol(table, attacks, eps)
    attacks = tuple(attack for attack in attacks if attack not in apart)
    table = table.filter(pc.invert(pc.is_in(table["attack"], pa.array(list(apart), pa.string()))))
    outcomes: dict[str, dict[str, Survival]] = {}
    for model in pc.unique(table["model"]).to_pylist():
        rows = table.filter(pc.equal(table["model"], model))
        weights = [str(sha256)[:12] for sha256 in pc.unique(rows["model_sha256"]).to_pylist()]
        if len(weights) > 1:
            raise UserError(
                f"model {model!r} stands for different weights, model_sha256 {', '.join(weights)}: keep the records of one only"
            )
        outcomes[model] = {
            name: _survival(
                rows.filter(pc.equal(rows["dataset"], name)), attacks, eps, (skips or {}).get(name, ()), f"model {model!r}, set {name!r}"
            )
            for name in pc.unique(rows["dataset"]).to_pylist()
        }
    return outcomes


def alone(
    table: pa.Table, attacks: Sequence[str], eps: float, skips: Mapping[str, Sequence[str]] | None = None
) -> dict[str, dict[str, Survival]]:
    """Return model -> set -> Survival under some attacks at one eps and nothing else, from records of independent attacks."""
    clean, wanted = (pc.is_in(table["attack"], pa.array(names)) for names in ([CLEAN, CLEAN_ONLY], list(attacks)))
    rows = table.filter(pc.or_(clean, pc.and_(wanted, pc.equal(table["eps"], eps))))
    return worst_case(rows, attacks, [eps], skips)


def _one_protocol(table: pa.Table) -> None:
    hashes = pc.unique(table["protocol_hash"]).to_pylist()
    if len(hashes) > 1:
        raise UserError(f"records of different protocols cannot be compared: {', '.join(str(each)[:12] for each in hashes)}")


def _inside_protocol(table: pa.Table, attacks: tuple[str, ...], eps: tuple[float, ...]) -> None:
    known = {(attack, e) for attack in attacks for e in eps} | {(CLEAN, 0.0), (CLEAN_ONLY, 0.0)}
    pairs = table.group_by(["attack", "eps"]).aggregate([])
    for attack, e in zip(pairs["attack"].to_pylist(), pairs["eps"].to_pylist(), strict=True):
        # Leaving such a row out could drop the very attack that breaks an image.
        if (attack, e) not in known:
            raise UserError(f"records hold attack {attack!r} at eps {e}, which the protocol does not: attacks {attacks}, eps {eps}")


def _survival(rows: pa.Table, attacks: tuple[str, ...], eps: tuple[float, ...], skips: Sequence[str], where: str) -> Survival:
    """Return the Survival of one model on one set; cells are numbered clean, then every attack of the first eps, of the second, ..."""
    number = {(CLEAN, 0.0): 0} | {(a, e): 1 + i * len(attacks) + j for i, e in enumerate(eps) for j, a in enumerate(attacks)}
    names = list(number)
    number[CLEAN_ONLY, 0.0] = 0
    cell = np.array([number[key] for key in zip(rows["attack"].to_pylist(), rows["eps"].to_pylist(), strict=True)])
    ids, image = np.unique(np.array(rows["image_id"].to_pylist(), dtype=str), return_inverse=True)
    prediction, label = (np.array(rows[name].to_pylist(), dtype=float) for name in ("prediction", "label"))
    if np.isnan(prediction).any() or np.isnan(label).any():
        raise UserError(f"{where}: a row has no prediction or no label")
    correct = prediction == label
    stated = np.array(rows["correct"].to_pylist(), dtype=object)
    _refuse(stated != correct, "says `correct` is not what prediction and label say", where, ids[image], [names[c] for c in cell])

    first = np.full((len(ids), len(names)), np.nan)
    first[image, cell] = prediction
    _refuse(first[image, cell] != prediction, "has rows with different predictions", where, ids[image], [names[c] for c in cell])
    labels = np.full(len(ids), np.nan)
    labels[image] = label
    _refuse(labels[image] != label, "has rows with different labels", where, ids[image], [names[c] for c in cell])

    attacked = np.ones(len(ids), dtype=bool)
    attacked[image[np.array(rows["attack"].to_pylist()) == CLEAN_ONLY]] = False
    wanted = attacked[:, None] & np.array([attack not in skips for attack, _ in names])
    wanted[:, 0] = True
    present = ~np.isnan(first)
    extra, at = np.nonzero(present & ~wanted)
    _refuse(np.ones(len(extra), dtype=bool), "has a row that its protocol leaves out", where, ids[extra], [names[c] for c in at])
    alive = np.logical_and.accumulate((first == labels[:, None]) | ~present, axis=1)
    before = np.hstack([np.ones((len(ids), 1), dtype=bool), alive[:, :-1]])
    kept = _kept(rows, first, before & present, image, cell)
    gone, at = np.nonzero(before & ~present & wanted)
    _refuse(np.ones(len(gone), dtype=bool), "has no row and no earlier break", where, ids[gone], [names[c] for c in at])
    return Survival(attacks, eps, ids, alive[:, 0], alive[:, 1:].reshape(len(ids), len(eps), len(attacks)), attacked, kept)


def _kept(rows: pa.Table, first: np.ndarray, met: np.ndarray, image: np.ndarray, cell: np.ndarray) -> Kept:
    """Return the Kept of rows that belong to an `image` and a `cell` each.

    `first` [n, cells] are their predictions, `met` [n, cells] where an image that nothing had broken has a row.
    """
    confidence, written = np.full(first.shape, np.nan), np.full(len(first), np.nan)
    confidence[image, cell] = rows["confidence"].to_numpy()
    written[image] = rows["written"].to_numpy()
    last = np.maximum.accumulate(np.where(met, np.arange(first.shape[1]), 0), axis=1)
    return Kept(np.take_along_axis(first, last, 1), np.take_along_axis(confidence, last, 1), written)


def _refuse(bad: np.ndarray, what: str, where: str, images: np.ndarray, cells: Sequence[tuple[str, float]]) -> None:
    if bad.any():
        k = int(np.flatnonzero(bad)[0])
        attack, e = cells[k]
        more = f" ({int(bad.sum())} such cases)" if bad.sum() > 1 else ""
        raise UserError(f"{where}: image {str(images[k])!r} {what} at attack {attack!r}, eps {e:g}{more}")
