"""A classifier that adapts to every image before it answers: what attacks, checks and the evaluator must know of one."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from robustclip.base.draws import Key
from robustclip.models.class_texts import Templates
from robustclip.models.classifier import Surrogates, ZeroShotClassifier


class Adaptive(nn.Module):
    """A test-time defence: images [B,3,H,W] in [0,1] -> logits [B,K]; every image starts from the same state and nothing is carried on.

    Each image's randomness is keyed by `seed` and its id, so logits depend neither on order nor on batch; `of(ids)` says whose images
    come, and without it all draw alike. Its gradient is that of BPDA: the adaptation is a constant, the answer is differentiated through
    the adapted model. `end_to_end()` differentiates the adaptation as well. `base` is the static classifier it was made from (what
    grey-box attacks meet), `start` that which it adapts from: the same, unless its reset does not put back what was loaded.
    """

    def __init__(self, base: ZeroShotClassifier, start: ZeroShotClassifier | None = None, seed: int = 0):
        super().__init__()
        self.base, self.seed = base, seed
        self.start = base if start is None else start
        self.through = False
        self.surrogates: Surrogates | None = None
        self.undefended: Callable[[], nn.Module] | None = None
        self.under: Callable[[Templates], nn.Module] | None = None
        self.transfers: Callable[..., Any] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names in label order."""
        return self.base.class_names

    def told(self, original: Callable[[], ZeroShotClassifier]) -> "Adaptive":
        """Return this defence once it knows the CLIP that all fine-tuning of its model began with; most do not need it."""
        return self

    def adapt(self, images: Tensor, keys: Sequence[Key], through: bool) -> Any:
        """Return what changes for images [B,3,H,W]: tensors whose first dimension is theirs, with a graph to the images if `through`."""
        raise NotImplementedError

    def answer(self, images: Tensor, keys: Sequence[Key], adapted: Any) -> Tensor:
        """Return the logits [B,K] of images under what they were adapted to."""
        raise NotImplementedError

    def forward(self, images: Tensor, keys: Sequence[Key] | None = None) -> Tensor:
        keys = self.of([""] * len(images)).keys if keys is None else keys
        through = self.through and torch.is_grad_enabled()
        with torch.enable_grad(), twice_differentiable(through):
            adapted = self.adapt(images if through else images.detach(), keys, through)
        return self.answer(images, keys, adapted)

    def of(self, ids: Sequence[str], draw: int = 0) -> "Keyed":
        """Return this defence for images of these ids; another `draw` is another throw of its dice."""
        return Keyed(self, [(self.seed, "test time", draw, id_) for id_ in ids])

    def end_to_end(self) -> "Adaptive":
        """Return this defence, its weights shared, with a gradient through the adaptation."""
        other = copy.copy(self)
        other.through = True
        return other


class Keyed(nn.Module):
    """A defence for given images: images [B,3,H,W] in [0,1], in the order of its keys, -> logits [B,K]."""

    def __init__(self, defence: Adaptive, keys: Sequence[Key]):
        super().__init__()
        self.defence, self.keys = defence, list(keys)

    def forward(self, images: Tensor) -> Tensor:
        return self.defence(images, self.keys)


@contextmanager
def twice_differentiable(wanted: bool) -> Iterator[None]:
    """Leave fused attention out inside this context if `wanted`: it has no second derivative, and rounds otherwise than what has."""
    with sdpa_kernel(SDPBackend.MATH) if wanted else nullcontext():
        yield


def meeting(classifier: nn.Module, ids: Sequence[str], places: Tensor, draw: int = 0) -> nn.Module:
    """Return a classifier as the images at some `places` of `ids` meet it: a defence that draws knows them by their ids."""
    return classifier.of([ids[i] for i in places.tolist()], draw) if isinstance(classifier, Adaptive) else classifier
