"""Subjects that check tests share: a whole healthy run of a tiny model on a probe, and attacks that stand in for slower ones."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from robustclip.attacks import APGD, PGD, Example
from robustclip.attacks.pgd import move
from robustclip.base.seeds import generator
from robustclip.data.card import DatasetCard
from robustclip.data.index import Index
from robustclip.data.reading import stratified
from robustclip.evaluation import protocols
from robustclip.evaluation.cascade import run_cascade
from robustclip.evaluation.checks import Subject
from robustclip.evaluation.protocols import Protocol, Resolved
from robustclip.records import rows as records

NAMES, TEMPLATES, N = ("red", "green", "blue", "grey"), ("a photo of a {}.",), 16
PROTOCOL = Protocol("probe", ("pictures",), (PGD(10), APGD(10)), (2.0, 6.0), n=N, micro_batch=8)


@dataclass(frozen=True)
class RandomSearch:
    """A small Square attack: blocks at a corner of the ball, each kept where it lowers the margin, which is all it asks for."""

    queries: int = 120
    name: str = "random-search"

    def __call__(self, classifier, images, labels, ids, ball, seed, micro_batch=None):
        def margins(x):
            with torch.no_grad():
                logits = classifier(x)
            own = logits.gather(1, labels[:, None])[:, 0]
            return logits.scatter(1, labels[:, None], -torch.inf).amax(1) - own

        g, size = generator(seed, self.name), images.shape[-1]
        delta = torch.zeros_like(images)
        value = margins(images)
        for query in range(self.queries if ball.radius else 0):
            side = size if query < 10 else 5
            top, left = (int(torch.randint(size - side + 1, (), generator=g)) for _ in range(2))
            tried = delta.clone()
            corners = torch.randn(len(images), 3, 1 if query < 10 else side, side, generator=g).sign()
            tried[:, :, top : top + side, left : left + side] = ball.radius * corners
            got = margins(move(images, tried, ball))
            delta = torch.where((got > value)[:, None, None, None], tried, delta)
            value = torch.maximum(got, value)
        return Example(move(images, delta, ball))


def make_set(name, labels, ids, names=NAMES, templates=TEMPLATES, n=N):
    """Return a test set of a protocol with these labels and ids, chosen as the evaluator chooses."""
    at = np.zeros(len(ids), dtype=np.int32)
    index = Index(("f",), at, at, np.arange(len(ids), dtype=np.int32), np.asarray(labels), pa.array(ids), tuple(names))
    card = DatasetCard(
        name, tuple(names), tuple(templates), {"test": len(ids)}, 16, "none", "here", {"test": ({"file": "f", "sha256": "0", "rows": n},)}
    )
    return protocols.TestSet(card, index, stratified(index, n))


def rows_of(classifier, images, labels, ids, resolved, name, sha256, dataset="pictures"):
    """Return the rows a worker writes of one set under one model."""
    shared = {
        "model": name,
        "model_sha256": sha256,
        "dataset": dataset,
        "split": "test",
        "protocol": resolved.protocol.name,
        "protocol_hash": resolved.hash,
        "prompts_hash": resolved.sets[dataset].prompts_hash,
        "result_key": sha256[:8],
        "shard_sha256": "0",
        "versions": "torch",
        "level": resolved.protocol.level,
    }
    return [shared | row for row in run_cascade(classifier, images, labels, ids, resolved.protocol)]


def healthy(model, pictures, baseline=None, *, seed=0, protocol=PROTOCOL, source=None):
    """Return the subject of a model that is attacked, scored and recorded as it should be; it is wrong on three of the images."""
    x, _, ids = pictures(N, seed=seed)
    x = (x * 255).round() / 255
    classifier = model.classifier(NAMES, TEMPLATES)
    with torch.no_grad():
        labels = classifier(x).argmax(1)
    labels[::7] = (labels[::7] + 1) % len(NAMES)
    resolved = Resolved(protocol, {"pictures": make_set("pictures", labels.numpy(), ids)})
    order = [int(i) for i in resolved.sets["pictures"].rows]
    x, labels, ids = x[order], labels[order], [ids[i] for i in order]
    rows = rows_of(classifier, x, labels, ids, resolved, "model", model.sha256)
    undefended = classifier
    if baseline is not None:
        undefended = baseline.classifier(NAMES, TEMPLATES)
        rows += rows_of(undefended, x, labels, ids, resolved, "plain", baseline.sha256)
    return Subject(
        classifier=classifier,
        attacked=classifier,
        images=x,
        labels=labels,
        ids=ids,
        classes=len(NAMES),
        protocol=protocol,
        dataset="pictures",
        model=model,
        source=source,
        model_sha256=model.sha256,
        resolved=resolved,
        records=records.table(rows),
        name="model",
        baseline=undefended,
        baseline_name="model" if baseline is None else "plain",
        black_box=RandomSearch(),
        selection_ids=frozenset({"train/0", "train/1"}),
    )


def changed(subject, **changes):
    """Return a subject with changes and no runs of the old one."""
    return replace(subject, _runs={}, **changes)
