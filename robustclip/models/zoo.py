"""Models of open_clip's zoo: an architecture with one of its tags, with a file of weights, or with random ones; or a model of the hub.

open_clip:ViT-B-32-quickgelu/openai, open_clip:ViT-B-32-quickgelu//home/me/weights.safetensors, open_clip:ViT-B-32/random[seed=0],
open_clip:hf-hub:ORG/REPO.
"""

import logging
import os
import re
from functools import cache
from typing import Any

import torch

from robustclip.base import storage
from robustclip.base.errors import UserError, did_you_mean
from robustclip.models import weights
from robustclip.models.combined import hash_of
from robustclip.models.model import FORMAT, Model

ZOO, HUB = "open_clip:", "hf-hub:"
RANDOM = re.compile(r"random\[seed=(\d{1,18})\]")
TAG = re.compile(r"[\w-]*")  # anything else after the architecture is a file: no tag has a dot or a slash


def split(name: str) -> tuple[str, str]:
    """Return the architecture and what its weights are: a tag, a file, random ones, nothing; of a model of the hub its name and nothing."""
    architecture, _, source = name.removeprefix(ZOO).partition("/")
    return (name.removeprefix(ZOO), "") if architecture.startswith(HUB) else (architecture, source)


def is_file(source: str) -> bool:
    """Return whether weights are those of a file."""
    return not (TAG.fullmatch(source) or RANDOM.fullmatch(source))


def absolute(name: str) -> str:
    """Return the one way to write a name: its file's path from the root, its seed without zeros before it."""
    architecture, source = split(name)
    if found := RANDOM.fullmatch(source):
        return f"{ZOO}{architecture}/random[seed={int(found[1])}]"
    return f"{ZOO}{architecture}/{storage.resolve(source)}" if is_file(source) else name


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
    return Model(name, clip.eval().requires_grad_(False), open_clip.get_tokenizer(architecture), config, card)


def create(architecture: str, source: str) -> Any:
    """Return open_clip's model; one of the hub that has no weights there, which open_clip would leave random, is an error."""
    import open_clip

    if drawn := RANDOM.fullmatch(source):
        torch.default_generator.manual_seed(int(drawn[1]))
        return untrained(architecture)
    if is_file(source) and (state := weights.of_openai(source)):
        clip = untrained(architecture)
        clip.load_state_dict(state)
        return clip
    return open_clip.create_model(architecture, source or None, precision="fp32", require_pretrained=True)


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
    if is_file(source):
        weights.check(architecture, source, other_activation(architecture))
        return
    tag, tags = get_pretrained_cfg(architecture, source), open_clip.list_pretrained_tags_by_model(architecture)
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
    _, source = split(name)
    stamp = (found.st_mtime_ns, found.st_size) if os.path.isfile(source) and (found := os.stat(source)) else None
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
