"""How long and how dear work is on 1 to 256 GPUs: the evaluator's queue and a sweep's trials simulated, from overheads measured here.

    python benchmarks/scaling.py [--passes 70] [--node-seconds 180]   # the two tables
    python benchmarks/scaling.py --check                              # 1, 2 and 3 nodes of this machine, predicted and measured
    python benchmarks/scaling.py --measure                            # the overheads again

FARE-13 with its AutoAttack under ten models, as published (1,000 images of a set attacked), and a sweep of 64 trials of ten epochs on
100,000 images. **A GPU's speed is assumed**, not measured: `--passes` images a second through a ViT-L/14 and back in fp32. The overheads
are of two CPU cores. `--check` runs the evaluator's own queue on cells that sleep as long as they are predicted to take: it holds the model
of the queue and of starting to what happens, not the speed.
"""

import argparse
import heapq
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from robustclip.attacks import APGD
from robustclip.attacks.classes import for_classes
from robustclip.data.sets import SETS
from robustclip.evaluation.forecast import passes
from robustclip.evaluation.presets import PRESETS
from robustclip.evaluation.protocols import CELL_IMAGES
from robustclip.evaluation.rules import Protocol

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CLEAN, LEFT = 0.7, 0.3  # the shares of images that are right, and that stay so: each of them meets all attacks


@dataclass(frozen=True)
class Overheads:
    """Seconds that are no work, on two CPU cores of 164 GFLOP/s, 2026-11-30."""

    actor: float = 3.2  # from asking for an evaluator until it has its first cell (`--measure`)
    cell: float = 0.007  # of handing out a cell (`--measure`)
    trial: float = 15.0  # from a training's start on Ray Train to its first step (`robustclip train smoke`)
    ending: float = 1.6  # from its last step to its result
    model: float = 10.0  # of loading another model: assumed, ViT-L/14 from a disk
    node: float = 180.0  # until a node that is asked for is there: assumed


@dataclass(frozen=True)
class Work:
    """A cell under a model: its seconds on one worker."""

    model: int
    seconds: float


def cells_of(protocol: Protocol, passes_a_second: float) -> list[float]:
    """Return the seconds of every cell of a published protocol under one model."""
    found = []
    for rule in protocol.rules:
        known = SETS[rule.name]
        there = known.images.get(rule.split) or max(known.images.values())
        images = min(protocol.n or there, there)
        attacked = min(images, protocol.attacked or images)
        classes = rule.classes or known.classes
        each = [
            sum(passes(attack, classes, ball))
            for ball in protocol.balls()
            for attack in for_classes(protocol.attacks_on(rule.name), classes).values()
            if attack is not None
        ]
        dear = CLEAN * (LEFT * sum(each) + (1 - LEFT) * each[0]) / 2  # a pass there and back is one of `passes_a_second`
        for count, cost in ((attacked, dear + 0.5), (images - attacked, 0.5)):
            found += [min(CELL_IMAGES, count - first) * cost / passes_a_second for first in range(0, int(count), CELL_IMAGES)]
    return found


@dataclass(frozen=True)
class Run:
    """How a piece of work went: the seconds until its end, and those for which GPUs were held."""

    wall: float
    held: float


def evaluate(work: Sequence[Work], workers: int, costs: Overheads, arrive: Callable[[int], float]) -> Run:
    """Return how long the evaluator's queue takes: idle workers pull the next cell; a worker is let go when none waits."""
    begun = [arrive(worker) for worker in range(min(workers, len(work)))]
    free = [(start + costs.actor, worker, None) for worker, start in enumerate(begun)]
    heapq.heapify(free)
    for cell in work:
        now, worker, loaded = heapq.heappop(free)
        now += (costs.model if loaded != cell.model else 0.0) + costs.cell + cell.seconds
        heapq.heappush(free, (now, worker, cell.model))
    return Run(max(now for now, *_ in free), sum(now - begun[worker] for now, worker, _ in free))


def sweep(trials: int, training: float, cells: Sequence[float], gpus: int, costs: Overheads, arrive: Callable[[int], float]) -> Run:
    """Return how long a sweep takes whose trials each hold one GPU: they train, then evaluate their cells one after the other."""
    one = costs.trial + training + costs.actor + costs.model + sum(costs.cell + each for each in cells) + costs.ending
    begun = [arrive(place) for place in range(min(gpus, trials))]
    free = list(begun)
    heapq.heapify(free)
    for _ in range(trials):
        heapq.heappush(free, heapq.heappop(free) + one)
    end = max(free)
    return Run(end, sum(end - start for start in begun))


def table(title: str, simulate: Callable[[int], Run], bound: float, why: str) -> Iterable[str]:
    """Yield a table of GPUs, hours, GPU-hours and efficiency, and where it ends to help."""
    yield f"\n{title}\n\n| GPUs | hours | GPU-hours | of the best possible |\n| --- | --- | --- | --- |"
    one = simulate(1)
    for gpus in GPUS:
        run = simulate(gpus)
        yield f"| {gpus} | {run.wall / 3600:.2f} | {run.held / 3600:.1f} | {100 * one.wall / gpus / run.wall:.0f} % |"
    yield f"\nNo more than {bound:.0f} GPUs help: {why}."


def tables(passes_a_second: float, costs: Overheads) -> Iterable[str]:
    """Yield both tables."""
    protocol = PRESETS["fare-13"]
    cells = cells_of(protocol, passes_a_second)
    light = cells_of(
        replace(protocol, attacks=(APGD(50),), rules=tuple(replace(rule, skips=()) for rule in protocol.rules)), passes_a_second
    )
    work = [Work(model, seconds) for model in range(10) for seconds in cells]
    hours = sum(each.seconds for each in work) / 3600

    def nodes(worker: int) -> float:
        return 0.0 if worker == 0 else costs.node  # one is there, all others are asked for at once

    yield f"assumed: {passes_a_second:g} images a second there and back on a GPU; {CLEAN:.0%} right, {LEFT:.0%} left by all attacks"
    yield str(costs)
    longest = max(cells)
    yield from table(
        f"FARE-13, AutoAttack, ten models: {len(work):,} cells of up to {CELL_IMAGES} images, {hours:.0f} GPU-hours of work",
        lambda gpus: evaluate(work, gpus, costs, nodes),
        len([each for each in work if each.seconds > longest / 10]),
        f"every attacked cell has one of its own then, and the longest takes {longest / 60:.0f} min",
    )
    training = 10 * 100_000 * 4 / passes_a_second  # TeCoA: two steps of attack and the update are about four passes
    yield from table(
        f"A sweep of 64 trials, {training / 3600:.1f} h of training each, then FARE-13's sets under APGD-CE-50 at the same eps",
        lambda gpus: sweep(64, training, light, gpus, costs, nodes),
        64,
        "a trial trains on one",
    )


# --- overheads and the check ----------------------------------------------------------------------------------------------------------


class Sleeper:
    """An evaluator whose cells sleep."""

    def __init__(self) -> None:
        from robustclip.evaluation import evaluator  # noqa: F401 - the imports of a real one

    def run(self, cell: Any, model: str) -> None:
        time.sleep(cell.seconds)


def queue(seconds: Sequence[float], workers: int) -> float:
    """Return the seconds that the evaluator's own queue takes for cells that sleep, on actors of one CPU each."""
    import ray

    from robustclip.evaluation.evaluator import _share_out

    cells = [SimpleNamespace(key=str(i), seconds=each, dataset="sleep", model="sleep") for i, each in enumerate(seconds)]
    wanted: Any = SimpleNamespace(missing=cells, name_of={cell.key: "sleep" for cell in cells}, shares=False)
    started = time.monotonic()
    _share_out(wanted, lambda: ray.remote(num_cpus=1)(Sleeper).remote(), workers, lambda done: None)
    return time.monotonic() - started


def on_nodes(nodes: int, work: Callable[[], float]) -> float:
    """Return what some work comes to on a cluster of so many nodes of one CPU each."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        return work()
    finally:
        ray.shutdown()
        cluster.shutdown()


def measured() -> Overheads:
    """Return the overheads of an evaluator's start and of a cell, measured on one node; the others as they are."""
    first = on_nodes(1, lambda: queue([0.0], 1))
    many = on_nodes(1, lambda: queue([0.0] * 201, 1))
    return replace(Overheads(), actor=first, cell=(many - first) / 200, model=0.0, node=0.0)


def check() -> Iterable[str]:
    """Yield 1, 2 and 3 nodes predicted and measured, for cells whose times spread as those of an attack do."""
    draw, costs = random.Random(0), measured()
    seconds = [draw.lognormvariate(0.0, 0.8) for _ in range(60)]
    yield f"measured on one node: {costs.actor:.1f} s until an evaluator's first cell is done, {1000 * costs.cell:.0f} ms a cell"
    yield "\n| nodes | predicted s | measured s | off |\n| --- | --- | --- | --- |"
    for nodes in (1, 2, 3):
        said = evaluate([Work(0, each) for each in seconds], nodes, costs, lambda worker: 0.0).wall
        took = on_nodes(nodes, lambda n=nodes: queue(seconds, n))  # type: ignore[misc]
        yield f"| {nodes} | {said:.1f} | {took:.1f} | {100 * (said / took - 1):+.0f} % |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=float, default=70.0, help="images a second of a GPU, there and back (default: %(default)s)")
    parser.add_argument("--node-seconds", type=float, default=Overheads.node, help="until a node is there (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="1, 2 and 3 nodes of this machine, predicted and measured")
    parser.add_argument("--measure", action="store_true", help="measure an evaluator's start and a cell's overhead")
    args = parser.parse_args()
    lines = (
        check() if args.check else [str(measured())] if args.measure else tables(args.passes, replace(Overheads(), node=args.node_seconds))
    )
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
