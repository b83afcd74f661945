"""What a training run will take, from some of its own micro-batches, measured: the attack, the losses, the step, the validation."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from itertools import islice
from statistics import mean

import torch
from torch import Tensor, nn

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.forecast import Forecast, amount, duration, held, memory, number, span, timed
from robustclip.base.threads import threads
from robustclip.base.values import key
from robustclip.data.plan import read_unit
from robustclip.runtime.cluster import Share, divide, fitting_trials, measured
from robustclip.runtime.gpus import Footprint, begin, taken
from robustclip.training.job import Job
from robustclip.training.learner import Learner

UNITS = 3  # micro-batches that are measured, after one that warms up
ENOUGH = 10.0  # seconds after which one is enough
KINDS = 4  # of training that are measured; others take what these take on average


@dataclass
class Measured:
    """Seconds of a micro-batch, a step's end and a validated image; passes of the image tower per image; bytes: peak memory, weights."""

    unit: float = 0.0
    step: float = 0.0
    image: float = 0.0
    forwards: float = 0.0
    backwards: float = 0.0
    memory: float = 0.0
    weights: float = 0.0


def forecast(job: Job, share: Share, found: Measured | None = None) -> Forecast:
    """Return what a job will take on its share of this machine, without Ray's start: by what was `found` of one like it, or is measured."""
    found = found or measure(job, share)
    plan, config = job.plan, job.config
    facts = {
        "images": f"{len(plan):,} of {job.card.name}, {number(config.optim.epochs, 'epoch')}, {len(job.val_rows):,} held out",
        "steps": f"{plan.steps:,} of {plan.batch} images, {plan.micro_batch} at a time",
        "passes": f"{found.forwards:g} forward and {found.backwards:g} backward of the image tower per image and step",
        "measured": f"{found.unit:.3g} s a micro-batch, {found.step:.3g} s a step besides, on {places(share)}",
        "memory": memory(found.memory, "a worker", share.workers),
        "bytes": f"{amount(read_bytes(job))} read, {amount(found.weights)} written as the checkpoint",
    }
    return Forecast(f"training: {job.card.name}, {config.model}", facts, seconds_of(job, share, found), gpus=share.gpus * share.workers)


def seconds_of(job: Job, share: Share, found: Measured) -> float:
    """Return the seconds of a job on its share: of its steps, and of a validation after every epoch."""
    step = job.plan.units_per_step // share.workers * found.unit + found.step
    return job.plan.steps * step + job.config.optim.epochs * job.config.validation.images * found.image


def places(share: Share) -> str:
    """Return in words what a job runs on."""
    return number(share.workers, "GPU") if share.gpus else f"{number(share.workers, 'worker')} with {number(share.threads, 'thread')}"


def side_by_side(jobs: Collection[Job]) -> Forecast:
    """Return what some trainings will take, as many at once as fit."""
    at_once = fitting_trials(len(jobs), 1)
    return together(jobs, divide(at_once, 1), at_once)


def together(jobs: Collection[Job], share: Share, at_once: int) -> Forecast:
    """Return what some trainings will take, each and in all, so many at once, each on such a share."""
    if not jobs:
        return Forecast("trainings", {"trainings": "0, all are there"}, 0.0)
    kinds = {kind(job): job for job in jobs}
    found = {name: measured(measure, job, share) for name, job in sorted(kinds.items())[:KINDS]}
    usual = average(found.values())
    takes = [found.get(kind(job), usual) for job in jobs]
    seconds = [seconds_of(job, share, each) for job, each in zip(jobs, takes, strict=True)]
    steps, shown = [job.plan.steps for job in jobs], [job.plan.steps * job.plan.batch for job in jobs]
    read, written = [read_bytes(job) for job in jobs], [each.weights for each in takes]
    forwards = sum(images * each.forwards for images, each in zip(shown, takes, strict=True))
    backwards = sum(images * each.backwards for images, each in zip(shown, takes, strict=True))

    def once(name: str) -> str:
        return span([getattr(each, name) for each in found.values()], "{:.3g}".format)

    facts = {
        "trainings": f"{len(jobs)}, {at_once} at a time: about {duration(sum(seconds) / at_once)}"
        + (f", {len(found)} of {len(kinds)} kinds measured" if len(kinds) > len(found) else ""),
        "a training": f"about {span(seconds, duration)}",
        "images": f"{span([len(job.plan) for job in jobs])} a training, {sum(shown):,} shown in all",
        "steps": f"{span(steps)} a training, {sum(steps):,} in all",
        "passes": f"{once('forwards')} forward and {once('backwards')} backward of the image tower per image and step, {forwards:,.0f} and "
        f"{backwards:,.0f} in all",
        "measured": f"{once('unit')} s a micro-batch, {once('step')} s a step besides, on {places(share)}",
        "memory": memory(max(each.memory for each in found.values()), "a worker", at_once * share.workers),
        "bytes": f"{span(read, amount)} read and {span(written, amount)} written as the checkpoint by a training, {amount(sum(read))} and "
        f"{amount(sum(written))} in all",
    }
    return Forecast("trainings", facts, sum(seconds) / at_once, gpus=share.gpus * share.workers * at_once)


def average(found: Collection[Measured]) -> Measured:
    """Return what trainings take on average."""
    return Measured(*(mean(values) for values in zip(*map(astuple, found), strict=True)))


def kind(job: Job) -> str:
    """Return what decides how long a micro-batch of a job takes."""
    config, optim = job.config, job.config.optim
    parts = (config.model, config.defense, config.trainable, config.attack, optim.batch, optim.micro_batch, config.data.augment)
    return key(*parts, job.pixels_a_side, len(job.card.class_names))


def read_bytes(job: Job) -> float:
    """Return the bytes of the training images, as their shards hold them, in all epochs."""
    return job.config.optim.epochs * sum(storage.sizes(job.index.files)) * len(job.plan) / len(job.index)


def measure(job: Job, share: Share) -> Measured:
    """Take some micro-batches of the job's first step and its end, on a model of its own, as a worker of this share would."""
    with threads(share.threads):
        return _measure(job, share.workers)


def footprint(job: Job) -> Footprint:
    """Return what a worker of a job holds on a GPU at most: weights, optimiser, a micro-batch's attack and gradient, a validation."""
    if not torch.cuda.is_available():
        return Footprint()
    measure(job, Share(1, 1.0, 1.0))
    return taken()


def _measure(job: Job, workers: int) -> Measured:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    learner = Learner(job.config, models.load(job.config.model), job.card.class_names, job.card.templates, job.plan.steps, device)
    learner.step = min(learner.head_steps, job.plan.steps - 1)  # where the whole model learns
    found = Measured(weights=sum(tensor.numel() * 4 for tensor in learner.student.clip.state_dict().values()))
    begin()
    items = islice(job.plan.items(), 1 + min(UNITS, job.plan.units_per_step // workers))
    spent: list[float] = []
    for item in items:
        unit = read_unit(job.plan, item, job.size, job.config.data.resize)
        ids = [str(key) for key in unit["key"].tolist()]
        with counted(learner.student.clip.visual, found):  # type: ignore[arg-type]
            spent.append(timed(partial(learner.accumulate, unit["pixels"], torch.as_tensor(unit["label"]), ids)))
        if sum(spent) > ENOUGH:
            break
    found.unit = min(spent[1:] or spent)
    with counted(learner.student.clip.visual, found):  # type: ignore[arg-type]
        end = timed(learner.update)
    if learner.pairs is not None:  # the loss of a whole step is taken at its end
        found.unit += end / len(spent)
    else:
        found.step = end
    found.forwards, found.backwards = (round(n / (len(spent) * job.plan.micro_batch)) for n in (found.forwards, found.backwards))
    images, labels, ids = job.validation_images(device)
    if n := min(len(ids), job.plan.micro_batch):
        found.image = timed(lambda: learner.validate(images[:n], labels[:n], ids[:n])) / n
    found.memory = held()
    return found


@contextmanager
def counted(tower: nn.Module, found: Measured) -> Iterator[None]:
    """Count the images that go through a tower, and those whose gradient comes back."""

    def back(gradient: Tensor) -> None:
        found.backwards += len(gradient)

    def seen(module: nn.Module, given: object, features: object) -> None:
        first = features[0] if isinstance(features, tuple) else features
        assert isinstance(first, Tensor)
        found.forwards += len(first)
        if first.requires_grad:
            first.register_hook(back)

    hook = tower.register_forward_hook(seen)
    try:
        yield
    finally:
        hook.remove()
