"""Make the weights of an embedded model from the rendered world.

tiny-vit8 (seed 0, two threads): 120,000 pairs, 4,200 steps of 256, 1013 s on two busy cores; mean clean zero-shot accuracy of the fp16
weights over the suite's 12 sets, 100 images of each, 85.1 % [83.0, 87.0], the real digits 40.0 % (robustclip evaluate tiny-vit8).

Example: robustclip pretrain tiny-vit8 --to robustclip/models/embedded/tiny-vit8
"""

import argparse
import logging
import time
from pathlib import Path

import torch
from safetensors.torch import save

from robustclip.base import storage
from robustclip.base.ranges import Whole
from robustclip.data import world
from robustclip.runtime import cli
from robustclip.training.pretraining import Pretraining, card, pretrain

log = logging.getLogger("robustclip.pretrain")
EMBEDDED = Path(__file__).parents[1] / "models" / "embedded"
EVERY = 100  # steps between two lines of progress
THREADS = Whole(1, 1024)  # torch fails on numbers that no machine has


def parser() -> argparse.ArgumentParser:
    names = sorted(path.parent.name for path in EMBEDDED.glob("*/open_clip_config.json"))
    parser = cli.Parser(__doc__)
    parser.add_argument("name", choices=names, help="the architecture in robustclip/models/embedded/NAME/open_clip_config.json")
    parser.add_argument("--to", required=True, help="folder or URI for model.safetensors, open_clip_config.json and config.json")
    parser.add_argument(
        "--threads", type=cli.taking(THREADS), default=2, help="other numbers give slightly other weights (default: %(default)s)"
    )
    return parser


def asked() -> tuple[argparse.Namespace, str]:
    """Return the command line and the folder to write; raises UserError for what cannot be."""
    args = parser().parse_args()
    return args, storage.writable(storage.resolve(args.to))


def run() -> None:
    args, folder = asked()
    cli.say_on_terminal()
    torch.set_num_threads(args.threads)
    config, recipe = storage.read_json(str(EMBEDDED / args.name / "open_clip_config.json")), Pretraining()
    started, losses = time.perf_counter(), []

    def progress(step: int, loss: float, model: torch.nn.Module) -> None:
        losses.append(loss)
        if step % EVERY == 0:
            mean = sum(losses[-EVERY:]) / EVERY
            log.info("step %d of %d: loss %.3f, %.0f s", step, recipe.steps, mean, time.perf_counter() - started)

    model = pretrain(config, recipe, world.corpus(recipe.pairs, recipe.seed), progress)
    halves = {name: tensor.half().contiguous() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()}
    storage.write_bytes(storage.join(folder, "model.safetensors"), save(halves))
    storage.write_json(storage.join(folder, "open_clip_config.json"), config)
    storage.write_json(storage.join(folder, "config.json"), card(recipe, time.perf_counter() - started))
    log.info("weights in %s", folder)
