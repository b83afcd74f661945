"""Two models as one: weights between CLIP and one fine-tuned from it, towers of two, an ensemble that averages logits."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustclip.base.errors import UserError
from robustclip.models.class_texts import Templates
from robustclip.models.model import Model


def interpolated(base: Model, tuned: Model, alpha: float, name: str) -> Model:
    """Return the model with visual tower (1 - alpha) base + alpha tuned, tensor by tensor (TeCoA, arXiv:2212.07016, Fig. 7).

    `tuned` gives its weights up. Raises UserError for two architectures, and for models that differ outside the visual tower.
    """
    if (base.open_clip_config["model_cfg"], base.preprocess) != (tuned.open_clip_config["model_cfg"], tuned.preprocess):
        raise UserError(f"{tuned.name} and its base {base.name} have different open_clip configs: no weights lie between the two")
    start, end = base.clip.state_dict(), tuned.clip.state_dict()
    if other := [name for name in end if not name.startswith("visual.") and not torch.equal(start[name], end[name])]:
        raise UserError(f"{tuned.name} differs from its base {base.name} outside the visual tower ({other[0]}): alpha 0 is not it")
    # The rest is left out, not computed: (1 - alpha) x + alpha x is not x to the bit.
    tower = {name: between(start[name], end[name], alpha) for name in end if name.startswith("visual.")}
    tuned.clip.load_state_dict(end | tower)
    return replace(tuned, name=name)


def two_towers(image: Model, text: Model, name: str) -> Model:
    """Return the visual tower of one model, and what it wears, with the text tower of the other; `image` gives its weights up.

    So FARE's tower meets a robust text tower, each trained against what the same CLIP said. Raises UserError where the second trained
    another part than its text tower.
    """
    if text.prompt is not None or text.readout is not None:
        raise UserError(f"{name}: the second gives its text tower alone, and {text.name} trained another part")
    own = {name: t for name, t in text.clip.state_dict().items() if not name.startswith("visual.")}
    image.clip.load_state_dict(image.clip.state_dict() | own)
    card = dict(image.card) if "base" in image.card else {**image.card, "base": text.card.get("base")}
    return replace(image, name=name, card=card)


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
        return hash_of(*sorted(member.sha256 for member in self.members))

    # No ZeroShotClassifier: it has two towers and two tables of class embeddings, and the checks that look at one say so.
    def classifier(self, class_names: Sequence[str], templates: Templates) -> EnsembleClassifier:  # type: ignore[override]
        """Return the classifier of this ensemble over `class_names`; it shares the weights of the members."""
        return EnsembleClassifier([member.classifier(class_names, templates) for member in self.members], class_names).eval()

    def to(self, device: torch.device | str) -> "EnsembleModel":
        """Move all members to a device, in place, and return their ensemble."""
        for member in self.members:
            member.to(device)
        return self

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


def hash_of(*parts: Any) -> str:
    """Return the hash that names what is made of several parts."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
