"""Make the weights of a CLIP from nothing: an embedded one from the rendered world, or that of a recipe from a prepared set's captions.

tiny-vit8 (seed 0, two threads): 120,000 pairs, 4,200 steps of 256, 1013 s on two busy cores; mean clean zero-shot accuracy of the fp16
weights over the suite's 12 sets, 100 images of each, 85.1 % [83.0, 87.0], the real digits 40.0 % (robustclip evaluate tiny-vit8).

photos trains on Ray Train, on CPUs or on GPUs, in bf16 where these know it, and goes on where it stopped; every key of its config is an
option. A caption is a class's name in a template, or what the file says of the class: JSON {class name: [texts]}.

Example: robustclip pretrain tiny-vit8 --to robustclip/models/embedded/tiny-vit8
         robustclip pretrain photos --data.name SET --captions FILE --workers 2 --to outputs/photos
"""

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.ranges import Whole
from robustclip.base.values import override, to_json
from robustclip.commands import train
from robustclip.data import world
from robustclip.data.datasets import ensure_set
from robustclip.models.checkpoints import SELECTION
from robustclip.runtime import cli, cluster
from robustclip.runtime.logged import with_located
from robustclip.runtime.store import how_to_open
from robustclip.training.captioned import PRETRAINING, kept, start, with_captions
from robustclip.training.compatible import check_pair
from robustclip.training.config import Config
from robustclip.training.precision import knows_bf16
from robustclip.training.pretraining import Pretraining, card, pretrain

log = logging.getLogger("robustclip.pretrain")
EMBEDDED = Path(__file__).parents[1] / "models" / "embedded"
EVERY = 100  # steps between two lines of progress
THREADS = Whole(1, 1024)  # torch fails on numbers that no machine has
OF_RECIPES, OF_WORLD = ("captions", "workers", "fresh", "register", "plan"), ("threads",)  # options that mean nothing to the others


def worlds() -> list[str]:
    """Return the models that are trained on the rendered world."""
    return sorted(path.parent.name for path in EMBEDDED.glob("*/open_clip_config.json"))


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    about = f"an architecture of robustclip/models/embedded ({', '.join(worlds())}), or a recipe ({', '.join(PRETRAINING)})"
    parser.add_argument("name", choices=[*worlds(), *PRETRAINING], help=about)
    parser.add_argument("--to", required=True, help="folder or URI for model.safetensors, open_clip_config.json and config.json")
    parser.add_argument(
        "--threads",
        type=cli.taking(THREADS),
        default=2,
        help="on the world; other numbers give slightly other weights (default: %(default)s)",
    )
    parser.add_argument("--captions", metavar="FILE", help="of a recipe: JSON {class name: [texts]}, captions beside the templates")
    train.add_training(parser)
    return parser


def asked() -> tuple[argparse.Namespace, Config | None, str, str]:
    """Return the command line, the config of a recipe, where results go and the folder to write; raises UserError for what cannot be."""
    args, changes = cli.parse(known := parser(), Config)
    args.changes, recipe = changes, args.name in PRETRAINING
    others = [name for name in (OF_WORLD if recipe else OF_RECIPES) if getattr(args, name) != known.get_default(name)]
    if others := others if recipe else [*changes, *others]:
        why = "threads follow from its workers' share of the CPUs" if recipe else f"it is made as it ships; of {', '.join(PRETRAINING)}"
        raise UserError(f"--{others[0]} is not for {args.name}: {why}")
    folder = storage.writable(storage.resolve(args.to))
    if not recipe:
        return args, None, "", folder
    out = cli.out_folder(args)
    config = override(PRETRAINING[args.name].config, with_located(changes, out))
    check_pair(config.defense, config.trainable)
    if args.captions and not isinstance(config.templates, tuple):
        raise UserError("--captions stand beside templates, and there are none: leave --templates as they are")
    return args, replace(config, model=config.model if "model" in changes else ""), out, folder


def run() -> None:
    args, config, out, folder = asked()
    cli.say_on_terminal()
    if config is None:
        from_world(args, folder)
    else:
        from_captions(args, config, out, folder)


def from_captions(args: argparse.Namespace, config: Config, out: str, folder: str) -> None:
    """Train a recipe's CLIP, or the one that the command names, on a prepared set."""
    card = ensure_set(out, config.data.name, {"train": config.data.rendered}, config.data.render_seed)
    if args.captions and isinstance(config.templates, tuple):
        config = replace(config, templates=with_captions(card.class_names, config.templates, args.captions))
    config = replace(config, model=config.model or start(args.name, config.seed, out))
    cluster.check_address()
    cluster.connect()
    if cluster.total()[1] and "optim.precision" not in args.changes and cluster.measured(knows_bf16):
        config = override(config, {"optim.precision": "bf16"})
    if (result := train.trained(config, out, args, f"pretrain {args.name}")) is None:
        return
    train.tell(args.name, config, result)
    selection = storage.read_bytes(storage.join(result["checkpoint"], SELECTION))
    storage.write_bytes(storage.join(folder, SELECTION), selection)
    kept(models.load(result["checkpoint"]), folder, pretraining={"recipe": args.name, "run": result["key"], "config": to_json(config)})
    print(f"model          {folder}")
    print(f"attack it      {cli.command('evaluate', folder, '--sets', 'SET', '--out', out)}")
    print(f"MLflow         {how_to_open(out, 15 * ' ')}")


def from_world(args: argparse.Namespace, folder: str) -> None:
    """Train an embedded model on the rendered world, as the one that ships was."""
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
