"""Prompts tuned on the views of each image, a batch of images at a time and exactly as one by one (TAPT and its neighbours)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robustclip.base.draws import Key
from robustclip.base.errors import UserError
from robustclip.base.ranges import AMOUNT, COUNT, NATURAL, SHARE, check_fields
from robustclip.models.adaptive import Adaptive
from robustclip.models.classifier import TEXT_BATCH, ZeroShotClassifier
from robustclip.models.insertion import Layers, cut, in_texts, read_of
from robustclip.models.joint import JointPrompt
from robustclip.views.augmix import augmix
from robustclip.views.crops import crops

State = dict[str, Tensor]  # a prompt's parameters by name; of a batch of images each [S,...]
BETAS, ADAM_EPS = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Tuning:
    """What methods that tune prompts on views have in common.

    `views` of each image, itself and random crops, to which `augment` may add AugMix; the share `keep` of lowest entropy counts; `steps` of
    AdamW at `lr`, its state fresh for every image. Raises UserError for a share that keeps less than one view.
    """

    views: int = 64
    augment: Literal["crops", "augmix"] = "crops"
    keep: float = 0.1
    steps: int = 1
    lr: float = 5e-4
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        check_fields(self, f"{type(self).__name__}: ", views=COUNT, keep=SHARE, steps=NATURAL, lr=AMOUNT, weight_decay=AMOUNT)
        if self.kept < 1:
            raise UserError(f"{type(self).__name__}: {self.views} views, of which a share of {self.keep} is kept, and {self.steps} steps")

    @property
    def kept(self) -> int:
        """The number of views that count: 6 of 64, as int(64 * 0.1)."""
        return int(self.views * self.keep)

    def views_of(self, images: Tensor, keys: Sequence[Key]) -> Tensor:
        """Return images [S,3,H,W] as the first of their views [S,V,3,H,W], the others drawn from their keys."""
        if self.views == 1:
            return images[:, None]
        others = crops(images, keys, self.views - 1)
        return torch.cat([images[:, None], augmix(others, keys) if self.augment == "augmix" else others], 1)


class Seen(NamedTuple):
    """What the kept views of S images look like: logits [S,k,K] and, where they are looked at, the inputs [S,k,T,D] of every block."""

    logits: Tensor
    blocks: list[Tensor]


Loss = Callable[[Seen], Tensor]  # what tuning lowers, [S]


class Adapted(NamedTuple):
    """What became of the prompt for S images: tokens [S,n,D] of the visual tower's blocks, class embeddings [S,K,D]."""

    visual: Layers
    classes: Tensor


class PromptTuner(Adaptive):
    """A classifier whose prompt takes `steps` of AdamW on a loss over the views of each image, from the same state every time.

    All images of a batch at once: their prompts are leaves [S,n,D], their losses are summed and AdamW works entry by entry, so each is
    tuned as if alone. Views are chosen without a gradient by the prompt as it starts; in the first step the texts are encoded once for all,
    and what follows them is not computed. `blocks` says whether the loss looks at the inputs of the blocks.
    """

    def __init__(self, base: ZeroShotClassifier, prompt: JointPrompt, settings: Tuning, loss: Loss, blocks: bool = False, seed: int = 0):
        super().__init__(base, base if prompt is base.prompt else base.wearing(prompt), seed)
        self.prompt, self.settings, self.loss, self.blocks = prompt, settings, loss, blocks
        ids = base.tokenizer(list(self.start.texts))
        self.register_buffer("ids", ids.to(base.mean.device), persistent=False)
        self.ids: Tensor
        self.length = int(read_of(base.clip, ids).max())

    def views(self, images: Tensor, keys: Sequence[Key]) -> Tensor:
        """Return the views [S,V,3,H,W] of images: themselves first."""
        return self.settings.views_of(images, keys)

    def adapt(self, images: Tensor, keys: Sequence[Key], through: bool) -> Adapted:
        """Return the tuned prompt of every image."""
        views = self.views(images, keys)
        with torch.no_grad():
            kept = most_confident(self.start_logits(views), self.settings.kept)
        views = views[torch.arange(len(views), device=views.device)[:, None], kept]
        state = {name: p.detach().expand(len(images), *p.shape) for name, p in self.prompt.state().items()}
        moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in state.items()}
        for step in range(1, self.settings.steps + 1):
            gradients = self.first_gradients(views) if step == 1 and not through else self.gradients(views, state, through)
            state, moments = self.stepped(state, moments, gradients, step, through)
        seen, said = self.prompt.layers(state)
        return Adapted(seen, self.classes(said))

    def start_logits(self, views: Tensor) -> Tensor:
        """Return the logits [S,V,K] of views under the prompt as it starts."""
        return self.start(views.flatten(0, 1)).view(*views.shape[:2], -1)

    def gradients(self, views: Tensor, state: State, through: bool) -> State:
        """Return the gradient of the summed loss for prompts of a state [S,...], by name."""
        state = state if through else {name: p.detach() for name, p in state.items()}
        state = {name: p if p.requires_grad else p.clone().requires_grad_() for name, p in state.items()}
        seen, said = self.prompt.layers(state)
        loss = self.loss(self.look(views, seen, self.classes(said)))
        found = torch.autograd.grad(loss.sum(), list(state.values()), create_graph=through, allow_unused=True)
        return {name: torch.zeros_like(state[name]) if g is None else g for name, g in zip(state, found, strict=True)}

    def first_gradients(self, views: Tensor) -> State:
        """Return the gradients [S,...] at the state all images start from: its texts and tokens are computed once, not for each."""
        state = {name: p.detach().clone().requires_grad_() for name, p in self.prompt.state().items()}
        seen, said = self.prompt.layers(state)
        shared = [*seen, *([self.classes(said)] if said else [])]
        leaves = [t.detach().expand(len(views), *t.shape).clone().requires_grad_() for t in shared]
        classes = leaves[-1] if said else self.start.class_embeddings
        loss = self.loss(self.look(views, leaves[: len(seen)], classes))
        cotangents = torch.autograd.grad(loss.sum(), leaves)
        found: list[tuple[Tensor, ...]] = [
            torch.autograd.grad(shared, list(state.values()), [c[i] for c in cotangents], retain_graph=True) for i in range(len(views))
        ]
        return {name: torch.stack([each[i] for each in found]) for i, name in enumerate(state)}

    def stepped(
        self, state: State, moments: dict[str, tuple[Tensor, Tensor]], gradients: State, step: int, through: bool
    ) -> tuple[State, dict[str, tuple[Tensor, Tensor]]]:
        """Return state and moments after AdamW's step number `step`."""
        settings, after, kept = self.settings, {}, {}
        for name, p in state.items():
            g = gradients[name]
            m, v = (b * old + (1 - b) * new for b, old, new in zip(BETAS, moments[name], (g, g * g)))
            corrected_m, corrected_v = (x.detach() / (1 - b**step) for b, x in zip(BETAS, (m, v)))
            direction = corrected_m / (corrected_v.sqrt() + ADAM_EPS)
            if through:
                soft = smoothed_sign(g)
                direction = direction + soft - soft.detach()
            after[name] = p * (1 - settings.lr * settings.weight_decay) - settings.lr * direction
            kept[name] = (m.detach(), v.detach())
        return after, kept

    def look(self, views: Tensor, visual: Layers, classes: Tensor) -> Seen:
        """Return what the kept views [S,k,3,H,W] look like under tokens [S,n,D] and class embeddings [K,D] or [S,K,D]."""
        samples, kept = views.shape[:2]
        blocks: list[Tensor] = []
        look = (lambda i, x: blocks.append(x.unflatten(0, (samples, kept)))) if self.blocks else None
        features = self.start.features(views.flatten(0, 1), [t.repeat_interleave(kept, 0) for t in visual], look)
        return Seen(self.start.against(F.normalize(features, dim=-1).unflatten(0, (samples, kept)), classes), blocks)

    def classes(self, said: Layers) -> Tensor:
        """Return the unit class embeddings [K,D] under the tokens [n,D] of the texts, or [S,K,D] under [S,n,D]; plain without any."""
        if not said:
            return self.start.class_embeddings
        if said[0].dim() == 2:
            return self.encoded(said, 1)[0]
        group = max(1, TEXT_BATCH // len(self.ids))  # samples whose texts are encoded together
        parts = zip(*(t.split(group) for t in said), strict=True)
        return torch.cat([self.encoded([t.repeat_interleave(len(self.ids), 0) for t in part], len(part[0])) for part in parts])

    def encoded(self, said: Layers, samples: int) -> Tensor:
        """Return the unit text features [samples,K,D] under tokens [n,D] or [samples * K,n,D]."""
        clip = self.start.clip
        with in_texts(clip, said), cut(clip, self.length):
            ids = self.ids[:, : self.length].repeat(samples, 1)
            return F.normalize(clip.encode_text(ids), dim=-1).unflatten(0, (samples, -1))  # type: ignore[operator]

    def answer(self, images: Tensor, keys: Sequence[Key], adapted: Adapted) -> Tensor:
        """Return the logits [B,K] of the images themselves under their tuned prompts."""
        layers = adapted.visual or None
        features = F.normalize(self.start.features(images, layers), dim=-1)
        classes = adapted.classes if adapted.classes.dim() == 3 else adapted.classes.expand(len(images), -1, -1)
        return self.start.against(features[:, None], classes)[:, 0]


def most_confident(logits: Tensor, kept: int) -> Tensor:
    """Return which `kept` of the views, by logits [S,V,K], have the lowest entropy [S,kept]."""
    return entropy(logits).topk(kept, dim=1, largest=False).indices


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy [...] of softmaxed logits [...,K]."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def entropy_of_mean(logits: Tensor) -> Tensor:
    """Return the entropy [S] of the mean prediction of views with logits [S,k,K] (TPT, arXiv:2209.07511, Eq. 3)."""
    log_mean = logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1])
    return -(log_mean.exp() * log_mean).sum(-1)


def smoothed_sign(gradient: Tensor) -> Tensor:
    """Return g / (|g| + s) of gradients [S,...], s the mean |g| of each: Adam's first step is a sign, through which nothing would flow."""
    size = gradient.detach().abs().flatten(1).mean(1).view(-1, *[1] * (gradient.dim() - 1))
    return gradient / (gradient.abs() + size + torch.finfo(gradient.dtype).tiny)
