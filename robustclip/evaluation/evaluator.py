"""The Ray-parallel evaluator: long-lived actors pull cells, write their records, and finished cells are never computed again."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pyarrow as pa

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.commit import git_commit
from robustclip.base.errors import UserError
from robustclip.base.locks import alone
from robustclip.base.ranges import COUNT, check
from robustclip.base.values import key
from robustclip.evaluation.computing import record
from robustclip.evaluation.progress import Progress, Queue, Running, by_turns, late
from robustclip.evaluation.protocols import Cell, Resolved
from robustclip.evaluation.wanted import Wanted
from robustclip.models.classifier import Embeddings, embeddings_kept
from robustclip.models.model import Model
from robustclip.records import rows as records
from robustclip.runtime.cluster import use_threads

log = logging.getLogger(__name__)


class Worker:
    """An actor's body: computes cells one after another and keeps the model it loaded last, and its class embeddings.

    `folder` of the results is where its records lie, `schema` what they are.
    """

    folder, schema = records.FOLDER, records.SCHEMA

    def __init__(self, resolved: Resolved, out: str, threads: int, commit: str | None):
        use_threads(threads)
        self.resolved, self.out, self.threads, self.commit = resolved, out, threads, commit
        self.loaded: tuple[tuple[str, str], Model] | None = None
        self.embeddings = Embeddings()

    def run(self, cell: Cell, model_name: str) -> str:
        """Compute one cell, write its records, return its key."""
        wanted = (model_name, cell.model_sha256)
        if self.loaded is None or self.loaded[0] != wanted:
            self.loaded = (wanted, models.load_exactly(*wanted))
        with embeddings_kept(self.embeddings):
            self.record(self.loaded[1], cell)
        return cell.key

    def record(self, model: Model, cell: Cell) -> None:
        """Write the records of one cell of a model."""
        record(model, cell, self.resolved, self.out, self.threads, self.commit)


def evaluate(
    names: Sequence[str],
    resolved: Resolved,
    out: str,
    *,
    actors: int,
    cpus: float = 1.0,
    gpus: float = 0.0,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    kind: type[Worker] | None = None,
) -> pa.Table:
    """Return the verified records of the models `names` under a protocol, computing only the cells that have none yet.

    `kind` says who computes a cell (default: Worker), and so which records there are.

    Raises UserError for less than one actor, and naming the cells that failed three times, after all the others are done and kept.
    """
    check({"actors": actors}, {"actors": COUNT})
    worker = kind or Worker
    asked = (names, resolved, out, worker.folder, worker.schema)
    wanted = Wanted(*asked)
    if wanted.missing:
        with by_one_process(wanted, resolved, out):
            wanted = Wanted(*asked)
            if wanted.missing:
                compute_missing(wanted, resolved, out, actors, cpus, gpus, on_progress, worker)
    return wanted.table()


@contextmanager
def by_one_process(wanted: Wanted, resolved: Resolved, out: str) -> Iterator[None]:
    """Hold the locks of the models that miss cells under a protocol, in the order that all processes take them in."""
    named = {cell.model_sha256: cell.model for cell in wanted.missing}
    with ExitStack() as held:
        for identity, model in sorted(named.items()):
            path = storage.join(out, "records", key(resolved.hash, identity))
            held.enter_context(alone(path, partial(log.info, "another process attacks %s: waiting for it", model)))
        yield


def compute_missing(
    wanted: Wanted,
    resolved: Resolved,
    out: str,
    actors: int,
    cpus: float,
    gpus: float,
    on_progress: Callable[[Progress], None],
    worker: type[Worker],
) -> None:
    """Compute the cells that have no records on `actors` workers."""
    import ray

    started = time.monotonic()
    # "DEFAULT": inside a trial Ray would otherwise look for room in the trial's own placement group, which has none.
    actor = ray.remote(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="DEFAULT")(worker)

    shared = ray.put(resolved)  # the ids of its images travel to every node once

    def start() -> Any:
        return actor.remote(shared, out, max(1, int(cpus)), git_commit())

    def say(done: int) -> None:
        on_progress(Progress(done, len(wanted.missing), time.monotonic() - started, wanted.found))

    _share_out(wanted, start, actors, say)


def _share_out(wanted: Wanted, start: Callable[[], Any], actors: int, say: Callable[[int], None]) -> None:
    """Let `actors` workers, each from `start`, compute the missing cells."""
    import ray

    say(0)
    idle = [start() for _ in range(min(actors, len(wanted.missing)))]
    queue, computed, slowest = Queue(by_turns(wanted.missing) if wanted.shares else list(wanted.missing)), 0, 0.0
    running: dict[Any, Running] = {}
    while queue.todo or running:
        while idle and queue.todo:
            each = Running(idle.pop(), queue.todo.pop(0), time.monotonic())
            running[each.worker.run.remote(each.cell, wanted.name_of[each.cell.key])] = each
        ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0 if idle else None)
        for ref in ready:
            each = running.pop(ref)
            others = [other for other, twin in running.items() if twin.cell.key == each.cell.key]
            worker = each.worker
            try:
                ray.get(ref)
                computed, slowest = computed + 1, max(slowest, time.monotonic() - each.since)
                for other in others:
                    ray.kill(running.pop(other).worker)
            except ray.exceptions.RayError as error:
                if isinstance(error, ray.exceptions.RayActorError):
                    # A new one: while Ray restarts an actor every call to it fails at once, which would use up its cells' attempts.
                    ray.kill(worker)  # one that is only out of reach holds its CPUs
                    worker = start()
                if not others:
                    queue.again(each.cell, " ".join(str(getattr(error, "cause", None) or error).split())[-300:])
            idle.append(worker)
            say(computed)
        if idle and not queue.todo and (cell := late(running.values(), slowest, time.monotonic())):
            queue.todo.append(cell)
        while not queue.todo and len(idle) > 1:  # one is kept for a cell that is late; a cluster may do without the others' nodes
            ray.kill(idle.pop())
    for worker in idle:
        ray.kill(worker)
    if queue.failed:
        reasons = "; ".join(queue.failed.values())
        raise UserError(
            f"{len(queue.failed)} of {len(wanted.missing)} cells failed, the others are kept: {reasons}; the same command tries them again"
        )
