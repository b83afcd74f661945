"""Models by name: the embedded ones, open_clip's zoo, and checkpoint folders, all as one kind of value."""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustclip.base import storage
from robustclip.base.errors import UserError, did_you_mean
from robustclip.base.seeds import generator
from robustclip.models.classifier import Preprocess, ZeroShotClassifier
from robustclip.models.prompts import PixelPatch, Prompt

# Of a checkpoint folder: config.json, open_clip_config.json, model.safetensors and, where it has one, prompt.safetensors (of a visual
# prompt) or readout.safetensors (of a linear probe).
FORMAT = 1
SELECTION = "selection.parquet"  # beside a checkpoint: ids of the images it was trained and chosen on
IDENTITY_FILES = ("model.safetensors", "prompt.safetensors", "readout.safetensors", "open_clip_config.json")
ZOO = "open_clip:"


def embedded() -> dict[str, Path]:
    """Return the checkpoint folders of the models that ship with the package, by name."""
    root = Path(str(resources.files("robustclip"))) / "models" / "embedded"
    return {folder.name: folder for folder in sorted(root.iterdir()) if (folder / "model.safetensors").is_file()}


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

    @property
    def preprocess(self) -> Preprocess:
        cfg = self.open_clip_config["preprocess_cfg"]
        size = cfg["size"] if isinstance(cfg["size"], int) else cfg["size"][0]
        return Preprocess(size, tuple(cfg["mean"]), tuple(cfg["std"]), cfg.get("interpolation", "bicubic"))

    @property
    def sha256(self) -> str:
        """The hash of every tensor of the model, its prompt and its readout, whatever file they came from."""
        return tensors_sha256({**self.clip.state_dict(), **worn(self)})

    def classifier(self, class_names: Sequence[str], templates: Sequence[str]) -> ZeroShotClassifier:
        """Return the classifier of this model over `class_names`; classifiers of one model share its weights.

        Raises UserError when a model with a linear readout is asked for other classes than its own.
        """
        if self.readout is not None and self.readout.class_names != tuple(class_names):
            raise UserError(
                f"{self.name} is a linear probe of {', '.join(self.readout.class_names[:3])} ({len(self.readout.class_names)} classes): "
                "it has no zero-shot classifier for others; evaluate it on the set it was trained on"
            )
        parts = (self.clip, self.tokenizer, self.preprocess, class_names, templates, self.prompt, self.readout)
        return ZeroShotClassifier(*parts).eval()

    def before_step(self, seed: int, step: int | None) -> None:
        """Place what moves about while it trains for a step, by the step alone; None: where it is scored."""
        if isinstance(self.prompt, PixelPatch):
            self.prompt.rest() if step is None else self.prompt.move(generator(seed, "place", step))

    def copy(self) -> "Model":
        """Return a model with weights of its own."""
        return replace(self, clip=copy.deepcopy(self.clip), prompt=copy.deepcopy(self.prompt), readout=copy.deepcopy(self.readout))


def origin(model: Model) -> Model:
    """Return the model that all fine-tuning of this one began with, itself where there was none."""
    while base := model.card.get("base"):
        model = load(base["name"])
    return model


def undefended(model: Model, class_names: Sequence[str], templates: Sequence[str]) -> nn.Module:
    """Return the classifier of the model that all fine-tuning of this one began with, adapting to nothing."""
    classifier: Any = origin(model).classifier(class_names, templates)
    return getattr(classifier, "base", classifier)


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


def combined(name: str) -> Any:
    """Return the combination or the test-time defence that a name stands for, None for the name of a single model."""
    from robustclip.models.combined import named
    from robustclip.test_time import defended as adapted  # both are made of what is here

    return adapted.named(name) or named(name)


def load(name: str) -> Model:
    """Return the model `name`: an embedded one, `open_clip:NAME/TAG` (a tag, a hub name or a local file), or a checkpoint folder.

    Two of them as one are `interpolate:ALPHA:CHECKPOINT` and `ensemble:A,B` (combined.py), one that adapts to every image is
    `tapt[views=16]:CHECKPOINT` (adapted.py). Raises UserError for anything else, for weights that do not fit their config, and for OpenAI
    weights in a plain-GELU model.
    """
    if both := combined(name):
        return both.load()
    if name.startswith(ZOO):
        return _from_zoo(name)
    folder = str(embedded().get(name, name))
    if not storage.exists(storage.join(folder, "config.json")):
        known = ", ".join(embedded())
        raise UserError(f"no model {name!r}{did_you_mean(name, embedded())}: give an embedded one ({known}), {ZOO}NAME/TAG, or a folder")
    return _from_folder(name, folder)


def identity(name: str) -> str:
    """Return the hash that names the model's weights, prompt and architecture in keys and records, without building a folder's model."""
    if both := combined(name):
        return both.identity()
    folder = str(embedded().get(name, name))
    if name.startswith(ZOO):
        return load(name).sha256
    files = [file for file in storage.list_files(folder) if file.rsplit("/", 1)[-1] in IDENTITY_FILES]
    if not files:
        load(name)  # says what is wrong
    return hashlib.sha256("".join(storage.sha256_file(file) for file in sorted(files)).encode()).hexdigest()


def display_name(name: str) -> str:
    """Return how records and tables call a model: its name, or run-<key> for the checkpoint of a run wherever it lies."""
    if both := combined(name):
        return both.display_name()
    if name.startswith(ZOO) or name in embedded():
        return name
    card = storage.read_json(storage.join(name, "config.json")) if storage.exists(storage.join(name, "config.json")) else {}
    return f"run-{card['run']}" if "run" in card else storage.name_of(name)


def selection(name: str) -> frozenset[str] | None:
    """Return the ids of the images that training and choosing a checkpoint saw, None where it does not say."""
    if both := combined(name):
        return both.selection()
    path = storage.join(name, SELECTION)
    return frozenset(storage.read_table(path)["id"].to_pylist()) if storage.exists(path) else None


def same_but_seed(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the groups of checkpoints whose configs differ in the seed alone: the first one's display name -> those of all."""
    groups: dict[str, list[str]] = {}
    for name in names:
        if combined(name):
            continue
        path = storage.join(name, "config.json")
        config = storage.read_json(path).get("config") if storage.exists(path) else None
        if config:
            groups.setdefault(json.dumps({**config, "seed": None}, sort_keys=True), []).append(display_name(name))
    return {group[0]: group for group in groups.values() if len(group) > 1}


def input_size(name: str) -> int:
    """Return the side of the images a model works on, from its config alone where there is one."""
    if both := combined(name):
        return both.input_size()
    return (load(name) if name.startswith(ZOO) else _sized(name)).preprocess.size


def _sized(name: str) -> Model:
    folder = str(embedded().get(name, name))
    if not storage.exists(storage.join(folder, "config.json")):
        return load(name)  # says what is wrong
    config = storage.read_json(storage.join(folder, "open_clip_config.json"))
    return Model(name, nn.Identity(), lambda texts: torch.empty(0), config, {})


def _from_zoo(name: str) -> Model:
    import open_clip

    architecture, _, pretrained = name.removeprefix(ZOO).partition("/")
    if architecture.startswith("hf-hub:"):
        architecture, pretrained = name.removeprefix(ZOO), ""
    elif architecture not in open_clip.list_models():
        raise UserError(f"open_clip has no model {architecture!r}{did_you_mean(architecture, open_clip.list_models())}")
    else:
        check_activation(architecture, pretrained)
    try:
        clip = open_clip.create_model(architecture, pretrained or None, precision="fp32")
    except Exception as error:  # the hub's, the file system's and torch's errors all mean: these weights cannot be had
        raise UserError(f"{name}: open_clip could not load it: {' '.join(str(error).split())[:300]}") from error
    model_cfg = open_clip.get_model_config(architecture) or {}
    config = {"model_cfg": model_cfg, "preprocess_cfg": dict(clip.visual.preprocess_cfg)}
    card = {"format": FORMAT, "tokenizer": {"open_clip": architecture}}
    return Model(name, clip.eval().requires_grad_(False), open_clip.get_tokenizer(architecture), config, card)


def check_activation(architecture: str, pretrained: str) -> None:
    """Raise UserError where open_clip would build plain GELU for weights trained with QuickGELU (or the reverse) and only warn."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    tag = get_pretrained_cfg(architecture, pretrained)
    built = bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu", False))
    if tag and bool(tag.get("quick_gelu", False)) != built:
        right = architecture.removesuffix("-quickgelu") if built else f"{architecture}-quickgelu"
        raise UserError(
            f"{architecture}/{pretrained}: these weights use {'plain GELU' if built else 'QuickGELU'}; load {ZOO}{right}/{pretrained}"
        )


def _from_folder(name: str, folder: str) -> Model:
    from robustclip.training.trainables import dressed

    card = storage.read_json(storage.join(folder, "config.json"))
    if card.get("format", 0) > FORMAT:
        raise UserError(f"{name} has checkpoint format {card['format']}, this robustclip reads up to {FORMAT}: upgrade robustclip")
    _check_files(name, folder, ("open_clip_config.json", "model.safetensors"))
    config = storage.read_json(storage.join(folder, "open_clip_config.json"))
    clip = build(config)
    _fill(clip, storage.join(folder, "model.safetensors"))
    model = Model(name, clip.eval().requires_grad_(False), tokenizer_from(card, config), config, card)
    model = dressed(card, model)
    for file, part in (("prompt", model.prompt), ("readout", model.readout)):
        if part is not None:
            _check_files(name, folder, (f"{file}.safetensors",))
            _fill(part.requires_grad_(False), storage.join(folder, f"{file}.safetensors"))
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


def tokenizer_from(card: Mapping[str, Any], open_clip_config: Mapping[str, Any]) -> Callable[[list[str]], Tensor]:
    """Return the tokenizer a checkpoint's card names: cut to its first merges, or open_clip's for an architecture."""
    import open_clip

    from robustclip.models.tokenizers import cut_tokenizer

    named = card["tokenizer"]
    if "merges" in named:
        return cut_tokenizer(named["merges"], open_clip_config["model_cfg"]["text_cfg"]["context_length"])
    return partial(open_clip.get_tokenizer(named["open_clip"]))


def save(model: Model, folder: str, **card: Any) -> None:
    """Write a checkpoint folder that `load` and open_clip's `local-dir:` read; `card` is what config.json says beside the format."""
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
    storage.write_json(storage.join(folder, "config.json"), {"format": FORMAT, **known, **card})
