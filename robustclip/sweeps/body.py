"""What a trial of a sweep does, in its own light process: `fit(override(recipe, sample))`, then `evaluate`."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import torch
from ray import tune

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.values import from_json, key, override
from robustclip.evaluation.evaluator import evaluate
from robustclip.evaluation.progress import Progress
from robustclip.evaluation.protocols import Protocol, Resolved, resolve
from robustclip.names import INTERPOLATE, written
from robustclip.records.summary import cost, set_metrics
from robustclip.runtime.cluster import Share, use_threads
from robustclip.sweeps.spaces import EVALUATED, INTERPOLATION, TEST_TIME, Space, trial_config
from robustclip.test_time import TAPT, PromptAlign
from robustclip.training import proxy
from robustclip.training.config import Config
from robustclip.training.fit import fit
from robustclip.training.job import Job, forget, prepare
from robustclip.training.statistics import Images, statistics


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
    name, metrics = fitted["checkpoint"], measured(fitted)
    if set(sample) & set(EVALUATED):
        name = evaluated(sample, name, job, settings.share)
        metrics |= validated(name, job, settings.share)
    trained = time.monotonic()

    def progress(done: Progress) -> None:
        tune.report({**metrics, "epoch": config.optim.epochs, "cells": f"{done.done}/{done.total}"})

    resolved = resolve(settings.protocol, settings.out)
    share = settings.share
    table = evaluate([name], resolved, settings.out, actors=settings.actors, cpus=share.cpus, gpus=share.gpus, on_progress=progress)
    seconds = {"seconds/training": trained - started, "seconds/evaluation": time.monotonic() - trained}
    tune.report(final(job, fitted, name, metrics | seconds, table, resolved))


def measured(fitted: Mapping[str, Any]) -> dict[str, float]:
    """Return what a training measured on its held-out images."""
    return {name: value for name, value in fitted["metrics"].items() if name != "step"}


def final(
    job: Job, fitted: Mapping[str, Any], name: str, metrics: Mapping[str, float], table: pa.Table, resolved: Resolved
) -> dict[str, Any]:
    """Return the last report of a trial, which carries everything: one that is found finished on a re-run reports nothing else."""
    tested = set_metrics(table, resolved.describe()) | cost(table)
    about = {"run": fitted, "model": name, "inputs": [asdict(each) for each in (*job.inputs(), *resolved.inputs())]}
    return {**metrics, **tested, **about, "epoch": job.config.optim.epochs, "final": True}


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
