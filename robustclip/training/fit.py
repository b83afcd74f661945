"""Distributed adversarial fine-tuning: Ray Data streams the plan's units, Ray Train steps, and a killed run goes on bit for bit."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from typing import Any, TypeVar

from robustclip.base import disk, storage
from robustclip.base.errors import UserError
from robustclip.base.locks import alone
from robustclip.runtime.cluster import Share, beside, divide, fitting_trials, poll_often
from robustclip.training.job import Job
from robustclip.training.loop import train_loop

log = logging.getLogger(__name__)

Done = TypeVar("Done")


def say_waiting() -> None:
    log.info("another process trains this run: waiting for it")


def fit(job: Job, share: Share, callbacks: Sequence[Any] = (), waiting: Callable[[], None] = say_waiting) -> dict[str, Any]:
    """Train the job on its share of the cluster and return its result; a finished job returns its stored result, a killed one goes on.

    One process at a time trains a job; the others wait, `waiting` called, and find its result.

    The result is {"key", "checkpoint", "sha256", "metrics", "history"}. Raises UserError with the reason a run could not finish.
    """
    with alone(job.folder, waiting):
        if not finished(job):
            storage.write_json(result_file(job), train(job, share, callbacks))
    return storage.read_json(result_file(job))


def side_by_side(jobs: Sequence[Job], work: Callable[[Job, Share], Done]) -> list[Done]:
    """Return what `work`, such as `fit`, comes to for each of some jobs: as many at once as fit, each on one worker."""
    at_once = fitting_trials(len(jobs), 1)
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(work, jobs, repeat(divide(at_once, 1))))


def result_file(job: Job) -> str:
    """Return where the result of a job is kept."""
    return storage.join(job.folder, "result.json")


def finished(job: Job) -> bool:
    """Return whether a job has its result."""
    return storage.exists(result_file(job))


def train(job: Job, share: Share, callbacks: Sequence[Any]) -> dict[str, Any]:
    """Run the job on Ray Train and return its result."""
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    job.plan.check_world(share.workers)
    poll_often()
    resources = {"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {})
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job, "share": share},
        torch_config=TorchConfig(backend="nccl" if share.gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=share.workers, use_gpu=bool(share.gpus), resources_per_worker=resources),
        run_config=RunConfig(
            name=job.key,
            storage_path=storage.parent_of(job.train_folder),
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=list(callbacks),
        ),
    )
    try:
        result = beside(trainer.fit).return_value
    except Exception as error:
        if said := disk.no_room(error):
            raise UserError(said) from error
        raise
    if "error" in result:
        raise UserError(result["error"])
    return result


@contextmanager
def relay(on_report: Callable[[dict[str, Any]], None]) -> Iterator[Any]:
    """Yield a Train callback that hands every report of rank 0 to `on_report` in this process, while the run goes on elsewhere."""
    import ray.train
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # a node of workers may be lost
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})

    class Relay(ray.train.UserCallback):
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            queue.put(metrics[0])

    def drain() -> None:
        while (metrics := queue.get()) is not None:
            on_report(metrics)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        yield Relay()
    finally:
        queue.put(None)
        thread.join()
        queue.shutdown()
