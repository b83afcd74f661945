"""Attacked images kept as files: what defences stand on is attacked once for all of them, and for all grey-box levels that see the same."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from robustclip.attacks.base import Attack, Example, Trace
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball
from robustclip.base.values import key

TRACE = tuple(field.name for field in fields(Trace))


@dataclass(frozen=True)
class Transfers:
    """The attacked images of some static models, in a folder that can be deleted at any time.

    `models` says for a level, A0 or A1, by what hash the attacked model goes; `about` is what else decides a result but the attack and the
    images: prompts, precision, versions, device. Two workers that make the same file do no harm: they make the same.
    """

    folder: str
    models: Mapping[str, str]
    about: tuple[str, ...]

    def __call__(
        self,
        level: str,
        attack: Attack,
        target: nn.Module,
        images: Tensor,
        labels: Tensor,
        ids: list[str],
        ball: Ball,
        seed: int,
        micro_batch: int | None,
    ) -> Example:
        """Return what an attack makes of images [B,3,H,W] when a level sees `target`, now or before; then `spent` says what that took."""
        shown = hashlib.sha256(images.cpu().numpy().tobytes() + labels.cpu().numpy().tobytes()).hexdigest()
        name = key(self.models[level], self.about, attack, ball, seed, micro_batch, ids, shown)
        path = storage.join(self.folder, f"{name}.safetensors")
        if storage.exists(path):
            return _read(path, images)
        started = time.perf_counter()
        made = attack(target, images, labels, ids, ball, seed, micro_batch)
        storage.write_bytes(path, _written(made, time.perf_counter() - started))
        return made


def _written(made: Example, seconds: float) -> bytes:
    trace = {} if made.trace is None else {name: getattr(made.trace, name) for name in TRACE}
    tensors = {"images": made.images, "spent": torch.tensor(seconds), **trace}
    return save_tensors({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def _read(path: str, images: Tensor) -> Example:
    try:
        tensors = {name: tensor.to(images.device) for name, tensor in load_tensors(storage.read_bytes(path)).items()}
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): delete it, its attack then runs again") from error
    trace = Trace(**{name: tensors[name] for name in TRACE}) if TRACE[0] in tensors else None
    # Laid out in memory as the clean images are: how a norm rounds depends on it.
    return Example(torch.empty_like(images).copy_(tensors["images"]), trace=trace, spent=float(tensors["spent"]))
