"""Prompts tuned at test time for a batch of images at once against one image at a time: milliseconds per image and the ratio, in one run.

    python benchmarks/batched_tuning.py [--designs visual independent] [--classes 10 100 1000] [--samples 8] [--views 64]
    python benchmarks/results.py --only tapt        # a ViT-B/32, fewer views, in pairs

On a ViT-B/16 of open_clip's shape with random weights, 2 tokens in 9 blocks, one step of TAPT. "One at a time" is the reference order of
the published code: every view goes through the tower with a gradient, texts of the whole context are encoded for every image before and
after the step. "Batched" is what robustclip does: views are chosen without a gradient, the graph holds the kept ones, texts are cut to
their length, and those of the first step are encoded once for all images. Both give the same logits, which is printed too.

A thousand whole contexts do not fit 24 GB with their graph: from MANY classes on, "one at a time" computes its texts twice, and how long
they took the second time is printed, to be taken off.

Measured 2026-11-28 on two cores and nothing else (--samples 4 --alone 1), milliseconds per image:
    design       classes    alone   batched   ratio   largest difference of the logits, as a share of the largest
    visual            10   45,308    20,656    2.19   5.0e-07
    visual           100   56,448    20,198    2.79   1.0e-06
    visual         1,000  175,036    19,277    9.08   8.0e-07
    independent       10   42,018    19,461    2.16   9.7e-07
    independent      100   64,828    20,456    3.17   9.6e-07
    independent    1,000  337,836    37,558    9.00   2.8e-06   43,488 ms of "alone" are texts computed twice: 7.84 without
With few classes it is the views without a gradient that save, with many the texts.
"""

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from row import PAIRS, Row, paired
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from robustclip import names as models
from robustclip.models.adaptive import Adaptive
from robustclip.models.classifier import TEXT_BATCH, ZeroShotClassifier
from robustclip.models.dress import JointTokens
from robustclip.models.model import Model
from robustclip.test_time import TAPT
from robustclip.test_time.moments import Targets
from robustclip.test_time.tapt import alignment
from robustclip.test_time.tuning import PromptTuner, Seen, entropy_of_mean, most_confident
from robustclip.training.installing import install

UNTRAINED = "open_clip:ViT-B-16-quickgelu/random[seed=0]"
SMALL = "open_clip:ViT-B-32-quickgelu/random[seed=0]"
TEMPLATE = "a photo of a {}."
MANY = 500  # classes
Result = TypeVar("Result")


def names(count: int) -> list[str]:
    """Return class names of one to three words."""
    words = ("tench", "great white shark", "tiger", "electric ray", "hen", "house finch", "bulbul", "jay", "water ouzel", "kite")
    return [f"{words[i % len(words)]} {chr(97 + i // 100)}{i % 100}" if i >= len(words) else words[i] for i in range(count)]


def defence_of(model: Model, classes: int, views: int) -> PromptTuner:
    """Return TAPT over a model with tokens, aligned with made-up statistics."""
    base = model.classifier(names(classes), (TEMPLATE,))
    visual = model.clip.visual
    tokens = 1 + visual.positional_embedding.shape[0] - 1 + 2  # type: ignore[union-attr, index, operator]
    zeros = torch.zeros(len(visual.transformer.resblocks), tokens, 768)  # type: ignore[union-attr, arg-type]
    targets = Targets(zeros, zeros + 1, 2, "", "", "centre", "", "")
    settings = TAPT(views=views, keep=max(0.1, 4 / views))  # 6 of 64, never fewer than 4

    def loss(seen: Seen) -> Tensor:
        return entropy_of_mean(seen.logits) + settings.weight * alignment(seen.blocks, targets, range(9), True)

    assert base.prompt is not None
    return PromptTuner(base, base.prompt, settings, loss, blocks=True)  # type: ignore[arg-type]


def class_features(worn: ZeroShotClassifier, again: bool) -> Tensor:
    """Return the unit class embeddings [K,D] under one template with their graph, or, `again`, with one that computes them anew."""
    if not again:
        return worn.class_features()
    texts = list(worn.texts)
    parts = [texts[i : i + TEXT_BATCH] for i in range(0, len(texts), TEXT_BATCH)]
    return torch.cat([checkpoint(worn.embed_texts, part, use_reentrant=False) for part in parts])


def one_at_a_time(defence: PromptTuner, images: Tensor, again: bool) -> tuple[Tensor, float]:
    """Return the logits [S,K] by the reference order, with torch's own optimiser, and the seconds that texts took after the step."""
    found, seconds = [], 0.0
    for i in range(len(images)):
        views = defence.views(images[i : i + 1], defence.of([""]).keys)[0]
        worn = defence.start.wearing(defence.prompt)
        parameters = [p.requires_grad_() for p in worn.prompt.parameters()]  # type: ignore[union-attr]
        start = [p.detach().clone() for p in parameters]
        optimizer = torch.optim.AdamW(parameters, lr=defence.settings.lr, weight_decay=defence.settings.weight_decay)
        blocks: list[Tensor] = []
        unit = F.normalize(worn.features(views, look=lambda _, x: blocks.append(x)), dim=-1)  # noqa: B023
        logits = worn.against(unit, class_features(worn, again))
        kept = most_confident(logits.detach()[None], defence.settings.kept)[0]
        seen = [x[kept][None] for x in blocks]
        loss = defence.loss(Seen(logits[kept][None], seen))
        loss.sum().backward()
        optimizer.step()
        with torch.no_grad():
            classes, spent = timed(worn.class_features)
            seconds += spent
            found.append(worn.against(worn.embed_images(images[i : i + 1]), classes))
            for p, old in zip(parameters, start, strict=True):
                p.copy_(old)
                p.requires_grad_(False)
    return torch.cat(found), seconds


def timed(run: Callable[[], Result]) -> tuple[Result, float]:
    """Return what a run gives and its seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    found = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return found, time.perf_counter() - started


def batched(defence: Adaptive, images: Tensor) -> Tensor:
    """Return the logits [S,K] of all images at once."""
    with torch.no_grad():
        return defence(images)


def made(untrained: str, design: str, classes: int, samples: int, views: int, device: str) -> tuple[PromptTuner, Tensor]:
    """Return TAPT over an untrained model with tokens of a design, and images [S,3,H,W]."""
    torch.manual_seed(0)
    model, _ = install(JointTokens(design), models.load(untrained), 0, names(classes))
    model.clip.to(device)
    for p in model.prompt.parameters():  # type: ignore[union-attr]
        p.requires_grad_(False)
    size = model.preprocess.size
    images = torch.rand(samples, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    return defence_of(model, classes, views).to(device), images


def rows(samples: int = 4, views: int = 16, classes: int = 10, pairs: int = PAIRS) -> list[Row]:
    """Return the row of TAPT-V on a ViT-B/32, `samples` images at once against one of them: seconds per image."""
    defence, images = made(SMALL, "visual", classes, samples, views, "cpu")
    found: dict[str, Tensor] = {}

    def alone() -> float:
        (found["alone"], _), took = timed(lambda: one_at_a_time(defence, images[:1], False))
        return took

    def together() -> float:
        found["batched"], took = timed(lambda: batched(defence, images))
        return took / samples

    together()
    took = paired(alone, together, pairs)
    if not torch.allclose(found["alone"], found["batched"][:1], atol=1e-4 * float(found["alone"].abs().max())):
        raise SystemExit("tuned for a batch at once, an image has other logits than alone")
    claim = f"TAPT-V, {views} views, {classes} classes, ViT-B/32, per image"
    return [took.row(claim, "one image at a time, in the order of the published code", f"{samples} images at once")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--designs", nargs="+", default=["visual", "independent"])
    parser.add_argument("--classes", nargs="+", type=int, default=[10, 100, 1000])
    parser.add_argument("--samples", type=int, default=8, help="images of a batch")
    parser.add_argument("--alone", type=int, default=2, help="images timed one at a time")
    parser.add_argument("--views", type=int, default=64)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{device}, {torch.get_num_threads()} threads, {args.views} views, batches of {args.samples}")
    print(f"{'design':14s} {'classes':>7s} {'alone ms':>9s} {'batched ms':>11s} {'ratio':>6s}   largest difference of the logits")
    for design in args.designs:
        for classes in args.classes:
            defence, images = made(UNTRAINED, design, classes, args.samples, args.views, device)
            again = classes >= MANY and design != "visual"  # texts that do not learn have no graph
            (few, texts), slow = timed(lambda: one_at_a_time(defence, images[: args.alone], again))  # noqa: B023
            all_, fast = timed(lambda: batched(defence, images))  # noqa: B023
            slow, fast = 1000 * slow / args.alone, 1000 * fast / args.samples
            apart = float((few - all_[: args.alone]).abs().max() / few.abs().max())
            off = f"; {1000 * texts / args.alone:.0f} ms of it texts computed twice" if again else ""
            print(f"{design:14s} {classes:7d} {slow:9.0f} {fast:11.0f} {slow / fast:6.2f}   {apart:.1e} of the largest{off}", flush=True)


if __name__ == "__main__":
    main()
