"""Distributed adversarial fine-tuning: Ray Data streams the plan's units, Ray Train steps, and a killed run goes on bit for bit."""

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.values import key, to_json
from robustclip.data.card import DatasetCard
from robustclip.data.datasets import ensure_set
from robustclip.data.plan import Plan, read_unit, select
from robustclip.data.reading import decoded_size, read_images, split_identity
from robustclip.data.shards import Index, scan
from robustclip.models import checkpoints
from robustclip.runtime.cluster import Share, use_threads
from robustclip.training.compatible import check_pair
from robustclip.training.config import Config

log = logging.getLogger(__name__)

# A worker fetches this much ahead. Ray Data's executor spins on a whole core while finished blocks wait to be fetched: on a laptop that
# is half of what training has.
PREFETCH_BYTES = 2**28
BLOCK_BYTES = 2**24  # decoded images in one block of the stream: 5461 of 32 px, 111 of 224 px


@dataclass(frozen=True)
class Job:
    """A config with everything it depends on found: its data, its plan, its key, and where its results go."""

    config: Config
    out: str
    key: str
    card: DatasetCard
    index: Index
    plan: Plan
    train_rows: np.ndarray
    val_rows: np.ndarray
    size: int | None

    @property
    def folder(self) -> str:
        """runs/<key>: `model/` (the checkpoint) and result.json, written last."""
        return storage.join(self.out, "runs", self.key)


def prepare(config: Config, out: str) -> Job:
    """Return the job of a config; raises UserError for whatever would only fail later: data, subset sizes, model, trainable."""
    data, optim = config.data, config.optim
    check_pair(config.defense, config.trainable)
    card = ensure_set(out, data.name, {"train": data.rendered}, data.render_seed)
    index = scan(card.folder, card, "train")
    train_rows, val_rows = select(index, n=data.n, per_class=data.per_class, held_out=data.held_out)
    plan = Plan.of(index, train_rows, micro_batch=optim.micro_batch, batch=optim.batch, epochs=optim.epochs, seed=config.seed)
    size = decoded_size(card, models.input_size(config.model))
    work = key(config, models.identity(config.model), split_identity(card, "train"))
    return Job(config, out, work, card, index, plan, train_rows, val_rows, size)


def forget(job: Job) -> None:
    """Delete what earlier runs of this job left, so that `fit` starts again from nothing."""
    for folder in (job.folder, storage.join(job.out, "ray", job.key)):
        storage.delete(folder)


def fit(job: Job, share: Share, callbacks: Sequence[Any] = ()) -> dict[str, Any]:
    """Train the job on its share of the cluster and return its result; a finished job returns its stored result, a killed one goes on.

    The result is {"key", "checkpoint", "sha256", "metrics", "history"}. Raises UserError with the reason a run could not finish.
    """
    result_file = storage.join(job.folder, "result.json")
    if storage.exists(result_file):
        return storage.read_json(result_file)
    from ray.data import ExecutionOptions
    from ray.train import CheckpointConfig, DataConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    job.plan.check_world(share.workers)
    resources = {"CPU": share.cpus} | ({"GPU": share.gpus} if share.gpus else {})
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job, "threads": share.threads},
        torch_config=TorchConfig(backend="nccl" if share.gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=share.workers, use_gpu=bool(share.gpus), resources_per_worker=resources),
        run_config=RunConfig(
            name=job.key,
            storage_path=storage.join(job.out, "ray"),
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=list(callbacks),
        ),
        datasets={"train": lambda: stream(job, share)},
        # The order of units, and which rank gets which, must not depend on timing: resume and world size rest on it.
        dataset_config=DataConfig(execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False),
    )
    result = trainer.fit().return_value
    if "error" in result:
        raise UserError(result["error"])
    storage.write_json(result_file, result)
    return result


@contextmanager
def relay(on_report: Callable[[dict[str, Any]], None]) -> Iterator[Any]:
    """Yield a Train callback that hands every report of rank 0 to `on_report` in this process, while the run goes on elsewhere."""
    import ray.train
    from ray.util.queue import Queue

    queue = Queue(actor_options={"num_cpus": 0})

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


def stream(job: Job, share: Share) -> Any:
    """Return the Ray Dataset of the job's units from its oldest kept checkpoint on; block j holds some steps' units of rank j mod workers.

    streaming_split deals equal blocks in turn, so every rank gets its units in order. A block holds several steps because each costs a
    task, often a new process, and its executor polls while any is waiting. Train resumes from a checkpoint it kept, so the oldest is
    never too late; the loop drops what is done.
    """
    import ray.data

    first = first_kept_step(storage.join(job.out, "ray", job.key))
    plan, size, resize, workers = job.plan, job.size, job.config.data.resize, share.workers
    if first == plan.steps:  # everything is done but the last report: the loop needs an empty stream
        return ray.data.from_items([{"step": 0}]).limit(0)
    steps_a_block = max(1, BLOCK_BYTES // (3 * pixels_a_side(job) ** 2) // (plan.batch // workers))
    chunks = -(-(plan.steps - first) // steps_a_block)

    def read(batch: dict[str, Any]) -> Any:
        for i in batch["id"]:
            chunk, rank = divmod(int(i), workers)
            begin = first + chunk * steps_a_block
            steps = range(begin, min(begin + steps_a_block, plan.steps))
            units = [{"step": step, "unit": unit} for step in steps for unit in range(rank, plan.units_per_step, workers)]
            parts = [read_unit(plan, unit, size, resize) for unit in units]
            yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return ray.data.range(chunks * workers, override_num_blocks=chunks * workers).map_batches(read, batch_size=1, num_cpus=share.cpus)


def first_kept_step(folder: str) -> int:
    """Return the step of the oldest checkpoint that Train knows of in its run folder, 0 without one: none it resumes from is older.

    A folder alone proves nothing: what a worker wrote just before it died is there, but Train may never have heard of it.
    """
    snapshot = storage.join(folder, "checkpoint_manager_snapshot.json")
    known = storage.read_bytes(snapshot).decode() if storage.exists(snapshot) else ""
    names = [name for name in storage.list_folders(folder) if name.startswith("step_") and name in known]
    return min((int(name.removeprefix("step_")) for name in names), default=0)


def train_loop(settings: dict[str, Any]) -> dict[str, Any]:
    """Run on every worker: attack, accumulate, step, report; return the result (rank 0's counts) or the error that ends the run."""
    import ray.train
    from ray.train.torch import get_device

    job: Job = settings["job"]
    use_threads(settings["threads"])
    from robustclip.training.learner import NotFinite

    try:
        learner = build_learner(job, get_device())
        history: list[dict[str, float]] = []
        if checkpoint := ray.train.get_checkpoint():
            history = restore(learner, checkpoint)
        world = ray.train.get_context().get_world_size()
        shard, pending = ray.train.get_dataset_shard("train"), 0
        new: list[dict[str, float]] = []
        for unit in units_of(shard, job) if learner.step < job.plan.steps else ():
            if int(unit["step"][0]) < learner.step:
                continue
            if int(unit["step"][0]) > learner.step:
                raise RuntimeError(f"run {job.key}: the stream is at step {int(unit['step'][0])}, the weights are at step {learner.step}")
            learner.accumulate(unit["pixels"], unit["label"], [str(key) for key in unit["key"].tolist()])
            pending += 1
            if pending < job.plan.units_per_step // world:
                continue
            pending, new = 0, [*new, learner.update() | {"step": learner.step}]
            if learner.step % job.config.checkpoint_every == 0 or learner.step % job.plan.steps_per_epoch == 0:
                history, new = report(job, learner, history, new), []
        if learner.step < job.plan.steps:
            raise UserError(f"run {job.key}: the data ended at step {learner.step} of {job.plan.steps}")
        return finish(job, learner, history)
    except UserError as error:
        # Returned, not raised: Train would restart the workers, and this error would only come back.
        return {"error": f"{error}{last_good(job) if isinstance(error, NotFinite) else ''}"}


def last_good(job: Job) -> str:
    """Return where the newest checkpoint of a run lies, as the end of a sentence."""
    folder = storage.join(job.out, "ray", job.key)
    steps = sorted(name for name in storage.list_folders(folder) if name.startswith("step_"))
    return f"; the last good checkpoint is {storage.join(folder, steps[-1])}" if steps else "; there is no checkpoint yet"


def units_of(shard: Any, job: Job) -> Any:
    """Return the rank's units, one micro-batch each, fetched PREFETCH_BYTES ahead."""
    rows = job.plan.micro_batch
    ahead = max(1, PREFETCH_BYTES // (rows * 3 * pixels_a_side(job) ** 2))
    return shard.iter_torch_batches(batch_size=rows, prefetch_batches=ahead)


def pixels_a_side(job: Job) -> int:
    """Return the side of the decoded images, a guess where they are kept as they are and differ."""
    return job.size or job.card.native_size or 224


def build_learner(job: Job, device: Any) -> Any:
    """Return the learner of a job, its gradients summed over the workers of this Train run."""
    import torch.distributed as dist

    from robustclip.training.learner import Learner
    from robustclip.training.pairing import World

    def sum_over_workers(tensor: Any) -> None:
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(tensor)

    model = models.load(job.config.model)
    rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    world = World(rank, workers, sum_over_workers)
    return Learner(job.config, model, job.card.class_names, job.card.templates, job.plan.steps, device, world=world)


def restore(learner: Any, checkpoint: Any) -> list[dict[str, float]]:
    """Bring the learner to a checkpoint and return the history so far."""
    import torch

    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / "state.pt", weights_only=True, map_location=learner.device)
    learner.restore(state["learner"])
    return state["history"]


def report(job: Job, learner: Any, history: list[dict[str, float]], new: list[dict[str, float]]) -> list[dict[str, float]]:
    """Report the new steps and a checkpoint to Train (every rank does, rank 0 writes), validated at the end of an epoch."""
    import ray.train
    import torch

    rank = ray.train.get_context().get_world_rank()
    if learner.step % job.plan.steps_per_epoch == 0 and rank == 0:
        new = [*new[:-1], new[-1] | learner.validate(*validation_images(job, learner))]
    history = history + new
    metrics = {"epoch": learner.step / job.plan.steps_per_epoch, **new[-1], "curve": new}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if rank == 0:
            torch.save({"learner": learner.state(), "history": history}, Path(folder) / "state.pt")
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        # The name depends on the step alone, so a repeated step writes the same bytes to the same place.
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=f"step_{learner.step:06d}")
    return history


def validation_images(job: Job, learner: Any) -> tuple[Any, Any, list[str]]:
    """Return images [N,3,S,S], labels [N] and ids of the held-out rows that `val/` is measured on."""
    import torch

    from robustclip.data.reading import to_images

    ids, pixels, labels = read_images(job.index, job.val_rows[: job.config.validation.images], job.size, job.config.data.resize)
    return to_images(pixels, learner.device), torch.as_tensor(labels), ids


def finish(job: Job, learner: Any, history: list[dict[str, float]]) -> dict[str, Any]:
    """Write the trained model (rank 0) and return the result, with the strong attack's accuracy on the held-out images."""
    import ray.train

    from robustclip.training.proxy import strong

    folder, final = storage.join(job.folder, "model"), {}
    if ray.train.get_context().get_world_rank() == 0:
        learner.finish()
        seen = np.concatenate([job.train_rows, job.val_rows])
        storage.write_table(storage.join(folder, checkpoints.SELECTION), pa.table({"id": job.index.id[seen].tolist()}))
        checkpoints.save(
            learner.model,
            folder,
            run=job.key,
            base={"name": job.config.model, "sha256": models.identity(job.config.model)},
            config=to_json(job.config),
            trainable=to_json(job.config.trainable),
            class_names=list(job.card.class_names),
            templates=list(job.config.templates or job.card.templates),
        )
        final = strong(job.config, learner.student, *validation_images(job, learner))
    last = {name: value for row in history for name, value in row.items()} | final
    return {"key": job.key, "checkpoint": folder, "sha256": learner.model.sha256, "metrics": last, "history": history}
