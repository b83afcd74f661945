"""What a table of records says as plain metrics, by name: what Tune, MLflow and the last lines of a command show."""

import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from robustclip.records import metrics
from robustclip.records.rows import CLEAN
from robustclip.records.survival import CLEAN_ATTACKED, Column, alone, classes_of, outcomes_of, skips_of


def set_metrics(table: pa.Table, protocol: Mapping[str, Any]) -> dict[str, float]:
    """Return test/clean, test/robust_4, ... of one model, averaged over sets, and the same per set as test/<set>/clean, ..., in [0,1].

    `protocol` is as the evaluator describes it. Raises UserError when a set of it has no records.
    """
    (outcomes,) = outcomes_of(table, protocol).values()
    classes = classes_of(protocol)
    values: dict[str, float] = {}
    columns: tuple[Column, ...] = (CLEAN, *([CLEAN_ATTACKED] if protocol["attacked"] else []), *protocol["eps"])
    for column in columns:
        title = column if isinstance(column, str) else f"robust_{column:g}"
        average = metrics.macro(outcomes, column, classes, tuple(classes))
        values |= {f"test/{title}": average.mean, f"test/{title}_above_chance": average.above_chance}
        for name, outcome in outcomes.items():
            values[f"test/{name}/{title}"] = metrics.accuracy(outcome, column).mean
    for attack in protocol["attacks"] if protocol["independent"] else ():
        for eps in protocol["eps"]:
            ((_, own),) = alone(table, [attack], eps, skips_of(protocol)).items()
            title = re.sub(r"[^a-zA-Z0-9_./-]", "_", f"alone/{attack}_{eps:g}")  # what MLflow takes in a name
            values[f"test/{title}"] = metrics.macro(own, eps, classes, tuple(own)).mean
    return values


def cost(table: pa.Table) -> dict[str, float]:
    """Return cost/seconds and cost/images_per_second of one model's evaluation, and the same per set: the evaluators' time, summed."""
    values: dict[str, float] = {}
    for name in [None, *pc.unique(table["dataset"]).to_pylist()]:
        rows = table if name is None else table.filter(pc.equal(table["dataset"], name))
        seconds = sum(rows["seconds"].to_pylist())
        images = len(set(zip(rows["dataset"].to_pylist(), rows["image_id"].to_pylist(), strict=True)))
        where = "cost" if name is None else f"cost/{name}"
        values |= {f"{where}/seconds": seconds, f"{where}/images_per_second": images / seconds}
    return values
