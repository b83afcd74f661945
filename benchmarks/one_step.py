"""One training step of every published recipe on a randomly initialised ViT-B-32-quickgelu with 224 px images: seconds, memory, parameters.

    python benchmarks/one_step.py [RECIPE ...] [--images 4] [--recompute]

It shows that the recipes run on the architecture they are for, without any weights; the numbers are a CPU's, of a micro-batch of `--images`
under 10 class names, and say nothing of a GPU's. The peak is that of a process of its own for each recipe.

Measured 2026-11-28, two shared cores, 4 images: every recipe's step runs. Parameters: the visual tower 87,849,216, both towers 151,277,313,
200 tokens 153,600, a frame of 30 px 69,840, the prompts of V, VLI and VLJ 13,824, 23,040 and 3,555,072. Seconds and peak: TeCoA 4.0 s and
3.5 GiB, its 200 tokens 12.0 s and 2.9 GiB, FARE with ten steps 21.1 s and 3.5 GiB, MMCoA 36.7 s and 4.7 GiB, as published 48.5 s and
4.8 GiB, PMG-AFT 5.2 s and 3.8 GiB, few-shot prompts 2.4 to 10.8 s and 2.3 to 2.7 GiB.
"""

import argparse
import resource
import subprocess
import sys
import time
from dataclasses import replace

import torch

from robustclip import names as models
from robustclip.training.learner import Learner
from robustclip.training.recipes import PUBLISHED

UNTRAINED = "open_clip:ViT-B-32-quickgelu/random[seed=0]"
NAMES = ("tench", "goldfish", "great white shark", "tiger shark", "hammerhead", "electric ray", "stingray", "cock", "hen", "ostrich")


def one_step(name: str, images: int, recompute: bool = False) -> str:
    """Return a line of the table: what one step of a recipe took and how many parameters learned."""
    config = PUBLISHED[name].config
    config = replace(config, optim=replace(config.optim, batch=images, micro_batch=images, warmup=0, recompute=recompute))
    torch.manual_seed(0)
    learner = Learner(config, models.load(UNTRAINED), NAMES, config.templates or (), steps=8)
    learner.step = learner.head_steps  # past the head's own stage: the step that is dear
    pixels = torch.randint(256, (images, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    learner.accumulate(pixels, torch.arange(images) % len(NAMES), [str(i) for i in range(images)])
    loss = learner.update()["loss"]
    seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    count = sum(p.numel() for p in learner.parameters)
    return f"{name:22s} {count:12,d} parameters   loss {loss:8.3f}   {seconds:6.1f} s   {peak:5.1f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"of {', '.join(PUBLISHED)} (default: all)")
    parser.add_argument("--images", type=int, default=4, help="in the one micro-batch (default: %(default)s)")
    parser.add_argument("--recompute", action="store_true", help="blocks are computed again in the backward pass")
    args = parser.parse_args()
    if len(args.recipes) == 1:
        print(one_step(args.recipes[0], args.images, args.recompute))
        return
    print(f"{UNTRAINED}, random weights, {args.images} images of 224 px, {torch.get_num_threads()} threads")
    for name in args.recipes or PUBLISHED:
        options = ["--images", str(args.images), *(["--recompute"] if args.recompute else [])]
        subprocess.run([sys.executable, __file__, name, *options], check=True)


if __name__ == "__main__":
    main()
