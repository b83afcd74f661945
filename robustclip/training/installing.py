"""What all trainables share: a model with everything frozen but what learns, and a card that says how it was made."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from robustclip.base.errors import UserError
from robustclip.models.dress import Dress, worn_by
from robustclip.models.model import Model

Installed = tuple[Model, list[nn.Parameter]]  # the model to train, everything else in it frozen, and its parameters that learn


def install(trainable: Any, model: Model, seed: int, class_names: Sequence[str]) -> Installed:
    """Return the model with `trainable` in it or on it; raises UserError for what the model cannot take, or nothing to learn."""
    if not isinstance(trainable, Dress):
        return trainable.install(model, seed, class_names)
    frozen_tower(model)
    part = trainable.build(model, seed, class_names)
    if not any(p.numel() for p in part.parameters()):
        raise UserError(f"{model.name}: a prompt of size 0 leaves nothing to learn; make it larger")
    return worn_by(model, part, trainable), list(part.parameters())


def frozen_tower(model: Model) -> nn.Module:
    """Return the visual tower of a model, everything in it frozen; raises UserError for one that adapts or wears a prompt or a readout.

    A checkpoint says of one trainable how it was made.
    """
    if model.adapts:
        raise UserError(f"{model.name} adapts at test time: fine-tune the model under the defence, and put it on again afterwards")
    if model.prompt is not None or model.readout is not None:
        what = "a prompt" if model.prompt is not None else "a linear readout"
        raise UserError(f"{model.name} already has {what}: fine-tune the model it was made from")
    model.clip.requires_grad_(False)
    return model.clip.visual  # type: ignore[return-value]


def learning(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters, from now on with a gradient."""
    wanted = list(parameters)
    for p in wanted:
        p.requires_grad_(True)
    return wanted
