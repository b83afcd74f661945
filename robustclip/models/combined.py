"""Two models as one, by name: weights between CLIP and one fine-tuned from it, towers of two, an ensemble that averages logits."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.models import model as models
from robustclip.models.model import ZOO, Model

INTERPOLATE, ENSEMBLE, TOWERS = "interpolate:", "ensemble:", "towers:"
FROZEN_TOWER = {"prompt.safetensors": "a prompt", "readout.safetensors": "a linear readout"}  # files of what trains in its stead


def named(name: str) -> "Interpolation | Ensemble | TwoTowers | None":
    """Return the combination that a model's name stands for, None for the name of a single model; raises UserError for one cut short."""
    if name.startswith(INTERPOLATE):
        alpha, _, checkpoint = name.removeprefix(INTERPOLATE).partition(":")  # a URI has colons of its own
        return Interpolation(_share(alpha), checkpoint)
    if name.startswith(TOWERS):
        return TwoTowers(tuple(name.removeprefix(TOWERS).split(",")))
    return Ensemble(tuple(name.removeprefix(ENSEMBLE).split(","))) if name.startswith(ENSEMBLE) else None


@dataclass(frozen=True)
class Interpolation:
    """`interpolate:ALPHA:CHECKPOINT`: visual tower (1 - alpha) CLIP + alpha robust, tensor by tensor (TeCoA, arXiv:2212.07016, Fig. 7).

    CLIP is the model that the checkpoint's card names as its base. Raises UserError for what cannot be a checkpoint folder.
    """

    alpha: float
    checkpoint: str

    def __post_init__(self) -> None:
        _refuse_nested(self.checkpoint)
        if not self.checkpoint or self.checkpoint.startswith(ZOO):
            raise UserError(f"{INTERPOLATE}ALPHA:CHECKPOINT needs the folder of a fine-tuned model, not {self.checkpoint!r}")

    def base(self) -> dict[str, str]:
        """Return name and sha256 of what the checkpoint was fine-tuned from; raises UserError where no tower was, or it names no base."""
        for file, what in FROZEN_TOWER.items():
            if storage.exists(storage.join(self.checkpoint, file)):
                raise UserError(f"{self.checkpoint} trained {what} on its base's own visual tower: there is nothing to interpolate")
        path = storage.join(self.checkpoint, "config.json")
        card = storage.read_json(path) if storage.exists(path) else models.load(self.checkpoint).card  # or says what is wrong
        base = card.get("base") or {}
        if not {"name", "sha256"} <= base.keys():
            raise UserError(
                f"{self.checkpoint}: its config.json names no base, the model it was fine-tuned from, so there is nothing to interpolate "
                "with: give a checkpoint that pipelines/train.py wrote"
            )
        return base

    def load(self) -> Model:
        """Return the checkpoint's model with the tower in between; raises UserError where base and checkpoint do not belong together."""
        card, tuned = self.base(), models.load(self.checkpoint)
        if (found := models.identity(card["name"])) != card["sha256"]:
            raise UserError(
                f"{self.checkpoint} was fine-tuned from {card['name']} with sha256 {card['sha256'][:12]}..., what is there now has "
                f"{found[:12]}...: put the old weights back"
            )
        base = models.load(card["name"])
        if (base.open_clip_config["model_cfg"], base.preprocess) != (tuned.open_clip_config["model_cfg"], tuned.preprocess):
            raise UserError(f"{self.checkpoint} and its base {base.name} have different open_clip configs: no weights lie between the two")
        start, end = base.clip.state_dict(), tuned.clip.state_dict()
        if other := [name for name in end if not name.startswith("visual.") and not torch.equal(start[name], end[name])]:
            raise UserError(f"{self.checkpoint} differs from its base {base.name} outside the visual tower ({other[0]}): alpha 0 is not it")
        # The rest is left out, not computed: (1 - alpha) x + alpha x is not x to the bit.
        tower = {name: between(start[name], end[name], self.alpha) for name in end if name.startswith("visual.")}
        tuned.clip.load_state_dict(end | tower)
        return replace(tuned, name=f"{INTERPOLATE}{self.alpha}:{self.checkpoint}")

    def identity(self) -> str:
        """Return the hash of alpha and of what both weights are told by; nothing is loaded."""
        return _hash("interpolate", self.alpha, self.base()["sha256"], models.identity(self.checkpoint))

    def display_name(self) -> str:
        """Return e.g. interpolate-0.25-run-abc."""
        return f"interpolate-{self.alpha}-{models.display_name(self.checkpoint)}"

    def selection(self) -> frozenset[str] | None:
        """Return the ids that training and choosing the checkpoint saw, None where it does not say."""
        return models.selection(self.checkpoint)

    def input_size(self) -> int:
        """Return the side of its images."""
        return models.input_size(self.checkpoint)


@dataclass(frozen=True)
class Two:
    """Two different names of single models; raises UserError for anything else."""

    parts: tuple[str, ...]
    prefix: ClassVar[str]

    def __post_init__(self) -> None:
        if len(self.parts) != 2 or not all(self.parts) or self.parts[0] == self.parts[1]:
            raise UserError(f"{self.prefix}{','.join(self.parts)}: it is of two different models, written {self.prefix}A,B")
        for part in self.parts:
            _refuse_nested(part)

    def display_name(self) -> str:
        """Return e.g. ensemble-tiny-vit8+run-abc."""
        return f"{self.prefix.removesuffix(':')}-{'+'.join(models.display_name(part) for part in self.parts)}"

    def selection(self) -> frozenset[str] | None:
        """Return the ids that training and choosing either saw, None where neither says."""
        known = [ids for part in self.parts if (ids := models.selection(part)) is not None]
        return frozenset().union(*known) if known else None


@dataclass(frozen=True)
class TwoTowers(Two):
    """`towers:A,B`: the visual tower of A, and what it wears, with the text tower of B; both fine-tuned from one model, or one is it.

    So FARE's tower meets a robust text tower, each trained against what the same CLIP said. Raises UserError for two of other origins.
    """

    prefix = TOWERS

    def load(self) -> Model:
        """Return both towers as one model."""
        image, text = (models.load(part) for part in self.parts)
        origins = {part: model.card.get("base", {}).get("sha256", models.identity(part)) for part, model in zip(self.parts, (image, text))}
        if len(set(origins.values())) > 1:
            said = ", ".join(f"{part} from {origin[:12]}..." for part, origin in origins.items())
            raise UserError(f"{TOWERS}{','.join(self.parts)}: two towers understand each other only if one model was before both; {said}")
        if text.prompt is not None or text.readout is not None:
            raise UserError(
                f"{TOWERS}{','.join(self.parts)}: the second gives its text tower alone, and {self.parts[1]} trained another part"
            )
        own = {name: t for name, t in text.clip.state_dict().items() if not name.startswith("visual.")}
        image.clip.load_state_dict(image.clip.state_dict() | own)
        card = dict(image.card) if "base" in image.card else {**image.card, "base": text.card.get("base")}
        return replace(image, name=f"{TOWERS}{','.join(self.parts)}", card=card)

    def identity(self) -> str:
        """Return the hash of what both models are told by, the visual tower's first."""
        return _hash("towers", *(models.identity(part) for part in self.parts))

    def input_size(self) -> int:
        """Return the side of the images of the visual tower."""
        return models.input_size(self.parts[0])


@dataclass(frozen=True)
class Ensemble(Two):
    """`ensemble:A,B`: one classifier whose logits are the mean of two models', each with its own preprocessing, prompt and text tower."""

    prefix = ENSEMBLE

    def load(self) -> Model:
        """Return both models as one."""
        return together(f"{ENSEMBLE}{','.join(self.parts)}", [models.load(part) for part in self.parts])

    def identity(self) -> str:
        """Return the hash of what both models are told by, in either order: a mean has none."""
        return _hash("ensemble", *sorted(models.identity(part) for part in self.parts))

    def input_size(self) -> int:
        """Return the side of the images of the one that sees more."""
        return max(models.input_size(part) for part in self.parts)


class Towers(nn.ModuleList):
    """The CLIP models of an ensemble."""

    @property
    def visual(self) -> nn.Module:
        """Raise UserError: what asks for it would train it."""
        raise UserError("an ensemble has no visual tower of its own: fine-tune one of its models and combine afterwards")


class EnsembleClassifier(nn.Module):
    """Classifiers of the same classes as one: images [B,3,H,W] in [0,1] -> the mean of their logits [B,K]."""

    def __init__(self, members: Sequence[nn.Module], class_names: Sequence[str]):
        super().__init__()
        self.members, self.class_names = nn.ModuleList(members), tuple(class_names)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([member(images) for member in self.members]).mean(0)


@dataclass(frozen=True)
class EnsembleModel(Model):
    """The models of an ensemble as one; its preprocess is that of the member with the largest images, and only says how large."""

    members: tuple[Model, ...] = ()

    @property
    def sha256(self) -> str:
        """The hash of every tensor of every member."""
        return _hash(*sorted(member.sha256 for member in self.members))

    # No ZeroShotClassifier: it has two towers and two tables of class embeddings, and the checks that look at one say so.
    def classifier(self, class_names: Sequence[str], templates: Sequence[str]) -> EnsembleClassifier:  # type: ignore[override]
        """Return the classifier of this ensemble over `class_names`; it shares the weights of the members."""
        return EnsembleClassifier([member.classifier(class_names, templates) for member in self.members], class_names).eval()

    def copy(self) -> "EnsembleModel":
        """Return an ensemble with weights of its own."""
        return together(self.name, [member.copy() for member in self.members])


def together(name: str, members: Sequence[Model]) -> EnsembleModel:
    """Return models as one; its card names the classes any was trained on and the first base."""
    largest = max(members, key=lambda member: member.preprocess.size)
    card: dict[str, Any] = {"class_names": [*dict.fromkeys(each for member in members for each in member.card.get("class_names", []))]}
    card |= next(({"base": member.card["base"]} for member in members if "base" in member.card), {})
    towers = Towers([member.clip for member in members])
    return EnsembleModel(name, towers, largest.tokenizer, largest.open_clip_config, card, members=tuple(members))


def between(base: Tensor, tuned: Tensor, alpha: float) -> Tensor:
    """Return (1 - alpha) base + alpha tuned; at both ends, and of a whole number (batch norm counts), the tensor itself."""
    if alpha in (0, 1) or not tuned.is_floating_point():
        return tuned if alpha else base  # 1 * base + 0 * tuned is not base to the bit: a -0.0 loses its sign
    return (1 - alpha) * base + alpha * tuned


def _share(text: str) -> float:
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not 0 <= alpha <= 1:
        raise UserError(f"{INTERPOLATE}ALPHA:CHECKPOINT: ALPHA is a number from 0 (the base) to 1 (the checkpoint), not {text!r}")
    return alpha


def _refuse_nested(part: str) -> None:
    if part.startswith((INTERPOLATE, ENSEMBLE, TOWERS)):
        raise UserError(f"{part} is a combination, and combinations do not nest: name single models")


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
