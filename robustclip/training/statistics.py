"""The statistics job of TAPT on Ray Data: chunks of training images in a fixed order, each to its moments, merged in that order."""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, get_args

import numpy as np
import torch

from robustclip import names as models
from robustclip.base.errors import UserError, did_you_mean
from robustclip.base.precision import full_precision
from robustclip.base.ranges import COUNT, DRAWN, PIXELS, SEED, check, check_fields
from robustclip.data.datasets import ensure_set
from robustclip.data.index import Index, scan
from robustclip.data.plan import select
from robustclip.data.reading import decoded_size, read_images, to_images
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.runtime.cluster import use_threads
from robustclip.test_time.moments import Crop, Moments, Targets, block_inputs
from robustclip.views.crops import crops

log = logging.getLogger(__name__)

CHUNK = 512  # images of one task; another number rounds otherwise
BATCH = 32  # images of one forward pass: on ViT-B/16 their tokens take 0.5 GB


@dataclass(frozen=True)
class Images:
    """Which images: a set of `out/data` or of the embedded world, all of its `split` or `n` of it (nested subsets).

    `crop` "train" takes one random resized crop, keyed by `seed` and image id and flipped half the time, of each image as the model is
    shown it ("published", but for the borders that a large image's centre crop takes off); "centre" takes that image itself. Larger images
    are resized to `resize` (default the model's size). `rendered` and `render_seed` are an embedded set's. Raises UserError for any other
    crop.
    """

    name: str = "labelled"
    n: int | None = None
    split: str = "train"
    crop: Crop = "train"
    seed: int = 0
    resize: int | None = None
    rendered: int = 8192
    render_seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, n=COUNT, seed=SEED, resize=PIXELS, rendered=DRAWN, render_seed=SEED)
        if self.crop not in get_args(Crop):
            raise UserError(f"no crop {self.crop!r}{did_you_mean(self.crop, get_args(Crop))}: choose {' or '.join(get_args(Crop))}")


@dataclass(frozen=True, eq=False)
class Job:
    """A model and its images found: the index of the split, the rows [n] in order, the side they are decoded to, `chunk` a task.

    `model` is its name as it is found from anywhere, `model_sha256` its identity.
    """

    model: str
    model_sha256: str
    images: Images
    index: Index
    rows: np.ndarray
    size: int | None
    chunk: int

    @property
    def chunks(self) -> int:
        """Chunks in all, the last one as long as what is left."""
        return -(-len(self.rows) // self.chunk)


def prepare(model_name: str, images: Images, out: str) -> Job:
    """Return the job; raises UserError where set, split or number of images are not there."""
    card = ensure_set(out, images.name, {images.split: images.rendered}, images.render_seed)
    index = scan(card.folder, card, images.split)
    rows, _ = select(index, n=images.n)
    name = models.absolute(model_name)
    return Job(name, models.identity(name), images, index, rows, decoded_size(card, models.input_size(name)), CHUNK)


def classifier_of(job: Job, device: str = "cpu") -> ZeroShotClassifier:
    """Return the classifier of one class of a job's model on a device: its tokens do not depend on the class names."""
    return models.load_exactly(job.model, job.model_sha256).to(device).classifier(("image",), ("{}",)).to(device)


@full_precision()
def moments_of(job: Job, classifier: ZeroShotClassifier, number: int) -> Moments:
    """Return the moments of one chunk of images, on the CPU; raises UserError naming an image that cannot be decoded."""
    rows = job.rows[number * job.chunk : (number + 1) * job.chunk]
    ids, pixels, _ = read_images(job.index, rows, job.size, job.images.resize)
    parts = []
    for start in range(0, len(ids), BATCH):
        images = to_images(pixels[start : start + BATCH], classifier.mean.device)
        if job.images.crop == "train":
            images = crops(images, [(job.images.seed, "statistics", name) for name in ids[start : start + BATCH]], 1)[:, 0]
        parts.append(Moments.of(block_inputs(classifier, images)))
    return reduce(Moments.merge, parts)


class Worker:
    """An actor's body: loads the model for its first chunk, and turns chunks into moments on one thread (or a GPU), so all round alike."""

    def __init__(self, job: Job):
        use_threads(1)
        self.job = job
        self.classifier: ZeroShotClassifier | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the moments of the one chunk of a batch, or the error that ends the job."""
        number = int(batch["number"][0])
        try:
            self.classifier = self.classifier or classifier_of(self.job, "cuda" if torch.cuda.is_available() else "cpu")
            return {"number": [number], "moments": [moments_of(self.job, self.classifier, number).to_bytes()], "error": [""]}
        except UserError as error:
            # Returned, not raised: Ray Data would wrap it in pages of its own.
            return {"number": [number], "moments": [b""], "error": [str(error)]}


def results(job: Job, workers: int, cpus: float, gpus: float) -> Iterator[tuple[int, Moments]]:
    """Yield (number, moments) of all chunks as they come from `workers` actors; raises UserError with the reason of one that failed."""
    import ray.data
    from ray.data import ActorPoolStrategy

    # From items, which lie there: ray.data.range would wait for CPUs that the actors hold.
    chunks = ray.data.from_items([{"number": number} for number in range(job.chunks)], override_num_blocks=job.chunks)
    pool: dict[str, Any] = {"compute": ActorPoolStrategy(size=min(workers, job.chunks)), "num_cpus": cpus, "num_gpus": gpus or None}
    found = chunks.map_batches(Worker, fn_constructor_args=(job,), batch_size=1, **pool)
    for row in found.iter_rows():
        if row["error"]:
            raise UserError(row["error"])
        yield int(row["number"]), Moments.from_bytes(row["moments"])


def in_order(found: Iterable[tuple[int, Moments]]) -> Iterator[Moments]:
    """Yield what arrives in any order by its number, 0 first: merged in another order it would round otherwise."""
    waiting: dict[int, Moments] = {}
    due = 0
    for number, moments in found:
        waiting[number] = moments
        while due in waiting:
            yield waiting.pop(due)
            due += 1


def told(found: Iterable[Moments], total: int) -> Iterator[Moments]:
    """Yield what comes and log how many of `total` images that makes."""
    count, started = 0, time.monotonic()
    for moments in found:
        count += moments.count
        log.info("statistics of %d/%d images (%.0f s)", count, total, time.monotonic() - started)
        yield moments


def statistics(model_name: str, images: Images, out: str, *, workers: int, cpus: float = 1.0, gpus: float = 0.0) -> Targets:
    """Return the statistics of the block inputs of a model over images, bit for bit the same for any number of workers and of files.

    Each of the actors takes `cpus` and `gpus` of the cluster that Ray is connected to. Raises UserError for a model without a vision
    transformer and for images that are not there or cannot be decoded.
    """
    check({"workers": workers}, {"workers": COUNT})
    job = prepare(model_name, images, out)
    classifier = classifier_of(job)
    size = classifier.preprocess.size
    block_inputs(classifier, torch.zeros(1, 3, size, size))  # says here, not on every worker, that there are none
    merged = reduce(Moments.merge, told(in_order(results(job, workers, cpus, gpus)), len(job.rows)))
    if merged.count != len(job.rows):
        raise RuntimeError(f"statistics of {merged.count} images where {len(job.rows)} were asked for: Ray lost a chunk")
    return Targets.of(merged, classifier, images.name, images.split, images.crop)
