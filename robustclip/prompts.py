"""Visual prompts: what is added to images or tokens in front of a frozen tower (TeCoA section 3.4 and A.6), without patching open_clip."""

from collections.abc import Iterator
from contextlib import contextmanager
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
            raise UserError(f"trainable.pad is {pad}: a frame on {size} px images is between 0 and {size // 2} pixels wide")
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


class Tokens(nn.Module):
    """`count` learnable tokens appended after the class and patch tokens, without positions, before ln_pre (TeCoA A.6), N(0,1) at first.

    `deep` replaces them by fresh ones before every block (VPT-deep). The output token is the class token, so 0 tokens are plain CLIP.
    Hooks that live for one forward pass put them in, so the open_clip tower stays untouched. Raises UserError for a tower that is no ViT.
    """

    def __init__(self, visual: nn.Module, count: int, deep: bool, g: torch.Generator):
        super().__init__()
        vit = require_vit(visual)
        width, layers = vit.positional_embedding.shape[-1], len(vit.transformer.resblocks)
        self.tokens = nn.Parameter(torch.randn(layers if deep else 1, count, width, generator=g))

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
        handles = [visual.ln_pre.register_forward_pre_hook(append), visual.transformer.register_forward_hook(drop)]  # type: ignore
        blocks: Any = visual.transformer.resblocks  # type: ignore[union-attr]
        handles += [blocks[layer].register_forward_pre_hook(replace(layer)) for layer in range(1, len(self.tokens))]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


VisualPrompt = PixelPad | Tokens


def require_vit(visual: nn.Module) -> Any:
    """Return `visual`; raises UserError unless it is open_clip's own vision transformer with batch-first blocks."""
    from open_clip.transformer import VisionTransformer

    if not isinstance(visual, VisionTransformer) or not visual.transformer.batch_first:
        raise UserError(f"prompt tokens need a vision transformer of open_clip; this model's visual tower is a {type(visual).__name__}")
    return visual
