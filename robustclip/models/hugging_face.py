"""transformers' CLIPModel and open_clip's CLIP are one architecture under two sets of names: tensors and configs, both ways.

Nothing of transformers is imported. Its linear projections are transposed, its queries, keys and values lie apart.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from robustclip.base.errors import UserError

State = Mapping[str, Tensor]
BLOCKS = {"vision_model.encoder.layers.": "visual.transformer.resblocks.", "text_model.encoder.layers.": "transformer.resblocks."}
INSIDE = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
AROUND = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "logit_scale": "logit_scale",
}
TRANSPOSED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
QKV = ("q_proj", "k_proj", "v_proj")

# What transformers takes for a key that a config.json leaves out (CLIPTextConfig, CLIPVisionConfig).
TEXT = {"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
TEXT |= {"max_position_embeddings": 77, "eos_token_id": 49407}
VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224}
VISION |= {"patch_size": 32, "num_channels": 3}
BOTH: dict[str, Any] = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
WIDTH = 512  # of the shared space
LEGACY_EOS = 2  # of configs from before transformers knew the end of a text by its id: the largest id of a text ends it
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # OpenAI's
RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL's numbers


def is_named(state: State) -> bool:
    """Return whether tensors have the names of transformers' CLIP, or of one of its towers."""
    return any(name.startswith(tuple(BLOCKS)) for name in state)


def to_open_clip(state: State) -> dict[str, Tensor]:
    """Return tensors of transformers' CLIP under open_clip's names; a name that is not CLIP's stays as it is."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        head = next((head for head in BLOCKS if name.startswith(head)), None)
        if head is None:
            found[AROUND.get(name) or TRANSPOSED.get(name) or name] = tensor.T.contiguous() if name in TRANSPOSED else tensor
            continue
        number, _, inside = name.removeprefix(head).partition(".")
        part, _, kind = inside.rpartition(".")
        block = f"{BLOCKS[head]}{number}."
        names = [f"{head}{number}.self_attn.{each}.{kind}" for each in QKV]
        if name == names[0] and all(each in state for each in names):
            found[f"{block}attn.in_proj_{kind}"] = torch.cat([state[each] for each in names])
        elif name not in names or not all(each in state for each in names):
            found[f"{block}{INSIDE[part]}.{kind}" if part in INSIDE else name] = tensor
    return found


def to_transformers(state: State) -> dict[str, Tensor]:
    """Return the tensors of open_clip's CLIP under transformers' names; the inverse of `to_open_clip`."""
    around = {ours: theirs for theirs, ours in AROUND.items()}
    across = {ours: theirs for theirs, ours in TRANSPOSED.items()}
    inside = {ours: theirs for theirs, ours in INSIDE.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in ((name.removeprefix("text."), tensor) for name, tensor in state.items()):  # of a text tower that stands apart
        head = next((head for head, ours in BLOCKS.items() if name.startswith(ours)), None)
        if head is None:
            found[around.get(name) or across[name]] = tensor.T.contiguous() if name in across else tensor
            continue
        number, _, rest = name.removeprefix(BLOCKS[head]).partition(".")
        if rest.startswith("attn.in_proj_"):
            kind = rest.removeprefix("attn.in_proj_")
            parts = zip(QKV, tensor.chunk(3), strict=True)
            found |= {f"{head}{number}.self_attn.{each}.{kind}": part.contiguous() for each, part in parts}
        else:
            part, _, kind = rest.rpartition(".")
            found[f"{head}{number}.{inside[part]}.{kind}"] = tensor
    return found


def open_clip_config(said: Mapping[str, Any], images: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return open_clip's config of a CLIPModel, from its config.json and what its image processor says ({}: OpenAI's statistics).

    Raises UserError for what open_clip's CLIP cannot be: other activations, ends of a text, channels.
    """
    text, vision = ({**usual, **BOTH, **(said.get(f"{t}_config") or {}), **(said.get(f"{t}_config_dict") or {})} for t, usual in _usual())
    acts = {text["hidden_act"], vision["hidden_act"]}
    if len(acts) > 1 or not acts <= {"quick_gelu", "gelu"}:
        raise UserError(f"{where}: hidden_act is {' and '.join(sorted(acts))}, and open_clip's CLIP has quick_gelu or gelu in both towers")
    if text["eos_token_id"] not in (LEGACY_EOS, text["vocab_size"] - 1):
        raise UserError(f"{where}: eos_token_id is {text['eos_token_id']}, and CLIP's texts end with the last of {text['vocab_size']} ids")
    if vision["num_channels"] != 3:
        raise UserError(f"{where}: num_channels is {vision['num_channels']}, and images here have 3")
    vision_cfg = {key: vision[key] for key in ("image_size", "patch_size")} | _tower(vision)
    vision_cfg["head_width"] = vision["hidden_size"] // vision["num_attention_heads"]
    text_cfg = {"context_length": text["max_position_embeddings"], "vocab_size": text["vocab_size"], "heads": text["num_attention_heads"]}
    model: dict[str, Any] = {"embed_dim": said.get("projection_dim", WIDTH), "vision_cfg": vision_cfg, "text_cfg": text_cfg | _tower(text)}
    if acts == {"quick_gelu"}:
        model["quick_gelu"] = True
    names = {number: name for name, number in RESAMPLE.items()}
    seen = {"mean": images.get("image_mean", MEAN), "std": images.get("image_std", STD), "size": vision["image_size"]}
    return {"model_cfg": model, "preprocess_cfg": seen | {"interpolation": names.get(images.get("resample", 3), "bicubic")}}


def _usual() -> tuple[tuple[str, dict[str, int]], ...]:
    return ("text", TEXT), ("vision", VISION)


def _tower(said: Mapping[str, Any]) -> dict[str, Any]:
    width, eps = said["hidden_size"], said["layer_norm_eps"]
    tower: dict[str, Any] = {"width": width, "layers": said["num_hidden_layers"]}
    tower |= {"mlp_ratio": said["intermediate_size"] / width} if said["intermediate_size"] != 4 * width else {}
    return tower | ({"norm_kwargs": {"eps": eps}} if eps != BOTH["layer_norm_eps"] else {})


VISION_KEYS = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "norm_kwargs"}
TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs", "hf_tokenizer_name"}
MODEL_KEYS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "custom_text"}
DEFAULTS = ({"width": 768, "layers": 12, "patch_size": 16, "image_size": 224}, {"width": 512, "layers": 12, "heads": 8})
WORDS = {"context_length": 77, "vocab_size": 49408}


def transformers_config(open_clip: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return config.json and preprocessor_config.json of the CLIPModel that an open_clip config is.

    Raises UserError for an architecture that CLIPModel has not: ResNets, timm's towers, SigLIP, changed attention or pooling.
    """
    model, seen = open_clip["model_cfg"], open_clip["preprocess_cfg"]
    vision, text = {**DEFAULTS[0], **model["vision_cfg"]}, {**DEFAULTS[1], **WORDS, **model["text_cfg"]}
    other = [f"{part}{key}" for part, have, known in _known(model, vision, text) for key in sorted(have - known)]
    if other or not isinstance(vision["layers"], int):
        raise UserError(
            f"{where}: transformers' CLIPModel is CLIP's own ViT and text tower, and has no {other[0] if other else 'ResNet'}: export it "
            "--as open_clip"
        )
    act = "quick_gelu" if model.get("quick_gelu") else "gelu"
    towers = []
    for said, heads in ((text, text["heads"]), (vision, vision["width"] // vision.get("head_width", 64))):
        eps = (said.get("norm_kwargs") or {}).get("eps", BOTH["layer_norm_eps"])
        sizes = {"hidden_size": said["width"], "intermediate_size": int(said["width"] * said.get("mlp_ratio", 4.0))}
        sizes |= {"num_hidden_layers": said["layers"], "num_attention_heads": heads, "projection_dim": model["embed_dim"]}
        towers.append(sizes | {"hidden_act": act, "layer_norm_eps": eps, "attention_dropout": 0.0})
    last = text["vocab_size"] - 1
    towers[0] |= {"model_type": "clip_text_model", "vocab_size": last + 1, "max_position_embeddings": text["context_length"]}
    towers[0] |= {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
    towers[1] |= {
        "model_type": "clip_vision_model",
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "num_channels": 3,
    }
    config = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": model["embed_dim"], "torch_dtype": "float32"}
    size = seen["size"] if isinstance(seen["size"], int) else seen["size"][0]
    images: dict[str, Any] = {f"do_{step}": True for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")}
    images |= {"image_processor_type": "CLIPImageProcessor", "image_mean": list(seen["mean"]), "image_std": list(seen["std"])}
    images |= {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}, "rescale_factor": 1 / 255}
    images |= {"resample": RESAMPLE[seen.get("interpolation", "bicubic")]}
    return config | {"text_config": towers[0], "vision_config": towers[1]}, images


def _known(model: Mapping[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any]) -> list[tuple[str, set[str], set[str]]]:
    return [("", {*model}, MODEL_KEYS), ("vision_cfg.", {*vision}, VISION_KEYS), ("text_cfg.", {*text}, TEXT_KEYS)]
