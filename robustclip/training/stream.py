"""The Ray Dataset of a job's units: every rank gets its units of every step in order, wherever a run starts or goes on."""

import time
from functools import partial
from typing import Any

import numpy as np

from robustclip.base import storage
from robustclip.data.plan import read_unit
from robustclip.runtime.cluster import Share, fetched
from robustclip.training.job import Job

BLOCK_BYTES = 2**24  # decoded images in one block of the stream: 111 of 224 px
BLOCK_IMAGES = 4096  # of small ones; the first step waits for two blocks
PAUSE = 0.03  # seconds between two looks of the stream's executor at its tasks


def stream(job: Job, share: Share) -> Any:
    """Return the Ray Dataset of the job's units from its oldest kept checkpoint on; block j holds some steps' units of rank j mod workers.

    streaming_split deals equal blocks in turn, so every rank gets its units in order. A block holds several steps because each costs a
    task, often a new process. Train resumes from a checkpoint it kept, so the oldest is never too late; the loop drops what is done.
    """
    import ray
    from ray.data import Datasource
    from ray.data.block import BlockAccessor, BlockMetadata
    from ray.data.datasource import ReadTask

    first = first_kept_step(job.train_folder)
    plan, size, resize, workers = job.plan, job.size, job.config.data.resize, share.workers
    if first == plan.steps:  # everything is done but the last report: the loop needs an empty stream
        return ray.data.from_items([{"step": 0}]).limit(0)
    images_a_block = min(BLOCK_IMAGES, BLOCK_BYTES // (3 * job.pixels_a_side**2))
    steps_a_block = max(1, images_a_block // (plan.batch // workers))
    blocks = -(-(plan.steps - first) // steps_a_block) * workers
    where = ray.put(plan)  # it travels to every node once, not with every block

    def read(block: int) -> list[Any]:
        plan = fetched(where)  # with the order of the epoch, if the block before was of the same
        chunk, rank = divmod(block, workers)
        begin = first + chunk * steps_a_block
        steps = range(begin, min(begin + steps_a_block, plan.steps))
        units = [{"step": step, "unit": unit} for step in steps for unit in range(rank, plan.units_per_step, workers)]
        parts = [read_unit(plan, unit, size, resize) for unit in units]
        return [BlockAccessor.batch_to_block({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})]

    class Blocks(Datasource):
        """A task for each block, in order. Of a range, whose numbers are read as units, all numbers would be made before the first unit."""

        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None) -> list[Any]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(partial(read, block), unknown) for block in range(blocks)]

    found = ray.data.read_datasource(Blocks(), override_num_blocks=blocks, num_cpus=share.cpus)
    found.context.custom_execution_callback_classes = [paced()]
    return found


def paced() -> type:
    """Return what makes a stream's executor pause: while a block waits to be taken it looks again at once, for all of a CPU's time."""
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Paced(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            time.sleep(PAUSE)

    return Paced


def first_kept_step(folder: str) -> int:
    """Return the step of the oldest checkpoint that Train knows of in its run folder, 0 without one: none it resumes from is older.

    A folder alone proves nothing: what a worker wrote just before it died is there, but Train may never have heard of it.
    """
    snapshot = storage.join(folder, "checkpoint_manager_snapshot.json")
    known = storage.read_bytes(snapshot).decode() if storage.exists(snapshot) else ""
    names = [name for name in storage.list_folders(folder) if name.startswith("step_") and name in known]
    return min((int(name.removeprefix("step_")) for name in names), default=0)


def units_of(shard: Any, job: Job) -> Any:
    """Return the rank's units, one micro-batch each, of which a block is fetched ahead.

    They stay on the CPU, where their steps and keys are read: read from a GPU, each would wait for all that it has still to do.
    """
    return shard.iter_torch_batches(batch_size=job.plan.micro_batch, device="cpu")
