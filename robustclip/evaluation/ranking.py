"""One unit of retrieval: what its attack makes of images or texts, and the rank of the best right answer to every query."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from robustclip.attacks import APGD, PGD
from robustclip.attacks.base import Objective
from robustclip.attacks.multimodal import Text, features_of
from robustclip.attacks.retrieval import crowd_of, image_to_text, text_to_image
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.precision import full_precision
from robustclip.base.threat import Ball
from robustclip.base.values import to_json
from robustclip.data.reading import to_images
from robustclip.evaluation.cascade import moved
from robustclip.evaluation.computing import library_versions
from robustclip.evaluation.evaluator import Worker, evaluate
from robustclip.evaluation.protocols import CELL_IMAGES, PRECISION
from robustclip.evaluation.retrieval import Paired, Ranking
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.models.model import Model
from robustclip.records import rows as records
from robustclip.records.retrieval import FOLDER, I2T, SCHEMA, ranks
from robustclip.records.rows import CLEAN


@dataclass(frozen=True, eq=False)
class Met:
    """What images and texts became: unit features [N,D] and [M,D], how far images `moved` (Linf and L2, [2,N]), how texts read now."""

    images: Tensor
    texts: Tensor
    moved: Tensor | None = None
    rewritten: tuple[str, ...] | None = None


class Galleries:
    """A model among the pairs of a protocol: its classifier has a class for every text, and all features are computed once.

    Raises UserError for a model that has no features of texts, or not the same for every image.
    """

    def __init__(self, model: Model, paired: Paired):
        self.model, self.paired, self.pairs = model, paired, paired.pairs
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        classifier: Any = model.to(self.device).classifier(self.pairs.texts, ("{}",)) if model.readout is None else None
        if not isinstance(classifier, ZeroShotClassifier):
            raise UserError(
                f"{model.name} gives class scores and no features that images and texts share (a linear probe, an ensemble, a test-time "
                "defence): retrieval needs one model with both towers"
            )
        self.classifier = classifier.to(self.device)
        groups = (torch.as_tensor(each).to(self.device) for each in (self.pairs.image_groups, self.pairs.text_groups))
        self.image_groups, self.text_groups = groups

    @property
    def texts(self) -> Tensor:
        """The unit features [M,D] of the texts."""
        return self.classifier.class_embeddings

    @cached_property
    def images(self) -> Tensor:
        """The unit features [N,D] of the clean images."""
        return torch.cat([self.features(self.read(part)) for part in self.parts()])

    @cached_property
    def crowd(self) -> Tensor:
        """What every text [M] finds among the clean images of other groups."""
        return crowd_of(self.classifier, self.images, self.image_groups, self.text_groups)

    def parts(self) -> list[np.ndarray]:
        """Return the places of the images that are in memory together."""
        places = np.arange(len(self.pairs.ids))
        return [places[first : first + CELL_IMAGES] for first in range(0, len(places), CELL_IMAGES)]

    def read(self, places: np.ndarray) -> Tensor:
        """Return the images [n,3,H,W] in [0,1] at some places."""
        return to_images(self.pairs.images.read(places, self.model.preprocess.size), self.device)

    def features(self, images: Tensor) -> Tensor:
        """Return the unit features [n,D] of images."""
        return F.normalize(features_of(self.classifier, images, self.paired.protocol.micro_batch), dim=-1)

    def met(self, cell: Ranking) -> Met:
        """Return what becomes of images and texts in a unit of work."""
        if isinstance(cell.attack, Text):
            return self.rewritten(cell.attack)
        if isinstance(cell.attack, PGD | APGD) and cell.ball is not None:
            return self.attacked(cell.attack, cell.ball, cell.direction)
        return Met(self.images, self.texts)

    def attacked(self, attack: PGD | APGD, ball: Ball, direction: str) -> Met:
        """Return what an attack on all images, for one direction, makes of them."""
        protocol, found, deltas = self.paired.protocol, [], []
        for part in self.parts():
            images, groups, ids = self.read(part), self.image_groups[part], [self.pairs.ids[i] for i in part]

            def objective_of(places: Tensor, groups: Tensor = groups) -> Objective:
                if direction == I2T:
                    return image_to_text(self.classifier, self.text_groups, groups[places], protocol.ks)
                return text_to_image(self.classifier, self.text_groups, groups[places], self.crowd)

            made = attack.raising(objective_of, self.classifier, images, ids, ball, protocol.seed, protocol.micro_batch).images
            delta = moved(attack, ball, images, made).flatten(1)
            deltas.append(torch.stack([delta.abs().amax(1), delta.norm(dim=1)]))
            found.append(self.features(made))
        return Met(torch.cat(found), self.texts, moved=torch.cat(deltas, 1))

    def rewritten(self, attack: Text) -> Met:
        """Return what becomes of the texts, which go away from the mean of their group's images; these stay as they are."""
        own = F.one_hot(self.image_groups, len(self.pairs.groups)).to(self.images)
        guide = F.normalize(own.T @ self.images, dim=-1)[self.text_groups]
        texts = attack.text(self.classifier, guide).texts
        return Met(self.images, self.classifier.reworded(texts).class_embeddings, rewritten=texts)


@full_precision()
def compute(galleries: Galleries, cell: Ranking) -> list[dict[str, Any]]:
    """Return the rows of a unit of work, one per query."""
    started, pairs = time.perf_counter(), galleries.pairs
    met = galleries.met(cell)
    sides = [(met.images, pairs.image_groups, pairs.ids), (met.texts, pairs.text_groups, pairs.texts)]
    (queries, own, names), (answers, theirs, _) = sides if cell.direction == I2T else sides[::-1]
    found = ranks(queries.cpu().numpy(), answers.cpu().numpy(), own, theirs).tolist()
    facts = facts_of(cell, galleries.paired.protocol.seed) | {"direction": cell.direction, "gallery": len(answers)}
    facts["seconds"] = (time.perf_counter() - started) / len(found)
    rows = [{"query": names[i], "query_group": pairs.groups[own[i]], "rank": rank} | facts for i, rank in enumerate(found)]
    if met.moved is not None and cell.direction == I2T:
        rows = [row | {"linf": linf, "l2": l2} for row, (linf, l2) in zip(rows, met.moved.T.tolist(), strict=True)]
    if met.rewritten is not None:
        rows = [row | {"rewritten": text} for row, text in zip(rows, met.rewritten, strict=True)]
    return rows


def facts_of(cell: Ranking, seed: int) -> dict[str, Any]:
    """Return what the records say of a unit's attack; eps is 0 where images stay as they are."""
    if cell.attack is None:
        return {"attack": CLEAN, "eps": 0.0}
    said = {"attack": cell.attack.name, "attack_config": json.dumps(to_json(cell.attack), sort_keys=True)}
    if cell.ball is not None:
        return said | {"eps": float(cell.ball.eps), "norm": cell.ball.norm, "seed": seed}
    return said | {"eps": 0.0, "text_budget": str(cell.attack.text.budget) if isinstance(cell.attack, Text) else None}


def provenance(cell: Ranking, paired: Paired) -> dict[str, Any]:
    """Return the columns that all rows of a unit share."""
    return {
        "protocol_hash": paired.hash,
        "cell_key": cell.key,
        "result_key": cell.result_key,
        "model": cell.model,
        "model_sha256": cell.model_sha256,
        "dataset": paired.pairs.name,
        "split": paired.pairs.split,
        "precision": PRECISION,
        "versions": library_versions(),
    }


class Ranker(Worker):
    """A worker of the evaluator that computes units of retrieval, and keeps the features of the model it loaded last."""

    folder, schema = FOLDER, SCHEMA
    galleries: Galleries | None = None

    def record(self, model: Model, cell: Ranking) -> None:  # type: ignore[override]
        """Write the records of one unit."""
        if self.galleries is None or self.galleries.model is not model:
            self.galleries = Galleries(model, self.resolved)  # type: ignore[arg-type]
        shared = provenance(cell, self.galleries.paired) | {"threads": self.threads, "commit": self.commit}
        rows = [shared | row for row in compute(self.galleries, cell)]
        records.write(storage.join(self.out, FOLDER), cell.key, records.table(rows, SCHEMA), SCHEMA)


def retrieve(names: Sequence[str], paired: Paired, out: str, **share: Any) -> pa.Table:
    """Return the verified records of the models `names`, computing only units that have none yet; `share` is as `evaluate` takes it."""
    return evaluate(names, paired, out, **share, kind=Ranker)  # type: ignore[arg-type]
