"""Turn a data set as its authors publish it into shards: folders, tar or zip archives, lists, MATLAB files, webdataset, Parquet.

Example: robustclip prepare train.tar.gz test.tar.gz --name cifar10
         robustclip prepare --suite fare-13 --root DIR

Layouts: class folders ({class}/image or {split}/{class}/image, below whatever is around them all); an image and its class a line in
train.txt, val.csv, labels.tsv; webdataset archives (image and .cls, .json or .txt); Parquet of {image, label}; CoOp's split_zhou_*.json;
and the files of ImageNet, Tiny-ImageNet, CIFAR, STL-10, DTD, Food-101, FGVC Aircraft, Oxford Pets, Flowers 102, Stanford Cars, SUN397,
PatchCamelyon and Hateful Memes. docs/data.md has a table.
"""

import argparse
import os
import sys
import time
from functools import partial
from typing import Any

from robustclip.base import errors, storage
from robustclip.base.ranges import DRAWN, SEED
from robustclip.base.values import flatten
from robustclip.data.card import DatasetCard, whole
from robustclip.data.datasets import ensure_set
from robustclip.data.formats import FORMATS
from robustclip.data.known import differences
from robustclip.data.marks import prepare_changed
from robustclip.data.naming import VARIANTS, names_file, renamed, templates_file
from robustclip.data.preparation import SKIPPED, TEMPLATES, Prepared, check_templates
from robustclip.data.sets import SETS as KNOWN
from robustclip.data.sources import Progress
from robustclip.data.suites import Outcome, prepare_suite
from robustclip.data.world import FINE_TUNING, SETS
from robustclip.models.class_names import reading
from robustclip.models.tokenizers import clip_tokenizer
from robustclip.runtime import cli
from robustclip.runtime.mapping import mapped

WORLD = "world:"
OUT = "outputs"
SHOWN = 10  # skipped files named at the end; the rest are in skipped.json


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument("source", nargs="*", help="folder, archive or file of one set, shards as {000..012}.tar; or one world:SET")
    parser.add_argument("--name", help="name of the set (an embedded set has its own)")
    parser.add_argument("--out", default=OUT, help="path or file://, s3://, gs:// URI (default: %(default)s)")
    parser.add_argument("--split", help="what a source without split folders is (default: its own name, as in train.tar.gz)")
    parser.add_argument("--format", help=f"what to read the files as where they could be several: {', '.join(FORMATS)}")
    parser.add_argument("--strict", action="store_true", help="refuse images that would be skipped instead of skipping them")
    parser.add_argument("--fresh", action="store_true", help="replace a set of this name that has other content")
    parser.add_argument(
        "--templates", nargs="+", metavar="TEMPLATE", help=f"prompts, or one file of them (default: the set's own, else {TEMPLATES[0]})"
    )
    parser.add_argument("--class-names", metavar="FILE", help="names in label order, a line each or JSON, or JSON {folder: name}")
    parser.add_argument("--licence", help="noted in dataset.json (default: what is known of a published set)")
    parser.add_argument("--suite", help="instead of SOURCE and --name: every set of a published protocol, such as fare-13")
    parser.add_argument("--root", metavar="DIR", help="--suite only: where the sets lie, each in a folder or archive of a usual name")
    parser.add_argument("--variant", choices=VARIANTS, help="--suite only: class names as published, or mended (default: clean)")
    parser.add_argument("--images", type=cli.taking(DRAWN), help="world:SET only: images to render (default: 8192 for train, else 1000)")
    parser.add_argument("--render-seed", type=cli.taking(SEED), default=0, help="world:SET only (default: %(default)s)")
    return parser


def progress() -> Progress:
    """Return a function that tells stderr every two seconds how far it is."""
    started = heard = told = time.monotonic()
    doing = ""

    def tell(seen: int, what: str) -> None:
        nonlocal started, heard, told, doing
        now = time.monotonic()
        if what != doing:
            started, doing = heard, what  # the first news of something come when a part of it is done
        heard = now
        if now - told > 2:
            told = now
            print(f"{seen} files {what}, {seen / max(now - started, 1e-9):.0f} per second", file=sys.stderr)

    return tell


def asked() -> tuple[argparse.Namespace, str]:
    """Return the command line and where the set goes; raises UserError for what cannot be, before anything is read."""
    args = parser().parse_args()
    if args.suite is not None:
        _check_suite(args)
    elif args.root is not None or args.variant is not None:
        raise errors.UserError("--root and --variant are of --suite: add --suite, or leave them out")
    elif not args.source:
        raise errors.UserError("nothing to prepare: give a SOURCE and --name, world:SET, or --suite and --root; see --help")
    elif args.source[0].startswith(WORLD):
        name = args.source[0].removeprefix(WORLD)
        if name not in SETS:
            raise errors.UserError(f"no embedded set {name!r}{errors.did_you_mean(name, SETS)}; there are {', '.join(SETS)}")
        if len(args.source) > 1 or args.name not in (None, name):
            raise errors.UserError(f"{args.source[0]} is prepared alone and under its own name; leave out --name and other sources")
        if args.format is not None or args.class_names is not None:
            raise errors.UserError(f"{args.source[0]} has a format and class names of its own; leave out --format and --class-names")
    elif not args.name:
        raise errors.UserError("a set needs a name: add --name SET")
    elif args.images is not None:
        raise errors.UserError("--images is of world:SET: all images of a folder or an archive are taken; leave it out")
    if args.format is not None and args.format not in FORMATS:
        raise errors.UserError(f"no format {args.format!r}{errors.did_you_mean(args.format, FORMATS)}; there are {', '.join(FORMATS)}")
    for name in (args.name, args.split):
        if name is not None:
            storage.safe_name(name)
    _read_files(args)
    return args, cli.out_folder(args)


def _check_suite(args: argparse.Namespace) -> None:
    from robustclip.evaluation.presets import PRESETS

    if args.suite not in PRESETS:
        raise errors.UserError(f"no suite {args.suite!r}{errors.did_you_mean(args.suite, PRESETS)}; there are {', '.join(PRESETS)}")
    given = {
        "--name": args.name,
        "--split": args.split,
        "--format": args.format,
        "--class-names": args.class_names,
        "--images": args.images,
    }
    given |= {"SOURCE": args.source, "--templates": args.templates, "--licence": args.licence}
    if extra := [option for option, value in given.items() if value]:
        raise errors.UserError(f"--suite prepares sets that it knows; leave out {', '.join(extra)}, or give SOURCE and --name alone")
    if not args.root:
        raise errors.UserError("--suite needs the folder in which the sets lie: add --root DIR")
    if not storage.exists(storage.resolve(args.root)):
        raise errors.UserError(f"{args.root}: no such folder; give the one in which the sets lie as --root")


def _read_files(args: argparse.Namespace) -> None:
    """Put what the files of --templates and --class-names say in their place."""
    if args.templates and len(args.templates) == 1 and "{" not in args.templates[0] and os.path.isfile(args.templates[0]):
        args.templates = templates_file(args.templates[0])
    check_templates(args.templates or ())
    if args.class_names is not None:
        args.rename = partial(renamed, wanted=names_file(args.class_names), where=args.class_names)


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
    if args.suite is not None:
        return run_suite(args, out)
    if args.source[0].startswith(WORLD):
        card = prepare_world(out, args)
    else:
        chosen = {key: getattr(args, key) for key in ("split", "strict", "templates", "licence", "fresh", "format")}
        chosen |= {"rename": getattr(args, "rename", None), "progress": progress(), "mapper": mapped}
        done = prepare_changed(out, args.name, args.source, **chosen)
        card = done.card
        if done.format:
            print(f"read as {done.format}")
        for said in (*done.said, *(differences(KNOWN[args.name], len(card.class_names), card.splits) if args.name in KNOWN else ())):
            print(f"note: {said}")
        tell_skipped(done)
        print(f"{card.name} was already there, unchanged" if done.unchanged else f"{card.name} is ready")
    print(f"{size_of(card)}; in {card.folder}")
    for said in reading(clip_tokenizer(), card.class_names, card.templates).said:
        print(f"warning: {said}", file=sys.stderr)
    print(f"next: {next_step(card, args.out)}")
    return None


def tell_skipped(done: Prepared) -> None:
    for skip in done.skipped[:SHOWN]:
        print(f"skipped {skip.id}: {skip.reason}")
    if done.skipped:
        print(f"skipped {len(done.skipped)} files in all, listed in {storage.join(done.card.folder, SKIPPED)}")


def size_of(card: DatasetCard) -> str:
    """Return the classes and images of a set in words."""
    classes = f"{len(card.class_names)} class{'es' * (len(card.class_names) != 1)}"
    return f"{classes}; {', '.join(f'{split}: {rows} images' for split, rows in card.splits.items())}"


def run_suite(args: argparse.Namespace, out: str) -> None:
    """Prepare every set of a suite that is there; raises UserError at the end where one is missing or failed."""
    from robustclip.evaluation.presets import PRESETS

    protocol = PRESETS[args.suite]
    options: dict[str, Any] = {"variant": args.variant or VARIANTS[0], "strict": args.strict, "fresh": args.fresh}
    templates = {name: said for name in protocol.sets if isinstance(said := protocol.rule(name).templates, tuple)}
    scored = {name: protocol.rule(name).split for name in protocol.sets}
    there, left = 0, []
    options |= {"progress": progress(), "starting": _starting, "mapper": mapped}
    for outcome in prepare_suite(out, storage.resolve(args.root), args.suite, protocol.sets, templates, scored, **options):
        tell_outcome(outcome)
        there += outcome.card is not None
        left += [] if outcome.card else [f"{outcome.known.name} ({outcome.state})"]
    print(f"{there} of {len(protocol.sets)} sets of {args.suite} are in {storage.join(out, 'data')}")
    if left:
        raise errors.UserError(f"not there yet: {', '.join(left)}; what is prepared stays, the same command goes on")
    where = () if args.out == OUT else ("--out", out)
    print(f"next: {cli.command('evaluate', 'open_clip:ViT-B-32-quickgelu/openai', '--protocol', args.suite, *where)}")


def _starting(name: str, source: str) -> None:
    print(f"{name}: reading {source}", flush=True)


def tell_outcome(outcome: Outcome) -> None:
    """Print what became of a set of a suite, a line for each thing to know."""
    as_what = f", read as {outcome.done.format}" if outcome.done and outcome.done.format else ""
    print(f"{outcome.known.name}: {outcome.state}{f', {size_of(outcome.card)}' if outcome.card else ''}{as_what}")
    for said in outcome.said:
        print(f"  {said}")
    if outcome.done:
        tell_skipped(outcome.done)
