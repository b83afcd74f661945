"""The two sides of ray_overhead.py, each run in a process of its own: the same trainings, evaluators and images on Ray and without it.

python benchmarks/ray_sides.py ray|bare FOLDER LAUNCHED SIZE        # as ray_overhead.py starts it: prints a line of JSON
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
from row import seconds
from torch.utils.data import DataLoader, Dataset

from robustclip import names as models
from robustclip.attacks import PGD
from robustclip.base.errors import UserError
from robustclip.base.threads import one_thread
from robustclip.data.plan import read_unit
from robustclip.evaluation.computing import record
from robustclip.evaluation.protocols import CELL_IMAGES, DEMO, Resolved, resolve
from robustclip.evaluation.wanted import Wanted
from robustclip.runtime import cluster
from robustclip.training import alone, fit
from robustclip.training.config import Config, Data, Validation
from robustclip.training.job import Job, prepare
from robustclip.training.recipe import TECOA

SET, EVALUATED = "photos", "tiny-vit8"
UNIT = 64  # images of one unit of the stream that is read without a training
MEASURED = "measured"  # what ends a training whose time is known
MIB = 1 << 20


@dataclass(frozen=True)
class Size:
    """How much is done: trainings of a model, timed from step `first` to step `last`, cells of an evaluation, images of a stream."""

    model: str = "open_clip:ViT-B-32-quickgelu/random[seed=0]"
    batch: int = 2
    first: int = 1
    last: int = 6
    cells: int = 24
    settled: int = 6  # cells after which the clock of an evaluation begins: by then every process has come up
    images: int = 64 * UNIT
    processes: int = 2

    def config(self, seed: int) -> Config:
        """Return the training: TeCoA's attack, in one step."""
        optim = replace(TECOA.optim, batch=self.batch, micro_batch=self.batch, warmup=0, epochs=1)
        data = Data(SET, n=self.batch * (self.last + 1), held_out=1, resize=256)
        validation, attack = Validation(images=1, eps=1.0, steps=0), replace(TECOA.attack, steps=1)
        return replace(TECOA, model=self.model, data=data, optim=optim, attack=attack, validation=validation, seed=seed)

    def streamed(self) -> Config:
        """Return a training of which only the images are read."""
        config = self.config(0)
        optim = replace(config.optim, batch=UNIT, micro_batch=UNIT)
        return replace(config, data=replace(config.data, n=self.images), optim=optim)

    def evaluation(self, out: str) -> Resolved:
        """Return the evaluation: cells of the same set under a short attack, so that all take about as long."""
        return resolve(replace(DEMO, sets=("shapes",), n=CELL_IMAGES * self.cells, attacks=(PGD(5),), eps=(1.0,)), out)


@dataclass(frozen=True)
class Gate:
    """Lets `of` trainings begin their clocks together, after step `first`, and ends each after step `last`; what it finds lies in files.

    `root` is the process that started everything whose memory counts.
    """

    folder: str
    me: int
    of: int
    first: int
    last: int
    root: int

    def around(self, steps: Callable[..., Iterator[dict[str, float]]]) -> Callable[..., Iterator[dict[str, float]]]:
        """Return the same steps through this gate."""

        def gated(*given: Any, **named: Any) -> Iterator[dict[str, float]]:
            started = 0.0
            for row in steps(*given, **named):
                if row["step"] == self.first:
                    self.file("began", self.me).write_text(str(time.monotonic()))
                    while not all(self.file("began", other).exists() for other in range(self.of)):
                        time.sleep(0.001)
                    started = time.monotonic()
                if row["step"] == self.last:
                    self.file("took", self.me).write_text(str(time.monotonic() - started))
                    if self.of == 1:
                        self.file("memory", self.me).write_text(str(memory_of(self.root)))
                    raise UserError(MEASURED)
                yield row

        return gated

    def file(self, what: str, who: int) -> Path:
        return Path(self.folder, f"{what}-{who}")

    def found(self, what: str) -> float:
        """Return what a training left."""
        return float(self.file(what, self.me).read_text())


def memory_of(root: int) -> float:
    """Return the MiB that a process and all that it started have for themselves."""
    process = psutil.Process(root)
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_full_info().uss
        except psutil.Error:
            continue
    return total / MIB


def ended(work: Callable[[], object]) -> None:
    """Run a training that its gate ends."""
    try:
        work()
    except UserError as error:
        if str(error) != MEASURED:
            raise
        return
    raise SystemExit("a training ended before its gate did: it has fewer steps than are measured")


def gates(out: str, count: int, size: Size) -> list[Gate]:
    """Return the gates of some trainings side by side."""
    folder = Path(out, f"gates-{count}")
    folder.mkdir()
    return [Gate(str(folder), i, count, size.first, size.last, os.getpid()) for i in range(count)]


def took(through: Sequence[Gate], decoding: float = 0.0) -> float:
    """Return the seconds until the last of some trainings was through its steps, which its images' `decoding` is added to."""
    return max(gate.found("took") for gate in through) + decoding


def seeds(count: int) -> range:
    """Return the seeds of some trainings side by side: others than those of any other number."""
    return range(10 * count, 10 * count + count)


# --- on Ray ---


def gated_loop(by_key: Mapping[str, Gate]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return the loop of Train's workers, its steps through the gate of its job."""

    def train_loop(settings: dict[str, Any]) -> dict[str, Any]:
        from robustclip.training import loop

        loop.steps = by_key[settings["job"].key].around(loop.steps)
        return loop.train_loop(settings)

    return train_loop


def train_on_ray(out: str, count: int, size: Size) -> list[Gate]:
    """Train `count` models side by side on Ray Train and return their gates."""
    share = cluster.divide(count, 1)
    jobs = [prepare(size.config(seed), out) for seed in seeds(count)]
    through = gates(out, count, size)
    loop = gated_loop({job.key: gate for job, gate in zip(jobs, through, strict=True)})
    with patch.object(fit, "train_loop", loop), ThreadPoolExecutor(count) as pool:
        for _ in pool.map(lambda job: ended(lambda: fit.fit(job, share)), jobs):
            pass
    return through


def decoding(job: Job, size: Size) -> float:
    """Return the seconds in which one process decodes the images of the measured steps, which Ray has decoded before them."""
    items = [item for item in job.plan.items() if size.first <= item["step"] < size.last]
    return seconds(lambda: [read_unit(job.plan, item, job.size, job.config.data.resize) for item in items])


def evaluate_on_ray(out: str, size: Size) -> list[float]:
    """Return when each cell was done."""
    from robustclip.evaluation.evaluator import evaluate

    times: list[float] = []
    evaluate([EVALUATED], size.evaluation(out), out, actors=size.processes, on_progress=lambda progress: times.append(time.monotonic()))
    return times[1:]  # the first report is of none


def stream_on_ray(out: str, size: Size) -> dict[str, float]:
    """Return the seconds an image takes that Ray Data reads and decodes, on all CPUs, and those until the first is there."""
    from robustclip.training.stream import units_of

    job = prepare(size.streamed(), out)
    return per_image(units_of(job, cluster.Share(1, 1.0, 0.0)))


def on_ray(out: str, launched: float, size: Size) -> dict[str, float]:
    """Return everything, on Ray."""
    cluster.connect()
    one = train_on_ray(out, 1, size)
    decoded = decoding(prepare(size.config(0), out), size)
    started = time.monotonic()
    two = train_on_ray(out, size.processes, size)
    again = max(gate.found("began") for gate in two) - started
    found = of_training(one, launched) | {"one": took(one, decoded), "two": took(two, decoded), "again": again}
    return found | {"evaluators": per_cell(evaluate_on_ray(out, size), size)} | stream_on_ray(out, size)


# --- without it ---


def train_bare(out: str, gate: Gate, size: Size, seed: int) -> None:
    """Train in this process."""
    with patch.object(alone, "steps", gate.around(alone.steps)):
        ended(lambda: alone.finetune_alone(models.load(size.model), size.config(seed), out))


def evaluate_bare(out: str, size: Size, me: int) -> list[float]:
    """Compute one process's cells and return when each was done."""
    resolved, times = size.evaluation(out), []
    (cells,) = Wanted([EVALUATED], resolved, out).cells.values()
    model = models.load(EVALUATED)
    for cell in cells[me :: size.processes]:
        with one_thread():
            record(model, cell, resolved, out, 1, None)
        times.append(time.monotonic())
    return times


class Units(Dataset[dict[str, Any]]):
    """The units of a plan, as torch's loader wants them."""

    def __init__(self, job: Job):
        self.job, self.items = job, list(job.plan.items())

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return read_unit(self.job.plan, self.items[i], self.job.size, self.job.config.data.resize)


def bare(out: str, launched: float, size: Size) -> dict[str, float]:
    """Return everything, in bare processes."""
    one = gates(out, 1, size)
    train_bare(out, one[0], size, seeds(1)[0])
    with ProcessPoolExecutor(size.processes, multiprocessing.get_context("spawn")) as pool:
        times = [future.result() for future in [pool.submit(evaluate_bare, out, size, me) for me in range(size.processes)]]
    loader = DataLoader(Units(prepare(size.streamed(), out)), batch_size=None, num_workers=size.processes)
    found = of_training(one, launched) | {"one": took(one)}
    return found | {"evaluators": per_cell(sorted(chain(*times)), size)} | per_image(loader)


# --- of both ---


def of_training(one: Sequence[Gate], launched: float) -> dict[str, float]:
    """Return what else a training alone says: the seconds from its command to the end of its first step, and the MiB of all processes."""
    return {"start": one[0].found("began") - launched, "memory": one[0].found("memory")}


def per_cell(times: Sequence[float], size: Size) -> float:
    """Return the seconds a cell takes once all processes are at work, by the times at which cells were done."""
    return (times[-1] - times[size.settled - 1]) / (len(times) - size.settled)


def per_image(units: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the seconds until the first unit is there, which is a whole block, and those that an image takes after it."""
    asked = time.monotonic()
    iterator = iter(units)
    next(iterator)
    started = time.monotonic()
    images = sum(len(unit["label"]) for unit in iterator)
    return {"first": started - asked, "stream": (time.monotonic() - started) / images}


def main() -> None:
    side, out, launched, size = sys.argv[1:]
    print(json.dumps({"ray": on_ray, "bare": bare}[side](out, float(launched), Size(**json.loads(size)))))


if __name__ == "__main__":
    main()
