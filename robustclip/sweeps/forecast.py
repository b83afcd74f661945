"""What a sweep will take: its trainings, and the attacks on the models that come of them and on the undefended one."""

import itertools
from collections.abc import Iterator

from robustclip.base.errors import UserError
from robustclip.base.forecast import Forecast, duration, number
from robustclip.evaluation import forecast as attacks
from robustclip.evaluation.protocols import Protocol, resolve
from robustclip.runtime.cluster import measured
from robustclip.runtime.gpus import Footprint, largest
from robustclip.sweeps.spaces import EVALUATED, Space, count, trial_config
from robustclip.sweeps.tuning import evaluator_actors, shares
from robustclip.training import forecast as training
from robustclip.training.config import Config
from robustclip.training.fit import finished
from robustclip.training.job import Job, prepare


def footprint(space: Space, config: Config, protocol: Protocol, out: str) -> Footprint:
    """Return what a trial holds on a GPU at most, measured in every kind of its trainings and in the evaluation of what they start from.

    Nothing where a space evaluates more than what its trainings make: a test-time defence holds more, and takes a whole GPU.
    """
    if set(EVALUATED) & set(space.space):
        return Footprint()
    kinds = {training.kind(job): job for job in jobs_of(space, config, out)}
    found = [measured(training.footprint, job) for job in kinds.values()]
    return largest([*found, measured(attacks.footprint, [config.model], resolve(protocol, out))])


def forecast(
    space: Space, config: Config, protocol: Protocol, out: str, workers: int, concurrent: int | None, samples: int, gpus: float = 1.0
) -> Forecast:
    """Return what a sweep will take on this cluster; a drawn field, whose value nobody knows yet, is taken as the recipe has it."""
    concurrent, share = shares(space, workers, concurrent, samples, gpus)
    jobs = {job.key: job for job in jobs_of(space, config, out) if not finished(job)}
    seconds, kinds = training.seconds_of(jobs.values(), share)
    trials, resolved = count(space, samples), resolve(protocol, out)
    cost, work = measured(attacks.measure, config.model, resolved), attacks.Work()
    for cell in resolved.cells(config.model, ""):
        work.add(cell, resolved, cost)
    for name in resolved.sets:
        work.read(name, resolved, cost)
    actors = concurrent * evaluator_actors(share, concurrent)
    most, least = ((trials + 1) * each / actors for each in (work.most, work.least))
    train = sum(seconds) / concurrent
    facts = {
        "trainings": f"{len(jobs)} for {number(trials, 'trial')}, {concurrent} at a time: about {duration(train)}"
        + (f", {kinds} kinds measured" if len({training.kind(job) for job in jobs.values()}) > kinds else ""),
        "evaluation": f"{trials + 1} models, {(trials + 1) * work.images:,} images under {protocol.name}, {number(actors, 'evaluator')}: "
        f"about {duration(least)} to {duration(most)}",
        "passes": f"at most {(trials + 1) * work.shown:,} images through a model in the evaluation",
    }
    return Forecast(f"sweep: {space.name}", facts, train + most, share.gpus * share.workers * concurrent, train + least)


def jobs_of(space: Space, config: Config, out: str) -> Iterator[Job]:
    """Yield the trainings of a space's grid; a trial that cannot be is left to fail by itself."""
    grids = {path: values["grid_search"] for path, values in space.space.items() if "grid_search" in values}
    for values in itertools.product(*grids.values()):
        try:
            yield prepare(trial_config(space, config, dict(zip(grids, values, strict=True))), out)
        except UserError:
            continue
