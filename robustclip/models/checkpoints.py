"""Checkpoint folders, the embedded ones among them: reading, writing, and what is known of one without building its model.

A folder holds config.json (the card), open_clip_config.json, model.safetensors and, where it has one, prompt.safetensors (of a visual
prompt) or readout.safetensors (of a linear probe); a run's also selection.parquet, the ids of the images it was trained and chosen on.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.models import tokenizers
from robustclip.models.classifier import Preprocess
from robustclip.models.dress import dressed
from robustclip.models.model import FORMAT, Model

CARD = "config.json"
SELECTION = "selection.parquet"
WORN = {"prompt.safetensors": "a prompt", "readout.safetensors": "a linear readout"}  # files of what trains instead of a tower
IDENTITY_FILES = ("model.safetensors", *WORN, "open_clip_config.json")


def embedded() -> dict[str, Path]:
    """Return the checkpoint folders of the models that ship with the package, by name."""
    root = Path(str(resources.files("robustclip"))) / "models" / "embedded"
    return {folder.name: folder for folder in sorted(root.iterdir()) if (folder / "model.safetensors").is_file()}


def card(folder: str) -> dict[str, Any]:
    """Return what the folder of a checkpoint says of it, {} where none is complete, or it is another program's."""
    path = storage.join(folder, CARD)
    said = storage.read_json(path) if storage.exists(path) else {}
    return said if isinstance(said, dict) and "format" in said else {}


def identity(folder: str) -> str | None:
    """Return the hash of the folder's weights, what they wear and their architecture, None where there are none; no model is built."""
    files = [file for file in storage.list_files(folder) if storage.name_of(file) in IDENTITY_FILES]
    return hashlib.sha256("".join(storage.known_sha256(file) for file in sorted(files)).encode()).hexdigest() if files else None


def selection(folder: str) -> frozenset[str] | None:
    """Return the ids of the images that training and choosing the checkpoint saw, None where it does not say."""
    path = storage.join(folder, SELECTION)
    return frozenset(storage.read_table(path)["id"].to_pylist()) if storage.exists(path) else None


def input_size(folder: str) -> int:
    """Return the side of the images that the folder's model works on; no model is built."""
    return Preprocess.of(storage.read_json(storage.join(folder, "open_clip_config.json"))).size


def load(name: str, folder: str) -> Model:
    """Return the model in a folder, called `name`.

    Raises UserError for a folder that lacks a file or was written by a newer version, and for weights that do not fit their config.
    """
    about = storage.read_json(storage.join(folder, CARD))
    if about.get("format", 0) > FORMAT:
        raise UserError(f"{name} has checkpoint format {about['format']}, this robustclip reads up to {FORMAT}: upgrade robustclip")
    _check_files(name, folder, ("open_clip_config.json", "model.safetensors"))
    config = storage.read_json(storage.join(folder, "open_clip_config.json"))
    clip = build(config)
    _fill(clip, storage.join(folder, "model.safetensors"))
    model = dressed(Model(name, clip.eval().requires_grad_(False), tokenizer_from(about, config), config, about))
    for file, part in (("prompt.safetensors", model.prompt), ("readout.safetensors", model.readout)):
        if part is not None:
            _check_files(name, folder, (file,))
            _fill(part.requires_grad_(False), storage.join(folder, file))
        elif storage.exists(storage.join(folder, file)):
            raise UserError(f"{name}: its config.json names an unknown trainable {about.get('trainable')} of {file}: upgrade robustclip")
    return model


def _check_files(name: str, folder: str, files: Sequence[str]) -> None:
    for file in files:
        if not storage.exists(storage.join(folder, file)):
            raise UserError(f"{name} is no checkpoint of robustclip: its folder has no {file}")


def build(open_clip_config: Mapping[str, Any]) -> nn.Module:
    """Return a model of open_clip's config with random weights: its towers, without any download."""
    from open_clip.model import CLIP, CustomTextCLIP

    cfg = copy.deepcopy(dict(open_clip_config["model_cfg"]))
    custom = cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]
    if "timm_model_name" in cfg["vision_cfg"]:
        cfg["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in cfg["text_cfg"]:
        cfg["text_cfg"]["hf_model_pretrained"] = False
    return (CustomTextCLIP if custom else CLIP)(**cfg)


def _fill(module: nn.Module, path: str) -> None:
    """Load a safetensors file, which can hold tensors and nothing that runs, into a module that must have exactly its tensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load as load_tensors

    try:
        module.load_state_dict(load_tensors(storage.read_bytes(path)), strict=True)
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); other formats are not read") from error
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: the weights do not fit the architecture of its config: {first}") from error


def tokenizer_from(about: Mapping[str, Any], open_clip_config: Mapping[str, Any]) -> Callable[[list[str]], Tensor]:
    """Return the tokenizer a checkpoint's card names: cut to its first merges, or open_clip's for an architecture."""
    named = about["tokenizer"]
    if "merges" in named:
        return tokenizers.cut_tokenizer(named["merges"], open_clip_config["model_cfg"]["text_cfg"].get("context_length", 77))
    return partial(tokenizers.of_open_clip(named["open_clip"]))


def save(model: Model, folder: str, **about: Any) -> None:
    """Write a checkpoint folder that `load` and open_clip's `local-dir:` read; `about` is what config.json says beside the format."""
    from safetensors.torch import save as save_tensors

    def dump(state: Mapping[str, Tensor]) -> bytes:
        return save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})

    storage.write_bytes(storage.join(folder, "model.safetensors"), dump(model.clip.state_dict()))
    for file, part in (("prompt", model.prompt), ("readout", model.readout)):
        if part is not None:
            storage.write_bytes(storage.join(folder, f"{file}.safetensors"), dump(part.state_dict()))
    storage.write_json(storage.join(folder, "open_clip_config.json"), json.loads(json.dumps(model.open_clip_config)))
    known: dict[str, Any] = {name: model.card[name] for name in ("tokenizer", "trainable") if name in model.card}
    if model.readout is not None:
        known["class_names"] = list(model.readout.class_names)
    # config.json last: a folder that has one is complete.
    storage.write_json(storage.join(folder, CARD), {"format": FORMAT, **known, **about})
