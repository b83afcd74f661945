"""Turn class folders, tar archives of them, or a set of the embedded world into shards.

Example: robustclip prepare train.tar.gz test.tar.gz --name cifar10
"""

import argparse
import sys
import time
from collections.abc import Callable

from robustclip.base import errors, storage
from robustclip.data.card import DatasetCard, whole
from robustclip.data.datasets import ensure_set
from robustclip.data.preparation import SKIPPED, TEMPLATES, prepare
from robustclip.data.world import FINE_TUNING
from robustclip.runtime import cli

SHOWN = 10  # skipped files named at the end; the rest are in skipped.json


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="+", help="folder or tar of {class}/image or {split}/{class}/image; or one world:SET")
    parser.add_argument("--name", help="name of the set (an embedded set has its own)")
    parser.add_argument("--out", default="outputs", help="path or file://, s3://, gs:// URI (default: %(default)s)")
    parser.add_argument("--split", help="what a source without split folders is (default: its own name, as in train.tar.gz)")
    parser.add_argument("--strict", action="store_true", help="refuse images that would be skipped instead of skipping them")
    parser.add_argument("--fresh", action="store_true", help="replace a set of this name that has other content")
    parser.add_argument("--templates", nargs="+", default=TEMPLATES, help="prompts, {} where the class name goes (default: %(default)s)")
    parser.add_argument("--licence", default="unknown: ask its source", help="noted in dataset.json")
    parser.add_argument("--images", type=int, help="world:SET only: images to render (default: 8192 for train, 1000 for others)")
    parser.add_argument("--render-seed", type=int, default=0, help="world:SET only (default: %(default)s)")
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


def prepare_world(out: str, args: argparse.Namespace) -> DatasetCard:
    name = args.source[0].removeprefix("world:")
    if len(args.source) > 1 or args.name not in (None, name):
        raise errors.UserError(f"world:{name} is prepared alone and under its own name; leave out --name and other sources")
    split = args.split or ("train" if name == FINE_TUNING else "test")
    sizes = {split: args.images or (8192 if split == "train" else 1000)}
    card = ensure_set(out, name, sizes, args.render_seed)
    if args.fresh or not whole(card):
        storage.delete(card.folder)
    return ensure_set(out, name, sizes, args.render_seed)


def run() -> None:
    args = parser().parse_args()
    out = cli.out_folder(args)
    if args.source[0].startswith("world:"):
        card = prepare_world(out, args)
    elif not args.name:
        raise errors.UserError("a set needs a name: add --name SET")
    else:
        chosen = {key: getattr(args, key) for key in ("split", "strict", "templates", "licence", "fresh")}
        done = prepare(out, args.name, args.source, **chosen, progress=progress())
        card = done.card
        for skip in done.skipped[:SHOWN]:
            print(f"skipped {skip.id}: {skip.reason}")
        if done.skipped:
            print(f"skipped {len(done.skipped)} files in all, listed in {storage.join(card.folder, SKIPPED)}")
        print(f"{card.name} was already there, unchanged" if done.unchanged else f"{card.name} is ready")
    print(
        f"{len(card.class_names)} classes; {', '.join(f'{split}: {rows} images' for split, rows in card.splits.items())}; in {card.folder}"
    )
    print(f"next: robustclip train demo --data.name {card.name} --out {args.out}")
