"""Pre-training on a prepared set: CLIPs that are untrained, what is said of a set's classes, and recipes that train one on the other."""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.seeds import derive
from robustclip.data.captions import read_captions
from robustclip.defenses import Captioned
from robustclip.models.checkpoints import CARD, build, save
from robustclip.models.class_texts import Descriptions, texts_of
from robustclip.models.model import FORMAT, Model
from robustclip.models.tokenizers import cut_tokenizer, words
from robustclip.training.config import Config, Data, InnerAttack, Optim, Validation
from robustclip.training.recipe import Recipe
from robustclip.training.trainables import Towers

log = logging.getLogger(__name__)

MERGES = 12_000  # of the tokenizer: with them "truck", "deer" and "frog" are whole words

# 65 tokens of a 32 px image. A stem of convolutions would learn faster for as much work, but no tower of open_clip has one at this size,
# and prompt tokens, which the comparison needs, want one of its ViTs.
VIT4: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 32, "patch_size": 4, "width": 128, "layers": 6, "head_width": 32},
        "text_cfg": {"context_length": 40, "vocab_size": words(MERGES), "width": 96, "heads": 3, "layers": 2},
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "size": 32,
    },
}
ARCHITECTURES: dict[str, dict[str, Any]] = {"photos": VIT4}  # by the recipe that trains it

PRETRAINING: dict[str, Recipe] = {
    "photos": Recipe(
        Config(
            data=Data(name="tiny-seen", held_out=1000, augment="shift and flip"),
            defense=Captioned(),
            trainable=Towers(logit_scale="clamped"),
            attack=InnerAttack(steps=0),
            optim=Optim(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.98), warmup=300, epochs=10, batch=256, micro_batch=128),
            validation=Validation(images=200, eps=2.0),
            templates=(
                "a photo of a {}.",
                "a blurry photo of a {}.",
                "a small {}.",
                "a picture of one {}.",
                "a cropped photo of the {}.",
                "{}",
            ),
            checkpoint_every=100,
        ),
        "A small CLIP of photographs, from scratch: a ViT of patch 4 at 32 px and the captions of a set's classes; nothing is attacked.",
        "not measured yet; meant for 90 minutes on two cores (--workers 2)",
        "none: ours",
    ),
}


def untrained(name: str, seed: int) -> Model:
    """Return the CLIP that a recipe of PRETRAINING starts from, its weights drawn from a seed; torch's own random state stays as it is."""
    config = ARCHITECTURES[name]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "pretraining", "weights"))
        clip = build(config)
    tokenizer = cut_tokenizer(MERGES, config["model_cfg"]["text_cfg"]["context_length"])
    card = {"format": FORMAT, "tokenizer": {"merges": MERGES}}
    return Model(f"{name}-untrained", clip.eval().requires_grad_(False), tokenizer, config, card)


def start(name: str, seed: int, out: str) -> str:
    """Return the folder under `out` of the untrained CLIP of a recipe and a seed, written if it is not there."""
    folder = storage.join(out, "untrained", f"{name}-{seed}")
    if not storage.exists(storage.join(folder, CARD)):
        save(untrained(name, seed), folder)
    return folder


def with_captions(class_names: Sequence[str], templates: Sequence[str], file: str) -> Descriptions:
    """Return the captions of every class: its name in the templates, and what a JSON file says of it, {class: [texts]}.

    How many classes the file says nothing of is logged. Raises UserError for a file that knows none of them, or is no such thing.
    """
    said = read_captions(file)
    if missing := [name for name in class_names if not said.get(name)]:
        if len(missing) == len(class_names):
            raise UserError(
                f"{file} says nothing of {', '.join(missing[:3])}: its keys, such as {next(iter(said))!r}, are no classes of it"
            )
        log.info("%s says nothing of %d of %d classes: their captions are the templates alone", file, len(missing), len(class_names))
    named = dict(zip(class_names, texts_of(class_names, templates), strict=True))
    return Descriptions.said({name: [*texts, *said.get(name, ())] for name, texts in named.items()}, storage.name_of(file))


def kept(model: Model, folder: str, **about: Any) -> None:
    """Write a pre-trained model as a base of its own: others are fine-tuned from it, it from nothing."""
    save(Model(model.name, model.clip, model.tokenizer, model.open_clip_config, {"tokenizer": model.card["tokenizer"]}), folder, **about)
