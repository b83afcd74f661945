"""The Ray Datasets of a job's units: every rank gets its units of every step in order, wherever a run starts or goes on."""

import time
from functools import partial
from typing import Any

import numpy as np

from robustclip.data.plan import read_unit
from robustclip.runtime.cluster import Share, fetched
from robustclip.training.job import Job

BLOCK_BYTES = 2**24  # decoded images in one block of the stream: 111 of 224 px
BLOCK_IMAGES = 4096  # of small ones; the first step waits for two blocks
PAUSE = 0.03  # seconds between two looks of the stream's executor at its tasks


def stream(job: Job, share: Share, rank: int = 0, first: int = 0) -> Any:
    """Return the Ray Dataset of the units that a rank takes in a job's steps, from step `first` on, a block after the other.

    A block holds several steps because each costs a task, often a new process. Every rank has a stream of its own, in its own process: one
    that Ray would split among them costs another process, and that it deals its blocks in turn is no promise.
    """
    import ray
    from ray.data import Datasource
    from ray.data.block import BlockAccessor, BlockMetadata
    from ray.data.datasource import ReadTask

    plan, size, resize, workers = job.plan, job.size, job.config.data.resize, share.workers
    if first == plan.steps:  # everything is done but the last report: the loop needs an empty stream
        return ray.data.from_items([{"step": 0}]).limit(0)
    images_a_block = min(BLOCK_IMAGES, BLOCK_BYTES // (3 * job.pixels_a_side**2))
    steps_a_block = max(1, images_a_block // (plan.batch // workers))
    blocks = -(-(plan.steps - first) // steps_a_block)
    where = ray.put(plan)  # it travels to every node once, not with every block

    def read(block: int) -> list[Any]:
        plan = fetched(where)  # with the order of the epoch, if the block before was of the same
        begin = first + block * steps_a_block
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
    found.context.execution_options.preserve_order = True
    return found


def paced() -> type:
    """Return what makes a stream's executor pause: while a block waits to be taken it looks again at once, for all of a CPU's time."""
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Paced(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            time.sleep(PAUSE)

    return Paced


def units_of(stream: Any, job: Job) -> Any:
    """Return the units of a rank's stream, one micro-batch each, of which a block is fetched ahead.

    They stay on the CPU, where their steps and keys are read: read from a GPU, each would wait for all that it has still to do.
    """
    return stream.iter_torch_batches(batch_size=job.plan.micro_batch, device="cpu")
