"""What learns, apart from what it learns by: the visual tower, a frame of pixels, or prompt tokens."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
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
        refuse_prompted(model)
        model.clip.requires_grad_(False)
        visual: nn.Module = model.clip.visual  # type: ignore[assignment]
        return model, list(visual.requires_grad_(True).parameters())


@dataclass(frozen=True)
class PadPrompt:
    """A frame of `pad` pixels around the normalised image trains; CLIP is frozen."""

    pad: int = 4

    def install(self, model: Model, seed: int) -> tuple[Model, list[nn.Parameter]]:
        """Return the model with a fresh frame and the frame's parameters."""
        return with_prompt(model, self, self.build(model, seed))

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
        return with_prompt(model, self, self.build(model, seed))

    def build(self, model: Model, seed: int) -> VisualPrompt:
        """Return the tokens with their random start."""
        return Tokens(model.clip.visual, self.tokens, self.deep, generator(seed, "token prompt"))  # type: ignore[arg-type]


Trainable = VisualTower | PadPrompt | TokenPrompt
TRAINABLES: tuple[type, ...] = (VisualTower, PadPrompt, TokenPrompt)


def with_prompt(model: Model, trainable: PadPrompt | TokenPrompt, prompt: VisualPrompt) -> tuple[Model, list[nn.Parameter]]:
    """Return the frozen model wearing the prompt, and the prompt's parameters; raises UserError for a second prompt or an empty one."""
    refuse_prompted(model)
    if not any(p.numel() for p in prompt.parameters()):
        raise UserError(f"{model.name}: a visual prompt of size 0 leaves nothing to learn; make it larger")
    model.clip.requires_grad_(False)
    card = {**model.card, "trainable": {"type": type(trainable).__name__, **asdict(trainable)}}  # what `load` builds the prompt from
    return replace(model, visual_prompt=prompt, card=card), list(prompt.parameters())


def refuse_prompted(model: Model) -> None:
    """Raise UserError for a model that wears a visual prompt: a checkpoint says of one trainable how it was made."""
    if model.visual_prompt is not None:
        raise UserError(f"{model.name} already has a visual prompt: fine-tune the model it was made from")


def prompt_of(card: Mapping[str, Any], model: Model) -> VisualPrompt | None:
    """Return an unfilled prompt of the kind a checkpoint's card names, or None."""
    settings = dict(card.get("trainable") or {"type": "VisualTower"})
    kind = {cls.__name__: cls for cls in TRAINABLES}.get(settings.pop("type"))
    if kind is None or settings.keys() - {field.name for field in fields(kind)}:
        raise UserError(f"{model.name}: its config.json names an unknown trainable {card['trainable']}: upgrade robustclip")
    trainable = kind(**settings)
    return None if isinstance(trainable, VisualTower) else trainable.build(model, seed=0)
