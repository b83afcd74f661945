"""Evaluation in this process, without Ray: the same records as the actors write, for a notebook or a test."""

import logging
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from torch import Tensor

from robustclip import names as models
from robustclip.attacks import Attack
from robustclip.attacks.classes import reductions
from robustclip.base.commit import git_commit
from robustclip.base.precision import full_precision
from robustclip.base.threads import one_thread
from robustclip.base.values import key
from robustclip.evaluation.cascade import run_cascade
from robustclip.evaluation.computing import compute, library_versions, provenance, record
from robustclip.evaluation.protocols import PRECISION, Resolved
from robustclip.evaluation.rules import Protocol
from robustclip.evaluation.wanted import Wanted
from robustclip.models.class_texts import Templates, as_json
from robustclip.models.classifier import Embeddings, embeddings_kept
from robustclip.models.model import Model
from robustclip.records import rows as records

log = logging.getLogger(__name__)


def evaluate_named(name: str, resolved: Resolved, out: str) -> pa.Table:
    """Return the verified records of a model under a protocol, computing here the cells that have none under `out` yet."""
    wanted = Wanted([name], resolved, out)
    if wanted.missing:
        model = models.load_exactly(name, wanted.missing[0].model_sha256)
        _tell_names(model, resolved)
        with one_thread(), embeddings_kept(Embeddings()):
            for done, cell in enumerate(wanted.missing):
                log.info("cell %d of %d: %s under %s", done + 1, len(wanted.missing), cell.dataset, cell.model)
                record(model, cell, resolved, out, 1, git_commit())
    return wanted.table()


def evaluate_model(model: Model, resolved: Resolved) -> pa.Table:
    """Return the records of a model that lies in memory; nothing is kept, for it has no name to be found by."""
    _tell_names(model, resolved)
    rows: list[dict[str, Any]] = []
    with one_thread(), embeddings_kept(Embeddings()):
        for cell in resolved.cells(model.name, model.sha256):
            rows += [provenance(cell, resolved) | {"threads": 1} | row for row in compute(model, cell, resolved)]
    return records.table(rows)


def _tell_names(model: Model, resolved: Resolved) -> None:
    for name, test_set in resolved.sets.items():
        model.tell_names(test_set.card.class_names, test_set.templates, f"data set {name}")


def evaluate_images(
    model: Model,
    images: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    templates: Templates,
    attacks: tuple[Attack, ...],
    eps: tuple[float, ...],
) -> tuple[pa.Table, dict[str, Any]]:
    """Return the records of a model on images [N,3,H,W] in [0,1] with labels [N], and what a resolved protocol would say of them."""
    protocol = Protocol("given images", ("images",), attacks, eps, n=None)
    for ball in protocol.balls():
        ball.tell_doubt(protocol.name)
    model.tell_names(class_names, templates, protocol.name)
    classifier, ids = model.classifier(class_names, templates).to(images.device), [f"image/{i}" for i in range(len(images))]
    undefined = [name for name, instead in reductions(attacks, len(class_names)).items() if instead is None]
    known = {"class_names": list(class_names), "skips": undefined, "n": len(images), "real": True}
    told: dict[str, Any] = {"name": protocol.name, "attacks": [attack.name for attack in attacks], "eps": list(eps), "norm": protocol.norm}
    told |= {"attacked": None, "independent": False, "sets": {"images": known}}
    shared = {
        "protocol": protocol.name,
        "protocol_hash": key(protocol, list(class_names), as_json(class_names, templates), ids),
        "model": model.name,
        "model_sha256": model.sha256,
        "dataset": "images",
        "level": protocol.level,
        "precision": PRECISION,
        "versions": library_versions(),
    }
    with one_thread(), full_precision():
        rows = run_cascade(classifier, images, labels, ids, protocol)
    return records.table([shared | row for row in rows]), told
