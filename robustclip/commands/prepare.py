"""Turn class folders, tar archives of them, or a set of the embedded world into shards.

Example: robustclip prepare train.tar.gz test.tar.gz --name cifar10
"""

import argparse
import sys
import time
from collections.abc import Callable

from robustclip.base import errors, storage
from robustclip.base.ranges import DRAWN, SEED
from robustclip.base.values import flatten
from robustclip.data.card import DatasetCard, whole
from robustclip.data.datasets import ensure_set
from robustclip.data.preparation import SKIPPED, TEMPLATES, prepare
from robustclip.data.world import FINE_TUNING, SETS
from robustclip.models.class_names import reading
from robustclip.models.tokenizers import clip_tokenizer
from robustclip.runtime import cli

WORLD = "world:"
OUT = "outputs"
SHOWN = 10  # skipped files named at the end; the rest are in skipped.json


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument("source", nargs="+", help="folder or tar of {class}/image or {split}/{class}/image; or one world:SET")
    parser.add_argument("--name", help="name of the set (an embedded set has its own)")
    parser.add_argument("--out", default=OUT, help="path or file://, s3://, gs:// URI (default: %(default)s)")
    parser.add_argument("--split", help="what a source without split folders is (default: its own name, as in train.tar.gz)")
    parser.add_argument("--strict", action="store_true", help="refuse images that would be skipped instead of skipping them")
    parser.add_argument("--fresh", action="store_true", help="replace a set of this name that has other content")
    parser.add_argument("--templates", nargs="+", default=TEMPLATES, help="prompts, {} where the class name goes (default: %(default)s)")
    parser.add_argument("--licence", default="unknown: ask its source", help="noted in dataset.json")
    parser.add_argument("--images", type=cli.taking(DRAWN), help="world:SET only: images to render (default: 8192 for train, else 1000)")
    parser.add_argument("--render-seed", type=cli.taking(SEED), default=0, help="world:SET only (default: %(default)s)")
    return parser


def progress() -> Callable[[int], None]:
    """Return a function that tells stderr every two seconds how far it is."""
    started = told = time.monotonic()

    def tell(seen: int) -> None:
        nonlocal told
        if (now := time.monotonic()) - told > 2:
            told = now
            print(f"{seen} files read and checked, {seen / (now - started):.0f} per second", file=sys.stderr)

    return tell


def asked() -> tuple[argparse.Namespace, str]:
    """Return the command line and where the set goes; raises UserError for what cannot be, before anything is read."""
    args = parser().parse_args()
    first = args.source[0]
    if first.startswith(WORLD):
        name = first.removeprefix(WORLD)
        if name not in SETS:
            raise errors.UserError(f"no embedded set {name!r}{errors.did_you_mean(name, SETS)}; there are {', '.join(SETS)}")
        if len(args.source) > 1 or args.name not in (None, name):
            raise errors.UserError(f"{first} is prepared alone and under its own name; leave out --name and other sources")
    elif not args.name:
        raise errors.UserError("a set needs a name: add --name SET")
    elif args.images is not None:
        raise errors.UserError("--images is of world:SET: all images of a folder or an archive are taken; leave it out")
    for name in (args.name, args.split):
        if name is not None:
            storage.safe_name(name)
    return args, cli.out_folder(args)


def prepare_world(out: str, args: argparse.Namespace) -> DatasetCard:
    name = args.source[0].removeprefix(WORLD)
    split = args.split or ("train" if name == FINE_TUNING else "test")
    sizes = {split: args.images or (8192 if split == "train" else 1000)}
    card = ensure_set(out, name, sizes, args.render_seed)
    if args.fresh or not whole(card):
        storage.delete(card.folder)
    return ensure_set(out, name, sizes, args.render_seed)


def next_step(card: DatasetCard, out: str) -> str:
    """Return the command that makes use of a set: `train` where it has images to train on, else `evaluate`, or why there is none."""
    from robustclip.evaluation.protocols import DEMO
    from robustclip.training.recipes import named

    where = () if out == OUT else ("--out", out)
    alone = len(card.class_names) < 2  # which nothing can be mistaken for: what looks at no classes can learn from it
    if (rows := card.splits.get("train", 0)) > 1:
        recipe = "demo-fare" if alone else "demo"
        usual = named(recipe).config
        held_out = min(usual.data.held_out, max(1, rows // 5))
        n = min(usual.data.n or rows, rows - held_out)
        batch = min(usual.optim.batch, 1 << n.bit_length() - 1)
        chosen = {"data.held_out": held_out, "data.n": n, "optim.batch": batch, "optim.micro_batch": min(usual.optim.micro_batch, batch)}
        if card.render_seed is not None:
            chosen |= {"data.rendered": rows, "data.render_seed": card.render_seed}
        known = flatten(usual)
        keys = [word for key, value in chosen.items() if value != known[key] for word in (f"--{key}", str(value))]
        return cli.command("train", recipe, "--data.name", card.name, *keys, *where)
    if alone:
        return "nothing: it has one class, which nothing can be mistaken for, and no split to train on"
    if rows := card.splits.get("test", 0):
        return cli.command("evaluate", "tiny-vit8", "--sets", card.name, *(("--n", str(rows)) if rows < (DEMO.n or 0) else ()), *where)
    return "nothing: it has no split to train or to evaluate on; prepare one as train or test"


def run() -> None:
    args, out = asked()
    if args.source[0].startswith(WORLD):
        card = prepare_world(out, args)
    else:
        chosen = {key: getattr(args, key) for key in ("split", "strict", "templates", "licence", "fresh")}
        done = prepare(out, args.name, args.source, **chosen, progress=progress())
        card = done.card
        for skip in done.skipped[:SHOWN]:
            print(f"skipped {skip.id}: {skip.reason}")
        if done.skipped:
            print(f"skipped {len(done.skipped)} files in all, listed in {storage.join(card.folder, SKIPPED)}")
        print(f"{card.name} was already there, unchanged" if done.unchanged else f"{card.name} is ready")
    classes = f"{len(card.class_names)} class{'es' * (len(card.class_names) != 1)}"
    print(f"{classes}; {', '.join(f'{split}: {rows} images' for split, rows in card.splits.items())}; in {card.folder}")
    for said in reading(clip_tokenizer(), card.class_names, card.templates).said:
        print(f"warning: {said}", file=sys.stderr)
    print(f"next: {next_step(card, args.out)}")
