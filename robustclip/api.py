"""The package in a few lines of Python: load, attack, evaluate, fine-tune, all in this process and without Ray."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from robustclip import names
from robustclip.attacks import Attack, Example, catalogue
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball
from robustclip.base.values import override
from robustclip.evaluation import protocols
from robustclip.evaluation.alone import evaluate_images, evaluate_model, evaluate_named
from robustclip.evaluation.rules import Protocol
from robustclip.models import checkpoints
from robustclip.models.class_texts import Templates
from robustclip.models.model import Model
from robustclip.records import metrics
from robustclip.records.metrics import Macro
from robustclip.records.rows import CLEAN
from robustclip.records.survival import Outcomes, classes_of, outcomes_of
from robustclip.results import figures
from robustclip.training.alone import finetune_alone
from robustclip.training.recipes import named as recipe_named

log = logging.getLogger(__name__)

TEMPLATES = ("a photo of a {}.",)
VAL = ("val/clean", "val/robust")
TOLD_EVERY = 50  # steps
Images = tuple[Tensor, Tensor]  # images [N,3,H,W] in [0,1] and labels [N]


def load(name: str) -> Model:
    """Return the model `name`: embedded, a checkpoint folder, `open_clip:NAME/TAG`, a combination, or one under a test-time defence.

    Raises UserError for anything else.
    """
    return names.load(name)


def save(model: Model, folder: str) -> None:
    """Write a model as a checkpoint folder, which every command and `load` read."""
    about = {name: value for name, value in model.card.items() if name not in ("format", "tokenizer", "trainable")}
    checkpoints.save(model, storage.resolve(folder), **about)


def attack(
    name: str | Attack,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "Linf",
    ids: Sequence[str] | None = None,
    seed: int = 0,
) -> Example:
    """Return what an attack makes of images [B,3,H,W] in [0,1] with labels [B] within `eps`/255; `.images` are the attacked ones.

    `ids` key its randomness (default: their places). Raises UserError for an unknown name, and for one that stands for several attacks.
    """
    found = catalogue.named([name])
    if len(found) > 1:
        raise UserError(
            f"{name} is {', '.join(each.name for each in found)}: evaluate() counts several attacks per image, attack() runs one"
        )
    known = [f"image/{i}" for i in range(len(images))] if ids is None else list(ids)
    return found[0](classifier, images, labels, known, Ball(norm, eps), seed)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Evaluation:
    """What a model withstood: `records`, one row per image, attack and eps, and the accuracies counted from them."""

    records: pa.Table
    protocol: Mapping[str, Any]

    @cached_property
    def outcomes(self) -> Outcomes:
        """Data set -> what became of every image."""
        (outcomes,) = outcomes_of(self.records, self.protocol).values()
        return outcomes

    def accuracy(self, column: str | float) -> Macro:
        """Return the mean over sets, with its 95 % Wilson interval, of clean accuracy ("clean") or the worst case at an eps in 1/255."""
        return metrics.macro(self.outcomes, column, classes_of(self.protocol))

    @property
    def clean(self) -> Macro:
        """The clean accuracy: mean, low, high and n."""
        return self.accuracy(CLEAN)

    @property
    def robust(self) -> dict[float, Macro]:
        """eps in 1/255 -> the accuracy per image in the worst case over all attacks up to this eps."""
        return {float(eps): self.accuracy(float(eps)) for eps in self.protocol["eps"]}

    def __str__(self) -> str:
        said = [("clean", self.clean), *((f"robust eps={eps:g}", found) for eps, found in self.robust.items())]
        lines = [f"{title:<14} {100 * e.mean:5.1f} % [{100 * e.low:.1f}, {100 * e.high:.1f}]  n={e.n}" for title, e in said]
        sets, attacks = (", ".join(self.protocol[each]) for each in ("sets", "attacks"))
        protocol = self.records["protocol_hash"][0].as_py()[:12]
        return "\n".join([*lines, f"{sets}; {self.protocol['norm']}; {attacks}; protocol {protocol}, no checks were run"])

    def plot(self, path: str | Path | None = None) -> bytes:
        """Return accuracy against eps as PNG, and write it to `path` if given."""
        name = self.records["model"][0].as_py()
        png = figures.security_curve({name: {0.0: self.clean, **self.robust}})
        if path is not None:
            storage.write_bytes(storage.resolve(str(path)), png)
        return png


def evaluate(
    model: Model | str,
    data: str | Sequence[str] | Images | None = None,
    protocol: str | Protocol = "demo",
    *,
    attacks: Sequence[str | Attack] = (),
    eps: float | Sequence[float] = (),
    n: int | None = None,
    class_names: Sequence[str] = (),
    templates: Templates = TEMPLATES,
    out: str = "outputs",
) -> Evaluation:
    """Return what a model withstands under a protocol, or with what replaces its parts: sets, attacks, eps (1/255), `n` images a set.

    `data` are names of sets (under `out`/data, or embedded ones), or images [N,3,H,W] in [0,1] with labels [N], which need `class_names`.
    For a model given by its name, finished work is found under `out` and kept there, the same as the commands'. Raises UserError for
    unknown names, missing sets, and images without class names.
    """
    chosen = protocols.named(protocol) if isinstance(protocol, str) else protocol
    radii = (float(eps),) if isinstance(eps, int | float) else tuple(map(float, eps))
    given = catalogue.named(attacks)
    if isinstance(data, tuple) and data and isinstance(data[0], Tensor):
        if not class_names:
            raise UserError("images and labels say nothing of their classes: give class_names=[...] in label order")
        loaded = load(model) if isinstance(model, str) else model
        images, labels = data[0], torch.as_tensor(data[1])
        return Evaluation(*evaluate_images(loaded, images, labels, class_names, templates, given or chosen.attacks, radii or chosen.eps))
    sets: Any = () if data is None else (data,) if isinstance(data, str) else tuple(data)
    resolved = protocols.resolve(chosen.changed(sets=sets, attacks=given, eps=radii, n=n), storage.resolve(out))
    table = evaluate_named(model, resolved, storage.resolve(out)) if isinstance(model, str) else evaluate_model(model, resolved)
    return Evaluation(table, resolved.describe())


def finetune(model: Model | str, data: str | None = None, recipe: str = "demo", *, out: str = "outputs", **overrides: Any) -> Model:
    """Return a copy of the model fine-tuned by a recipe on the set `data` (default: the recipe's own), in this process.

    `overrides` change its config, dots written as two underscores: `optim__lr=1e-3`, `threat__image__eps=2`. Weights are bit for bit those
    of `robustclip train` with one worker and one thread. Raises UserError for an unknown recipe, set or key.
    """
    loaded = load(model) if isinstance(model, str) else model
    changes = {"model": loaded.name, **({"data.name": data} if data else {})}
    config = override(recipe_named(recipe).config, changes | {path.replace("__", "."): value for path, value in overrides.items()})
    trained, _ = finetune_alone(loaded, config, storage.resolve(out), tell)
    return replace(trained, name=f"{recipe} of {loaded.name}")


def tell(row: Mapping[str, float]) -> None:
    """Say on the log how a training is: every so many steps, and where it was validated."""
    if "val/clean" in row:
        log.info(
            "step %d: loss %.3f, held out: clean %.0f %%, robust %.0f %%", row["step"], row["loss"], *(100 * row[name] for name in VAL)
        )
    elif row["step"] % TOLD_EVERY == 0:
        log.info("step %d: loss %.3f", row["step"], row["loss"])
