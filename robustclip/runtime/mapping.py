"""Many pieces of work on all CPUs by Ray Data, a few one after the other."""

import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from robustclip.base.errors import UserError
from robustclip.runtime.cluster import connect, total

PAYS = 16  # pieces: for fewer Ray is not started
FEW = 4  # pieces: fewer are done before Ray, if it is there, would have shared them out


def mapped(work: Callable[[Any], Any], pieces: Sequence[Any], anywhere: bool) -> Iterable[Any]:
    """Yield what `work` returns of every piece, in any order; PAYS pieces start Ray, and where it is there it does FEW or more.

    `work` and the pieces are pickled, so `work` is a function of a module. Unless `anywhere`, all is done on this machine. Raises the
    UserError of the first piece that has one, when no other piece is at work any more.
    """
    ray = sys.modules.get("ray")  # a small set need not wait for its import
    if len(pieces) < (FEW if ray and ray.is_initialized() else PAYS):
        return map(work, pieces)
    connect()
    options = {} if anywhere else _here()
    cpus = total()[0] if anywhere else _cpus_here()
    return _shared_out(work, pieces, options) if cpus > 1 else map(work, pieces)


def _shared_out(work: Callable[[Any], Any], pieces: Sequence[Any], options: dict[str, Any]) -> Iterator[Any]:
    import ray.data

    def do(batch: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"number": batch["number"], "result": [pickle.dumps(work(pickle.loads(batch["piece"][0])))], "error": [""]}
        except UserError as error:
            # Returned, not raised: Ray Data would wrap it in pages of its own.
            return {"number": batch["number"], "result": [b""], "error": [str(error)]}

    rows = [{"number": number, "piece": pickle.dumps(piece)} for number, piece in enumerate(pieces)]
    found = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(do, batch_size=1, num_cpus=1, **options)
    errors: dict[int, str] = {}
    for row in found.iter_rows():
        if row["error"]:
            errors[row["number"]] = row["error"]
        elif not errors:
            yield pickle.loads(row["result"])
    if errors:
        raise UserError(errors[min(errors)])


def _here() -> dict[str, Any]:
    """Return the options that keep tasks on this machine, none where it is alone."""
    import ray

    return {"label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()}} if len(ray.nodes()) > 1 else {}


def _cpus_here() -> float:
    """Return the CPUs that Ray has on this machine."""
    import ray

    mine = ray.get_runtime_context().get_node_id()
    return sum(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["NodeID"] == mine and node["Alive"])
