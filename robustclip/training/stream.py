"""The units of a job from Ray Data: every rank gets its own of every step in order, wherever a run starts or goes on."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from itertools import islice, zip_longest
from typing import Any

import numpy as np

from robustclip.data.plan import read_unit
from robustclip.runtime.cluster import Share, fetched
from robustclip.training.job import Job

BLOCK_BYTES = 2**24  # decoded images in one block of the stream: 111 of 224 px
BLOCK_IMAGES = 4096  # of small ones
TASK = 8  # blocks that a task reads one after the other: Ray Data looks ten times a second for ended ones, and a slot waits that long
TASKS = 256  # of one Ray Dataset, which are all made before its first block comes
AHEAD = 2  # tasks before the end of one at which the next begins
PAUSE = 0.03  # seconds between two looks of the stream's executor at its tasks

Unit = Mapping[str, Any]


def units_of(job: Job, share: Share, rank: int = 0, first: int = 0) -> Iterator[Unit]:
    """Yield the units that a rank takes in a job's steps, from step `first` on, one micro-batch each, of which a block is fetched ahead.

    They stay on the CPU, where their steps and keys are read: read from a GPU, each would wait for all that it has still to do.
    """
    import ray

    plan, task = job.plan, TASK * steps_a_block(job, share)
    where = ray.put(plan)  # it travels to every node once, not with every block

    def of(steps: range) -> Iterator[Unit]:
        yield from stream(job, share, rank, steps, where).iter_torch_batches(batch_size=plan.micro_batch, device="cpu")

    pieces = parts_of(range(first, plan.steps), TASKS * task)
    coming: Iterator[Unit] = of(pieces[0]) if pieces else iter(())
    for piece, after in zip_longest(pieces, pieces[1:]):
        near_its_end = max(1, (len(piece) - AHEAD * task) * plan.units_per_step // share.workers)
        for number, unit in enumerate(coming, 1):
            if after and number == near_its_end:
                following = begun(of(after))
            yield unit
        if after:
            coming = following


def begun(units: Iterable[Unit]) -> Iterator[Unit]:
    """Return the same units, the first of which is fetched from now on, in a thread."""
    iterator, first = iter(units), Future[list[Unit]]()

    def fetch() -> None:
        try:
            first.set_result(list(islice(iterator, 1)))
        except BaseException as error:
            first.set_exception(error)

    threading.Thread(target=fetch, daemon=True).start()

    def rest() -> Iterator[Unit]:
        yield from first.result()
        yield from iterator

    return rest()


def steps_a_block(job: Job, share: Share) -> int:
    """Return how many steps of a rank a block holds: several, because Ray's executor handles each."""
    images = min(BLOCK_IMAGES, BLOCK_BYTES // image_bytes(job))
    return max(1, images // (job.plan.batch // share.workers))


def image_bytes(job: Job) -> int:
    """Return the bytes of one decoded image."""
    return 3 * job.pixels_a_side**2


def parts_of(steps: range, length: int) -> list[range]:
    """Return steps cut into parts of a length, the last a shorter one."""
    return [steps[begin : begin + length] for begin in range(0, len(steps), length)]


def stream(job: Job, share: Share, rank: int, steps: range, where: Any) -> Any:
    """Return the Ray Dataset of the units that a rank takes in some steps of the plan that lies `where`, a block after the other.

    Every rank has a stream of its own, in its own process: one that Ray would split among them costs another process, and that it deals
    its blocks in turn is no promise.
    """
    import ray
    from ray.data import Datasource
    from ray.data.block import BlockAccessor, BlockMetadata
    from ray.data.datasource import ReadTask

    size, resize, workers, block = job.size, job.config.data.resize, share.workers, steps_a_block(job, share)
    # The first step is a task of its own, so that a training waits for no whole block of small images.
    tasks = [[steps[:1]], *(parts_of(task, block) for task in parts_of(steps[1:], TASK * block))]

    # What it names is imported by every process that reads: nothing of this file, which comes with torch.
    def read(blocks: list[range]) -> Iterator[Any]:
        plan = fetched(where)  # with the order of the epoch, if the task before was of the same
        for some in blocks:
            units = [{"step": step, "unit": unit} for step in some for unit in range(rank, plan.units_per_step, workers)]
            parts = [read_unit(plan, unit, size, resize) for unit in units]
            yield BlockAccessor.batch_to_block({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    class Blocks(Datasource):
        """The tasks, in order. Of a range, whose numbers are read as units, all numbers would be made before the first unit."""

        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None) -> list[Any]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(partial(read, blocks), unknown) for blocks in tasks]

    found = ray.data.read_datasource(Blocks(), override_num_blocks=len(tasks), num_cpus=share.cpus)
    found.context.custom_execution_callback_classes = [paced()]
    found.context.execution_options.preserve_order = True
    # A block goes out as soon as it is read: without this, Ray would gather those of a task up to 128 MiB.
    found.context.target_max_block_size = block * (job.plan.batch // workers) * image_bytes(job)
    return found


def paced() -> type:
    """Return what makes a stream's executor pause: while a block waits to be taken it looks again at once, for all of a CPU's time."""
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Paced(ExecutionCallback):
        def on_execution_step(self, executor: Any) -> None:
            time.sleep(PAUSE)

    return Paced
