"""One cell of an evaluation: its images, its attacks, its rows of records, and all that says how these came about."""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.values import key
from robustclip.data.reading import to_images
from robustclip.evaluation.cascade import run_cascade
from robustclip.evaluation.protocols import PRECISION, Cell, Resolved, TestSet
from robustclip.evaluation.rewritings import Kept
from robustclip.evaluation.transfers import Transfers
from robustclip.models.class_texts import Templates
from robustclip.models.classifier import Guides, ZeroShotClassifier
from robustclip.models.model import Model
from robustclip.records import rows as records


def record(model: Model, cell: Cell, resolved: Resolved, out: str, threads: int, commit: str | None) -> None:
    """Compute one cell and write its records, with the `threads` and the `commit` they were made with."""
    rows = compute(model, cell, resolved, out)
    shared = provenance(cell, resolved) | {"threads": threads, "commit": commit}
    records.write(storage.join(out, "records"), cell.key, records.table([shared | row for row in rows]))


def compute(model: Model, cell: Cell, resolved: Resolved, out: str | None = None) -> list[dict[str, Any]]:
    """Return the attack rows of a cell; what is made of prompts, and of images by grey-box attacks, is kept under `out` for other cells."""
    card = resolved.sets[cell.dataset].card
    for shard in shards_of(resolved.sets[cell.dataset], cell):
        check_bytes(storage.join(card.folder, shard["file"]), shard["sha256"])
    classifier, images, labels, ids = on_device(model, resolved, cell.dataset, cell.rows, out)
    if out is not None:
        classifier.rewritten = Kept(out, resolved.hash, {"model_sha256": cell.model_sha256, "dataset": cell.dataset})
    return run_cascade(classifier, images, labels, ids, resolved.protocol, cell.attacks)


def transfers_of(model: Model, plain: Model, classifier: Any, prompts_hash: str, device: str, out: str) -> Transfers | None:
    """Return where grey-box attacks on `plain` CLIP and on what a classifier stands on keep their images; None for several towers."""
    if not isinstance(getattr(classifier, "base", classifier), ZeroShotClassifier):
        return None
    seen = {"A0": _static(plain), "A1": _static(model)}
    return Transfers(storage.join(out, "transfers"), seen, (prompts_hash, PRECISION, library_versions(), device))


def _static(model: Model) -> str:
    """Return what names the classifiers of a model before they adapt: its tensors, its architecture and its kind of prompt."""
    return key(model.sha256, model.open_clip_config, model.card.get("trainable"))


def on_device(
    model: Model, resolved: Resolved, dataset: str, rows: np.ndarray, out: str | None = None
) -> tuple[ZeroShotClassifier, Tensor, Tensor, list[str]]:
    """Return what is attacked on a GPU where there is one: the classifier under a set's prompts, images [N,3,H,W], labels [N] and ids."""
    card, templates = resolved.sets[dataset].card, resolved.sets[dataset].templates
    images, labels, ids = images_of(model, resolved, dataset, rows)
    classifier = model.classifier(card.class_names, templates).to(images.device)
    if resolved.protocol.guided:
        classifier.guides = Guides(*images_of(model, resolved, dataset, resolved.guides(dataset)))
    if resolved.protocol.oblivious:
        plain = models.origin(model)
        classifier.undefended = cache(lambda: undefended(plain, card.class_names, templates).to(images.device))
        if out is not None:
            classifier.transfers = transfers_of(model, plain, classifier, resolved.sets[dataset].prompts_hash, images.device.type, out)
    if resolved.protocol.shifted:
        classifier.under = cache(lambda texts: model.classifier(card.class_names, texts).to(images.device))
    return classifier, images, labels, ids


def undefended(model: Model, class_names: Sequence[str], templates: Templates) -> nn.Module:
    """Return the classifier of the model that all fine-tuning of this one began with, adapting to nothing."""
    classifier: Any = models.origin(model).classifier(class_names, templates)
    return getattr(classifier, "base", classifier)


def images_of(model: Model, resolved: Resolved, dataset: str, rows: np.ndarray) -> tuple[Tensor, Tensor, list[str]]:
    """Return images [N,3,H,W] in [0,1] of a set as a model's classifier is shown them, their labels [N] and ids, on a GPU where one is."""
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
    except PackageNotFoundError:  # a job runs robustclip from its working folder, and torchattacks need not be there
        return "from source" if name == "robustclip" else "none"
