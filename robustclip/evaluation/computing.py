"""One cell of an evaluation: its images, its attacks, its rows of records, and all that says how these came about."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.precision import full_precision
from robustclip.base.values import key
from robustclip.data.reading import to_images
from robustclip.data.typographic import written
from robustclip.data.variants import has_words
from robustclip.evaluation.cascade import run_cascade
from robustclip.evaluation.protocols import PRECISION, Cell, Resolved, TestSet
from robustclip.evaluation.rewritings import Kept
from robustclip.evaluation.surrogates import Perturbations
from robustclip.evaluation.transfers import Transfers
from robustclip.models.class_texts import Templates
from robustclip.models.classifier import Guides, Surrogates, ZeroShotClassifier
from robustclip.models.model import Model
from robustclip.records import rows as records


def record(model: Model, cell: Cell, resolved: Resolved, out: str, threads: int, commit: str | None) -> None:
    """Compute one cell and write its records, with the `threads` and the `commit` they were made with."""
    rows = compute(model, cell, resolved, out)
    shared = provenance(cell, resolved) | {"threads": threads, "commit": commit}
    records.write(storage.join(out, "records"), cell.key, records.table([shared | row for row in rows]))


@full_precision()
def compute(model: Model, cell: Cell, resolved: Resolved, out: str | None = None) -> list[dict[str, Any]]:
    """Return the attack rows of a cell; what is made of prompts, and of images by grey-box attacks, is kept under `out` for other cells."""
    check_shards(resolved.sets[cell.dataset], cell)
    classifier, images, labels, ids = on_device(model, resolved, cell.dataset, cell.rows, out)
    if out is not None:
        classifier.rewritten = Kept(out, resolved.hash, {"model_sha256": cell.model_sha256, "dataset": cell.dataset})
    if cell.dataset in resolved.surrogates and not isinstance(classifier, ZeroShotClassifier):  # what adapts, or is of several towers
        classifier.surrogates = surrogates_of(model, resolved, cell.dataset, cell.model_sha256, out)
    rows = run_cascade(classifier, images, labels, ids, resolved.protocol, cell.attacks)
    if has_words(cell.dataset):
        class_names = resolved.sets[cell.dataset].card.class_names
        for row in rows:
            row["written"] = written(resolved.protocol.seed, row["image_id"], row["label"], class_names)
    return rows


def transfers_of(model: Model, plain: Model, classifier: Any, prompts_hash: str, device: str, out: str) -> Transfers | None:
    """Return where grey-box attacks on `plain` CLIP and on what a classifier stands on keep their images; None for several towers."""
    if not isinstance(getattr(classifier, "base", classifier), ZeroShotClassifier):
        return None
    seen = {"A0": _static(plain), "A1": _static(model)}
    return Transfers(storage.join(out, "transfers"), seen, (prompts_hash, PRECISION, library_versions(), device))


def surrogates_of(model: Model, resolved: Resolved, dataset: str, attacked: str, out: str | None) -> Surrogates:
    """Return the images, as `model` is shown them, that a set's universal perturbations are learned on; `attacked` names what against.

    What is learned is kept under `out`, by all that decides it.
    """
    protocol, learned_on = resolved.protocol, resolved.surrogates[dataset]

    def read() -> tuple[Tensor, Tensor]:
        check_shards(learned_on, learned_on)
        return images_of(model, replace(resolved, sets=resolved.surrogates), dataset, learned_on.rows)[:2]

    if out is None:
        return Surrogates(learned_on.ids, read)
    shown = (model.preprocess.size, protocol.crop, protocol.resize, protocol.interpolation, protocol.rule(dataset).native)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    about = (attacked, dataset, resolved.sets[dataset].prompts_hash, learned_on.facts, shown, PRECISION, library_versions(), device)
    return Surrogates(learned_on.ids, read, Perturbations(storage.join(out, "universal"), about))


def _static(model: Model) -> str:
    """Return what names the classifiers of a model before they adapt: its tensors, its architecture and its kind of prompt."""
    return key(model.sha256, model.open_clip_config, model.card.get("trainable"))


def on_device(
    model: Model, resolved: Resolved, dataset: str, rows: np.ndarray, out: str | None = None
) -> tuple[ZeroShotClassifier, Tensor, Tensor, list[str]]:
    """Return what is attacked on a GPU where there is one: the classifier under a set's prompts, images [N,3,H,W], labels [N] and ids."""
    card, templates = resolved.sets[dataset].card, resolved.sets[dataset].templates
    images, labels, ids = images_of(model, resolved, dataset, rows)
    classifier = model.to(images.device).classifier(card.class_names, templates).to(images.device)
    if resolved.protocol.guided:
        classifier.guides = Guides(*images_of(model, resolved, dataset, resolved.guides(dataset)))
    if dataset in resolved.surrogates:
        classifier.surrogates = surrogates_of(model, resolved, dataset, "", None)  # of what adapts nothing is kept without its cell's name
        getattr(classifier, "base", classifier).surrogates = surrogates_of(model, resolved, dataset, _static(model), out)
    if resolved.protocol.oblivious:
        plain = models.origin(model).to(images.device)

        @cache
        def plain_classifier() -> nn.Module:
            found: Any = undefended(plain, card.class_names, templates).to(images.device)
            if dataset in resolved.surrogates:
                found.surrogates = surrogates_of(model, resolved, dataset, _static(plain), out)
            return found

        classifier.undefended = plain_classifier
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


def shards_of(test_set: TestSet, part: Cell | TestSet) -> list[dict[str, Any]]:
    """Return what the card says of the shards a part's images come from."""
    shards = test_set.card.shards[test_set.split]
    return [shards[int(i)] for i in sorted(set(test_set.index.file[part.rows].tolist()))]


def check_shards(test_set: TestSet, part: Cell | TestSet) -> None:
    """Raise UserError when a shard of a part of a set is not the file that the card names."""
    for shard in shards_of(test_set, part):
        check_bytes(storage.join(test_set.card.folder, shard["file"]), shard["sha256"])


@cache  # a worker computes many cells of one shard
def check_bytes(path: str, sha256: str) -> None:
    """Raise UserError when a shard is not the file whose hash the records would name."""
    if storage.sha256_file(path) != sha256:
        raise UserError(
            f"{path} was changed or damaged since its set was made (its hash is another): prepare the set again with --fresh, "
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
