"""A CLIP model as a value: what classifies with it, what it wears, and the hash of all its tensors."""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustclip.base.errors import UserError
from robustclip.base.seeds import generator
from robustclip.models.attention import project_at_once
from robustclip.models.class_names import Reading, reading, tell
from robustclip.models.class_texts import Descriptions, Templates, value_of
from robustclip.models.classifier import Preprocess, ZeroShotClassifier
from robustclip.models.prompts import PixelPatch, Prompt

FORMAT = 1  # of a model's card


class LinearReadout(nn.Module):
    """A linear layer on raw image features [B,D] -> [B,K] scores of `class_names`, in place of their texts; zero at first."""

    def __init__(self, width: int, class_names: Sequence[str]):
        super().__init__()
        self.class_names = tuple(class_names)
        self.weight = nn.Parameter(torch.zeros(len(self.class_names), width))
        self.bias = nn.Parameter(torch.zeros(len(self.class_names)))

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.linear(features, self.weight, self.bias)


@dataclass(frozen=True)
class Model:
    """A CLIP model with all that is needed to classify with it and to save it again; as loaded: fp32, eval mode, all weights frozen.

    Frozen, because torch chooses other kernels, which round otherwise, for weights that require a gradient, even under no_grad.
    """

    name: str
    clip: nn.Module
    tokenizer: Callable[[list[str]], Tensor]
    open_clip_config: Mapping[str, Any]
    card: Mapping[str, Any]
    prompt: Prompt | None = None
    readout: LinearReadout | None = None
    adapts: ClassVar[bool] = False  # to every image, under a test-time defence

    def __post_init__(self) -> None:
        project_at_once(self.clip)

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess.of(self.open_clip_config)

    @property
    def sha256(self) -> str:
        """The hash of every tensor of the model, its prompt and its readout, whatever file they came from."""
        return tensors_sha256({**self.clip.state_dict(), **worn(self)})

    def names_read(self, class_names: Sequence[str], templates: Templates) -> Reading:
        """Return what the tokenizer makes of class names in the templates, of descriptions, or of names in a learned prompt's template."""
        return reading(self.tokenizer, tuple(class_names), self._own_templates(templates))

    def tell_names(self, class_names: Sequence[str], templates: Templates, where: str) -> None:
        """Warn on the log of class names that this model cannot tell apart or reads cut; `where` says whose they are."""
        if self.readout is None:
            tell(self.tokenizer, tuple(class_names), self._own_templates(templates), where)

    def _own_templates(self, templates: Templates) -> tuple[str, ...] | Descriptions:
        own = self.prompt.template if self.prompt is not None else None
        return value_of(templates) if own is None else (own,)

    def classifier(self, class_names: Sequence[str], templates: Templates) -> ZeroShotClassifier:
        """Return the classifier of this model over `class_names` in templates or described; classifiers of one model share its weights.

        Raises UserError when a model with a linear readout is asked for other classes than its own.
        """
        if self.readout is not None and self.readout.class_names != tuple(class_names):
            raise UserError(
                f"{self.name} is a linear probe of {', '.join(self.readout.class_names[:3])} ({len(self.readout.class_names)} classes): "
                "it has no zero-shot classifier for others; evaluate it on the set it was trained on"
            )
        parts = (self.clip, self.tokenizer, self.preprocess, class_names, templates, self.prompt, self.readout)
        return ZeroShotClassifier(*parts).eval()

    def to(self, device: torch.device | str) -> "Model":
        """Move the model to a device, in place, and return it: so its texts are embedded there from the first classifier on."""
        for part in (self.clip, self.prompt, self.readout):
            if part is not None:
                part.to(device)
        return self

    def before_step(self, seed: int, step: int | None) -> None:
        """Place what moves about while it trains for a step, by the step alone; None: where it is scored."""
        if isinstance(self.prompt, PixelPatch):
            self.prompt.rest() if step is None else self.prompt.move(generator(seed, "place", step))

    def copy(self) -> "Model":
        """Return a model with weights of its own."""
        return replace(self, clip=copy.deepcopy(self.clip), prompt=copy.deepcopy(self.prompt), readout=copy.deepcopy(self.readout))


def worn(model: Model | ZeroShotClassifier) -> dict[str, Tensor]:
    """Return the tensors of what a model or its classifier has beside CLIP: a visual prompt, a linear readout, or nothing."""
    parts = {"prompt": model.prompt, "readout": model.readout}
    return {f"{part}.{name}": t for part, module in parts.items() if module is not None for name, t in module.state_dict().items()}


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the hash of names, types, shapes and values of tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
