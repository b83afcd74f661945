"""Models of open_clip's zoo, by architecture and tag: open_clip:ViT-B-32-quickgelu/openai."""

from robustclip.base.errors import UserError, did_you_mean
from robustclip.models.model import FORMAT, Model

ZOO = "open_clip:"


def load(name: str) -> Model:
    """Return the model `open_clip:NAME/TAG` (a tag, a hub name or a local file).

    Raises UserError for what open_clip does not have or cannot load, and for OpenAI weights in a plain-GELU model.
    """
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
