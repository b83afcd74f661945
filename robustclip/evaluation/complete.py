"""Records and findings of models, whatever is missing of them computed by as many evaluators as fit; no Ray starts where nothing is."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from robustclip import names as models
from robustclip.evaluation.evaluator import evaluate
from robustclip.evaluation.probing import check, unchecked
from robustclip.evaluation.progress import Progress
from robustclip.evaluation.protocols import Resolved
from robustclip.evaluation.wanted import Wanted
from robustclip.records.findings import Finding
from robustclip.runtime.cluster import connect, fitting_actors


def attacked(names: Sequence[str], resolved: Resolved, out: str, on_progress: Callable[[Progress], None]) -> pa.Table:
    """Return the verified records of the models `names` under a protocol."""
    share = fitting() if Wanted(names, resolved, out).missing else {"actors": 1}
    return evaluate(names, resolved, out, **share, on_progress=on_progress)


def checked(
    names: Sequence[str], baseline: str, resolved: Resolved, table: pa.Table, out: str, on_progress: Callable[[str], None]
) -> dict[str, list[Finding]]:
    """Return the findings on the models `names`, whose records are in `table` with those of the undefended `baseline`."""
    lacking = unchecked([models.absolute(name) for name in names], models.absolute(baseline), resolved, out)
    share = fitting() if lacking else {"actors": 1}
    return check(names, baseline, resolved, table, out, **share, on_progress=on_progress)


def fitting() -> dict[str, Any]:
    """Return how many evaluators fit in the cluster, joined or started where it is not yet, and the GPUs of each."""
    connect()
    actors, gpus = fitting_actors()
    return {"actors": actors, "gpus": gpus}
