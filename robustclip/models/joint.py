"""Prompt tokens of both towers, learned together or apart: the designs of VPT, CoOp, independent prompts, MaPLe and FAP."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn

from robustclip.base import dtypes
from robustclip.base.errors import UserError
from robustclip.models.insertion import Layers, require_text_tower, require_vit
from robustclip.models.prompts import Prompt

Design = Literal["visual", "text", "independent", "text to visual", "visual to text"]
Start = Literal["words", "random"]
SPREAD = 0.02  # of tokens that start at random


class JointPrompt(Prompt):
    """`tokens` prompt tokens in front of the first `depth` blocks of one tower or of both (TAPT, arXiv:2411.13136; MaPLe; FAP).

    "visual": tokens behind the image's own. "text": in the place of the first words of `template`. "independent": both. "text to visual"
    (MaPLe): the text's tokens, and a linear map of each block that makes the image's of them. "visual to text" (FAP): the other way round
    from the second block on. The context starts as the words it replaces, or at random. On ViT-B/16 with 2 tokens and depth 9 these are
    13,824, 1,024 (depth 1), 23,040, 3,555,072 and 3,557,120 parameters. Raises UserError for more tokens than the template has words in
    front of the class name, for more blocks than a tower has, and for towers that are not open_clip's.
    """

    def __init__(
        self,
        clip: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        design: Design,
        tokens: int,
        depth: int,
        template: str,
        start: Start,
        g: Generator,
    ):
        super().__init__()
        self.design, self.depth = design, depth
        visual = require_vit(clip.visual, "prompts of both towers need") if design != "text" else None  # type: ignore[arg-type]
        text = require_text_tower(clip) if design != "visual" else None
        blocks = [len(vit.blocks) for vit in (visual,) if vit] + [len(t.transformer.resblocks) for t in (text,) if t is not None]
        if not 1 <= depth <= min(blocks):
            raise UserError(f"trainable.depth is {depth}: these towers allow 1 to {min(blocks)} blocks with prompt tokens")
        wide = visual.width if visual else 0
        narrow = text.token_embedding.embedding_dim if text is not None else 0

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(SPREAD * torch.randn(shape, generator=g))

        def linear(maps: int, into: int, out_of: int) -> tuple[nn.Parameter, nn.Parameter]:
            bound = out_of**-0.5
            weight, bias = torch.rand(maps, into, out_of, generator=g), torch.rand(maps, into, generator=g)
            return nn.Parameter((2 * weight - 1) * bound), nn.Parameter((2 * bias - 1) * bound)

        if text is not None:
            self.template = template
            words = first_words(text, tokenizer, template, tokens)
            self.context = nn.Parameter(words.clone()) if start == "words" else normal(tokens, narrow)
        if design in ("visual", "independent"):
            self.visual = normal(depth, tokens, wide)
        if design in ("text", "independent", "text to visual") and depth > 1:
            self.text = normal(depth - 1, tokens, narrow)
        if design == "text to visual":
            self.weight, self.bias = linear(depth, wide, narrow)
        if design == "visual to text":
            self.weight, self.bias = linear(1, wide, narrow)
        if design == "visual to text" and depth > 1:
            self.visual = normal(depth - 1, tokens, wide)
            self.weight_back, self.bias_back = linear(depth - 1, narrow, wide)
        if text is not None:
            self.to(self.context.dtype)  # one map takes both: an fp64 tower's words are fp64

    def state(self) -> dict[str, Tensor]:
        """Return its parameters by name."""
        return dict(self.named_parameters())

    def layers(self, state: Mapping[str, Tensor]) -> tuple[Layers, Layers]:
        """Return the tokens [...,n,D] of the visual and of the text tower's blocks, for parameters that may have leading dimensions."""
        context = [state["context"]] if "context" in state else []
        text = [*context, *unstacked(state["text"])] if "text" in state else context
        if self.design in ("visual", "independent"):
            return unstacked(state["visual"]), text
        if self.design == "text":
            return [], text
        if self.design == "text to visual":
            return unstacked(mapped(torch.stack(text, -3), state["weight"], state["bias"])), text
        first = unstacked(mapped(context[0][..., None, :, :], state["weight"], state["bias"]))
        if self.depth == 1:
            return first, context
        back = mapped(state["visual"], state["weight_back"], state["bias_back"])
        return [*first, *unstacked(state["visual"])], [*context, *unstacked(back)]

    def visual_layers(self) -> Layers:
        """Return the tokens of the visual tower's blocks."""
        return self.layers(self.state())[0]

    def text_layers(self) -> Layers:
        """Return the tokens of the text tower's blocks."""
        return self.layers(self.state())[1]


def mapped(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return tokens [...,J,n,D] through one linear map a block: weight [...,J,E,D], bias [...,J,E] -> [...,J,n,E]."""
    return torch.einsum("...jnd,...jed->...jne", tokens, weight) + bias[..., None, :]


def unstacked(tokens: Tensor) -> list[Tensor]:
    """Return [...,J,n,D] as J tensors [...,n,D]."""
    return list(tokens.unbind(-3))


def first_words(tower: Any, tokenizer: Callable[[list[str]], Tensor], template: str, count: int) -> Tensor:
    """Return the embeddings [count,D] of a template's first tokens; raises UserError where the class name stands among them."""
    if template.count("{}") != 1:
        raise UserError(f"trainable.template is {template!r}: it must contain {{}} exactly once, where the class name goes")
    ids, before = tokenizer([template.format("x"), template.split("{}")[0]])
    room = int((before != 0).sum()) - 2  # without start and end
    if count > room:
        raise UserError(f"trainable.tokens is {count}, but {template!r} has {room} tokens in front of the class name: make it longer")
    with torch.no_grad():
        return dtypes.wide(tower.token_embedding(ids[1 : 1 + count].to(tower.token_embedding.weight.device)))


def check_choices(design: str, start: str) -> None:
    """Raise UserError for a design or a start that there is not."""
    for name, value, choices in (("design", design, get_args(Design)), ("start", start, get_args(Start))):
        if value not in choices:
            raise UserError(f"trainable.{name} is {value!r}: choose {', '.join(choices)}")
