"""What a step of adversarial fine-tuning costs on a GPU, in each precision, plain and compiled; and how many images its memory holds.

    python benchmarks/gpu.py [--recipe tecoa-b32] [--images 64] [--classes 1000] [--rounds 10]
    python benchmarks/gpu.py --fit ViT-L-14 ViT-H-14 [--recompute]

A step is one micro-batch of `--images` random pixels: the recipe's attack, its loss and the optimiser, on ViT-B-32-quickgelu with random
weights. A row says the seconds of the first step, which compiles, the median of the others, images a second, how many times as fast as
plain fp32, and the peak of what torch allocated. `--fit` doubles the micro-batch of each open_clip architecture until the memory is full,
in the precision of `--precision`: give the largest that fits, or half of it, as --optim.micro_batch. It is never chosen by itself, because
the micro-batch is part of a run's key, and results must not depend on the card.

Not measured yet: no GPU was at hand.
"""

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import replace

import torch

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.base.forecast import timed
from robustclip.models.model import Model
from robustclip.training.config import Config
from robustclip.training.learner import Learner
from robustclip.training.recipes import PUBLISHED

PRECISIONS, MODES = ("fp32", "tf32", "bf16"), ("off", "default", "reduce-overhead")


def changed(config: Config, precision: str, mode: str, images: int, recompute: bool = False) -> Config:
    """Return a recipe whose step is one micro-batch in a precision, its attack compiled by a mode."""
    attack = replace(config.attack, precision=precision, compile=mode)  # type: ignore[arg-type]
    optim = replace(config.optim, precision=precision, batch=images, micro_batch=images, warmup=0, recompute=recompute)  # type: ignore
    return replace(config, attack=attack, optim=optim)


def steps(model: Model, config: Config, classes: int, rounds: int, device: str) -> tuple[list[float], float]:
    """Return the seconds of the first step and of `rounds` others, and the peak of a GPU's memory in GiB, 0 without one."""
    images, side = config.optim.batch, model.preprocess.size
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    names = [f"class {i}" for i in range(classes)]
    learner = Learner(config, model.copy(), names, ("a photo of a {}.",), steps=rounds + 1, device=device)
    pixels = torch.randint(256, (images, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def step() -> None:
        learner.accumulate(pixels, torch.arange(images) % classes, [str(i) for i in range(images)])
        learner.update()

    taken = [timed(step) for _ in range(1 + rounds)]
    return taken, torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0


def table(model: Model, config: Config, images: int, classes: int, rounds: int, device: str) -> Iterator[str]:
    """Yield a row for each precision and mode; one that this device does not have says why."""
    base = None
    for precision in PRECISIONS:
        for mode in MODES:
            title = f"{precision:5s} {'plain' if mode == 'off' else mode:16s}"
            torch._dynamo.reset()
            try:
                (first, *others), peak = steps(model, changed(config, precision, mode, images), classes, rounds, device)
            except UserError as error:
                yield f"{title} not here: {error}"
                continue
            median = statistics.median(others)
            base = base or median
            yield f"{title} {first:8.2f} s {median:8.4f} s {images / median:9.1f} images/s   x {base / median:5.2f} {peak:7.2f} GiB"


def fitting(model: Model, config: Config, precision: str, recompute: bool, device: str) -> Iterator[str]:
    """Yield a row for every micro-batch of 8, 16, 32, ... images that the memory of a GPU holds."""
    images = 8
    while True:
        try:
            taken, peak = steps(model, changed(config, precision, "off", images, recompute), 1000, 1, device)
        except torch.OutOfMemoryError:
            yield f"{model.name} {images:5d} images a micro-batch do not fit"
            return
        yield f"{model.name} {images:5d} images a micro-batch {images / taken[1]:9.1f} images/s {peak:7.2f} GiB"
        images *= 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="tecoa-b32", choices=PUBLISHED)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--fit", nargs="+", default=(), metavar="ARCHITECTURE", help="of open_clip, with random weights")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="of --fit")
    parser.add_argument("--recompute", action="store_true", help="blocks are computed again in the backward pass, with --fit")
    parser.add_argument("--device", default="cuda", help="cpu tries the script, which is about a GPU")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here")
    where = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    print(f"{where}, torch {torch.__version__}, recipe {args.recipe}")
    config = PUBLISHED[args.recipe].config
    for architecture in args.fit:
        model = models.load(f"open_clip:{architecture}/random[seed=0]")
        for row in fitting(model, config, args.precision, args.recompute, args.device):
            print(row, flush=True)
    if not args.fit:
        model = models.load("open_clip:ViT-B-32-quickgelu/random[seed=0]")
        for row in table(model, config, args.images, args.classes, args.rounds, args.device):
            print(row, flush=True)


if __name__ == "__main__":
    main()
