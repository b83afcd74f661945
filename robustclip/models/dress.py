"""What a frozen CLIP may wear, as settings: pixels, a filter, visual tokens, tokens of both towers, a linear readout.

Training makes it, a checkpoint's card names it, and it is built again before the checkpoint's files fill it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from torch import nn

from robustclip.base.errors import UserError
from robustclip.base.ranges import COUNT, NATURAL, check_fields
from robustclip.base.seeds import generator
from robustclip.models.joint import Design, JointPrompt, Start, check_choices
from robustclip.models.model import LinearReadout, Model
from robustclip.models.prompts import PixelFilter, PixelPad, PixelPatch, Prompt, Together, Tokens

Shape = Literal["pad", "fixed patch", "random patch", "whole"]


class Dress:
    """Settings of what is put on a model whose own weights stay as they are."""

    def build(self, model: Model, seed: int, class_names: Sequence[str] = ()) -> nn.Module:
        """Return it as it starts, for a model and, where it needs them, its classes."""
        raise NotImplementedError


@dataclass(frozen=True)
class PixelPrompt(Dress):
    """Pixels added to the normalised image train, CLIP is frozen (TeCoA Eq. 10 and Fig. 6).

    A frame `size` pixels wide ("pad"), a square of that side top left ("fixed patch") or moving about ("random patch"), or every pixel.
    """

    shape: Shape = "pad"
    size: int = 4

    def __post_init__(self) -> None:
        if self.shape not in get_args(Shape):
            raise UserError(f"trainable.shape is {self.shape!r}: choose {', '.join(get_args(Shape))}")
        check_fields(self, "trainable.", size=NATURAL)

    def build(self, model: Model, seed: int, class_names: Sequence[str] = ()) -> Prompt:
        """Return the pixels with their random start."""
        side, g = model.preprocess.size, generator(seed, "pixel prompt")
        if self.shape == "pad":
            return PixelPad(side, self.size, g)
        return PixelPatch(side, side if self.shape == "whole" else self.size, self.shape == "random patch", g)


@dataclass(frozen=True)
class TokenPrompt(Dress):
    """`tokens` prompt tokens in front of the visual transformer train, once at the input or (deep) before every block; CLIP is frozen."""

    tokens: int = 8
    deep: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "trainable.", tokens=NATURAL)

    def build(self, model: Model, seed: int, class_names: Sequence[str] = ()) -> Prompt:
        """Return the tokens with their random start."""
        return Tokens(model.clip.visual, self.tokens, self.deep, generator(seed, "token prompt"))  # type: ignore[arg-type]


@dataclass(frozen=True)
class FramedTokens(Dress):
    """`tokens` prompt tokens at the input and a frame `pad` pixels wide train together: TeCoA's own defaults, AdvVP of later papers."""

    tokens: int = 5
    pad: int = 30

    def __post_init__(self) -> None:
        check_fields(self, "trainable.", tokens=NATURAL, pad=NATURAL)

    def build(self, model: Model, seed: int, class_names: Sequence[str] = ()) -> Prompt:
        """Return both with their random starts."""
        return Together((PixelPrompt("pad", self.pad).build(model, seed), TokenPrompt(self.tokens).build(model, seed)))


@dataclass(frozen=True)
class JointTokens(Dress):
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
        check_fields(self, "trainable.", tokens=NATURAL, depth=COUNT)

    def build(self, model: Model, seed: int, class_names: Sequence[str] = ()) -> Prompt:
        """Return the tokens as they start."""
        settings = (self.design, self.tokens, self.depth, self.template, self.start)
        return JointPrompt(model.clip, model.tokenizer, *settings, generator(seed, "joint prompt"))


@dataclass(frozen=True)
class LinearHead(Dress):
    """A linear readout of the frozen tower's raw features trains, TeCoA's linear probe: it knows its own classes and no others."""

    def build(self, model: Model, seed: int, class_names: Sequence[str] = ()) -> LinearReadout:
        """Return the readout of `class_names`, zero at first."""
        return LinearReadout(model.open_clip_config["model_cfg"]["embed_dim"], class_names)


@dataclass(frozen=True)
class InputFilter(Dress):
    """A convolution of the normalised image, `size` pixels wide, is added to it and trains, zero at first; CLIP is frozen.

    After the input filter of R-Adapt (Nie et al. 2026, arXiv:2603.12799), a Gaussian low-pass that is fixed. Ours learns, starts as the
    plain model, and mixes colours: 225 numbers at 5 px. Attacks see it, as a part of the classifier. It reaches over the borders of
    patches, so no patch embedding can take it in: a model that wears one is not exported.
    """

    size: int = 5

    def __post_init__(self) -> None:
        check_fields(self, "trainable.", size=COUNT)
        if self.size % 2 == 0:
            raise UserError(f"trainable.size is {self.size}: a filter has a pixel in its middle, so its side is odd")

    def build(self, model: Model, seed: int, class_names: Sequence[str] = ()) -> Prompt:
        """Return the filter that changes nothing; raises UserError for one larger than the model's images."""
        return PixelFilter(model.preprocess.size, self.size)


DRESSES: tuple[type[Dress], ...] = (LinearHead, PixelPrompt, TokenPrompt, FramedTokens, JointTokens, InputFilter)


def dressed(model: Model) -> Model:
    """Return the model with an unfilled prompt or readout of the kind its card names, if it names one; raises UserError for a newer one."""
    settings = dict(model.card.get("trainable") or {"type": None})
    kind: Any = {cls.__name__: cls for cls in DRESSES}.get(settings.pop("type"))
    if kind is None:
        return model
    if settings.keys() - {field.name for field in fields(kind)}:
        raise UserError(f"{model.name}: its config.json names an unknown trainable {model.card['trainable']}: upgrade robustclip")
    dress = kind(**settings)
    return worn_by(model, dress.build(model, 0, model.card.get("class_names", ())))


def worn_by(model: Model, part: nn.Module, dress: Dress | None = None) -> Model:
    """Return the model wearing a part; with its `dress`, the card says what that is."""
    card = model.card
    if dress is not None:
        card = {**card, "trainable": {"type": type(dress).__name__, **asdict(dress)}}  # type: ignore[call-overload]
    worn: dict[str, Any] = {"readout" if isinstance(part, LinearReadout) else "prompt": part}
    return replace(model, card=card, **worn)
