"""Pre-training of the embedded tiny CLIP on the rendered world: the plain symmetric contrastive loss, one process, no Ray."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from robustclip.base.seeds import derive, generator
from robustclip.data import world
from robustclip.models.model import FORMAT
from robustclip.models.tokenizers import cut_tokenizer
from robustclip.views.shifts import windows

Pairs = tuple[Tensor, list[str]]  # 8-bit images [N,3,S,S] and what is said of each


@dataclass(frozen=True)
class Pretraining:
    """The recipe of the shipped weights: AdamW on batches of image-caption pairs, warm-up then cosine, images shifted by up to 2 px."""

    pairs: int = 120_000
    steps: int = 4_200
    batch: int = 256
    lr: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    shift: int = 2
    merges: int = 2000
    seed: int = 0


def contrastive_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Return CLIP's loss over B pairs of unit features [B,D]: cross-entropy over the batch, both directions, averaged."""
    logits = logit_scale * image_features @ text_features.T
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def shifted(images: Tensor, pixels: int, g: Generator) -> Tensor:
    """Return images [B,3,H,W] each moved by up to `pixels` in both directions, the border mirrored."""
    if pixels == 0:
        return images
    dy, dx = torch.randint(2 * pixels + 1, (2, len(images), 1), generator=g)[..., 0]
    return windows(images, dy, dx, pixels)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return AdamW's groups: weight decay on matrices, none on gains, biases and scales."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def pretrain(config: dict, recipe: Pretraining, pairs: Pairs, progress: Callable[[int, float, nn.Module], None]) -> nn.Module:
    """Return a CLIP of open_clip `config` (its model_cfg and preprocess_cfg) trained by `recipe` on pairs of images and captions.

    The same recipe, pairs, thread count and library versions give the same weights.
    """
    from open_clip.model import CLIP

    torch.manual_seed(derive(recipe.seed, "pretraining", "weights"))
    model = CLIP(**config["model_cfg"]).train()
    text_cfg, statistics = config["model_cfg"]["text_cfg"], config["preprocess_cfg"]
    tokenizer = cut_tokenizer(recipe.merges, text_cfg["context_length"])
    mean, std = (torch.tensor(statistics[key]).view(3, 1, 1) for key in ("mean", "std"))

    images, captions = pairs
    tokens = tokenizer(captions)
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.lr, betas=recipe.betas)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: (
            (t + 1) / recipe.warmup
            if t < recipe.warmup
            else 0.5 * (1 + math.cos(math.pi * (t - recipe.warmup) / (recipe.steps - recipe.warmup)))
        ),
    )
    g = generator(recipe.seed, "pretraining", "batches")
    order = torch.empty(0, dtype=torch.long)
    for step in range(recipe.steps):
        if len(order) < recipe.batch:
            order = torch.randperm(len(images), generator=g)
        rows, order = order[: recipe.batch], order[recipe.batch :]
        x = (shifted(images[rows].float() / 255, recipe.shift, g) - mean) / std
        scale = model.logit_scale.clamp(max=math.log(100)).exp()
        loss = contrastive_loss(model.encode_image(x, normalize=True), model.encode_text(tokens[rows], normalize=True), scale)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
        progress(step + 1, float(loss.detach()), model)
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(100))
    return model.eval()


def card(recipe: Pretraining, seconds: float) -> dict:
    """Return what config.json says of the embedded weights: recipe, cost, tokenizer, and the class names and templates of the world."""
    sets = {name: {"class_names": s.class_names, "templates": s.templates} for name, s in world.SETS.items()}
    return {
        "format": FORMAT,
        "tokenizer": {"merges": recipe.merges},
        "pretraining": asdict(recipe),
        "seconds": round(seconds),
        "sets": sets,
    }
