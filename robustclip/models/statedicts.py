"""What a file of weights holds: opened without running anything in it, taken out of what it lies in, put onto a model by its names.

The form is told by the entries and the names of the tensors, never by the name of the file.
"""

import io
import logging
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.models import hugging_face

log = logging.getLogger(__name__)

State = Mapping[str, Tensor]
ENTRIES = ("state_dict", "model_state_dict", "model")  # where training scripts keep a model, beside their optimizer's state
TOWER = "vision_encoder_state_dict"  # TeCoA's files, and those of the many who began with its code
PROMPTERS = ("state_dict", "add_prompter")  # what such files hold beside the tower: a visual prompt, or empty modules
OPENAI = ("input_resolution", "context_length", "vocab_size")  # what OpenAI's models carry beside their weights, and no others
NO_WEIGHTS = (*OPENAI, "position_ids")
SCALES = ("logit_scale", "logit_bias")
SHOWN = 3  # names in an error


def opened(file: str) -> Mapping[str, Any]:
    """Return what a file holds, by name; tensors are not read before they are used.

    Raises UserError for a file that is torn or no file of weights, and for a pickle of more than tensors, numbers and plain containers.
    """
    from safetensors.torch import load, load_file

    local = storage.is_local(file)
    try:
        if _is_safetensors(file):
            return load_file(file) if local else load(storage.read_bytes(file))
        with torch.serialization.safe_globals(_numpy_scalars()):
            # From a path torch would go by the name's end, and only from a path it can leave tensors where they are.
            mapped = local and zipfile.is_zipfile(file) and not file.endswith(".safetensors")
            held = torch.load(file if mapped else io.BytesIO(storage.read_bytes(file)), map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if not found:
            raise _unreadable(file, error) from error
        raise UserError(
            f"{file} holds {found[1]}, an object of a program, which is never built here: if you trust the file, write its tensors alone "
            "to another, torch.save(torch.load(FILE, 'cpu', weights_only=False)['state_dict'], TO)"
        ) from error
    except Exception as error:  # torch and safetensors have one of their own for every way to be no file of weights
        raise _unreadable(file, error) from error
    if not isinstance(held, Mapping):
        raise UserError(f"{file} holds a {type(held).__name__} and no tensors by name: give the file of a state dict")
    return held


def _unreadable(file: str, error: Exception) -> UserError:
    return UserError(
        f"{file} cannot be read as weights ({' '.join(str(error).split())[:200]}): give a safetensors file or what torch.save wrote"
    )


def _is_safetensors(file: str) -> bool:
    with storage.open_read(file) as stream:
        return stream.read(9)[8:9] == b"{"  # behind the length of its header


def _numpy_scalars() -> list[Any]:
    """Return what a pickled numpy number is made of, under both names of numpy's module: training scripts keep accuracies as such."""
    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")}
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *kinds]


def state_of(file: str) -> dict[str, Tensor]:
    """Return a file's tensors by name, out of the entry of a training script's checkpoint that holds the model.

    Raises UserError for what `opened` refuses, for a file without tensors, for several entries that might be the model, and for a visual
    prompt beside a tower: the tower alone is not the model that was defended.
    """
    held = opened(file)
    if TOWER in held:
        prompts = [f"{entry}.{name}" for entry in PROMPTERS if _is_state(held.get(entry)) for name, t in held[entry].items() if t.numel()]
        if prompts:
            raise UserError(
                f"{file} holds a visual prompt beside its tower ({some(prompts)}), which is not read: without it the tower is not the "
                f"model that was trained; if that is what you want, write {TOWER} alone to another file"
            )
        return _taken(file, held, TOWER)
    while not _is_state(held):
        inner = [name for name in ENTRIES if isinstance(held.get(name), Mapping)][:1]
        inner = inner or [name for name, entry in held.items() if _is_state(entry)]
        if len(inner) != 1:
            several = f"several entries that may be the model ({some(inner)})" if inner else f"no tensors by name ({some(list(held))})"
            raise UserError(f"{file} holds {several}: write the model's state dict alone to another file")
        entry: Any = held[inner[0]]
        held = _taken(file, held, inner[0]) if _is_state(entry) else entry
    return _tensors(held)


def _taken(file: str, held: Mapping[str, Any], entry: str) -> dict[str, Tensor]:
    """Return the tensors of one entry of a file, and say which others there are."""
    others = [name for name, other in held.items() if name != entry and any(t.numel() for t in _tensors(other).values())]
    if others:
        warn(f"{file}: its entry {entry} is read; tensors of others are not: {some(others)}")
    return _tensors(held[entry])


@cache
def warn(said: str) -> None:
    """Say it on the log once in a process, however often a model is loaded."""
    log.warning("%s", said)


def _is_state(entry: Any) -> bool:
    return isinstance(entry, Mapping) and any(isinstance(value, Tensor) for value in entry.values())


def _tensors(entry: Any) -> dict[str, Tensor]:
    return {str(name): value for name, value in entry.items() if isinstance(value, Tensor)} if isinstance(entry, Mapping) else {}


@dataclass(frozen=True)
class Placed:
    """A state as a model names it: the tensors that `fit`, the model's that are `missing`, and others that are `left` over."""

    fit: State
    missing: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def absent(self) -> dict[str, tuple[str, ...]]:
        """The parts of the model of which the state has nothing: its towers, its scale."""
        lacking = [part_of(name) for name in self.missing]
        there = {part_of(name) for name in self.fit}
        return {part: tuple(name for name in self.missing if part_of(name) == part) for part in lacking if part not in there}

    @property
    def whole(self) -> bool:
        """Whether every tensor has its place, and no part of the model is given in pieces."""
        absent = self.absent
        return bool(self.fit) and not self.left and all(part_of(name) in absent for name in self.missing)

    def __str__(self) -> str:
        total = len(self.fit) + len(self.missing)
        said = [f"{len(self.fit)} of {total} tensors match"]
        said += [f"missing: {some(self.missing)}"] if self.missing else []
        return "; ".join([*said, *([f"left over: {some(self.left)}"] if self.left else [])])


def part_of(name: str) -> str:
    """Return which part of CLIP a tensor belongs to."""
    return "visual tower" if name.startswith("visual.") else "scale" if name in SCALES else "text tower"


def placed(state: State, clip: nn.Module) -> Placed:
    """Return a state under the names of a model of open_clip, read in the way in which most of it has a place there.

    Names may be open_clip's and OpenAI's, or transformers', of both towers or the visual one alone, with what wrappers put before them.
    """
    own = clip.state_dict()
    tried = [_fitted(reading, own) for reading in _readings(state, clip)]
    return min(tried, key=lambda found: (len(found.left), len(found.missing)))


def _readings(state: State, clip: nn.Module) -> Iterator[State]:
    from open_clip.model import convert_to_custom_text_state_dict

    while True:
        for named in (state, hugging_face.to_open_clip(state)) if hugging_face.is_named(state) else (state,):
            yield named
            yield {f"visual.{name}": t for name, t in named.items()}
            if hasattr(clip, "text") and "positional_embedding" in named:
                yield convert_to_custom_text_state_dict(dict(named))
        first = {name.partition(".")[0] for name in state}
        if len(first) != 1 or any("." not in name for name in state):
            return
        state = {name.partition(".")[2]: t for name, t in state.items()}


def _fitted(state: State, own: State) -> Placed:
    fit, left = {}, []
    for name, tensor in state.items():
        if name in own and (tensor.shape == own[name].shape or (name in SCALES and tensor.numel() == 1)):
            fit[name] = tensor.reshape(own[name].shape)
        elif name.rpartition(".")[2] not in NO_WEIGHTS:
            there = f", not {_shape(own[name])}" if name in own else ""
            left.append(f"{name} {_shape(tensor)}{there}")
    return Placed(fit, tuple(name for name in own if name not in fit), tuple(left))


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "number"


def some(names: Any) -> str:
    """Return the first of some names, and how many there are where that is not all."""
    names = list(map(str, names))
    return ", ".join(names[:SHOWN]) + (f" ... ({len(names)})" if len(names) > SHOWN else "")
