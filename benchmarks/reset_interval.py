"""How often must a prompt that is tuned at test time be put back? Accuracy by the reset interval, and what poisoning makes of it (A7).

    python benchmarks/reset_interval.py CHECKPOINT [--moments FILE] [--set tools] [--images 60] [--eps 2] [--lr 1e-3]

CHECKPOINT wears learned tokens (pipelines/train.py demo-advvlp), FILE are its statistics (pipelines/moments.py). Four streams of the same
images, in the same order: clean; every image attacked at level A3, as by one who sees it meet a fresh prompt; clean images behind such
ones; clean images behind images that PGD through the adaptation chose to harm exactly them (A7). In the last two only the clean images
count, half of all. An interval is worth its worst stream. The paper's curve (TAPT, arXiv:2411.13136, Table 3, PGD at eps 1, ImageNet):
49.92 at a reset after every image, 51.62 after 32, 0.48 without any.

Measured 2026-11-28 on the prompts of demo-advvlp trained at eps 2, with its statistics, --lr 1e-2, 60 images of tools, right in percent:
    reset after                 1     2     4     8    16    32  never
    clean                    83.3  78.3  76.7  71.7  60.0  53.3   35.0
    attacked                 40.0  40.0  40.0  38.3  41.7  33.3   28.3
    clean behind attacked    90.0  76.7  76.7  70.0  60.0  53.3   36.7
    clean behind poison      90.0  66.7  60.0  56.7  50.0  40.0   40.0
Most of the fall is the tuning's own: clean images alone spoil a prompt that is not put back. From 2 to 32 images, poison meant for the next
image costs 10 to 17 points more than an attack that is not (of 30 images, each 3.3 points). No interval's worst stream is better than that
of 1 by more than one image. At --lr 1e-3, with attacks made at A2, 60 images moved the prompt too little to show any of this.
"""

import argparse
from dataclasses import replace

import torch
from torch import Tensor

from robustclip import names as models
from robustclip.attacks import PGD
from robustclip.attacks.levels import Aimed
from robustclip.base import storage
from robustclip.base.threat import Ball
from robustclip.evaluation import protocols
from robustclip.evaluation.computing import images_of
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.test_time import TAPT, TPT
from robustclip.test_time.stream import Stream, run
from robustclip.test_time.tuning import PromptTuner

INTERVALS: tuple[int | None, ...] = (1, 2, 4, 8, 16, 32, None)
STEPS = 10  # of PGD


def tuner_of(base: ZeroShotClassifier, moments: str | None, lr: float) -> PromptTuner:
    """Return TAPT with 16 views, TPT where there are no statistics."""
    views = {"views": 16, "keep": 0.25, "lr": lr}
    return (TAPT(**views, adversarial=moments, gamma=1.0) if moments else TPT(**views)).classifier(base, 0)  # type: ignore[arg-type]


def right(
    tuner: PromptTuner, reset: int | None, images: Tensor, attacked: Tensor, labels: Tensor, ids: list[str], ball: Ball
) -> list[float]:
    """Return the shares of right images of the four streams."""
    behind = torch.arange(len(ids)) % 2 == 1

    def harmful(stream: Stream, i: int, image: Tensor) -> Tensor:
        if behind[i] or i + 1 == len(ids):
            return image
        return stream.poison(image, images[i + 1 : i + 2], labels[i + 1 : i + 2], (ids[i], ids[i + 1]), ball, STEPS, 0)

    mixed = torch.where(behind[:, None, None, None], images, attacked)
    found = [run(tuner, reset, each, ids) == labels for each in (images, attacked, mixed)]
    found.append(run(tuner, reset, images, ids, harmful) == labels)
    return [float(flags[behind if i > 1 else slice(None)].float().mean()) for i, flags in enumerate(found)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--moments")
    parser.add_argument("--set", default="tools")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--eps", type=float, default=2.0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", default="outputs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    protocol = replace(protocols.DEMO, sets=(args.set,), real=(), n=args.images)
    resolved = protocols.resolve(protocol, storage.resolve(args.out))
    model, each = models.load(args.checkpoint), resolved.sets[args.set]
    images, labels, ids = images_of(model, resolved, args.set, each.rows)
    tuner = tuner_of(model.classifier(each.card.class_names, each.card.templates), args.moments, args.lr)
    print(f"{len(ids)} images of {args.set}, eps {args.eps:g}, lr {args.lr:g}; right in percent")
    print(f"{'reset after':>12s} {'clean':>7s} {'attacked':>9s} {'clean behind them':>18s} {'clean behind poison (A7)':>25s} {'worst':>6s}")
    ball = Ball("Linf", args.eps)
    attacked = Aimed("A3", PGD(STEPS))(tuner, images, labels, ids, ball, 0, 20).images
    for reset in INTERVALS:
        shares = right(tuner, reset, images, attacked, labels, ids, ball)
        clean, fooled, behind, poisoned = (100 * share for share in shares)
        print(f"{reset or 'never':>12} {clean:7.1f} {fooled:9.1f} {behind:18.1f} {poisoned:25.1f} {100 * min(shares):6.1f}", flush=True)


if __name__ == "__main__":
    main()
