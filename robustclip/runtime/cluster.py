"""Joining or starting Ray, and dividing what it has: the one place that knows about CPUs, GPUs, threads and Ray's switches."""

import logging
import math
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.runtime.address import address, check_address, refused
from robustclip.runtime.gpus import places
from robustclip.runtime.growth import TYPES, NodeType, node_types

log = logging.getLogger(__name__)

STARTS = 3  # of Ray on this machine before it is an error
SMALLEST_SHARE = 0.25  # of a CPU; below it, workers only get in each other's way
SOCKET = "/ray/session_YYYY-MM-DD_hh-mm-ss_uuuuuu_4194304/sockets/plasma_store"  # the longest path that Ray makes in its temporary folder
SOCKET_BYTES = 107  # of a Unix socket's path
WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"  # Ray Train hands it on from the driver to its workers

Result = TypeVar("Result")


def connect() -> None:
    """Join the cluster RAY_ADDRESS names (a Ray job sets it), or start Ray on this machine; quietly, once.

    On this machine alone Ray listens on 127.0.0.1, and its token authentication, which writes into the home folder, stays off unless
    RAY_AUTH_MODE asks for it. Raises UserError for a cluster that is not there or cannot be joined.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Tune's own tables and result files: the package says on its log how trials fare, and keeps its own results.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it would end a sweep as if its unfinished trials were none
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    if given := address():
        check_address()
        try:
            with sigterm_kept():
                ray.init(logging_level=logging.WARNING, log_to_driver=False)
        except Exception as error:
            raise UserError(refused(given, error)) from error
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault(WATCHER, "0")  # nobody takes this machine away
    # A trial starts a dozen small processes; with the default, as many as there are CPUs, they queue up and Ray warns of their number.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
    # The dashboard is ten processes that a sweep on two cores would pay for; a cluster that is joined has its own.
    start(include_dashboard=False)


def start(**options: Any) -> None:
    """Start Ray on this machine alone: again where it did not come up within the 30 s it gives itself, as on a machine with much to do."""
    import ray

    fit_sockets()
    for attempt in range(1, STARTS + 1):
        try:
            with sigterm_kept():
                ray.init(address="local", logging_level=logging.WARNING, log_to_driver=False, **options)
            return
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            if attempt == STARTS:
                busy = "this machine is too busy; run the same command again when it has less to do"
                raise UserError(f"Ray timed out during startup {STARTS} times: {busy}") from error
            log.warning("Ray did not come up in time, this machine is busy: starting it again")


def fit_sockets() -> None:
    """Let Ray use /tmp where TMPDIR, as batch systems set it, is too long for the paths of its sockets; what cannot be is a UserError."""
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder, room = os.environ.get(name, "/tmp"), SOCKET_BYTES - len(SOCKET)
    if (long := len(os.fsencode(folder))) <= room:
        return
    if name == "RAY_TMPDIR" or not os.access("/tmp", os.W_OK | os.X_OK):
        raise UserError(f"{name}={folder} has {long} bytes, Ray's sockets leave room for {room}: export RAY_TMPDIR with a shorter folder")
    os.environ["RAY_TMPDIR"] = "/tmp"
    log.warning("Ray's own files go to /tmp/ray: TMPDIR has %d bytes, Ray's sockets leave room for %d (or set RAY_TMPDIR)", long, room)


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Give SIGTERM back to who had it, after Ray took it for itself."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def poll_often() -> None:
    """Let Ray Train look at its workers four times a second: a checkpoint's report waits for it, and the default is every two seconds."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")


def watches_nodes() -> bool:
    """Return whether Ray Train tells its workers which nodes are to be taken away: on clusters, unless the variable says otherwise."""
    return os.environ.get(WATCHER, "1").lower() in ("1", "true")


def beside(work: Callable[[], Result]) -> Result:
    """Return what `work` returns or raises, run in a thread: in the main one Ray Train would take Ctrl-C for itself, and say nothing."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result()


@dataclass(frozen=True)
class Share:
    """What one worker of a trial gets: CPUs (a part of one on a laptop), GPUs, and the threads torch may use."""

    workers: int
    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))


def total() -> tuple[float, float]:
    """Return CPUs and GPUs of the whole cluster as it is now, or those that its autoscaler may bring, where these are more."""
    import ray

    resources, kinds = ray.cluster_resources(), growth()
    cpus, gpus = sum(kind.cpus * kind.most for kind in kinds), sum(kind.gpus * kind.most for kind in kinds)
    return max(resources.get("CPU", 0.0), cpus), max(resources.get("GPU", 0.0), gpus)


def growth() -> list[NodeType]:
    """Return the kinds of nodes that may join the cluster that RAY_ADDRESS names; nothing joins a Ray of this machine alone."""
    return node_types() if address() else []


def check_fits(cpus: float, gpus: float) -> None:
    """Raise UserError for a worker that no node has room for, neither one that is there nor one that may come: it would wait for ever."""
    import ray

    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = {(each.get("CPU", 0.0), each.get("GPU", 0.0)) for each in there} | {(kind.cpus, kind.gpus) for kind in growth() if kind.most}
    if not any(has[0] >= cpus and has[1] >= gpus for has in nodes):
        said = "; ".join(f"{has[0]:g} CPUs, {has[1]:g} GPUs" for has in sorted(nodes))
        raise UserError(
            f"a worker takes {cpus:g} CPUs and {gpus:g} GPUs, which no node of this cluster has ({said}): ask for less (--workers, "
            f"--concurrent, --gpus), or, where the cluster grows, say in {TYPES} to what (docs/clusters.md)"
        )


def divide(concurrent: int, workers: int, gpu_share: float = 1.0) -> Share:
    """Return the share of each of `concurrent` trials' `workers`, leaving room for the data pipeline; `gpu_share` is of a GPU, each.

    Train workers that hold every CPU would starve Ray Data without a word, so what cannot fit raises UserError instead of hanging.
    """
    cpus, gpus = total()
    gpu_share = gpu_share if gpus else 0.0
    if workers > 1 and 0 < gpu_share < 1:
        raise UserError(f"{workers} workers of a trial with {gpu_share:g} GPU each: NCCL needs a GPU for each worker, leave --gpus out")
    if gpu_share and concurrent * workers > places(gpus, gpu_share):
        needed = f"{concurrent} trials of {workers} workers need {concurrent * workers * gpu_share:g} GPUs"
        raise UserError(f"{needed}, the cluster has {gpus:g}: lower --concurrent or --workers")
    room = (cpus - 1) / (concurrent * workers)
    share = 1.0 if room >= 1 else math.floor(room * 100) / 100
    if share < SMALLEST_SHARE:
        check_fits(SMALLEST_SHARE, 0.0)
        raise UserError(f"{concurrent} trials of {workers} workers do not fit on {cpus:g} CPUs: lower --concurrent or --workers")
    check_fits(share, gpu_share)
    return Share(workers, share, gpu_share)


def fitting_actors(wanted: int | None = None, gpu_share: float = 1.0) -> tuple[int, float]:
    """Return how many actors fit at once, one a CPU or one a `gpu_share` of a GPU, or the `wanted` ones, and the GPUs that each takes."""
    cpus, gpus = total()
    share = gpu_share if gpus else 0.0
    check_fits(1.0, share)
    return wanted or max(1, places(gpus, share) if share else int(cpus)), share


def measured(work: Callable[..., Result], *given: Any, cpus: float = 1.0, gpus: float = 1.0) -> Result:
    """Return what some work comes to, done on a GPU's node where the cluster has one: this process would keep a GPU's memory. Else here."""
    import ray

    if not total()[1]:
        return work(*given)
    try:
        return ray.get(ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=1)(work).remote(*given))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, UserError) else error) from error


def warn_of_local_results(out: str) -> None:
    """Warn when workers on other machines could not see a folder of this one (a mounted share is fine)."""
    import ray

    nodes = sum(node["Alive"] for node in ray.nodes())
    if nodes > 1 and storage.is_local(out):
        log.warning(
            "the cluster has %d nodes and results go to the folder %s: it must be shared by all; or give --out s3://... or gs://...",
            nodes,
            out,
        )


def fitting_trials(trials: int, workers: int, gpu_share: float = 1.0) -> int:
    """Return how many trials fit at once: one per `gpu_share` where there are GPUs, else two CPUs' worth of work on each pair of CPUs."""
    cpus, gpus = total()
    room = float(places(gpus, gpu_share)) if gpus and gpu_share else cpus
    if gpus and gpu_share < 1:
        room = min(room, cpus - 1)  # those that share a GPU share its node's CPUs too
    return int(max(1, min(trials, room // workers)))


def use_threads(threads: int) -> None:
    """Set torch's threads in this process; results are the same bit for bit only for the same number."""
    import torch

    torch.set_num_threads(threads)


@lru_cache(1)
def fetched(where: Any) -> Any:
    """Return what lies in Ray's store; a process keeps the last, for the next task that asks for the same."""
    import ray

    return ray.get(where)
