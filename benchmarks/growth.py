"""How the time of a training step grows with images, classes, the attack's steps and the run's, its memory, and an index with its images.

    python benchmarks/growth.py [--model MODEL] [--pairs 5]

A ratio of 1 means that twice as much takes twice as long, that two workers take half as long as one, each on one thread, or, for classes
and the run's steps, that more of them take no longer: class embeddings are computed once, and nothing piles up. Memory is the peak of a
fresh process after two steps.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import large_set
import step
import torch
import torch.distributed as dist
import torch.nn.functional as F
from batched_tuning import names
from row import PAIRS, Pairs, Row, paired, seconds, show
from step import UNTRAINED, Case

from robustclip import names as models
from robustclip.base import storage
from robustclip.data.index import scan
from robustclip.data.plan import Plan, select
from robustclip.training.learner import Learner
from robustclip.training.pairing import World

MIB = 1 << 20
SMALL = "tiny-vit8"  # of which many steps take seconds
CLASSES = (10, 1000)
ROUND = 20  # steps


def passes(case: Case) -> int:
    """Return the forwards and backwards of a step in units of one: two for each of the attack's, three for the update."""
    return 2 * case.attack_steps + 3


def of_classes(case: Case, classes: int) -> step.Step:
    """Return a step under so many classes, whose embeddings are drawn: to compute them is no part of it."""
    learner = step.learner_of(case)
    drawn = torch.randn(classes, learner.student.class_embeddings.shape[1], generator=torch.Generator().manual_seed(0))
    learner.student.class_embeddings = F.normalize(drawn, dim=-1)
    return step.ours(case, learner)


def grown(small: Case, large: Case, times: float, claim: str, pairs: int) -> Row:
    """Return the row of a step that should take `times` as long as another."""
    first, second = step.ours(small), step.ours(large)
    first()
    second()
    took = paired(lambda: times * seconds(first), partial(seconds, second), pairs)
    return took.row(claim, f"{times:.3g} times the smaller one", "the larger one")


def by_workers(workers: int, model: str, images: int, steps: int) -> list[float]:
    """Return the seconds of some steps, after a first one, of workers that share their images, gradients summed over gloo."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (workers, folder, model, images, steps), nprocs=workers)
        return json.loads(Path(folder, "seconds").read_text())


def work(rank: int, workers: int, folder: str, model: str, images: int, steps: int) -> None:
    """Take steps as one of some workers; the first one writes the seconds of all but its first."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    case = Case(images // workers, CLASSES[0], model)
    config = replace(case.config, optim=replace(case.config.optim, batch=images))
    world = World(rank, workers, lambda tensor: dist.all_reduce(tensor, async_op=True).wait)
    texts = config.templates or ()
    taken = step.ours(case, Learner(config, models.load(model), names(CLASSES[0]), texts, 1000, world=world))
    taken()
    dist.barrier()
    took = [seconds(taken) for _ in range(steps)]
    if rank == 0:
        Path(folder, "seconds").write_text(json.dumps(took))
    dist.barrier()
    dist.destroy_process_group()


def peak(side: str, model: str, images: int) -> float:
    """Return the peak memory in MiB of a process that takes two steps."""
    words = [sys.executable, __file__, "--peak", side, model, str(images)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def peak_here(side: str, model: str, images: int) -> float:
    """Take two steps and return the peak memory in MiB of this process."""
    taken = getattr(step, side)(Case(images, CLASSES[0], model))
    taken()
    taken()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def rows(model: str = UNTRAINED, images: int = 4, pairs: int = PAIRS) -> list[Row]:
    """Return the rows of a training step."""
    case = Case(images, CLASSES[0], model)
    twice, longer = replace(case, images=2 * images), replace(case, attack_steps=2 * case.attack_steps)
    found = [
        grown(case, twice, 2, f"a step grows with its images, {images} to {2 * images}", pairs),
        grown(case, longer, passes(longer) / passes(case), f"with the attack's steps, {case.attack_steps} to {longer.attack_steps}", pairs),
    ]
    few, many = (of_classes(case, each) for each in CLASSES)
    few()
    took = paired(partial(seconds, few), partial(seconds, many), pairs)
    found.append(took.row(f"with classes, {CLASSES[0]} to {CLASSES[1]}", "the smaller one", "the larger one"))
    long = step.ours(Case(32, 100, SMALL))
    long()
    each = [seconds(lambda: [long() for _ in range(ROUND)]) for _ in range(2 * pairs)]
    halves = Pairs(tuple(each[:pairs]), tuple(each[pairs:]))
    found.append(halves.row(f"with the steps before it, {SMALL}, {ROUND} steps", "in a run's first half", "in its second half"))
    one, two = (by_workers(workers, model, images, pairs) for workers in (1, 2))
    shared = Pairs(tuple(took / 2 for took in one), tuple(two))
    found.append(shared.row(f"with workers of one thread, 1 to 2, on {images} images", "half of one's", "two workers"))
    memory = Pairs(*((peak(side, model, images),) for side in ("plain", "ours")))
    return [*found, memory.row(f"memory of training, {images} images, {CLASSES[0]} classes", "plain PyTorch", "ours", unit="MiB")]


def rows_of_data(images: int = 40_000, pairs: int = PAIRS) -> list[Row]:
    """Return the rows of a set's index and plan, with `images` images and with four times as many."""
    with tempfile.TemporaryDirectory() as folder:
        cards = {n: large_set.make(str(Path(folder, str(n))), n) for n in (images, 4 * images)}

        def begin(n: int) -> None:
            storage.delete(storage.join(cards[n].folder, "train.index.arrow"))
            index = scan(cards[n].folder, cards[n], "train")
            rows_, _ = select(index, held_out=1000)
            Plan.of(index, rows_, micro_batch=64, batch=256, epochs=10, seed=0).order(0)

        begin(images)
        took = paired(lambda: 4 * seconds(lambda: begin(images)), lambda: seconds(lambda: begin(4 * images)), pairs)
    claim = f"the index of a set, which rows train, and an epoch's order grow with the images, {images:,} to {4 * images:,}"
    return [took.row(claim, "4 times the smaller one", "the larger one")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=UNTRAINED)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(peak_here(args.peak[0], args.peak[1], int(args.peak[2])))
        return
    show("growth", rows(args.model, pairs=args.pairs))
    show("data", rows_of_data(pairs=args.pairs))


if __name__ == "__main__":
    main()
