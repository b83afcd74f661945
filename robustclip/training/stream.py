"""The Ray Dataset of a job's units: every rank gets its units of every step in order, wherever a run starts or goes on."""

from typing import Any

import numpy as np

from robustclip.base import storage
from robustclip.data.plan import read_unit
from robustclip.runtime.cluster import Share, fetched
from robustclip.training.job import Job

# A worker fetches this much ahead. Ray Data's executor spins on a whole core while finished blocks wait to be fetched: on a laptop that
# is half of what training has.
PREFETCH_BYTES = 2**28
BLOCK_BYTES = 2**24  # decoded images in one block of the stream: 5461 of 32 px, 111 of 224 px


def stream(job: Job, share: Share) -> Any:
    """Return the Ray Dataset of the job's units from its oldest kept checkpoint on; block j holds some steps' units of rank j mod workers.

    streaming_split deals equal blocks in turn, so every rank gets its units in order. A block holds several steps because each costs a
    task, often a new process, and its executor polls while any is waiting. Train resumes from a checkpoint it kept, so the oldest is
    never too late; the loop drops what is done.
    """
    import ray
    import ray.data

    first = first_kept_step(job.train_folder)
    plan, size, resize, workers = job.plan, job.size, job.config.data.resize, share.workers
    if first == plan.steps:  # everything is done but the last report: the loop needs an empty stream
        return ray.data.from_items([{"step": 0}]).limit(0)
    steps_a_block = max(1, BLOCK_BYTES // (3 * job.pixels_a_side**2) // (plan.batch // workers))
    chunks = -(-(plan.steps - first) // steps_a_block)
    where = ray.put(plan)  # it travels to every node once, not with every block

    def read(batch: dict[str, Any]) -> Any:
        plan = fetched(where)  # with the order of the epoch, if the block before was of the same
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


def units_of(shard: Any, job: Job) -> Any:
    """Return the rank's units, one micro-batch each, fetched PREFETCH_BYTES ahead."""
    rows = job.plan.micro_batch
    ahead = max(1, PREFETCH_BYTES // (rows * 3 * job.pixels_a_side**2))
    return shard.iter_torch_batches(batch_size=rows, prefetch_batches=ahead)
