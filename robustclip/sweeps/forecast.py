"""What a sweep will take: its trainings, and the attacks on the models that come of them and on the undefended one."""

import itertools
from collections.abc import Iterator, Mapping

from ray.tune.search.sample import Domain

from robustclip.base.errors import UserError
from robustclip.base.forecast import Forecast
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
    """Return what a sweep will take on this cluster: what its trainings take, what its evaluation takes, each and in all.

    A drawn field, whose values nobody knows yet, is taken as the recipe has it, each draw a training.
    """
    concurrent, share = shares(space, workers, concurrent, samples, gpus)
    drawn = any(isinstance(values, Domain) for values in space.space.values())
    distinct = {job.key: job for job in jobs_of(space, config, out)}
    jobs = [job for job in distinct.values() if drawn or not finished(job)]
    trials, resolved = count(space, samples), resolve(protocol, out)
    train = training.together(jobs * (samples if drawn else 1), share, concurrent)
    models, evaluators = trials + 1, evaluator_actors(share, concurrent)  # the undefended one too
    attack = measured(attacks.of_later, config.model, models, resolved, evaluators, concurrent, share.gpus)
    facts = {"trials": f"{trials:,}", **beside(train.facts, attack.facts)}
    gpus, least = share.gpus * share.workers * concurrent, train.seconds + attack.at_least
    return Forecast(f"sweep: {space.name}", facts, train.seconds + attack.seconds, gpus, least)


def beside(*parts: Mapping[str, str]) -> dict[str, str]:
    """Return what several say of one thing in one line."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: "; ".join(part[name] for part in parts if name in part) for name in names}


def jobs_of(space: Space, config: Config, out: str) -> Iterator[Job]:
    """Yield the trainings of what a space does not draw: of its grid; a trial that cannot be is left to fail by itself."""
    given = {path: values for path, values in space.space.items() if not isinstance(values, Domain)}
    grids = {path: values["grid_search"] if isinstance(values, Mapping) else [values] for path, values in given.items()}
    for values in itertools.product(*grids.values()):
        try:
            yield prepare(trial_config(space, config, dict(zip(grids, values, strict=True))), out)
        except UserError:
            continue
