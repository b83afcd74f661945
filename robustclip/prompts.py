"""Visual prompts: what is added to images or tokens in front of a frozen tower (TeCoA section 3.4 and A.6), without patching open_clip."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustclip.errors import UserError


class PixelPad(nn.Module):
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

    @contextmanager
    def on_tokens(self, visual: nn.Module) -> Iterator[None]:
        """Leave the tower as it is."""
        yield


class PixelPatch(nn.Module):
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

    @contextmanager
    def on_tokens(self, visual: nn.Module) -> Iterator[None]:
        """Leave the tower as it is."""
        yield


class Tokens(nn.Module):
    """`count` learnable tokens appended after the class and patch tokens, without positions, before ln_pre (TeCoA A.6), N(0,1) at first.

    `deep` replaces them by fresh ones before every block (VPT-deep). The output token is the class token, so 0 tokens are plain CLIP.
    Hooks that live for one forward pass put them in, so the open_clip tower stays untouched. Raises UserError for a tower that is no ViT.
    """

    def __init__(self, visual: nn.Module, count: int, deep: bool, g: torch.Generator):
        super().__init__()
        vit = require_vit(visual)
        self.tokens = nn.Parameter(torch.randn(len(vit.blocks) if deep else 1, count, vit.width, generator=g))

    def on_pixels(self, x: Tensor) -> Tensor:
        """Leave the pixels as they are."""
        return x

    @contextmanager
    def on_tokens(self, visual: nn.Module) -> Iterator[None]:
        """Insert the tokens into every forward pass of the tower inside this context."""
        count = self.tokens.shape[1]

        def append(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            return (torch.cat([args[0], self.tokens[0].to(args[0]).expand(len(args[0]), -1, -1)], 1),)

        def replace(layer: int):
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                x = args[0]
                return (torch.cat([x[:, :-count], self.tokens[layer].to(x).expand(len(x), -1, -1)], 1), *args[1:])

            return hook

        def drop(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output[:, :-count]  # towers that pool over all tokens must not see them

        if count == 0:
            yield
            return
        vit = require_vit(visual)
        handles = [vit.before.register_forward_pre_hook(append), vit.body.register_forward_hook(drop)]
        handles += [vit.blocks[layer].register_forward_pre_hook(replace(layer)) for layer in range(1, len(self.tokens))]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


VisualPrompt = PixelPad | PixelPatch | Tokens


@dataclass(frozen=True)
class Vit:
    """The places of a vision transformer: `before` the tokens enter its `body`, which runs the `blocks`; their `width`."""

    before: nn.Module
    body: nn.Module
    blocks: list[nn.Module]
    width: int


def require_vit(visual: nn.Module, who: str = "prompt tokens need") -> Vit:
    """Return the places of a vision transformer, open_clip's own (batch-first) or timm's; raises UserError for any other tower."""
    from open_clip.transformer import VisionTransformer
    from timm.models.vision_transformer import VisionTransformer as TimmTransformer

    tower: Any = visual
    if isinstance(visual, VisionTransformer) and tower.transformer.batch_first:
        return Vit(tower.ln_pre, tower.transformer, list(tower.transformer.resblocks), tower.positional_embedding.shape[-1])
    trunk = getattr(visual, "trunk", None)
    if isinstance(trunk, TimmTransformer):
        return Vit(trunk.norm_pre, trunk.blocks, list(trunk.blocks), trunk.embed_dim)
    kind = type(visual if trunk is None else trunk).__name__
    raise UserError(f"{who} a vision transformer of open_clip or timm; this model's visual tower is a {kind}")
