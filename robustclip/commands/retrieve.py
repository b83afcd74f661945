"""Look up texts by images and images by texts, clean and attacked: recall at k in both directions, plain CLIP always among the models.

Example: robustclip retrieve outputs/runs/0123456789abcdef/model --n 200
On a set of your own: robustclip retrieve tiny-vit8 --data flickr30k --captions captions.json, JSON {class or image: [texts]}
"""

import argparse
import logging
from functools import partial
from typing import Any

import pyarrow.compute as pc

from robustclip import names as models
from robustclip.attacks.catalogue import named
from robustclip.base import storage
from robustclip.base.ranges import AMOUNT, COUNT, SHARE
from robustclip.base.values import key
from robustclip.commands.evaluate import MODEL, base_of
from robustclip.data.captions import WORLD, read_captions
from robustclip.evaluation.ranking import retrieve
from robustclip.evaluation.retrieval import RetrievalProtocol, resolve
from robustclip.records.retrieval import FOLDER, as_metrics, retrieved_of
from robustclip.results import recall
from robustclip.runtime import cli, cluster
from robustclip.runtime.logged import Input, located
from robustclip.runtime.store import how_to_open
from robustclip.runtime.tracking import Tracker

log = logging.getLogger("robustclip.retrieve")
USUAL = RetrievalProtocol()


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help=MODEL)
    parser.add_argument("--data", default=WORLD, metavar="SET", help="a data set with --captions (default: pairs of the rendered world)")
    parser.add_argument("--captions", metavar="FILE", default="", help="JSON {class or image: [texts]} of the set's classes or images")
    parser.add_argument("--split", default=USUAL.split, help="of the set (default: %(default)s)")
    parser.add_argument("--n", type=cli.taking(COUNT), help="images (default: all of the split, of the world 300)")
    parser.add_argument(
        "--recall", nargs="+", type=cli.taking(COUNT), default=list(USUAL.ks), metavar="K", help="at which k (default: 1 5 10)"
    )
    usual = " ".join(attack.name for attack in USUAL.attacks)
    parser.add_argument("--attacks", nargs="+", metavar="ATTACK", help=f"pgd-N, apgd-ce-N, and text:... on texts (default: {usual})")
    parser.add_argument(
        "--eps", nargs="+", type=cli.taking(AMOUNT), default=list(USUAL.eps), help="radii in 1/255, ascending (default: 1 2 4)"
    )
    parser.add_argument("--actors", type=cli.taking(COUNT), help="evaluators at once (default: as many as fit)")
    parser.add_argument("--gpus", type=cli.taking(SHARE), default=1.0, help="share of a GPU each evaluator takes (default: %(default)s)")
    cli.add_out(parser)
    return parser


def asked() -> tuple[argparse.Namespace, RetrievalProtocol, str]:
    """Return the command line, the protocol it means and where results go; raises UserError for what cannot be, before anything is done."""
    args = parser().parse_args()
    out = cli.out_folder(args)
    args.models = [located(name, out) for name in args.models]
    for name in args.models:
        models.parse(name)
    if args.captions:
        read_captions(args.captions)
    chosen: dict[str, Any] = {"ks": tuple(args.recall), "eps": tuple(map(float, args.eps))}
    chosen |= {"attacks": named(args.attacks)} if args.attacks else {}
    return args, RetrievalProtocol(args.data, storage.resolve(args.captions) if args.captions else "", args.split, args.n, **chosen), out


def run() -> None:
    args, protocol, out = asked()
    cli.say_on_terminal()
    cluster.check_address()
    tracker = Tracker(out)
    given = [models.absolute(name) for name in args.models]
    first = models.load(given[0])
    names = [*dict.fromkeys([base_of(first), *given])]
    paired = resolve(protocol, out)
    first.tell_names(paired.pairs.texts, ("{}",), f"texts of {paired.pairs.name}")
    cluster.connect()
    actors, gpus = cluster.fitting_actors(args.actors, args.gpus)
    cluster.warn_of_local_results(out)
    table = retrieve(names, paired, out, actors=actors, gpus=gpus, on_progress=partial(log.info, "%s"))
    found = retrieved_of(table)
    pairs = paired.pairs
    for model, each in found.items():
        result_key = table.filter(pc.equal(table["model"], model))["result_key"][0].as_py()
        run = tracker.run(key(paired.hash, result_key), f"retrieve {model}", {"model": model, "protocol_hash": paired.hash})
        tracker.inputs(run, [Input(pairs.name, pairs.split, pairs.sha256, len(pairs.ids), len(pairs.groups), out)])
        tracker.results(run, as_metrics(each, protocol.ks))
        tracker.finish(run)
    said = "".join(f"- {line}\n" for line in recall.meaning(paired.describe(), paired.hash, protocol.data == WORLD))
    page = "\n".join(sheet.markdown() for sheet in recall.sheets(found, protocol.ks)) + f"\n## What these numbers are\n\n{said}"
    folder = storage.join(out, "reports", paired.hash)
    storage.write_bytes(storage.join(folder, "table.md"), page.encode())
    storage.write_bytes(storage.join(folder, "table.csv"), recall.as_csv(found, protocol.ks, paired.hash).encode())
    places = f"records  {storage.join(out, FOLDER)}\nreport   {storage.join(folder, 'table.md')}\nMLflow   {how_to_open(out, 9 * ' ')}"
    print(f"{page}\n{places}")
    tracker.close()
