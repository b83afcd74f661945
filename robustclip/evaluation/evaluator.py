"""The Ray-parallel evaluator: long-lived actors pull cells, write their records, and finished cells are never computed again."""

import logging
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.values import key
from robustclip.evaluation.protocols import PRECISION, Cell, Resolved, TestSet
from robustclip.evaluation.rewritings import Kept
from robustclip.evaluation.transfers import Transfers
from robustclip.models.model import Model
from robustclip.records import rows as records
from robustclip.runtime.cluster import use_threads

if TYPE_CHECKING:
    from torch import Tensor

    from robustclip.models.classifier import ZeroShotClassifier

log = logging.getLogger(__name__)

ATTEMPTS = 3  # of one cell before it is reported as failed: a poison cell must not loop
LATE = 5.0  # times as long as the slowest finished cell: then an idle worker computes the cell too, and the first of them counts


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is: of the `total` cells it must compute those done, the seconds that took, and the cells found finished."""

    done: int
    total: int
    seconds: float
    found: int

    def __str__(self) -> str:
        said = f"evaluated {self.done}/{self.total} cells"
        if self.done:
            return f"{said} ({self.seconds:.0f} s, about {self.seconds / self.done * (self.total - self.done):.0f} s left)"
        return f"{said}; {self.found} were found finished" if self.found else said


@dataclass
class Queue:
    """Cells still to do and how often each was tried; failures keep their reason and never stop the others."""

    todo: list[Cell]
    attempts: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def again(self, cell: Cell, reason: str) -> None:
        """Put a cell back after its worker failed, or give it up."""
        self.attempts[cell.key] = self.attempts.get(cell.key, 0) + 1
        if self.attempts[cell.key] < ATTEMPTS:
            self.todo.append(cell)
        else:
            self.failed[cell.key] = f"{cell.dataset} under {cell.model}: {reason}"


@dataclass(frozen=True)
class Running:
    """A cell on its worker, since when (monotonic seconds)."""

    worker: Any
    cell: Cell
    since: float


def late(running: Collection[Running], slowest: float, now: float) -> Cell | None:
    """Return the cell that runs longest if that is LATE times the slowest finished one and no second worker computes it yet."""
    times = Counter(each.cell.key for each in running)
    alone = [each for each in running if times[each.cell.key] == 1 and slowest and now - each.since > LATE * slowest]
    return min(alone, key=lambda each: each.since).cell if alone else None


class Worker:
    """An actor's body: computes cells one after another and keeps the model it loaded last."""

    def __init__(self, resolved: Resolved, out: str, threads: int, commit: str | None):
        use_threads(threads)
        self.resolved, self.out, self.threads, self.commit = resolved, out, threads, commit
        self.loaded: tuple[str, Model] | None = None

    def run(self, cell: Cell, model_name: str) -> str:
        """Compute one cell, write its records, return its key."""
        if self.loaded is None or self.loaded[0] != model_name:
            self.loaded = (model_name, models.load(model_name))
        rows = compute(self.loaded[1], cell, self.resolved, self.out)
        shared = provenance(cell, self.resolved) | {"threads": self.threads, "commit": self.commit}
        records.write(storage.join(self.out, "records"), cell.key, records.table([shared | row for row in rows]))
        return cell.key


def compute(model: Model, cell: Cell, resolved: Resolved, out: str | None = None) -> list[dict[str, Any]]:
    """Return the attack rows of a cell; what is made of prompts, and of images by grey-box attacks, is kept under `out` for other cells."""
    from robustclip.evaluation.cascade import run_cascade

    card = resolved.sets[cell.dataset].card
    for shard in shards_of(resolved.sets[cell.dataset], cell):
        check_bytes(storage.join(card.folder, shard["file"]), shard["sha256"])
    classifier, images, labels, ids = on_device(model, resolved, cell.dataset, cell.rows, out)
    if out is not None:
        classifier.rewritten = Kept(out, resolved.hash, {"model_sha256": cell.model_sha256, "dataset": cell.dataset})
    return run_cascade(classifier, images, labels, ids, resolved.protocol, cell.attacks)


def transfers_of(model: Model, plain: Model, classifier: Any, prompts_hash: str, device: str, out: str) -> Transfers | None:
    """Return where grey-box attacks on `plain` CLIP and on what a classifier stands on keep their images; None for several towers."""
    from robustclip.models.classifier import ZeroShotClassifier

    if not isinstance(getattr(classifier, "base", classifier), ZeroShotClassifier):
        return None
    seen = {"A0": _static(plain), "A1": _static(model)}
    return Transfers(storage.join(out, "transfers"), seen, (prompts_hash, PRECISION, library_versions(), device))


def _static(model: Model) -> str:
    """Return what names the classifiers of a model before they adapt: its tensors, its architecture and its kind of prompt."""
    return key(model.sha256, model.open_clip_config, model.card.get("trainable"))


def on_device(
    model: Model, resolved: Resolved, dataset: str, rows: np.ndarray, out: str | None = None
) -> "tuple[ZeroShotClassifier, Tensor, Tensor, list[str]]":
    """Return what is attacked on a GPU where there is one: the classifier under a set's prompts, images [N,3,H,W], labels [N] and ids."""
    from robustclip.models.classifier import Guides

    card = resolved.sets[dataset].card
    images, labels, ids = images_of(model, resolved, dataset, rows)
    classifier = model.classifier(card.class_names, card.templates).to(images.device)
    if resolved.protocol.guided:
        classifier.guides = Guides(*images_of(model, resolved, dataset, resolved.guides(dataset)))
    if resolved.protocol.oblivious:
        plain = models.origin(model)
        classifier.undefended = cache(lambda: models.undefended(plain, card.class_names, card.templates).to(images.device))
        if out is not None:
            classifier.transfers = transfers_of(model, plain, classifier, resolved.sets[dataset].prompts_hash, images.device.type, out)
    return classifier, images, labels, ids


def images_of(model: Model, resolved: Resolved, dataset: str, rows: np.ndarray) -> "tuple[Tensor, Tensor, list[str]]":
    """Return images [N,3,H,W] in [0,1] of a set as a model's classifier is shown them, their labels [N] and ids, on a GPU where one is."""
    import torch

    from robustclip.data.reading import to_images

    device = "cuda" if torch.cuda.is_available() else "cpu"
    ids, pixels, labels = resolved.read(dataset, rows, model.preprocess.size)
    return to_images(pixels, device), torch.as_tensor(labels).to(device), ids


def provenance(cell: Cell, resolved: Resolved) -> dict[str, Any]:
    """Return the columns that all rows of a cell share."""
    protocol, test_set = resolved.protocol, resolved.sets[cell.dataset]
    return {
        "protocol": protocol.name,
        "protocol_hash": resolved.hash,
        "cell_key": cell.key,
        "result_key": cell.result_key,
        "model": cell.model,
        "model_sha256": cell.model_sha256,
        "dataset": cell.dataset,
        "split": test_set.split,
        "shard_sha256": ",".join(shard["sha256"] for shard in shards_of(test_set, cell)),
        "level": protocol.level,
        "prompts_hash": test_set.prompts_hash,
        "precision": PRECISION,
        "versions": library_versions(),
    }


def shards_of(test_set: TestSet, cell: Cell) -> list[dict[str, Any]]:
    """Return what the card says of the shards a cell's images come from."""
    shards = test_set.card.shards[test_set.split]
    return [shards[int(i)] for i in sorted(set(test_set.index.file[cell.rows].tolist()))]


@cache  # a worker computes many cells of one shard
def check_bytes(path: str, sha256: str) -> None:
    """Raise UserError when a shard is not the file whose hash the records would name."""
    if storage.sha256_file(path) != sha256:
        raise UserError(
            f"{path} was changed or damaged since its set was made (its hash is another): prepare the set again, "
            "or delete the folder of an embedded one, which is then rendered again"
        )


@cache
def library_versions() -> str:
    """Return the versions that could move a number, as one string."""
    names = ("robustclip", "torch", "open_clip_torch", "torchattacks", "numpy")
    return ", ".join(f"{name} {_version(name)}" for name in names)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a job runs robustclip from its working folder
        return "from source"


@cache
def git_commit() -> str | None:
    """Return the commit of a source checkout, None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    found = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or None


def evaluate(
    names: Sequence[str],
    resolved: Resolved,
    out: str,
    *,
    actors: int,
    cpus: float = 1.0,
    gpus: float = 0.0,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> pa.Table:
    """Return the verified records of the models `names` under a protocol, computing only the cells that have none yet.

    Raises UserError naming the cells that failed three times, after all the others are done and kept.
    """
    folder = storage.join(out, "records")
    wanted = {name: resolved.cells(models.display_name(name), models.identity(name)) for name in names}
    name_of = {cell.key: name for name, cells in wanted.items() for cell in cells}
    distinct = {cell.key: cell for cells in wanted.values() for cell in cells}  # a model may have been named twice
    missing = [cell for cell in distinct.values() if not storage.exists(records.path(folder, cell.key))]
    if missing:
        found, started = len(distinct) - len(missing), time.monotonic()

        def say(done: int) -> None:
            on_progress(Progress(done, len(missing), time.monotonic() - started, found))

        _compute_missing(missing, name_of, resolved, out, actors=actors, cpus=cpus, gpus=gpus, say=say)
    return pa.concat_tables([_read(folder, cell) for cells in wanted.values() for cell in cells])


def _read(folder: str, cell: Cell) -> pa.Table:
    """Return a cell's records under the name its model is asked for by (the same weights may have had another one)."""
    table = records.read(folder, cell.key)
    other = set(table["versions"].unique().to_pylist()) - {library_versions()}
    if other:
        log.warning("records of %s under %s were made with other versions: %s", cell.dataset, cell.model, other.pop())
    column = table.schema.get_field_index("model")
    return table.set_column(column, "model", pa.array([cell.model] * len(table), pa.string()))


def _compute_missing(
    cells: list[Cell],
    name_of: dict[str, str],
    resolved: Resolved,
    out: str,
    *,
    actors: int,
    cpus: float,
    gpus: float,
    say: Callable[[int], None],
) -> None:
    import ray

    say(0)

    # "DEFAULT": inside a trial Ray would otherwise look for room in the trial's own placement group, which has none.
    actor = ray.remote(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="DEFAULT")(Worker)
    arguments = resolved, out, max(1, int(cpus)), git_commit()
    idle = [actor.remote(*arguments) for _ in range(min(actors, len(cells)))]
    queue, computed, slowest = Queue(list(cells)), 0, 0.0
    running: dict[Any, Running] = {}
    while queue.todo or running:
        while idle and queue.todo:
            each = Running(idle.pop(), queue.todo.pop(0), time.monotonic())
            running[each.worker.run.remote(each.cell, name_of[each.cell.key])] = each
        ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0 if idle else None)
        for ref in ready:
            each = running.pop(ref)
            others = [other for other, twin in running.items() if twin.cell.key == each.cell.key]
            worker = each.worker
            try:
                ray.get(ref)
                computed, slowest = computed + 1, max(slowest, time.monotonic() - each.since)
                for other in others:
                    ray.kill(running.pop(other).worker)
            except ray.exceptions.RayError as error:
                if isinstance(error, ray.exceptions.RayActorError):
                    # A new one: while Ray restarts an actor every call to it fails at once, which would use up its cells' attempts.
                    ray.kill(worker)  # one that is only out of reach holds its CPUs
                    worker = actor.remote(*arguments)
                if not others:
                    queue.again(each.cell, " ".join(str(getattr(error, "cause", None) or error).split())[-300:])
            idle.append(worker)
            say(computed)
        if idle and not queue.todo and (cell := late(running.values(), slowest, time.monotonic())):
            queue.todo.append(cell)
    for worker in idle:
        ray.kill(worker)
    if queue.failed:
        reasons = "; ".join(queue.failed.values())
        raise UserError(
            f"{len(queue.failed)} of {len(cells)} cells failed, the others are kept: {reasons}; the same command tries them again"
        )
