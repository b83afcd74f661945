"""Model folders that others write: open_clip's `local-dir`, and transformers' CLIPModel; told by their files.

A checkpoint of robustclip has a config.json with a format; open_clip's folder has open_clip_config.json with open_clip_model.safetensors,
or open_clip_pytorch_model.bin; transformers' a config.json of model_type clip with model.safetensors, pytorch_model.bin, or parts of either
with their index. Where both lie, open_clip's is read.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.models import checkpoints, hugging_face, statedicts, tokenizers
from robustclip.models.model import FORMAT, Model

CONFIG = "open_clip_config.json"
OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TRANSFORMERS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
WORDS = ("tokenizer.json", "merges.txt")  # a tokenizer's, either is enough


@dataclass(frozen=True)
class Folder:
    """A folder of one model: its open_clip config, and the files that decide what it answers; no model is built."""

    path: str
    config: dict[str, Any]
    weights: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def input_size(self) -> int:
        """The side of the images that the model works on."""
        return int(self.config["preprocess_cfg"]["size"])

    def identity(self) -> str:
        """Return the hash of the files that decide what the model answers; no model is built."""
        files = [storage.join(self.path, name) for name in (*self.weights, *self.others)]
        return hashlib.sha256("".join(storage.known_sha256(file) for file in files).encode()).hexdigest()

    def load(self, name: str) -> Model:
        """Return the model, called `name`; raises UserError for weights that are not exactly those of its config."""
        clip = self.build()
        state: dict[str, Tensor] = {}
        for file in self.weights:
            state |= statedicts.state_of(storage.join(self.path, file))
        found = statedicts.placed(state, clip)
        if found.missing or found.left:
            raise UserError(f"{self.path}: the weights do not fit the architecture of its config: {found}")
        clip.load_state_dict(dict(found.fit))
        tokenizer = self.tokenizer()
        card = {"format": FORMAT, "tokenizer": tokenizer}
        return Model(name, clip.eval().requires_grad_(False), checkpoints.tokenizer_from(card, self.config), self.config, card)

    def build(self) -> nn.Module:
        """Return the architecture with random weights; raises UserError for one that is not open_clip's CLIP."""
        try:
            return checkpoints.build(self.config)
        except (TypeError, KeyError, ValueError, RuntimeError, AssertionError) as error:
            raise UserError(
                f"{self.path}: its config is of no model that can be built here: {' '.join(str(error).split())[:200]}"
            ) from error

    def tokenizer(self) -> dict[str, Any]:
        """Return how a card names the tokenizer: by how many merges of CLIP's it has, or as what open_clip finds in the folder.

        Raises UserError for a text tower of other words than those of its tokenizer.
        """
        text = self.config["model_cfg"]["text_cfg"]
        words = int(text.get("vocab_size", tokenizers.WORDS))
        if (merges := self.merges()) is not None:
            cut = tokenizers.cut_of(merges)
        else:
            cut = None if text.get("hf_tokenizer_name") or text.get("tokenizer_kwargs") else tokenizers.MERGES
        if cut is None and CONFIG in self.others:
            return {"open_clip": f"local-dir:{self.path}"}
        if cut is None or tokenizers.words(cut) != words:
            has = "is another one" if cut is None else f"has {tokenizers.words(cut)}"
            raise UserError(
                f"{self.path}: its text tower reads {words} words of CLIP's tokenizer, and the tokenizer here {has}: put the model's own "
                f"({' or '.join(WORDS)}) into the folder"
            )
        return {"merges": cut}

    def merges(self) -> list[str] | None:
        """Return the merges of the byte-pair tokenizer in the folder, None where there is none."""
        whole, alone = (storage.join(self.path, name) for name in WORDS)
        if storage.exists(alone):
            lines = storage.read_bytes(alone).decode().split("\n")
            return [line for line in lines[lines[0].startswith("#version") :] if line]
        model = storage.read_json(whole).get("model", {}) if storage.exists(whole) else {}
        found = model.get("merges") if model.get("type", "BPE") == "BPE" else None
        return None if found is None else [each if isinstance(each, str) else " ".join(each) for each in found]


def of(path: str) -> Folder | None:
    """Return the folder of a model that another program wrote, None for any other folder.

    Raises UserError for one of transformers that is no CLIPModel, or lacks its weights.
    """
    if checkpoints.card(path):
        return None
    there = {storage.name_of(file) for file in storage.list_files(path)}
    if CONFIG in there and (weights := [name for name in OPEN_CLIP if name in there][:1]):
        said = storage.read_json(storage.join(path, CONFIG))
        return Folder(path, _filled(said, path), tuple(weights), (CONFIG, *[name for name in WORDS if name in there]))
    if checkpoints.CARD not in there:
        return None
    said = storage.read_json(storage.join(path, checkpoints.CARD))
    if not isinstance(said, dict) or "model_type" not in said:
        return None
    if said["model_type"] != "clip":
        raise UserError(
            f"{path} is a {said['model_type']} of transformers, and a CLIPModel (model_type clip) is read: where open_clip has the model, "
            "give a folder with its open_clip_config.json, or open_clip:NAME/TAG"
        )
    images = [name for name in PROCESSORS if name in there][:1]
    found = storage.read_json(storage.join(path, images[0])) if images else {}
    config = hugging_face.open_clip_config(said, found.get("image_processor", found), storage.join(path, checkpoints.CARD))
    return Folder(path, config, _parts(path, there), (checkpoints.CARD, *images, *[name for name in WORDS if name in there]))


def _parts(path: str, there: set[str]) -> tuple[str, ...]:
    """Return the files of a CLIPModel's weights."""
    name = next((name for name in TRANSFORMERS if name in there), None)
    if name is None:
        raise UserError(f"{path} has a config of a CLIPModel and no weights: put {TRANSFORMERS[0]} or {TRANSFORMERS[2]} beside it")
    if not name.endswith(".json"):
        return (name,)
    parts = sorted({storage.safe_name(part) for part in storage.read_json(storage.join(path, name))["weight_map"].values()})
    if lacking := [part for part in parts if part not in there]:
        raise UserError(f"{path}: {name} names parts that are not there: {statedicts.some(lacking)}")
    return tuple(parts)


def _filled(said: Any, path: str) -> dict[str, Any]:
    """Return an open_clip config with what open_clip takes for what it leaves out; raises UserError for one without a model."""
    from dataclasses import asdict

    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    if not isinstance(said, dict) or not {"vision_cfg", "text_cfg", "embed_dim"} <= (said.get("model_cfg") or {}).keys():
        raise UserError(f"{storage.join(path, CONFIG)} describes no model: it needs model_cfg with embed_dim, vision_cfg and text_cfg")
    seen = merge_preprocess_dict(asdict(PreprocessCfg()), said.get("preprocess_cfg") or {})
    size = said["model_cfg"]["vision_cfg"].get("image_size", 224)
    return {"model_cfg": said["model_cfg"], "preprocess_cfg": {**seen, "size": size if isinstance(size, int) else size[0]}}
