"""Prompts: what is done to images or added to tokens in front of frozen towers (TeCoA section 3.4 and A.6), without patching open_clip."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustclip.base.errors import UserError
from robustclip.models.insertion import Layers, require_vit


class Prompt(nn.Module):
    """What is learned in front of a frozen CLIP: pixels added to the image, a filter of it, tokens of either tower.

    A prompt with a `template` brings its own words: class names stand in it, and in no template of a data set.
    """

    template: str | None = None

    def on_pixels(self, x: Tensor) -> Tensor:
        """Return normalised images [B,3,S,S] as this prompt shows them to the tower."""
        return x

    def visual_layers(self) -> Layers:
        """Return the tokens of the visual tower's blocks, none by default."""
        return []

    def text_layers(self) -> Layers:
        """Return the tokens of the text tower's blocks, none by default."""
        return []


class PixelPad(Prompt):
    """A learnable frame of `pad` pixels added to normalised images [B,3,S,S], unclamped (TeCoA Eq. 10, "padding"), N(0,1) at first.

    It has 3 (S^2 - (S - 2 pad)^2) parameters: 69,840 for pad 30 at 224 px.
    """

    def __init__(self, size: int, pad: int, g: torch.Generator):
        super().__init__()
        if not 0 <= 2 * pad <= size:
            raise UserError(f"trainable.size is {pad}: a frame on {size} px images is between 0 and {size // 2} pixels wide")
        inner = size - 2 * pad
        self.rows = nn.Parameter(torch.randn(2, 3, pad, size, generator=g))  # top, bottom
        self.columns = nn.Parameter(torch.randn(2, 3, inner, pad, generator=g))  # left, right
        self.inner = inner

    def on_pixels(self, x: Tensor) -> Tensor:
        """Return the prompted images."""
        middle = torch.cat([self.columns[0], x.new_zeros(3, self.inner, self.inner), self.columns[1]], 2)
        return x + torch.cat([self.rows[0], middle, self.rows[1]], 1)


class PixelPatch(Prompt):
    """A learnable patch [3,side,side] added to normalised images [B,3,S,S], unclamped (TeCoA Eq. 10), N(0,1) at first.

    A fixed one lies top left (side S: over the whole image). A `moving` one ("random_patch") lies elsewhere at every training step; when
    it is scored it lies in the middle: drawn anew at every forward, it would be a randomised defence that hides behind its luck.
    """

    def __init__(self, size: int, side: int, moving: bool, g: torch.Generator):
        super().__init__()
        if not 0 <= side <= size:
            raise UserError(f"trainable.size is {side}: a patch on {size} px images is between 0 and {size} pixels wide")
        self.patch = nn.Parameter(torch.randn(3, side, side, generator=g))
        self.room, self.moving = size - side, moving
        self.place = (0, 0)
        self.rest()

    def rest(self) -> None:
        """Put the patch where it is scored."""
        self.place = (self.room // 2, self.room // 2) if self.moving else (0, 0)

    def move(self, g: torch.Generator) -> None:
        """Put a moving patch at a place drawn from g."""
        if self.moving:
            top, left = torch.randint(self.room + 1, (2,), generator=g).tolist()
            self.place = (top, left)

    def on_pixels(self, x: Tensor) -> Tensor:
        """Return the prompted images."""
        (top, left), room = self.place, self.room
        return x + nn.functional.pad(self.patch, (left, room - left, top, room - top))


class PixelFilter(Prompt):
    """A learnable convolution K [3,3,side,side] of normalised images [B,3,S,S], x + K * x with K zero at first (see dress.InputFilter).

    What lies beyond the image counts as 0, the mean colour, as in the convolutions of towers.
    """

    def __init__(self, size: int, side: int):
        super().__init__()
        if side > size:
            raise UserError(f"trainable.size is {side}: a filter of {size} px images is at most {size} pixels wide")
        self.kernel = nn.Parameter(torch.zeros(3, 3, side, side))

    def on_pixels(self, x: Tensor) -> Tensor:
        """Return the filtered images."""
        return x + nn.functional.conv2d(x, self.kernel, padding=self.kernel.shape[-1] // 2)


class Tokens(Prompt):
    """`count` learnable tokens appended after the class and patch tokens, without positions, before ln_pre (TeCoA A.6), N(0,1) at first.

    `deep` replaces them by fresh ones before every block (VPT-deep). The output token is the class token, so 0 tokens are plain CLIP.
    Raises UserError for a tower that is no ViT.
    """

    def __init__(self, visual: nn.Module, count: int, deep: bool, g: torch.Generator):
        super().__init__()
        vit = require_vit(visual)
        self.tokens = nn.Parameter(torch.randn(len(vit.blocks) if deep else 1, count, vit.width, generator=g))

    def visual_layers(self) -> Layers:
        """Return the tokens of every block that has some."""
        return list(self.tokens)


class Together(Prompt):
    """Several prompts worn at once, such as a frame and tokens (TeCoA's defaults; "AdvVP" of later papers)."""

    def __init__(self, parts: Sequence[Prompt]):
        super().__init__()
        self.parts: Iterable[Any] = nn.ModuleList(parts)

    def on_pixels(self, x: Tensor) -> Tensor:
        """Return the images with the pixels of every part."""
        for part in self.parts:
            x = part.on_pixels(x)
        return x

    def visual_layers(self) -> Layers:
        """Return the tokens of the one part that has some."""
        return next((layers for part in self.parts if (layers := part.visual_layers())), [])
