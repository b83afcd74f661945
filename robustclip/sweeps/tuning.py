"""Sweeps on Ray Tune: its trials side by side, or found where they are finished; chosen on val/, shown on test/."""

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ray import tune

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.ranges import COUNT, check
from robustclip.base.values import key, to_json
from robustclip.evaluation.complete import attacked
from robustclip.evaluation.evaluator import evaluate
from robustclip.evaluation.protocols import Protocol, resolve
from robustclip.runtime.cluster import Share, connect, divide, fitting_trials, total, warn_of_local_results
from robustclip.runtime.gpus import places
from robustclip.runtime.tracking import Run, Tracker
from robustclip.sweeps.body import Settings, final, measured, run_trial
from robustclip.sweeps.spaces import EVALUATED, Space, check_space, count, grid, starts, trial_config
from robustclip.sweeps.trials import SweepCallback, Trial
from robustclip.training import proxy
from robustclip.training.config import Config
from robustclip.training.fit import finished, result_file
from robustclip.training.job import prepare, tell_names

log = logging.getLogger(__name__)

DRIVER = {"node:__internal_head__": 0.001}  # trial drivers sit on the head and hold no CPU: drivers that hold CPUs deadlock their workers


@dataclass
class Outcome:
    """A finished sweep: its trials in the order of the space, the chosen one, the metric that chose it, and its MLflow parent."""

    trials: list[Trial]
    chosen: Trial | None
    chosen_by: str
    parent: Run
    concurrent: int
    failures: list[Trial] = field(default_factory=list)


def sweep(
    space: Space,
    config: Config,
    protocol: Protocol,
    out: str,
    tracker: Tracker,
    *,
    workers: int = 1,
    concurrent: int | None = None,
    samples: int = 1,
    gpus: float = 1.0,
    asha: bool = False,
    fresh: bool = False,
) -> Outcome:
    """Run every trial of a space, as many at once as fit, and return how they ended; finished work is found, not done again.

    Where there are GPUs each worker, and each evaluator, takes `gpus` of one.
    What is EVALUATED of one training is so one at a time: the first trial trains, the others find what it has trained.
    """
    given = {"workers": workers, "concurrent": concurrent, "samples": samples}
    check(given, dict.fromkeys(given, COUNT))
    check_space(space, config)
    connect()
    # After it, not beside it: it sets environment variables, and Arrow's first look at one from another thread crashed. What Ray starts
    # comes up on another core meanwhile.
    find_data(starts(space, config), protocol, out)
    warn_of_local_results(out)
    log.info("results go to %s; %g CPUs, %g GPUs", out, *total())
    concurrent, share = shares(space, workers, concurrent, samples, gpus)
    settings = Settings(space, to_json(config), protocol, out, share, evaluator_actors(share, concurrent), fresh)
    parent = run_of(space, config, protocol, tracker)
    with ThreadPoolExecutor(1) as beside:
        baseline: list[Future[Any]] = []

        def evaluate_baseline() -> None:
            """Attack the undefended model while the last trials still run: they leave a slot free, and soon the others too."""
            work = partial(evaluate, [config.model], resolve(protocol, out), out, actors=concurrent, cpus=share.cpus, gpus=share.gpus)
            baseline.append(beside.submit(work))

        callback = SweepCallback(tracker, parent, space, config, count(space, samples), evaluate_baseline)
        tune_trials(space, config, settings, callback, concurrent=concurrent, samples=samples, asha=asha)
        for future in baseline:
            future.result()
    return outcome(callback, concurrent)


def trained(space: Space, config: Config, out: str, samples: int = 1) -> list[dict[str, Any]] | None:
    """Return what the trials of a sweep sample where every one has been trained; None where one has not, or where it is not known here.

    Not known is what a drawn field will be, or whether what is EVALUATED of a training has been measured.
    """
    if samples > 1 or set(EVALUATED) & set(space.space) or not storage.list_folders(storage.join(out, "runs")):
        return None
    sampled = grid(space)
    try:
        jobs = [prepare(trial_config(space, config, each), out) for each in sampled or ()]
    except UserError:
        return None
    return sampled if all(map(finished, jobs)) else None


def found(space: Space, config: Config, protocol: Protocol, out: str, tracker: Tracker, sampled: Sequence[dict[str, Any]]) -> Outcome:
    """Return a sweep whose trials, which have `sampled` this, are all trained: no Tune runs, only the attacks that are missing do."""
    find_data(starts(space, config), protocol, out)
    log.info("results go to %s", out)
    parent, resolved = run_of(space, config, protocol, tracker), resolve(protocol, out)
    callback = SweepCallback(tracker, parent, space, config, len(sampled), lambda: None)
    for number, sample in enumerate(map(dict, sampled)):
        trial, started = str(number), time.monotonic()
        callback.begin(trial, sample)
        job = prepare(trial_config(space, config, sample), out)
        fitted = storage.read_json(result_file(job))
        table = attacked([fitted["checkpoint"]], resolved, out, lambda done: log.info("%s", done))
        seconds = {"seconds/training": 0.0, "seconds/evaluation": time.monotonic() - started}
        callback.tell(trial, final(job, fitted, fitted["checkpoint"], measured(fitted) | seconds, table, resolved))
        callback.end(trial)
    return outcome(callback, 1)


def run_of(space: Space, config: Config, protocol: Protocol, tracker: Tracker) -> Run:
    """Return the MLflow run of a sweep, under which its trials' stand."""
    about = {"space": space.name, "question": space.question}
    run = tracker.run(key(config, space.name, str(space.space), protocol.name), f"sweep {space.name}", about)
    tracker.watch(run)
    return run


def outcome(callback: SweepCallback, concurrent: int) -> Outcome:
    """Return how a sweep ended by what its callback knows."""
    trials = list(callback.trials.values())
    failures = [trial for trial in trials if trial.failure]
    return Outcome(trials, *choose(callback.space, trials), callback.parent, concurrent, failures)


def shares(space: Space, workers: int, concurrent: int | None, samples: int, gpus: float = 1.0) -> tuple[int, Share]:
    """Return how many trials run at once, the `concurrent` ones or as many as fit, and what each of their workers gets, of a GPU `gpus`."""
    at_once = 1 if set(EVALUATED) & set(space.space) else concurrent or fitting_trials(count(space, samples), workers, gpus)
    return at_once, divide(at_once, workers, gpus)


def choose(space: Space, trials: Sequence[Trial]) -> tuple[Trial | None, str]:
    """Return the best finished trial and by which metric: the stronger attack on the same images, where the space asks for the proxy."""
    finished = {i: trial.result for i, trial in enumerate(trials) if trial.result}
    promoted = (space.metric, space.mode) == (proxy.PROXY, "max") and all(proxy.STRONG in result for result in finished.values())
    metric, best = proxy.STRONG if promoted else space.metric, max if space.mode == "max" else min
    return (trials[best(finished, key=lambda i: (finished[i][metric], finished[i][space.metric]))] if finished else None), metric


def find_data(configs: Sequence[Config], protocol: Protocol, out: str) -> None:
    """Find or render what the trials need: once, not by every trial at the same time; what cannot work fails here."""
    for config in configs:
        job = prepare(config, out)
        tell_names(config.model, job.card, config.templates)
    for test_set in resolve(protocol, out).sets.values():
        tell_names(configs[0].model, test_set.card)


def tune_trials(space: Space, config: Config, settings: Settings, callback: Any, *, concurrent: int, samples: int, asha: bool) -> None:
    """Let Tune run the trials of a space; what becomes of them, the callback knows."""
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial's report of its failure has no metric
    # Tune looks for the result files of its own loggers, which are off.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    epochs = max(start.optim.epochs for start in starts(space, config))
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, settings=settings), DRIVER),
        param_space=dict(space.space),
        tune_config=tune.TuneConfig(
            metric=space.metric,
            mode=space.mode,
            num_samples=samples,
            reuse_actors=True,  # a trial's process has imported torch for the next one
            # The same seed draws the same samples, so the same command finds the same runs. The limit must be given here:
            # TuneConfig's own is ignored for a given generator, and more trials than fit would wait for each other for ever.
            search_alg=BasicVariantGenerator(random_state=config.seed, constant_grid_search=True, max_concurrent=concurrent),
            scheduler=ASHAScheduler(time_attr="epoch", max_t=epochs, stop_last_trials=False) if asha else None,
        ),
        run_config=tune.RunConfig(
            name=f"sweep-{space.name}",
            storage_path=storage.join(settings.out, "ray"),
            callbacks=[callback],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=1),  # a lost driver process; the run itself goes on from its checkpoint
        ),
    )
    tuner.fit()


def evaluator_actors(share: Share, concurrent: int) -> int:
    """Return how many evaluator actors of one share a trial may run beside the other trials."""
    cpus, gpus = total()
    if share.gpus:
        return max(1, places(gpus, share.gpus) // concurrent)
    return max(1, int((cpus if concurrent == 1 else cpus - 1) / concurrent / share.cpus))
