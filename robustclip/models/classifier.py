"""The attacked thing is the scored thing: images in [0,1] -> logits over class prompts, everything else inside."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustclip.base.errors import UserError
from robustclip.base.precision import full_precision
from robustclip.models.class_texts import Descriptions, Templates, texts_of, value_of
from robustclip.models.insertion import Layers, Look, cut, in_images, in_texts
from robustclip.models.prompts import Prompt

TEXT_BATCH = 256

Embeddings = WeakKeyDictionary[nn.Module, dict[Any, Tensor]]  # of class prompts, by the CLIP whose they are
_kept: ContextVar[Embeddings | None] = ContextVar("kept", default=None)


@dataclass(frozen=True)
class Preprocess:
    """What a model wants to see: side length in pixels, channel means and standard deviations, interpolation of the resize."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"

    @classmethod
    def of(cls, open_clip_config: Mapping[str, Any]) -> "Preprocess":
        """Return what an open_clip config says of it."""
        cfg = open_clip_config["preprocess_cfg"]
        size = cfg["size"] if isinstance(cfg["size"], int) else cfg["size"][0]
        return cls(size, tuple(cfg["mean"]), tuple(cfg["std"]), cfg.get("interpolation", "bicubic"))


class Guides(NamedTuple):
    """Some images [G,3,H,W] in [0,1] of the classes, their labels [G] and ids: what image-guided text attacks look at."""

    images: Tensor
    labels: Tensor
    ids: list[str]


@dataclass(frozen=True, eq=False)
class Surrogates:
    """Other images than those that are scored, of the same classes, by their `ids`: what universal perturbations are learned on.

    `read` gives the images [N,3,H,W] in [0,1] and their labels [N], in the order of `ids`. `kept` gives what was learned under a name
    before, or has it learned (default: every time).
    """

    ids: Sequence[str]
    read: Callable[[], tuple[Tensor, Tensor]]
    kept: Callable[[str, Callable[[], Tensor]], Tensor] = lambda name, learn: learn()


class ZeroShotClassifier(nn.Module):
    """A CLIP model with fixed class prompts: images [B,3,H,W] in [0,1], of any size, -> logits [B,K].

    Resize and normalisation are part of the graph, so an attack acts on the images as they were stored. Class embeddings are the
    renormalised mean over templates, or over a class's own descriptions, computed once (a `prompt` may bring its own words); `logit_scale`
    (and SigLIP's bias) are the model's own, fixed. A linear `readout` of raw features takes the place of the class embeddings where there
    is one (a linear probe is not zero-shot). `wording` is what the class names stand in, or the descriptions; `texts` are the prompts it
    classifies by, class by class (default: those that the wording makes). `rewritten` keeps what text attacks made of them, by attack,
    `guides` are images of the classes for those that look at images, `surrogates` others on which universal perturbations are learned,
    `undefended` gives the plain CLIP that an attacker may know instead, and `under` this model under another wording.
    Raises UserError for class names or templates that are empty, and for a class without a description.
    """

    class_embeddings: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        clip: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        preprocess: Preprocess,
        class_names: Sequence[str],
        templates: Templates,
        prompt: Prompt | None = None,
        readout: nn.Module | None = None,
        texts: Sequence[str] | None = None,
    ):
        super().__init__()
        check_prompts(class_names, templates)
        self.clip, self.tokenizer, self.preprocess = clip, tokenizer, preprocess
        self.prompt, self.readout = prompt, readout
        own = prompt.template if prompt is not None else None
        self.class_names, self.wording = tuple(class_names), value_of(templates) if own is None else (own,)
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(3, 1, 1), persistent=False)
        written = texts_of(self.class_names, self.wording)
        self.counts = tuple(map(len, written))
        self.texts = tuple(chain(*written)) if texts is None else tuple(texts)
        self.rewritten: MutableMapping[str, Any] = {}
        self.guides: Guides | None = None
        self.surrogates: Surrogates | None = None
        self.undefended: Callable[[], nn.Module] | None = None
        self.under: Callable[[Templates], nn.Module] | None = None
        self.transfers: Callable[..., Any] | None = None
        self.register_buffer("class_embeddings", self.embed_prompts(), persistent=False)

    @property
    def templates(self) -> tuple[str, ...]:
        """The templates that all classes share; raises UserError where classes have descriptions of their own instead."""
        if isinstance(self.wording, Descriptions):
            raise UserError("attacks on prompts rewrite names in templates, and these classes are described: leave one of the two out")
        return self.wording

    @full_precision()
    def embed_prompts(self) -> Tensor:
        """Return what the text tower says of the prompts now, the unit class embeddings [K,D], without gradient and in true fp32."""
        kept = _kept.get()
        with torch.no_grad():
            if kept is None or (self.prompt is not None and self.prompt.text_layers()):  # tokens in texts may learn
                return self.class_features()
            of_clip, prompts = kept.setdefault(self.clip, {}), (self.texts, self.counts)
            if prompts not in of_clip:
                of_clip[prompts] = self.class_features()
            return of_clip[prompts].clone()

    def class_features(self) -> Tensor:
        """Return the unit class embeddings [K,D] with the graph that leads to the text tower and to learned tokens in it."""
        per_text = self.embed_texts(list(self.texts))
        if len(set(self.counts)) == 1:
            return F.normalize(per_text.view(len(self.class_names), self.counts[0], -1).mean(1), dim=-1)
        return F.normalize(torch.stack([part.mean(0) for part in per_text.split(self.counts)]), dim=-1)

    def reworded(self, texts: Sequence[str]) -> "ZeroShotClassifier":
        """Return this model, its weights shared, under other prompts, class by class; raises UserError where they do not fit."""
        if self.readout is not None:
            raise UserError("this model classifies by a linear readout, not by prompts: a text attack has nothing to rewrite")
        if len(texts) != len(self.texts):
            raise UserError(f"a classifier of {len(self.texts)} prompts cannot take {len(texts)} in their place")
        parts = (self.clip, self.tokenizer, self.preprocess, self.class_names, self.wording, self.prompt, None, texts)
        return ZeroShotClassifier(*parts).to(self.mean.device).train(self.training)

    def wearing(self, prompt: Prompt | None) -> "ZeroShotClassifier":
        """Return this model, its weights shared, with another prompt in the place of its own; raises UserError for a linear probe."""
        if self.readout is not None:
            raise UserError("this model classifies by a linear readout: a prompt was not learned with it")
        parts = (self.clip, self.tokenizer, self.preprocess, self.class_names, self.wording, prompt)
        return ZeroShotClassifier(*parts).to(self.mean.device).train(self.training)

    def forward(self, images: Tensor) -> Tensor:
        if self.readout is not None:
            return self.readout(self.features(images))
        return self.scores(self.embed_images(images))

    def scores(self, embedded: Tensor) -> Tensor:
        """Return the logits [...,K] of images whose unit features are `embedded` [...,D]."""
        return self.against(embedded, self.class_embeddings)

    def against(self, embedded: Tensor, classes: Tensor) -> Tensor:
        """Return the logits [...,K] of unit image features [...,D] against unit class embeddings [K,D], or [S,K,D] for features [S,V,D]."""
        bias = getattr(self.clip, "logit_bias", None)
        logits = self.clip.logit_scale.exp() * embedded @ classes.mT  # type: ignore
        return logits if bias is None else logits + bias

    def embed_images(self, images: Tensor) -> Tensor:
        """Return unit image features [B,D] of images [B,3,H,W] in [0,1], through the visual prompt if there is one."""
        return F.normalize(self.features(images), dim=-1)

    def features(self, images: Tensor, layers: Layers | None = None, look: Look | None = None) -> Tensor:
        """Return what the visual tower says of images [B,3,H,W] in [0,1], not normalised [B,D].

        `layers` take the place of the prompt's tokens, for all images or one set for each; `look` is shown the input of every block.
        """
        size = self.preprocess.size
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode=self.preprocess.interpolation, antialias=images.shape[-1] > size)
        x = (images - self.mean) / self.std
        visual: nn.Module = self.clip.visual  # type: ignore[assignment]
        if self.prompt is not None:
            x = self.prompt.on_pixels(x)
        if layers is None:
            layers = self.prompt.visual_layers() if self.prompt is not None else []
        with one_rounding(), in_images(visual, layers, look):
            return visual(x)

    def text_features(self, texts: list[str], length: int | None = None) -> Tensor:
        """Return what the text tower says of texts, not normalised [N,D]; of their first `length` tokens, where these are all it reads."""
        tokens = torch.stack([token_ids(self.tokenizer, text)[:length] for text in texts]).to(next(self.clip.parameters()).device)
        with in_texts(self.clip, self.prompt.text_layers() if self.prompt is not None else []), cut(self.clip, tokens.shape[1]):
            return torch.cat([self.clip.encode_text(part) for part in tokens.split(TEXT_BATCH)])  # type: ignore

    def embed_texts(self, texts: list[str], length: int | None = None) -> Tensor:
        """Return unit text features [N,D] of texts; `length` as in `text_features`."""
        return F.normalize(self.text_features(texts, length), dim=-1)


@contextmanager
def embeddings_kept(there: Embeddings) -> Iterator[None]:
    """Compute the embeddings of the same prompts once for each CLIP: only where no weights change, as in an evaluation of many cells."""
    before = _kept.set(there)
    try:
        yield
    finally:
        _kept.reset(before)


@lru_cache(maxsize=1 << 16)  # 40 MB of 77 tokens: training encodes the same prompts, and much the same rewritings, at every step
def token_ids(tokenizer: Callable[[list[str]], Tensor], text: str) -> Tensor:
    """Return the token ids [L] of a text."""
    return tokenizer([text])[0]


@contextmanager
def one_rounding() -> Iterator[None]:
    """Keep torch's fused attention off: it rounds otherwise, and a scored forward would not be the attacked one."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def check_prompts(class_names: Sequence[str], templates: Templates) -> None:
    """Raise UserError for an empty list, an empty class name, or a template without exactly one {}."""
    if not class_names or not templates:
        raise UserError("a zero-shot classifier needs at least one class name and one template")
    for i, name in enumerate(class_names):
        if not name.strip():
            raise UserError(f"class {i} has an empty name: give it one in dataset.json")
    for template in () if isinstance(templates, Descriptions) else templates:
        if template.count("{}") != 1 or template.replace("{}", "").count("{") or template.replace("{}", "").count("}"):
            raise UserError(f"template {template!r} must contain {{}} exactly once, where the class name goes")
