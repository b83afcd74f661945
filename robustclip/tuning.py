"""Sweeps on Ray Tune: a trial is `fit(override(recipe, sample))`, then `evaluate`; chosen on val/, shown on test/."""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from robustclip import storage
from robustclip.cluster import Share, connect, divide, fitting_trials, total, warn_of_local_results
from robustclip.config import Config, flatten, from_json, key, override, to_json
from robustclip.errors import UserError
from robustclip.evaluation import Progress, evaluate
from robustclip.protocols import Protocol, resolve
from robustclip.results import cost, set_metrics
from robustclip.spaces import Space, check_space, count
from robustclip.tracking import Tracker
from robustclip.training import fit, forget, prepare

log = logging.getLogger(__name__)

DRIVER = {"node:__internal_head__": 0.001}  # trial drivers sit on the head and hold no CPU: drivers that hold CPUs deadlock their workers


@dataclass
class Trial:
    """One trial as it ended: the sampled fields, its key, and its result, or why it has none: a failure, or a stop at an epoch."""

    sample: dict[str, Any]
    key: str
    result: dict[str, Any] | None = None
    failure: str | None = None
    stopped: float | None = None

    @property
    def label(self) -> str:
        """What tables call it: the last part of each sampled path with its value."""
        values = {path.rsplit(".", 1)[-1]: f"{value:g}" if isinstance(value, float) else str(value) for path, value in self.sample.items()}
        return "train " + ", ".join(f"{name} {value}" for name, value in values.items())


@dataclass(frozen=True)
class Settings:
    """What every trial of a sweep shares, as plain values: it travels to the trial's process."""

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
    config = override(from_json(Config, settings.config), sample)
    started = time.monotonic()
    job = prepare(config, settings.out)
    if settings.fresh:
        forget(job)
    fitted = fit(job, settings.share, [forward_epochs()])
    trained = time.monotonic()
    metrics = {name: value for name, value in fitted["metrics"].items() if name != "step"}

    def progress(done: Progress) -> None:
        tune.report({**metrics, "epoch": config.optim.epochs, "cells": f"{done.done}/{done.total}"})

    resolved = resolve(settings.protocol, settings.out)
    share = settings.share
    table = evaluate(
        [fitted["checkpoint"]], resolved, settings.out, actors=settings.actors, cpus=share.cpus, gpus=share.gpus, on_progress=progress
    )
    seconds = {"seconds/training": trained - started, "seconds/evaluation": time.monotonic() - trained}
    tested = set_metrics(table, resolved) | cost(table)
    # The last report carries everything: a trial that is found finished on a re-run reports nothing else.
    tune.report({**metrics, **tested, **seconds, "epoch": config.optim.epochs, "final": True, "run": fitted})


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


class SweepCallback(tune.Callback):
    """Tune's callback in the driver: MLflow's only writer, and what says on the log how the trials fare.

    `when_slot_is_free` is called once, when the first trial ends after all `expected` ones have started.
    """

    def __init__(self, tracker: Tracker, parent: str, base: Config, expected: int, when_slot_is_free: Callable[[], None]):
        self.tracker, self.parent, self.base = tracker, parent, base
        self.expected, self.when_slot_is_free = expected, when_slot_is_free
        self.trials: dict[str, Trial] = {}
        self.runs: dict[str, str] = {}
        self.free = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "when_slot_is_free": None}  # Tune pickles its callbacks; this one may hold a thread

    def slot_is_free(self) -> None:
        """Say once that no trial waits for the place of one that ended."""
        if len(self.trials) == self.expected and not self.free:
            self.free = True
            self.when_slot_is_free()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        mine = self.trials.setdefault(trial.trial_id, Trial(dict(trial.config), key(self.base, dict(trial.config))))
        # Not override(): a value it refuses is the trial's failure, and must not end the sweep from inside a callback.
        self.runs[trial.trial_id] = self.tracker.run(mine.key, mine.label, flatten(self.base) | mine.sample, self.parent)
        log.info("trial %s: started", mine.label)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        mine, run_id = self.trials[trial.trial_id], self.runs[trial.trial_id]
        if "failure" in result:
            mine.failure = result["failure"]
            self.tracker.tag(run_id, failure=mine.failure)
            log.error("trial %s failed: %s", mine.label, mine.failure)
        elif result.get("final"):
            mine.result = result
            log_final(self.tracker, run_id, result)
            log.info("trial %s: finished", mine.label)
        elif "curve" in result:
            self.tracker.new_steps(run_id, result["curve"])
            log.info(
                "trial %s: epoch %d of %d, loss %.2f, held out: clean %.0f %%, robust %.0f %%",
                mine.label,
                result["epoch"],
                self.base.optim.epochs,
                result["loss"],
                100 * result["val/clean"],
                100 * result["val/robust"],
            )
        else:
            log.info("trial %s: evaluated %s cells", mine.label, result.get("cells"))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        mine = self.trials[trial.trial_id]
        self.tracker.finish(self.runs[trial.trial_id], failed=mine.failure is not None)
        if not (mine.result or mine.failure):
            mine.stopped = trial.last_result.get("epoch")
            log.info("trial %s: stopped early after epoch %s", mine.label, mine.stopped)
        self.slot_is_free()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        mine = self.trials[trial.trial_id]
        mine.failure = reason(trial)
        log.error("trial %s failed: %s", mine.label, mine.failure)
        self.tracker.tag(self.runs[trial.trial_id], failure=mine.failure)
        self.tracker.finish(self.runs[trial.trial_id], failed=True)


def reason(trial: Any) -> str:
    """Return the last line of a crashed trial's error."""
    text = Path(trial.error_file).read_text() if trial.error_file and Path(trial.error_file).is_file() else "no reason was given"
    return [line.strip() for line in text.splitlines() if line.strip()][-1]


def log_final(tracker: Tracker, run_id: str, result: Mapping[str, Any]) -> None:
    """Log a trial's test metrics and where its checkpoint lies, once: a re-run finds them there."""
    done = key({name: value for name, value in result.items() if name.startswith(("val/", "test/"))})
    if tracker.logged(run_id) == done:
        return
    run = result["run"]
    tracker.new_steps(run_id, run["history"])
    summary = {name: value for name, value in result.items() if name.startswith(("test/", "seconds/", "cost/"))}
    tracker.metrics(run_id, [summary | {"step": run["metrics"]["step"]}])
    tracker.tag(run_id, checkpoint=run["checkpoint"], weights_sha256=run["sha256"], logged=done)
    tracker.artefacts(run_id, {"result.json": json.dumps(run, indent=1).encode()})


@dataclass
class Outcome:
    """A finished sweep: its trials in the order of the space, the chosen one, and its MLflow parent."""

    trials: list[Trial]
    chosen: Trial | None
    parent: str
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
    asha: bool = False,
    fresh: bool = False,
) -> Outcome:
    """Run every trial of a space, as many at once as fit, and return how they ended; finished work is found, not done again."""
    check_space(space, config)
    find_data(config, protocol, out)
    connect()  # only now, not beside it: it sets environment variables, and Arrow's first look at one from another thread crashed
    warn_of_local_results(out)
    log.info("results go to %s; %g CPUs, %g GPUs", out, *total())
    concurrent = concurrent or fitting_trials(count(space, samples), workers)
    share = divide(concurrent, workers)
    settings = Settings(to_json(config), protocol, out, share, evaluator_actors(share, concurrent), fresh)
    parent = tracker.run(
        key(config, space.name, str(space.space), protocol.name), f"sweep {space.name}", {"space": space.name, "question": space.question}
    )
    with ThreadPoolExecutor(1) as beside:
        baseline: list[Future[Any]] = []

        def evaluate_baseline() -> None:
            """Attack the undefended model while the last trials still run: they leave a slot free, and soon the others too."""
            work = partial(evaluate, [config.model], resolve(protocol, out), out, actors=concurrent, cpus=share.cpus, gpus=share.gpus)
            baseline.append(beside.submit(work))

        callback = SweepCallback(tracker, parent, config, count(space, samples), evaluate_baseline)
        tune_trials(space, config, settings, callback, concurrent=concurrent, samples=samples, asha=asha)
        for future in baseline:
            future.result()
    trials = list(callback.trials.values())
    scores = {i: trial.result[space.metric] for i, trial in enumerate(trials) if trial.result}
    best = trials[(max if space.mode == "max" else min)(scores, key=lambda i: scores[i])] if scores else None
    return Outcome(trials, best, parent, concurrent, [trial for trial in trials if trial.failure])


def find_data(config: Config, protocol: Protocol, out: str) -> None:
    """Find or render what the trials need: once, not by every trial at the same time; what cannot work fails here."""
    prepare(config, out)
    resolve(protocol, out)


def tune_trials(space: Space, config: Config, settings: Settings, callback: Any, *, concurrent: int, samples: int, asha: bool) -> None:
    """Let Tune run the trials of a space; what becomes of them, the callback knows."""
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial's report of its failure has no metric
    # Tune looks for the result files of its own loggers, which are off.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
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
            scheduler=ASHAScheduler(time_attr="epoch", max_t=config.optim.epochs, stop_last_trials=False) if asha else None,
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
        return max(1, int(gpus / concurrent))
    return max(1, int((cpus if concurrent == 1 else cpus - 1) / concurrent / share.cpus))
