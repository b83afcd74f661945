"""What runs on every Train worker: steps from the stream, reports and checkpoints, a restart, and the finished model."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from robustclip import names as models
from robustclip.base import disk, storage
from robustclip.base.errors import UserError
from robustclip.models import checkpoints
from robustclip.runtime.cluster import Share, use_threads, watches_nodes
from robustclip.training.gradients import NotFinite
from robustclip.training.job import Job
from robustclip.training.learner import Learner
from robustclip.training.pairing import World
from robustclip.training.proxy import strong
from robustclip.training.steps import steps
from robustclip.training.stream import begun, units_of

STEP = "step_"  # what a checkpoint's folder begins with, before the number of its step


def train_loop(settings: dict[str, Any]) -> dict[str, Any]:
    """Run on every worker: attack, accumulate, step, report; return the result (rank 0's counts) or the error that ends the run."""
    import ray.train
    from ray.train.torch import get_device

    job: Job = settings["job"]
    share: Share = settings["share"]
    use_threads(share.threads)
    try:
        checkpoint, rank = ray.train.get_checkpoint(), ray.train.get_context().get_world_rank()
        units = begun(units_of(job, share, rank, step_of(checkpoint)))  # the first block comes while the model is built
        learner = build_learner(job, get_device(), rank, share.workers)
        history: list[dict[str, float]] = []
        told = 0  # steps that this process has reported: a killed driver may have missed those of earlier ones
        if checkpoint:
            history = restore(learner, checkpoint)
        new: list[dict[str, float]] = []
        announced: set[str] = set()
        for row in steps(learner, units, job.plan, share.workers):
            new.append(row)
            due = learner.step % job.config.checkpoint_every == 0 or learner.step % job.plan.steps_per_epoch == 0
            if due or loses_a_node(announced):
                history, new = report(job, learner, history, new, told), []
                told = len(history)
        if learner.step < job.plan.steps:
            raise UserError(f"run {job.key}: the data ended at step {learner.step} of {job.plan.steps}")
        return finish(job, learner, history)
    # Returned, not raised: Train would restart the workers, and this error would only come back.
    except NotFinite as error:
        return {"error": f"{error.called(job.names())}{last_good(job)}"}
    except UserError as error:
        return {"error": str(error)}
    except Exception as error:
        # So is a full disk. Where several workers share a step the others wait for this one, which only an error that is raised ends.
        if share.workers == 1 and (said := disk.no_room(error)):
            return {"error": said}
        raise


def loses_a_node(announced: set[str]) -> bool:
    """Return whether a node of this run is to be taken away that is not among the `announced`, and add it to them.

    All workers must ask after the same steps: they wait for each other and get one answer.
    """
    import ray.train

    if not watches_nodes() or (info := ray.train.get_preemption_info()) is None:
        return False
    new = set(info.preempted_node_ids) - announced
    announced |= new
    return bool(new)


def last_good(job: Job) -> str:
    """Return where the newest checkpoint of a run lies, as the end of a sentence."""
    found = sorted(name for name in storage.list_folders(job.train_folder) if name.startswith(STEP))
    return f"; the last good checkpoint is {storage.join(job.train_folder, found[-1])}" if found else "; there is no checkpoint yet"


def build_learner(job: Job, device: torch.device, rank: int = 0, workers: int = 1) -> Learner:
    """Return the learner of a job, its gradients summed over the workers of this Train run, of which this one is number `rank`."""

    def begin(tensor: torch.Tensor) -> Callable[[], object]:
        return dist.all_reduce(tensor, async_op=True).wait

    model = models.load_exactly(job.config.model, job.model_sha256)
    world = World(rank, workers, begin) if workers > 1 else World()
    return Learner(job.config, model, job.card.class_names, job.card.templates, job.plan.steps, device, world=world)


def step_of(checkpoint: Any) -> int:
    """Return the step after which a checkpoint was reported, 0 where there is none."""
    return int(storage.name_of(checkpoint.path).removeprefix(STEP)) if checkpoint else 0


def restore(learner: Learner, checkpoint: Any) -> list[dict[str, float]]:
    """Bring the learner to a checkpoint and return the history so far."""
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / "state.pt", weights_only=True, map_location=learner.device)
    learner.restore(state["learner"])
    return state["history"]


def report(job: Job, learner: Learner, history: list[dict[str, float]], new: list[dict[str, float]], told: int) -> list[dict[str, float]]:
    """Report the steps beyond `told` and a checkpoint to Train (every rank does, rank 0 writes), validated at the end of an epoch."""
    import ray.train

    rank = ray.train.get_context().get_world_rank()
    if learner.step % job.plan.steps_per_epoch == 0 and rank == 0:
        new = [*new[:-1], new[-1] | learner.validate(*job.validation_images(learner.device))]
    history = history + new
    metrics = {"epoch": learner.step / job.plan.steps_per_epoch, **new[-1], "curve": history[told:]}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if rank == 0:
            with storage.writing(f"{folder}/state.pt") as stream:  # torch's own says of a full disk only that its position is unexpected
                torch.save({"learner": learner.state(), "history": history}, stream)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        # The name depends on the step alone, so a repeated step writes the same bytes to the same place.
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=f"{STEP}{learner.step:06d}")
    return history


def finish(job: Job, learner: Learner, history: list[dict[str, float]]) -> dict[str, Any]:
    """Write the trained model (rank 0) and return the result, with the strong attack's accuracy on the held-out images."""
    import ray.train

    folder, final = storage.join(job.folder, "model"), {}
    if ray.train.get_context().get_world_rank() == 0:
        learner.finish()
        seen = np.concatenate([job.train_rows, job.val_rows])
        storage.write_table(storage.join(folder, checkpoints.SELECTION), pa.table({"id": job.index.ids(seen)}))
        checkpoints.save(learner.model, folder, run=job.key, **job.about(job.config.model, job.model_sha256))
        held_out = job.validation_images(learner.device)
        final = strong(job.config, learner.student, *held_out) | learner.strength(*held_out)
    last = {name: value for row in history for name, value in row.items()} | final
    return {"key": job.key, "checkpoint": folder, "sha256": learner.model.sha256, "metrics": last, "history": history}
