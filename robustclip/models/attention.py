"""One matrix product where torch would take one for every token: how attention projects images or texts whose weights are frozen."""

from typing import Any

from torch import nn

WIDE = 256  # features; narrower ones take as long either way, and keep how they round


def project_at_once(clip: nn.Module) -> None:
    """Let every wide attention of a model lay out its input so that torch multiplies it as one matrix, in place.

    Within nn.MultiheadAttention tokens come before images. Laid out otherwise, and where its weights do not learn, torch multiplies the
    images of each token for themselves, which takes longer and rounds otherwise.
    """
    for module in clip.modules():
        if (
            isinstance(module, nn.MultiheadAttention)
            and module.embed_dim >= WIDE
            and tokens_first not in module._forward_pre_hooks.values()
        ):
            module.register_forward_pre_hook(tokens_first)


def tokens_first(module: nn.MultiheadAttention, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return what self-attention is given, images [B,L,D], the same with its tokens first in memory."""
    query, key, value, *others = given
    if not module.batch_first or query is not key or key is not value:
        return None
    laid = query.transpose(0, 1).contiguous().transpose(0, 1)
    return (laid, laid, laid, *others)
