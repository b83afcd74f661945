"""What learns, apart from what it learns by: the visual tower or parts of it, a linear head, pixels, a filter of them, or prompt tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from torch import nn

from robustclip.base.errors import UserError
from robustclip.base.ranges import COUNT, NATURAL, check_fields
from robustclip.base.seeds import generator
from robustclip.models.dress import DRESSES, FramedTokens, InputFilter, JointTokens, LinearHead, PixelPrompt, TokenPrompt
from robustclip.models.insertion import require_vit
from robustclip.models.lowrank import LowRank, Tail, put_inside
from robustclip.models.model import Model
from robustclip.training.blocks import first_of, last_of
from robustclip.training.installing import Installed, frozen_tower, learning

NORMS = (nn.LayerNorm, nn.BatchNorm2d)


@dataclass(frozen=True)
class VisualTower:
    """The whole visual tower trains (TeCoA's fine-tuning); the text tower and logit_scale stay frozen."""

    def install(self, model: Model, seed: int, class_names: Sequence[str]) -> Installed:
        """Return the model and the tower's parameters."""
        return model, learning(frozen_tower(model).parameters())


@dataclass(frozen=True)
class Towers:
    """Both towers train, or the text tower alone: all of it, or layer norms and biases; for losses that reach the texts.

    `logit_scale` trains with them as it is ("trainable", as MMCoA's published code does), held below ln 100 ("clamped"), or not at all.
    """

    which: Literal["both", "text"] = "both"
    part: Literal["all", "norms and biases"] = "all"
    logit_scale: Literal["frozen", "trainable", "clamped"] = "frozen"

    def __post_init__(self) -> None:
        for name in ("which", "part", "logit_scale"):
            if getattr(self, name) not in get_args(get_type_hints(Towers)[name]):
                choices = ", ".join(get_args(get_type_hints(Towers)[name]))
                raise UserError(f"trainable.{name} is {getattr(self, name)!r}: choose {choices}")

    def install(self, model: Model, seed: int, class_names: Sequence[str]) -> Installed:
        """Return the model and those parameters."""
        frozen_tower(model)
        chosen = [name for name, _ in model.clip.named_parameters() if self._learns(name)]
        if self.part != "all":
            norms = {id(p) for part in model.clip.modules() if isinstance(part, NORMS) for p in part.parameters()}
            few = {name for name, p in model.clip.named_parameters() if id(p) in norms or name.endswith("bias")} | {"logit_scale"}
            chosen = [name for name in chosen if name in few]
        parameters = dict(model.clip.named_parameters())
        return model, learning(parameters[name] for name in chosen)

    def __str__(self) -> str:
        """Return what a legend has room for: Towers(both, all), the scale where it learns."""
        said = [self.which, self.part, *([f"logit_scale {self.logit_scale}"] if self.logit_scale != "frozen" else [])]
        return f"Towers({', '.join(said)})"

    def _learns(self, name: str) -> bool:
        if name in ("logit_scale", "logit_bias"):
            return name == "logit_scale" and self.logit_scale != "frozen"
        return self.which == "both" or not name.startswith("visual.")


@dataclass(frozen=True)
class LastBlocks:
    """The last `blocks` blocks of the visual tower train, and what comes after them (norm, pooling, projection)."""

    blocks: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "trainable.", blocks=COUNT)

    def install(self, model: Model, seed: int, class_names: Sequence[str]) -> Installed:
        """Return the model and those parameters; raises UserError for more blocks than there are, or none."""
        return model, learning(last_of(frozen_tower(model), self.blocks, "LastBlocks"))


@dataclass(frozen=True)
class FirstBlocks:
    """The patch embedding, class token, positions and pre-norm of the visual tower train, or its stem, and its first `blocks` blocks.

    After R-Adapt (Nie et al. 2026, arXiv:2603.12799), which finds the robustness of adversarially fine-tuned CLIP in the embedding and the
    attention of the first block. That these weights train is ours: the paper freezes all of them and blends a fixed anchor into what the
    first attention says. 0 blocks train the embedding alone. A stage of ConvNeXt, FastViT or Swin counts as a block.
    """

    blocks: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "trainable.", blocks=NATURAL)

    def install(self, model: Model, seed: int, class_names: Sequence[str]) -> Installed:
        """Return the model and those parameters; raises UserError for more blocks than there are, or a tower without any we know."""
        return model, learning(first_of(frozen_tower(model), self.blocks, "FirstBlocks"))


@dataclass(frozen=True)
class NormsAndBiases:
    """Layer norms (or batch norms) and all biases of the visual tower train."""

    def install(self, model: Model, seed: int, class_names: Sequence[str]) -> Installed:
        """Return the model and those parameters."""
        visual = frozen_tower(model)
        norms = {id(p) for part in visual.modules() if isinstance(part, NORMS) for p in part.parameters()}
        return model, learning(p for name, p in visual.named_parameters() if id(p) in norms or name.endswith("bias"))


@dataclass(frozen=True)
class SameSize:
    """Exactly `parameters` numbers of the visual tower train, the last ones of its list: as many as a prompt has (TeCoA Fig. 6).

    153,600 is 200 prompt tokens on ViT-B/32. The paper does not say which tensors it took; the list ends with the last block and ln_post.
    """

    parameters: int = 153_600

    def __post_init__(self) -> None:
        check_fields(self, "trainable.", parameters=COUNT)

    def install(self, model: Model, seed: int, class_names: Sequence[str]) -> Installed:
        """Return the model and those parameters; raises UserError for more numbers than there are, or none."""
        visual, left = frozen_tower(model), self.parameters
        found: list[nn.Parameter] = []
        total = sum(p.numel() for p in visual.parameters())
        if not 1 <= left <= total:
            raise UserError(f"trainable.parameters is {left}: this visual tower has {total:,}")
        for name, p in reversed(list(visual.named_parameters())):
            if left >= p.numel():
                found += learning([p])
            elif left:
                parent, _, own = name.rpartition(".")
                found += put_inside(visual.get_submodule(parent), own, Tail(p, left))
            left = max(0, left - p.numel())
        return model, found


@dataclass(frozen=True)
class LoRA:
    """A low-rank change of every weight matrix in the tower's transformer blocks trains (arXiv:2106.09685), scaled by alpha / rank."""

    rank: int = 4
    alpha: float = 4.0

    def __post_init__(self) -> None:
        check_fields(self, "trainable.", rank=COUNT)

    def install(self, model: Model, seed: int, class_names: Sequence[str]) -> Installed:
        """Return the model and the low-rank factors; raises UserError for a tower without transformer blocks."""
        found: list[nn.Parameter] = []
        for place, block in enumerate(require_vit(frozen_tower(model), "LoRA needs").blocks):
            for name, p in list(block.named_parameters()):
                if p.ndim == 2:
                    parent, _, own = name.rpartition(".")
                    g = generator(seed, "lora", place, name)
                    found += put_inside(block.get_submodule(parent), own, LowRank(p, self.rank, self.alpha / self.rank, g))
        return model, found


Trainable = (
    VisualTower
    | Towers
    | LastBlocks
    | FirstBlocks
    | NormsAndBiases
    | SameSize
    | LoRA
    | LinearHead
    | PixelPrompt
    | TokenPrompt
    | FramedTokens
    | JointTokens
    | InputFilter
)
TRAINABLES: tuple[type, ...] = (VisualTower, Towers, LastBlocks, FirstBlocks, NormsAndBiases, SameSize, LoRA, *DRESSES)
