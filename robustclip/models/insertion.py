"""Prompt tokens in a tower's forward pass, by hooks that live as long as a context: open_clip's towers stay as they are."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustclip.base.errors import UserError

# The prompt tokens of block 0, 1, ...: each [n,D], the same in every row of a batch, or [B,n,D], one set for each row.
Layers = Sequence[Tensor]
Look = Callable[[int, Tensor], None]  # is shown the input [B,T,D] of every block by its number


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


def require_text_tower(clip: nn.Module) -> Any:
    """Return what holds token embedding, positions and blocks of a model's texts; raises UserError for a tower that is not open_clip's."""
    tower: Any = getattr(clip, "text", clip)
    if not isinstance(getattr(tower, "token_embedding", None), nn.Embedding) or not hasattr(tower.transformer, "resblocks"):
        raise UserError(f"text prompts need a text transformer of open_clip; this model's is a {type(tower).__name__}")
    if getattr(tower, "cls_emb", None) is not None or not tower.transformer.batch_first:
        raise UserError("text prompts need a batch-first text transformer without a class token of its own")
    return tower


def rows(tokens: Tensor, like: Tensor) -> Tensor:
    """Return tokens [n,D] or [B,n,D] as [B,n,D] for a batch of rows `like` [B,T,D], in its type."""
    return tokens.to(like).expand(len(like), -1, -1)


@contextmanager
def hooked(handles: list[Any]) -> Iterator[None]:
    """Remove the hooks at the end of the context."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def in_images(visual: nn.Module, layers: Layers, look: Look | None = None) -> Iterator[None]:
    """Put layers[0] behind a ViT's own tokens, without positions, before ln_pre, and layers[i] in its place before block i.

    After the last of them the tokens flow on; no pooling sees them. Raises UserError for more layers than blocks or another tower.
    """
    if not layers and look is None:
        yield
        return
    vit, count = require_vit(visual), layers[0].shape[-2] if layers else 0
    if len(layers) > len(vit.blocks):
        raise UserError(f"prompt tokens for {len(layers)} blocks do not fit a visual tower of {len(vit.blocks)}")

    def append(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (torch.cat([args[0], rows(layers[0], args[0])], 1),)

    def enter(layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0]
            if 0 < layer < len(layers) and count:
                x = torch.cat([x[:, :-count], rows(layers[layer], x)], 1)
            if look is not None:
                look(layer, x)
            return (x, *args[1:])

        return hook

    def drop(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output[:, :-count]  # towers that pool over all tokens must not see them

    handles = [block.register_forward_pre_hook(enter(i)) for i, block in enumerate(vit.blocks) if look is not None or i < len(layers)]
    if count:
        handles += [vit.before.register_forward_pre_hook(append), vit.body.register_forward_hook(drop)]
    with hooked(handles):
        yield


@contextmanager
def in_texts(clip: nn.Module, layers: Layers) -> Iterator[None]:
    """Put layers[0] in the place of the embeddings of token 1, 2, ... of every text, before positions, and layers[i] before block i.

    Raises UserError for more layers than blocks or a tower that is not open_clip's.
    """
    if not layers:
        yield
        return
    tower, end = require_text_tower(clip), 1 + layers[0].shape[-2]
    blocks = list(tower.transformer.resblocks)
    if len(layers) > len(blocks):
        raise UserError(f"prompt tokens for {len(layers)} blocks do not fit a text tower of {len(blocks)}")

    def put(x: Tensor, tokens: Tensor) -> Tensor:
        return torch.cat([x[:, :1], rows(tokens, x), x[:, end:]], 1)

    def embed(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return put(output, layers[0])

    def enter(layer: int) -> Callable[..., Any]:
        return lambda module, args: (put(args[0], layers[layer]), *args[1:])

    handles = [tower.token_embedding.register_forward_hook(embed)]
    handles += [blocks[i].register_forward_pre_hook(enter(i)) for i in range(1, len(layers))]
    with hooked(handles):
        yield


def looking_back(clip: nn.Module) -> Any:
    """Return the text tower where what follows the end of a text changes nothing, else None.

    So it is where attention looks back only and the features are the end token's; not where it looks both ways, speaks by its last token
    or by one of its own behind it, or is not open_clip's.
    """
    tower: Any = getattr(clip, "text", clip)
    by_the_end = pool_of(tower) in ("argmax", "eos") and getattr(tower, "cls_emb", None) is None
    known = isinstance(getattr(tower, "positional_embedding", None), nn.Parameter) and getattr(tower, "attn_mask", None) is not None
    return tower if by_the_end and known else None


def pool_of(tower: Any) -> str:
    """Return by which token a text tower speaks, in open_clip's words."""
    return str(getattr(tower, "pool_type", getattr(tower, "text_pool_type", "argmax")))


def read_of(clip: nn.Module, ids: Tensor) -> Tensor:
    """Return how many tokens [N] of texts `ids` [N,T] a text tower must read: to their ends, if it is one that is `looking_back`."""
    if (tower := looking_back(clip)) is None:
        return torch.full((len(ids),), ids.shape[1])
    ends = ids if pool_of(tower) == "argmax" else ids.eq(getattr(tower, "eos_id", getattr(tower, "text_eos_id", 0))).int()
    return ends.argmax(1) + 1


@contextmanager
def cut(clip: nn.Module, length: int) -> Iterator[None]:
    """Let the text tower take texts of `length` tokens inside this context, without a gradient for its positions (see `read_of`)."""
    tower = looking_back(clip)
    if tower is None or length == len(tower.positional_embedding):
        yield
        return
    positions, mask = tower.positional_embedding, tower.attn_mask
    tower.positional_embedding = nn.Parameter(positions.detach()[:length], requires_grad=False)
    tower.attn_mask = mask[:length, :length]
    try:
        yield
    finally:
        tower.positional_embedding, tower.attn_mask = positions, mask
