"""Prompts that learn in front of a frozen CLIP: pixels, visual tokens, tokens of both towers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from robustclip.base.errors import UserError
from robustclip.base.seeds import generator
from robustclip.models.joint import Design, JointPrompt, Start, check_choices
from robustclip.models.model import Model
from robustclip.models.prompts import PixelPad, PixelPatch, Prompt, Together, Tokens
from robustclip.training.installing import Installed, frozen_tower, says

Shape = Literal["pad", "fixed patch", "random patch", "whole"]


@dataclass(frozen=True)
class PixelPrompt:
    """Pixels added to the normalised image train, CLIP is frozen (TeCoA Eq. 10 and Fig. 6).

    A frame `size` pixels wide ("pad"), a square of that side top left ("fixed patch") or moving about ("random patch"), or every pixel.
    """

    shape: Shape = "pad"
    size: int = 4

    def __post_init__(self) -> None:
        if self.shape not in get_args(Shape):
            raise UserError(f"trainable.shape is {self.shape!r}: choose {', '.join(get_args(Shape))}")

    def install(self, model: Model, seed: int, class_names: Sequence[str]) -> Installed:
        """Return the model with fresh pixels and these."""
        return with_prompt(model, self, self.build(model, seed))

    def build(self, model: Model, seed: int) -> Prompt:
        """Return the pixels with their random start."""
        side, g = model.preprocess.size, generator(seed, "pixel prompt")
        if self.shape == "pad":
            return PixelPad(side, self.size, g)
        return PixelPatch(side, side if self.shape == "whole" else self.size, self.shape == "random patch", g)


@dataclass(frozen=True)
class TokenPrompt:
    """`tokens` prompt tokens in front of the visual transformer train, once at the input or (deep) before every block; CLIP is frozen."""

    tokens: int = 8
    deep: bool = False

    def __post_init__(self) -> None:
        if self.tokens < 0:
            raise UserError(f"trainable.tokens is {self.tokens}: a number of tokens cannot be negative")

    def install(self, model: Model, seed: int, class_names: Sequence[str]) -> Installed:
        """Return the model with fresh tokens and the tokens; raises UserError for a tower that is no ViT."""
        return with_prompt(model, self, self.build(model, seed))

    def build(self, model: Model, seed: int) -> Prompt:
        """Return the tokens with their random start."""
        return Tokens(model.clip.visual, self.tokens, self.deep, generator(seed, "token prompt"))  # type: ignore[arg-type]


@dataclass(frozen=True)
class FramedTokens:
    """`tokens` prompt tokens at the input and a frame `pad` pixels wide train together: TeCoA's own defaults, AdvVP of later papers."""

    tokens: int = 5
    pad: int = 30

    def install(self, model: Model, seed: int, class_names: Sequence[str]) -> Installed:
        """Return the model with fresh tokens and pixels and both; raises UserError for a tower that is no ViT."""
        return with_prompt(model, self, self.build(model, seed))

    def build(self, model: Model, seed: int) -> Prompt:
        """Return both with their random starts."""
        return Together((PixelPrompt("pad", self.pad).build(model, seed), TokenPrompt(self.tokens).build(model, seed)))


@dataclass(frozen=True)
class JointTokens:
    """`tokens` prompt tokens in front of the first `depth` blocks of one or both towers train, by `design` (joint.py); CLIP is frozen.

    AdvVPT is "visual", AdvTP and APT "text" with depth 1, AdvVLP "independent", AdvMaPLe "text to visual", FAP "visual to text". Where
    texts learn, class names stand in `template`, whose first words the tokens replace and, by `start`, begin as.
    """

    design: Design = "independent"
    tokens: int = 2
    depth: int = 9
    template: str = "a photo of a {}."
    start: Start = "words"

    def __post_init__(self) -> None:
        check_choices(self.design, self.start)
        if self.tokens < 0:
            raise UserError(f"trainable.tokens is {self.tokens}: a number of tokens cannot be negative")

    def install(self, model: Model, seed: int, class_names: Sequence[str]) -> Installed:
        """Return the model with fresh tokens and the tokens; raises UserError for towers that cannot take them."""
        return with_prompt(model, self, self.build(model, seed))

    def build(self, model: Model, seed: int) -> Prompt:
        """Return the tokens as they start."""
        settings = (self.design, self.tokens, self.depth, self.template, self.start)
        return JointPrompt(model.clip, model.tokenizer, *settings, generator(seed, "joint prompt"))


PROMPTS = (PixelPrompt, TokenPrompt, FramedTokens, JointTokens)


def with_prompt(model: Model, trainable: PixelPrompt | TokenPrompt | FramedTokens | JointTokens, prompt: Prompt) -> Installed:
    """Return the frozen model wearing the prompt, and the prompt's parameters; raises UserError for an empty prompt."""
    frozen_tower(model)
    if not any(p.numel() for p in prompt.parameters()):
        raise UserError(f"{model.name}: a prompt of size 0 leaves nothing to learn; make it larger")
    return replace(model, prompt=prompt, card=says(model, trainable)), list(prompt.parameters())
