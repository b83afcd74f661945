"""Retrieval by ranks, one row per query, attack and eps: recall at k in both directions, and what an attack takes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from robustclip.base.errors import UserError
from robustclip.records.metrics import Estimate, of_share
from robustclip.records.rows import CLEAN

I2T, T2I = "image to text", "text to image"
DIRECTIONS = (I2T, T2I)
FOLDER = "retrieval"  # of the results, where these records lie
TIE = 1e-6  # of a cosine: nearer than this two scores are one, for so much may rounding make of one text in two places
CHUNK = 256  # queries ranked at once

_STRINGS = (
    "protocol_hash cell_key result_key model model_sha256 dataset split direction query query_group rewritten attack attack_config norm "
    "text_budget precision versions commit"
)
SCHEMA = pa.schema(
    [("schema_version", pa.int32())]
    + [(name, pa.string()) for name in _STRINGS.split()]
    + [(name, pa.int64()) for name in ("rank", "gallery", "seed", "threads")]
    + [(name, pa.float64()) for name in ("eps", "linf", "l2", "seconds")]
)


def ranks(queries: np.ndarray, gallery: np.ndarray, query_groups: np.ndarray, gallery_groups: np.ndarray) -> np.ndarray:
    """Return the rank [Q], from 1, of the best right answer of each query: one more than the wrong answers that score as high or higher.

    `queries` [Q,D] and `gallery` [G,D] are unit features; right for a query is what is of its group. Ties count against the model, and so
    do scores that are not finite. Raises UserError for a query that nothing in the gallery is right for.
    """
    found = np.empty(len(queries), dtype=np.int64)
    answers = gallery.astype(np.float64).T
    for first in range(0, len(queries), CHUNK):
        part = slice(first, first + CHUNK)
        right = query_groups[part, None] == gallery_groups[None]
        if not right.any(1).all():
            at = first + int(np.argmin(right.any(1)))
            raise UserError(f"query {at} is of group {query_groups[at]}, of which nothing is in the gallery: no answer to it is right")
        with np.errstate(invalid="ignore"):
            scores = queries[part].astype(np.float64) @ answers
            best = np.where(right, scores, -np.inf).max(1, keepdims=True)  # not a number if one of them is none
            found[part] = 1 + (~right & ~(scores < best - TIE)).sum(1)
    return found


@dataclass(frozen=True)
class At:
    """What holds at one k: the share of queries with a right answer among the first k, and success of an attack by both definitions.

    `untargeted`: of all queries those without one. `asr`, the attack success rate of Co-Attack (arXiv:2206.09391) and SGA
    (arXiv:2307.14061): of queries that had one when clean, those without one; None where none had. Intervals are Wilson's.
    """

    k: int
    recall: Estimate
    untargeted: Estimate
    asr: Estimate | None


@dataclass(frozen=True)
class Retrieved:
    """The ranks of one model in one direction: `queries` [Q] as (query, group), the `gallery`'s size, ranks [Q] clean and attacked.

    `attacked` holds ranks by (attack, eps in 1/255), eps 0 where an attack rewrites texts.
    """

    direction: str
    queries: tuple[tuple[str, str], ...]
    gallery: int
    clean: np.ndarray
    attacked: Mapping[tuple[str, float], np.ndarray]

    @cached_property
    def eps(self) -> tuple[float, ...]:
        """Return the radii in 1/255 at which images were attacked, ascending."""
        return tuple(sorted({eps for _, eps in self.attacked if eps > 0}))

    def worst(self, eps: float) -> np.ndarray:
        """Return the worst rank [Q] of each query: clean, and under every attack on images at every radius up to eps in 1/255."""
        return np.maximum.reduce([self.clean, *(found for (_, e), found in self.attacked.items() if 0 < e <= eps)])

    def at(self, k: int, now: np.ndarray | None = None) -> At:
        """Return what holds at k of ranks [Q] (default: the clean ones); raises UserError for a k that the gallery is too small for."""
        check_depths([k], self.gallery)
        hit, before = (self.clean if now is None else now) <= k, self.clean <= k
        asr = of_share(float((~hit)[before].mean()), self._draws(before)) if before.any() else None
        n = self._draws(np.ones_like(hit))
        return At(k, of_share(float(hit.mean()), n), of_share(float((~hit).mean()), n), asr)

    def _draws(self, chosen: np.ndarray) -> int:
        """Return how many draws some queries [Q] are: every image is one, but all texts of one group are one, for they say the same."""
        groups = [group for (_, group), one in zip(self.queries, chosen, strict=True) if one]
        return len(groups) if self.direction == I2T else len(set(groups))


def check_depths(ks: Sequence[int], gallery: int, right: int = 0) -> None:
    """Raise UserError for a k that is no place in a gallery, and where so many are `right` for one query that it cannot miss them all."""
    for k in ks:
        if not 1 <= k <= gallery:
            raise UserError(
                f"recall at {k} in a gallery of {gallery}: k is from 1 to what the gallery holds; choose another, or more pairs"
            )
        if k > gallery - right:
            raise UserError(
                f"recall at {k} in a gallery of {gallery} cannot fail for a query to which {right} answers are right: choose a smaller k, "
                "or more pairs"
            )


def retrieved_of(table: pa.Table) -> dict[str, dict[str, Retrieved]]:
    """Return model -> direction -> Retrieved from records, in the order of their first row.

    Raises UserError for rows of several protocols or weights, and for a query that has not exactly one row under every attack and eps.
    """
    if not len(table):
        raise UserError("there are no records to count")
    for column, what in (("protocol_hash", "protocols"), ("dataset", "sets")):
        if len(several := pc.unique(table[column]).to_pylist()) > 1:
            raise UserError(f"records of different {what} cannot be compared: {', '.join(map(str, several))}")
    found: dict[str, dict[str, Retrieved]] = {}
    for model in pc.unique(table["model"]).to_pylist():
        rows = table.filter(pc.equal(table["model"], model))
        if len(weights := pc.unique(rows["model_sha256"]).to_pylist()) > 1:
            raise UserError(f"model {model!r} stands for different weights, {', '.join(str(each)[:12] for each in weights)}: keep one")
        kept = pc.unique(rows["direction"]).to_pylist()
        found[model] = {each: _retrieved(rows.filter(pc.equal(rows["direction"], each)), each, model) for each in kept}
    return found


def _retrieved(rows: pa.Table, direction: str, model: str) -> Retrieved:
    by: dict[tuple[str, float], dict[tuple[str, str], int]] = {}
    columns = (rows[name].to_pylist() for name in ("attack", "eps", "query", "query_group", "rank"))
    for attack, eps, query, group, rank in zip(*columns, strict=True):
        ranked = by.setdefault((attack, eps), {})
        if (query, group) in ranked:
            raise UserError(f"model {model!r}, {direction}: {query!r} has two rows under {attack!r} at eps {eps:g}")
        ranked[query, group] = rank
    clean = by.pop((CLEAN, 0.0), {})
    queries = tuple(sorted(clean))
    for (attack, eps), ranked in by.items():
        if other := sorted(clean.keys() ^ ranked.keys()):
            raise UserError(f"model {model!r}, {direction}: {other[0][0]!r} has a row clean or under {attack!r} at eps {eps:g}, not both")
    if not queries:
        raise UserError(f"model {model!r}, {direction}: there are no clean rows")
    gallery = pc.unique(rows["gallery"]).to_pylist()
    if len(gallery) > 1:
        raise UserError(f"model {model!r}, {direction}: rows are of galleries of {', '.join(map(str, gallery))}")
    attacked = {name: np.array([ranked[query] for query in queries]) for name, ranked in by.items()}
    return Retrieved(direction, queries, gallery[0], np.array([clean[query] for query in queries]), attacked)


def as_metrics(found: Mapping[str, Retrieved], ks: Sequence[int]) -> dict[str, float]:
    """Return test/i2t/recall_1, test/t2i/recall_1_eps_4, test/i2t/asr_1_eps_4, ... of one model, in [0,1], the worst case at every eps."""
    values: dict[str, float] = {}
    for direction, each in found.items():
        short = "i2t" if direction == I2T else "t2i"
        for k in ks:
            values[f"test/{short}/recall_{k}"] = each.at(k).recall.mean
            for eps in each.eps:
                now = each.at(k, each.worst(eps))
                values[f"test/{short}/recall_{k}_eps_{eps:g}"] = now.recall.mean
                values |= {f"test/{short}/asr_{k}_eps_{eps:g}": now.asr.mean} if now.asr else {}
    return values
