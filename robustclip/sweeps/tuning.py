"""Sweeps on Ray Tune: a trial is `fit(override(recipe, sample))`, then `evaluate`; chosen on val/, shown on test/."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from ray import tune

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.ranges import COUNT, check
from robustclip.base.values import from_json, key, override, to_json
from robustclip.evaluation.evaluator import evaluate
from robustclip.evaluation.progress import Progress
from robustclip.evaluation.protocols import Protocol, resolve
from robustclip.names import INTERPOLATE, written
from robustclip.records.summary import cost, set_metrics
from robustclip.runtime.cluster import Share, connect, divide, fitting_trials, total, use_threads, warn_of_local_results
from robustclip.runtime.gpus import places
from robustclip.runtime.tracking import Run, Tracker
from robustclip.sweeps.spaces import EVALUATED, INTERPOLATION, TEST_TIME, Space, check_space, count, starts, trial_config
from robustclip.sweeps.trials import SweepCallback, Trial
from robustclip.test_time import TAPT, PromptAlign
from robustclip.training import proxy
from robustclip.training.config import Config
from robustclip.training.fit import fit
from robustclip.training.job import Job, forget, prepare, tell_names
from robustclip.training.statistics import Images, statistics

log = logging.getLogger(__name__)

DRIVER = {"node:__internal_head__": 0.001}  # trial drivers sit on the head and hold no CPU: drivers that hold CPUs deadlock their workers


@dataclass(frozen=True)
class Settings:
    """What every trial of a sweep shares, as plain values: it travels to the trial's process."""

    space: Space
    config: Any
    protocol: Protocol
    out: str
    share: Share
    actors: int
    fresh: bool


def run_trial(sample: dict[str, Any], settings: Settings) -> None:
    """Run a trial in its own light process, which only starts others; what a user must mend is reported: a retry would not mend it."""
    try:
        train_and_evaluate(sample, settings)
    except UserError as error:
        tune.report({"failure": str(error)})


def train_and_evaluate(sample: dict[str, Any], settings: Settings) -> None:
    """Do the work of a trial: `fit(override(recipe, sample))`, then `evaluate`, reporting to Tune on the way."""
    config = trial_config(settings.space, from_json(Config, settings.config), sample)
    started = time.monotonic()
    job = prepare(config, settings.out)
    firsts = [settings.space.grid(each)[0] for each in EVALUATED if each in sample]
    if settings.fresh and [sample[each] for each in EVALUATED if each in sample] == firsts:  # the others find what the first has trained
        forget(job)
    fitted = fit(job, settings.share, [forward_epochs()], lambda: tune.report({"waiting": True}))
    name, metrics = fitted["checkpoint"], {name: value for name, value in fitted["metrics"].items() if name != "step"}
    if set(sample) & set(EVALUATED):
        name = evaluated(sample, name, job, settings.share)
        metrics |= validated(name, job, settings.share)
    trained = time.monotonic()

    def progress(done: Progress) -> None:
        tune.report({**metrics, "epoch": config.optim.epochs, "cells": f"{done.done}/{done.total}"})

    resolved = resolve(settings.protocol, settings.out)
    share = settings.share
    table = evaluate([name], resolved, settings.out, actors=settings.actors, cpus=share.cpus, gpus=share.gpus, on_progress=progress)
    inputs = [asdict(each) for each in (*job.inputs(), *resolved.inputs())]
    seconds = {"seconds/training": trained - started, "seconds/evaluation": time.monotonic() - trained}
    tested = set_metrics(table, resolved.describe()) | cost(table)
    # The last report carries everything: a trial that is found finished on a re-run reports nothing else.
    tune.report(
        {**metrics, **tested, **seconds, "epoch": config.optim.epochs, "final": True, "run": fitted, "model": name, "inputs": inputs}
    )


def evaluated(sample: dict[str, Any], checkpoint: str, job: Job, share: Share) -> str:
    """Return the name of what a trial evaluates of its checkpoint: an interpolation, or it under a test-time defence.

    Statistics that the defence asks for and does not name are those of the checkpoint's own training images, made once.
    """
    name, file = written_of(sample, checkpoint, job)
    if file and not storage.exists(file):
        data = job.config.data
        images = Images(data.name, data.n, resize=data.resize, rendered=data.rendered, render_seed=data.render_seed)
        statistics(checkpoint, images, job.out, workers=1, cpus=share.cpus, gpus=share.gpus).write(file)
    return name


def written_of(sample: Mapping[str, Any], checkpoint: str, job: Job) -> tuple[str, str]:
    """Return the name of what a trial evaluates of its checkpoint, and the file of statistics that it must have first, "" for none."""
    if INTERPOLATION in sample:
        return f"{INTERPOLATE}{sample[INTERPOLATION]}:{checkpoint}", ""
    if TEST_TIME not in sample:
        return checkpoint, ""
    settings = sample[TEST_TIME]
    file = "adversarial" if isinstance(settings, TAPT) else "clean" if isinstance(settings, PromptAlign) else ""
    if not file or getattr(settings, file):
        return written(settings, checkpoint), ""
    path = storage.join(job.folder, "moments.safetensors")
    return written(override(settings, {file: path}), checkpoint), path


def validated(name: str, job: Job, share: Share) -> dict[str, float]:
    """Return val/ of what no training validated, on the job's held-out images; measured once, kept in its run."""
    import ray

    sha256 = models.identity(name)
    path = storage.join(job.folder, f"val-{key(sha256)}.json")
    if storage.exists(path):
        return storage.read_json(path)
    # "DEFAULT": inside a trial Ray would otherwise look for room in the trial's own placement group, which has none.
    task = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, scheduling_strategy="DEFAULT")(validate)
    try:
        values = ray.get(task.remote(name, sha256, job, share.threads))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, UserError) else error) from error
    storage.write_json(path, values)
    return values


def validate(name: str, sha256: str, job: Job, threads: int) -> dict[str, float]:
    """Measure a model of this identity on the held-out images of a job: the body of a Ray task."""
    use_threads(threads)
    device, config = "cuda" if torch.cuda.is_available() else "cpu", job.config
    model = models.load_exactly(name, sha256).to(device)
    classifier = model.classifier(job.card.class_names, config.templates or job.card.templates).to(device)
    return proxy.measure(config, classifier, *job.validation_images(device))


def forward_epochs() -> Any:
    """Return the Train callback that passes validated reports (ends of epochs) on to Tune, with the steps since the last one."""
    from ray.tune.integration.ray_train import TuneReportCallback

    class ForwardEpochs(TuneReportCallback):
        curve: list[dict[str, float]] = []  # noqa: RUF012 - one instance lives per controller

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            self.curve = [*self.curve, *metrics[0]["curve"]]
            if "val/robust" in metrics[0]:
                super().after_report(run_context, [metrics[0] | {"curve": self.curve}], checkpoint)
                self.curve = []

    return ForwardEpochs()


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
    parent = tracker.run(
        key(config, space.name, str(space.space), protocol.name), f"sweep {space.name}", {"space": space.name, "question": space.question}
    )
    tracker.watch(parent)
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
    trials = list(callback.trials.values())
    return Outcome(trials, *choose(space, trials), parent, concurrent, [trial for trial in trials if trial.failure])


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
