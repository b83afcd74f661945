"""A model as other programs take it: open_clip's `local-dir:`, transformers' CLIPModel, the visual tower alone.

Weights are written as they are, fp32; what does not fit into a form is refused, for it would be dropped without a word.
"""

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.models import folders, hugging_face, tokenizers
from robustclip.models.model import Model

FORMS = {
    "open_clip": "a folder for open_clip's create_model_and_transforms('local-dir:FOLDER')",
    "hf": "a folder for transformers' CLIPModel.from_pretrained(FOLDER)",
    "visual": "the state dict of the visual tower alone, as FARE publishes it",
}
TOWER = "visual.pt"


def check(model: Model) -> None:
    """Raise UserError for a model that is more than the weights of one CLIP: no form below has a place for the rest."""
    why = None
    if model.adapts:
        why = "is defended at test time, by a program that runs on every image and is no weights: export the model behind the colon"
    elif type(model) is not Model:
        why = "is several models, whose logits are averaged: export each of them"
    elif model.readout is not None:
        why = "is a linear probe, whose readout has no place in CLIP's weights: its tower is that of its base, export that"
    elif model.prompt is not None:
        kind = (model.card.get("trainable") or {}).get("type", "a prompt")
        why = f"wears {kind}, which has no place in CLIP's weights, and is the undefended base without it"
    if why:
        raise UserError(f"{model.name} {why}")


def write(model: Model, form: str, folder: str) -> None:
    """Write a model's files into a folder, in one of FORMS; raises UserError for what the form has no place for."""
    check(model)
    WRITERS[form](model, folder)


def _open_clip(model: Model, folder: str) -> None:
    config = json.loads(json.dumps(model.open_clip_config))
    text = config["model_cfg"]["text_cfg"]
    text.pop("hf_tokenizer_name", None)
    if (merges := merges_of(model)) != tokenizers.MERGES:  # open_clip takes what lies in the folder, where a name is given at all
        text["hf_tokenizer_name"] = "."
        _tokenizer(model, merges, folder)
    storage.write_json(storage.join(folder, folders.CONFIG), config)
    _safetensors(storage.join(folder, folders.OPEN_CLIP[0]), model.clip.state_dict())


def _transformers(model: Model, folder: str) -> None:
    config, images = hugging_face.transformers_config(model.open_clip_config, model.name)
    merges = merges_of(model)
    if merges is None or tokenizers.words(merges) != config["text_config"]["vocab_size"]:
        raise UserError(f"{model.name}: its tokenizer is not CLIP's, and transformers' CLIPModel has no other: export it --as open_clip")
    storage.write_json(storage.join(folder, "config.json"), config)
    storage.write_json(storage.join(folder, folders.PROCESSORS[0]), images)
    _tokenizer(model, merges, folder)
    _safetensors(storage.join(folder, folders.TRANSFORMERS[0]), hugging_face.to_transformers(model.clip.state_dict()))


def _visual(model: Model, folder: str) -> None:
    tower: Any = model.clip.visual
    with storage.writing(storage.join(folder, TOWER)) as stream:
        torch.save({name: tensor.detach().cpu().clone() for name, tensor in tower.state_dict().items()}, stream)


WRITERS = {"open_clip": _open_clip, "hf": _transformers, "visual": _visual}


def _safetensors(path: str, state: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    storage.write_bytes(path, save(tensors, metadata={"format": "pt"}))


def merges_of(model: Model) -> int | None:
    """Return how many merges of CLIP's tokenizer a model reads with, None where it has one of transformers."""
    from open_clip.tokenizer import SimpleTokenizer

    inner = model.tokenizer.func if isinstance(model.tokenizer, partial) else model.tokenizer
    return inner.vocab_size - tokenizers.words(0) if isinstance(inner, SimpleTokenizer) else None


def _tokenizer(model: Model, merges: int | None, folder: str) -> None:
    """Write the files of transformers' tokenizer: CLIP's with so many merges, or the model's own."""
    if merges is None:
        inner: Any = model.tokenizer.func if isinstance(model.tokenizer, partial) else model.tokenizer
        with tempfile.TemporaryDirectory() as own:
            inner.tokenizer.save_pretrained(own)
            for path in sorted(Path(own).iterdir()):
                storage.write_bytes(storage.join(folder, path.name), path.read_bytes())
        return
    begin, end = tokenizers.ENDS
    words = {word: number for number, word in enumerate(tokenizers.vocabulary(merges))}
    kept = {"bos_token": begin, "eos_token": end, "unk_token": end, "pad_token": end}
    length = model.open_clip_config["model_cfg"]["text_cfg"].get("context_length", 77)
    said = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "errors": "replace", "model_max_length": length}
    lines = "\n".join(["#version: 0.2", *tokenizers.first_merges(merges), ""])
    storage.write_bytes(storage.join(folder, "vocab.json"), json.dumps(words, ensure_ascii=False).encode())
    storage.write_bytes(storage.join(folder, "merges.txt"), lines.encode())
    storage.write_json(storage.join(folder, "tokenizer_config.json"), said | kept)
    storage.write_json(storage.join(folder, "special_tokens_map.json"), kept)
