"""What benchmarks that compare methods share: runs, their losses, how rows are counted, a cell over seeds, a contrast in words."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.evaluation.rules import Protocol
from robustclip.records import metrics
from robustclip.records import rows as records
from robustclip.records.contrasts import Term, contrast
from robustclip.records.rows import CLEAN
from robustclip.records.survival import Column, Outcomes, Survival, worst_case
from robustclip.runtime.cluster import Share
from robustclip.training.config import Config
from robustclip.training.fit import fit, side_by_side
from robustclip.training.job import Job, prepare


def finished(config: Config, out: str, command: str) -> str:
    """Return the checkpoint of a finished run; raises UserError naming the command that makes it."""
    job = prepare(config, out)
    if not storage.exists(storage.join(job.folder, "result.json")):
        raise UserError(f"run {job.key} (seed {config.seed}) is not trained yet: {command} --out {out}")
    return storage.join(job.folder, "model")


def trained(configs: Sequence[Config], out: str) -> list[dict[str, Any]]:
    """Return the results of configs, training those that are missing, as many at once as fit."""

    def result(job: Job, share: Share) -> dict[str, Any]:
        found = fit(job, share)
        print(f"checkpoint {found['checkpoint']}", flush=True)
        return found

    return side_by_side([prepare(config, out) for config in configs], result)


def losses(folder: str) -> str:
    """Return the training loss at the first and last tenth of a run's own stage, as "a -> b"."""
    history = [
        row["loss"]
        for row in storage.read_json(storage.join(storage.parent_of(folder), "result.json"))["history"]
        if "loss/head" not in row
    ]
    tenth = max(1, len(history) // 10)
    return f"{statistics.mean(history[:tenth]):.2f} -> {statistics.mean(history[-tenth:]):.2f}"


def counted(rows: Iterable[Mapping[str, Any]], protocol: Protocol) -> Survival:
    """Return what became of the images of a cascade's rows under the worst case of a protocol's attacks."""
    shared = {"model": "m", "model_sha256": "m", "dataset": "d", "protocol_hash": "p", "split": "test", "result_key": "r"}
    table = records.table(shared | row for row in rows)
    return worst_case(table, [attack.name for attack in protocol.attacks], protocol.eps)["m"]["d"]


def columns_of(attacks: Sequence[str], eps: float) -> dict[str, tuple[str, Column]]:
    """Return the columns of a table of attacks each on its own: title -> (the attack whose outcomes, their column); clean is in all."""
    clean: dict[str, tuple[str, Column]] = {"clean": (attacks[0], CLEAN)}
    return clean | {attack: (attack, eps) for attack in attacks}


def cell(runs: Sequence[Outcomes], column: Column, classes: Mapping[str, int]) -> str:
    """Return a macro mean in percent with its 95 % interval: Wilson's of one run; of several bootstrap over images, and their range."""
    means = [metrics.macro(run, column, classes) for run in runs]
    e = contrast({"all": (1.0, runs)}, column) if len(runs) > 1 else means[0]
    spread = f" seeds {100 * min(m.mean for m in means):.1f}..{100 * max(m.mean for m in means):.1f}" if len(means) > 1 else ""
    return f"{100 * e.mean:.1f} [{100 * e.low:.1f}, {100 * e.high:.1f}]{spread}"


def verdict(terms: Mapping[str, Term], column: Column) -> str:
    """Return a contrast in points with its paired interval over images, and whether it shows."""
    e = contrast(terms, column)
    shows = "shown" if e.low > 0 else "reversed" if e.high < 0 else "not shown"
    return f"{100 * e.mean:+.1f} [{100 * e.low:+.1f}, {100 * e.high:+.1f}]  {shows}"
