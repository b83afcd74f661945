"""A config with everything it depends on found: its images and, where it is a run of its own, its key and its folders."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.locks import alone
from robustclip.base.threat import Ball
from robustclip.base.values import key, to_json
from robustclip.data.card import DatasetCard
from robustclip.data.datasets import ensure_set
from robustclip.data.index import Index, scan
from robustclip.data.plan import Plan, key_of, select
from robustclip.data.reading import decoded_size, read_images, split_identity, to_images
from robustclip.models.class_texts import Descriptions, Templates, as_json
from robustclip.runtime.logged import Input
from robustclip.training.compatible import check_pair
from robustclip.training.config import Config


@dataclass(frozen=True)
class TrainingData:
    """The images of a config, found: the rows [n] of the index that train, in what plan, those that are held out, the side they have.

    `size` is the side in pixels that they are decoded to, None: as they are stored.
    """

    config: Config
    card: DatasetCard
    index: Index
    plan: Plan
    train_rows: np.ndarray
    val_rows: np.ndarray
    size: int | None

    @property
    def pixels_a_side(self) -> int:
        """The side of the decoded images, a guess where they are kept as they are and differ."""
        return self.size or self.card.native_size or 224

    def names(self) -> dict[str, str]:
        """Return the ids of the training images by what the stream of units calls them."""
        return {str(key_of(name)): name for name in self.index.ids(self.train_rows)}

    def inputs(self) -> list[Input]:
        """Return the data set as MLflow keeps it."""
        sha256, classes = split_identity(self.card, "train"), len(self.card.class_names)
        return [Input(self.card.name, "train", sha256, len(self.train_rows), classes, self.card.folder)]

    def validation_images(self, device: torch.device | str) -> tuple[Tensor, Tensor, list[str]]:
        """Return images [N,3,S,S] in [0,1] on a device, labels [N] and ids of the held-out rows that `val/` is measured on."""
        rows = self.val_rows[: self.config.validation.images]
        ids, pixels, labels = read_images(self.index, rows, self.size, self.config.data.resize)
        return to_images(pixels, device), torch.as_tensor(labels), ids

    def about(self, base: str, sha256: str) -> dict[str, Any]:
        """Return what the card of a model says that was fine-tuned on these images from the model `base` of this identity."""
        return {
            "base": {"name": base, "sha256": sha256},
            "config": to_json(self.config),
            "trainable": to_json(self.config.trainable),
            "class_names": list(self.card.class_names),
            "templates": as_json(self.card.class_names, self.config.templates or self.card.templates),
        }


@dataclass(frozen=True)
class Job(TrainingData):
    """A config as a run: its images, the identity of its model, the key of all it depends on, and where its results go."""

    out: str
    key: str
    model_sha256: str

    @property
    def folder(self) -> str:
        """runs/<key>: `model/` (the checkpoint) and result.json, written last."""
        return storage.join(self.out, "runs", self.key)

    @property
    def train_folder(self) -> str:
        """ray/<key>: Ray Train's own, with the checkpoints that a killed run goes on from."""
        return storage.join(self.out, "ray", self.key)


def training_data(config: Config, out: str, input_size: Callable[[], int]) -> TrainingData:
    """Return the images of a config; raises UserError for a set or as many of it as are not there, and for parts that do not fit.

    `input_size` gives the side of the images the model works on; it is asked last, since it may have to fetch the model.
    """
    data, optim = config.data, config.optim
    check_pair(config.defense, config.trainable)
    if config.threat.image is not None:
        config.threat.image.tell_doubt("threat.image")
    Ball("Linf", config.validation.eps).tell_doubt("validation")
    card = ensure_set(out, data.name, {"train": data.rendered}, data.render_seed)
    if len(card.class_names) < config.defense.least_classes:
        raise UserError(
            f"data set {data.name!r} has one class, {card.class_names[0]!r}, and {type(config.defense).__name__} learns from what tells "
            "classes apart: take a recipe of FARE, or a set of two classes or more"
        )
    if isinstance(config.templates, Descriptions):
        config.templates.of(card.class_names, f"data set {data.name}")
    index = scan(card.folder, card, "train")
    train_rows, val_rows = select(index, n=data.n, per_class=data.per_class, held_out=data.held_out)
    plan = Plan.of(index, train_rows, micro_batch=optim.micro_batch, batch=optim.batch, epochs=optim.epochs, seed=config.seed)
    return TrainingData(config, card, index, plan, train_rows, val_rows, decoded_size(card, input_size()))


def prepare(config: Config, out: str) -> Job:
    """Return the job of a config, its model by the name that is found from anywhere.

    Raises UserError for whatever would only fail later: data, subset sizes, model, trainable.
    """
    config = replace(config, model=models.absolute(config.model))
    data = training_data(config, out, lambda: models.input_size(config.model))
    sha256 = models.identity(config.model)
    return Job(**vars(data), out=out, key=key(config, sha256, split_identity(data.card, "train")), model_sha256=sha256)


def tell_names(model: str, card: DatasetCard, templates: Templates | None = None) -> None:
    """Warn on the log of a set's class names that a model cannot tell apart or reads cut, in `templates` or the set's own."""
    models.load(model).tell_names(card.class_names, templates or card.templates, f"data set {card.name}")


def forget(job: Job) -> None:
    """Delete what earlier runs of this job left, so that `fit` starts again from nothing; one that runs is waited for."""
    with alone(job.folder):
        for folder in (job.folder, job.train_folder):
            storage.delete(folder)
