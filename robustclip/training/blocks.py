"""Where the blocks of a visual tower are, what an image meets before them and what after: by the names of its parameters."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from robustclip.base.errors import UserError


@dataclass(frozen=True)
class Tower:
    """The blocks of a tower in the order an image meets them, and how names of parameters begin that come before and after all of them."""

    blocks: Sequence[str]
    before: tuple[str, ...]
    after: tuple[str, ...]


TIMM_HEAD = ("trunk.norm.", "trunk.fc_norm.", "trunk.attn_pool.", "trunk.head.", "head.")
# A kind of tower by the lists that hold its blocks: open_clip's ViT and ResNet; timm's ViT, EVA and ViTamin; its ConvNeXt and FastViT,
# and its Swin, whose stages count as blocks.
KINDS = (
    Tower(("transformer.resblocks",), ("conv1.", "class_embedding", "positional_embedding", "ln_pre."), ("ln_post.", "proj", "attn_pool")),
    Tower(("layer1", "layer2", "layer3", "layer4"), ("conv", "bn"), ("attnpool.",)),
    Tower(("trunk.blocks",), ("trunk.patch_embed.", "trunk.cls_token", "trunk.reg_token", "trunk.pos_embed", "trunk.norm_pre."), TIMM_HEAD),
    Tower(("trunk.stages",), ("trunk.stem.",), ("trunk.norm_pre.", "trunk.final_conv.", *TIMM_HEAD)),
    Tower(("trunk.layers",), ("trunk.patch_embed.",), TIMM_HEAD),
)


def tower_of(visual: nn.Module, who: str) -> Tower:
    """Return the places of a visual tower, each block by the beginning of its parameters' names; raises UserError for an unknown kind."""
    for kind in KINDS:
        try:
            blocks = [f"{name}.{i}." for name in kind.blocks for i in range(len(visual.get_submodule(name)))]  # type: ignore[arg-type]
        except AttributeError:
            continue
        return Tower(blocks, kind.before, kind.after)
    raise UserError(f"{who} does not know the blocks of a {type_of(visual)}: choose VisualTower or NormsAndBiases")


def check_blocks(count: int, tower: Tower) -> None:
    """Raise UserError for more blocks than a tower has."""
    if count > len(tower.blocks):
        raise UserError(f"trainable.blocks is {count}: this visual tower has {len(tower.blocks)} blocks")


def first_of(visual: nn.Module, blocks: int, who: str) -> list[nn.Parameter]:
    """Return what an image meets up to the end of the first `blocks` blocks, 0: before them all.

    Raises UserError for more blocks than there are, and for a tower with a parameter of which we do not know where it lies.
    """
    tower = tower_of(visual, who)
    check_blocks(blocks, tower)
    named = dict(visual.named_parameters())
    if lost := [name for name in named if not name.startswith((*tower.before, *tower.blocks, *tower.after))]:
        raise UserError(f"{who} does not know where {lost[0]} lies in a {type_of(visual)}: choose VisualTower or NormsAndBiases")
    return [p for name, p in named.items() if name.startswith((*tower.before, *tower.blocks[:blocks]))]


def last_of(visual: nn.Module, blocks: int, who: str) -> list[nn.Parameter]:
    """Return what an image meets from the last `blocks` blocks on; raises UserError for more blocks than there are."""
    tower = tower_of(visual, who)
    check_blocks(blocks, tower)
    return [p for name, p in visual.named_parameters() if name.startswith((*tower.blocks[-blocks:], *tower.after))]


def type_of(visual: nn.Module) -> str:
    """Return what kind of tower it is: in open_clip's dress for timm, what is inside."""
    return type(getattr(visual, "trunk", visual)).__name__
