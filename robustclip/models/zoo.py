"""Models of open_clip's zoo: an architecture with one of its tags, with a file of weights, or with random ones; or a model of the hub.

open_clip:ViT-B-32-quickgelu/openai, open_clip:ViT-B-32-quickgelu//home/me/weights.safetensors, open_clip:ViT-B-32/random[seed=0],
open_clip:hf-hub:ORG/REPO; and open_clip:ViT-B-32-quickgelu/openai//home/me/tower.pt, the tower of a file with the other one of a tag.
"""

import logging
import os
import re
from functools import cache
from typing import Any

import torch

from robustclip.base import storage
from robustclip.base.errors import UserError, did_you_mean
from robustclip.models import statedicts, tokenizers, weights
from robustclip.models.combined import hash_of
from robustclip.models.model import FORMAT, Model

ZOO, HUB = "open_clip:", "hf-hub:"
RANDOM = re.compile(r"random\[seed=(\d{1,18})\]")
TAG = re.compile(r"[\w-]*")  # anything else after the architecture is a file: no tag has a dot or a slash
BASED = re.compile(rf"([\w-]+|{RANDOM.pattern})/([/~].*|\.\.?/.*)")  # but for what a file that holds one tower is put on


def split(name: str) -> tuple[str, str]:
    """Return the architecture and what its weights are: a tag, a file, random ones, nothing; of a model of the hub its name and nothing."""
    architecture, _, source = name.removeprefix(ZOO).partition("/")
    return (name.removeprefix(ZOO), "") if architecture.startswith(HUB) else (architecture, source)


def on(source: str) -> tuple[str, str]:
    """Return the tag, or random weights, that a source begins with, and the path of its file; either may be nothing."""
    if found := BASED.fullmatch(source):
        return found[1], found[3]
    return ("", source) if not (TAG.fullmatch(source) or RANDOM.fullmatch(source)) else (source, "")


def absolute(name: str) -> str:
    """Return the one way to write a name: its file's path from the root, its seed without zeros before it."""
    architecture, source = split(name)
    begun, file = on(source)
    if found := RANDOM.fullmatch(begun):
        begun = f"random[seed={int(found[1])}]"
    if not file:
        return f"{ZOO}{architecture}/{begun}" if found else name
    return "/".join([f"{ZOO}{architecture}", *filter(None, [begun]), storage.resolve(file)])


def load(name: str) -> Model:
    """Return the model of a name as `absolute` writes it; the global random state stays as it is.

    Raises UserError for what open_clip does not have or cannot load, for no weights at all, and for weights that would run with another
    activation than they were trained with (QuickGELU is OpenAI's); where nothing tells, it warns.
    """
    import open_clip

    architecture, source = split(name)
    check(name)
    try:
        # One that has to draw numbers before it has its weights draws them from a state of its own.
        with torch.random.fork_rng(devices=[]):
            clip = create(architecture, source)
    except UserError:
        raise
    except Exception as error:  # the hub's, the file system's and torch's errors all mean: these weights cannot be had
        raise UserError(f"{name}: open_clip could not load it: {' '.join(str(error).split())[:300]}") from error
    model_cfg = open_clip.get_model_config(architecture) or {}
    config = {"model_cfg": model_cfg, "preprocess_cfg": dict(clip.visual.preprocess_cfg)}
    card = {"format": FORMAT, "tokenizer": {"open_clip": architecture}}
    return Model(name, clip.eval().requires_grad_(False), tokenizers.of_open_clip(architecture), config, card)


def create(architecture: str, source: str) -> Any:
    """Return open_clip's model; one of the hub that has no weights there, which open_clip would leave random, is an error."""
    import open_clip

    begun, file = on(source)
    if file and not file.endswith(weights.BIG_VISION):
        return filled(architecture, begun, file)
    if drawn := RANDOM.fullmatch(begun):
        torch.default_generator.manual_seed(int(drawn[1]))
        return untrained(architecture)
    return open_clip.create_model(architecture, source or None, precision="fp32", require_pretrained=True)


def filled(architecture: str, begun: str, file: str) -> Any:
    """Return open_clip's model with the weights of a file, and where that holds one tower alone, the other parts of `begun`.

    Raises UserError for a tower alone and nothing to put it on, for a whole model that is put on another, and for what does not fit.
    """
    import open_clip

    clip = create(architecture, begun) if begun else untrained(architecture)
    found = statedicts.placed(statedicts.state_of(file), clip)
    rest = " and ".join(f"{part} ({len(names)} tensors)" for part, names in found.absent.items())
    if found.whole and begun and rest:
        weights.warn(f"{ZOO}{architecture}: {len(found.fit)} tensors are those of {file}; {rest}: as in {architecture}/{begun}")
    elif found.whole and begun:
        raise UserError(f"{file} holds a whole model and needs no other part: load {ZOO}{architecture}/{file}")
    elif found.whole and rest:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        raise UserError(
            f"{file} holds {len(found.fit)} tensors of {architecture} and no {rest}: say whose it takes, {ZOO}{architecture}/TAG/{file} "
            f"with the tag that it was fine-tuned from{f' ({statedicts.some(tags)})' if tags else ''}, or random[seed=0] for none"
        )
    elif not found.whole:
        if not begun and (clip := by_open_clip(architecture, file)):
            weights.warn(f"{file} does not fit {architecture} tensor by tensor ({found}); open_clip made it fit")
            return clip
        raise UserError(f"{file} does not fit {architecture}: {found}")
    clip.load_state_dict({**clip.state_dict(), **found.fit})
    return clip


def by_open_clip(architecture: str, file: str) -> Any:
    """Return open_clip's model with weights that it can make fit, such as positions of another image size; None for others."""
    import open_clip

    try:
        return open_clip.create_model(architecture, file, precision="fp32", require_pretrained=True)
    except Exception:  # what does not fit is said by whoever asked, tensor by tensor
        return None


def untrained(architecture: str) -> Any:
    """Return open_clip's model with random weights, without its warning that they are: here they are meant to be, or others follow."""
    import open_clip

    def other(record: logging.LogRecord) -> bool:
        return record.module != "factory"

    root = logging.getLogger()  # open_clip logs to no logger of its own
    root.addFilter(other)
    try:
        return open_clip.create_model(architecture, precision="fp32", pretrained_text=False)
    finally:
        root.removeFilter(other)


def check(name: str) -> None:
    """Raise UserError for an architecture or weights that are not there or do not belong together, before anything is fetched or built."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    architecture, source = split(name)
    if architecture.startswith(HUB):
        return
    if architecture not in open_clip.list_models():
        raise UserError(f"open_clip has no model {architecture!r}{did_you_mean(architecture, open_clip.list_models())}")
    source, file = on(source)
    tag, tags = get_pretrained_cfg(architecture, source), open_clip.list_pretrained_tags_by_model(architecture)
    if file:
        weights.check(architecture, file, other_activation(architecture), known=bool(tag))
        if not source:
            return
    if not tag and not RANDOM.fullmatch(source):
        known = f"one of its tags ({', '.join(tags)}), a file" if tags else "a file, since open_clip has no weights of it"
        said = f"{ZOO}{architecture} names no weights" if not source else f"{architecture} has no weights {source!r}"
        raise UserError(
            f"{said}{did_you_mean(source, tags)}: give {ZOO}{architecture}/WEIGHTS with {known}, or random[seed=0] for an untrained model"
        )
    if tag and bool(tag.get("quick_gelu", False)) != weights.quick_gelu(architecture):
        trained = "QuickGELU" if tag.get("quick_gelu") else "plain GELU"
        raise UserError(f"{architecture}/{source}: these weights use {trained}; load {ZOO}{other_activation(architecture)}/{source}")


def other_activation(architecture: str) -> str:
    """Return the name of the same architecture with the other activation, whether or not open_clip has it."""
    return architecture.removesuffix("-quickgelu") if weights.quick_gelu(architecture) else f"{architecture}-quickgelu"


def identity(name: str) -> str:
    """Return the hash that tells the model of a name, which is loaded for it once."""
    _, file = on(split(name)[1])
    stamp = (found.st_mtime_ns, found.st_size) if os.path.isfile(file) and (found := os.stat(file)) else None
    return _identity(name, stamp)


@cache
def _identity(name: str, stamp: Any) -> str:
    return identity_of(load(name))


def identity_of(model: Model) -> str:
    """Return the hash that tells a model of the zoo: of a tag's the weights, which fix the rest; else also its architecture.

    One file of weights, or one seed, is two models under two activations.
    """
    _, source = split(model.name)
    return model.sha256 if TAG.fullmatch(source) else hash_of("open_clip", model.open_clip_config, model.sha256)
