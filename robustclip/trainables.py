"""What learns, apart from what it learns by: the visual tower, a frame of pixels, or prompt tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from robustclip.errors import UserError
from robustclip.model import Model
from robustclip.prompts import PixelPad, Tokens, VisualPrompt
from robustclip.seeds import generator


@dataclass(frozen=True)
class VisualTower:
    """The whole visual tower trains (TeCoA's fine-tuning); the text tower and logit_scale stay frozen."""

    def install(self, model: Model, seed: int) -> tuple[Model, list[nn.Parameter]]:
        """Return the model to train and its parameters that learn."""
        model.clip.requires_grad_(False)
        visual: nn.Module = model.clip.visual  # type: ignore[assignment]
        return model, list(visual.requires_grad_(True).parameters())


@dataclass(frozen=True)
class PadPrompt:
    """A frame of `pad` pixels around the normalised image trains; CLIP is frozen."""

    pad: int = 4

    def install(self, model: Model, seed: int) -> tuple[Model, list[nn.Parameter]]:
        """Return the model with a fresh frame and the frame's parameters."""
        return with_prompt(model, self.build(model, seed))

    def build(self, model: Model, seed: int) -> VisualPrompt:
        """Return the frame with its random start."""
        return PixelPad(model.preprocess.size, self.pad, generator(seed, "pad prompt"))


@dataclass(frozen=True)
class TokenPrompt:
    """`tokens` prompt tokens in front of the visual transformer train, once at the input or (deep) before every block; CLIP is frozen."""

    tokens: int = 8
    deep: bool = False

    def __post_init__(self) -> None:
        if self.tokens < 0:
            raise UserError(f"trainable.tokens is {self.tokens}: a number of tokens cannot be negative")

    def install(self, model: Model, seed: int) -> tuple[Model, list[nn.Parameter]]:
        """Return the model with fresh tokens and the tokens; raises UserError for a tower that is no ViT."""
        return with_prompt(model, self.build(model, seed))

    def build(self, model: Model, seed: int) -> VisualPrompt:
        """Return the tokens with their random start."""
        return Tokens(model.clip.visual, self.tokens, self.deep, generator(seed, "token prompt"))  # type: ignore[arg-type]


Trainable = VisualTower | PadPrompt | TokenPrompt
TRAINABLES: tuple[type, ...] = (VisualTower, PadPrompt, TokenPrompt)


def with_prompt(model: Model, prompt: VisualPrompt) -> tuple[Model, list[nn.Parameter]]:
    """Return the frozen model wearing the prompt, and the prompt's parameters; raises UserError when it already wears one."""
    if model.visual_prompt is not None:
        raise UserError(f"{model.name} already has a visual prompt: fine-tune the model it was made from")
    model.clip.requires_grad_(False)
    return replace(model, visual_prompt=prompt), list(prompt.parameters())


def prompt_of(card: Mapping[str, Any], model: Model) -> VisualPrompt | None:
    """Return an unfilled prompt of the kind a checkpoint's card names, or None."""
    settings = dict(card.get("trainable") or {"type": "VisualTower"})
    kind = {cls.__name__: cls for cls in TRAINABLES}.get(settings.pop("type"))
    if kind is None:
        raise UserError(f"{model.name}: its config.json names an unknown trainable {card['trainable']}: upgrade robustclip")
    trainable = kind(**settings)
    return None if isinstance(trainable, VisualTower) else trainable.build(model, seed=0)
