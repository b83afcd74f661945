"""Attack any number of models by a protocol, plain CLIP always among them; finished cells are never computed again.

Example: robustclip evaluate outputs/runs/0123456789abcdef/model --protocol demo
A curve between CLIP and such a folder RUN: robustclip evaluate interpolate:0:RUN interpolate:0.25:RUN interpolate:0.5:RUN RUN
"""

import argparse
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from robustclip import names as models
from robustclip.attacks import Attack
from robustclip.attacks.catalogue import KNOWN, named
from robustclip.attacks.modes import by_table
from robustclip.attacks.shift import Shiftable, Shifted
from robustclip.attacks.text.sources import Table
from robustclip.base.errors import UserError
from robustclip.base.ranges import AMOUNT, COUNT
from robustclip.base.values import key
from robustclip.data.naming import templates_file
from robustclip.evaluation import expected, protocols
from robustclip.evaluation.evaluator import evaluate
from robustclip.evaluation.forecast import footprint, forecast
from robustclip.evaluation.probing import check, unchecked
from robustclip.evaluation.rules import SetRule
from robustclip.evaluation.wanted import Wanted, same_but_seed
from robustclip.models.class_texts import Descriptions
from robustclip.models.model import Model
from robustclip.records.findings import Finding, summary
from robustclip.records.prompts import read_all
from robustclip.records.summary import cost, set_metrics
from robustclip.results import report
from robustclip.results.page import Page
from robustclip.runtime import cli, cluster, gpus
from robustclip.runtime.logged import located
from robustclip.runtime.store import how_to_open
from robustclip.runtime.tracking import Tracker
from robustclip.test_time import TEST_TIME

BASELINE = "tiny-vit8"
MODEL = (
    "folder (a checkpoint, transformers' CLIPModel, open_clip's), embedded name, open_clip:NAME/TAG (or /FILE, /TAG//FILE of one tower, "
    "/random[seed=0]), mlflow:RUN_ID or models:/NAME/VERSION of MLflow, interpolate:ALPHA:CHECKPOINT, ensemble:A,B, towers:IMAGES,TEXTS, "
    f"or one of them under a test-time defence: {', '.join(f'{kind}:MODEL' for kind in TEST_TIME)}, with settings as in tpt[views=16]:MODEL"
)
log = logging.getLogger("robustclip.evaluate")


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help=MODEL)
    parser.add_argument("--protocol", default="demo", help=f"one of {', '.join(protocols.PROTOCOLS)} (default: %(default)s)")
    parser.add_argument(
        "--sets",
        nargs="+",
        metavar="SET",
        help="these data sets instead of the protocol's (another hash); typographic:SET: SET with names of other classes on its images; "
        "among:OTHER:SET: SET among the class names of OTHER too",
    )
    parser.add_argument("--attacks", nargs="+", metavar="ATTACK", help=f"these attacks instead, of {', '.join(KNOWN)}")
    parser.add_argument("--eps", nargs="+", type=cli.taking(AMOUNT), help="these radii instead, in 1/255, ascending")
    parser.add_argument("--n", type=cli.taking(COUNT), help="images of each set instead")
    parser.add_argument("--table", metavar="FILE", help="JSON {prompt: [[place, [words]], ...]}: the words of every text attack")
    parser.add_argument("--descriptions", metavar="FILE", help="JSON {class name: [texts]}: what classes are called in place of templates")
    parser.add_argument(
        "--shift",
        nargs="+",
        metavar="TEXTS",
        help="attack under other texts as well: a template, a file of several, or descriptions (.json); transfer, with --independent",
    )
    parser.add_argument("--independent", action="store_true", help="show every image to every attack at every eps, broken or not")
    parser.add_argument(
        "--expect",
        nargs="+",
        metavar="ROW",
        help="put a preset's numbers beside published ones: the row of each MODEL, in their order, or `published`: those of the same name, "
        "CLIP's for OpenAI's weights in the zoo",
    )
    cli.add_plan(parser)
    parser.add_argument("--actors", type=cli.taking(COUNT), help="evaluators at once (default: as many as fit)")
    cli.add_gpus(parser, "evaluator")
    cli.add_out(parser)
    return parser


def asked() -> tuple[argparse.Namespace, protocols.Protocol, str]:
    """Return the command line, the protocol it means and where results go; raises UserError for what cannot be, before anything is done."""
    args = parser().parse_args()
    out = cli.out_folder(args)
    args.models = [located(name, out) for name in args.models]
    for name in args.models:
        models.parse(name)
    protocol = adapted(protocols.named(args.protocol), args)
    if args.expect:
        expected.check(args.expect, args.protocol, protocol, len(args.models))
    return args, protocol, out


def run() -> None:
    args, protocol, out = asked()
    cli.say_on_terminal()
    cluster.check_address()
    given = [models.absolute(name) for name in args.models]
    tracker = None if args.plan else Tracker(out)
    first = models.load(given[0])
    names = [*dict.fromkeys([base_of(first), *given])]
    called = models.called(names)
    held = rows(args.expect, args.protocol, given, called, first) if args.expect else {}
    resolved = protocols.resolve(protocol, out)
    for name, test_set in resolved.sets.items():
        first.tell_names(test_set.card.class_names, test_set.templates, f"data set {name}")
    share: dict[str, Any] = {"actors": 1, "on_progress": partial(log.info, "%s")}
    if tracker is None or Wanted(names, resolved, out).missing or unchecked(names, names[0], resolved, out):
        cluster.connect()
        share_of_gpu = gpus.share(cluster.measured(footprint, names, resolved)) if args.gpus is None else args.gpus
        share["actors"], share["gpus"] = cluster.fitting_actors(args.actors, share_of_gpu)
        ahead = cluster.measured(forecast, names, resolved, out, share["actors"], share["gpus"])
        if tracker is None:
            print(ahead)
            return
        cluster.warn_of_local_results(out)
        cli.tell_if_long(ahead)
    table = evaluate(names, resolved, out, **share)
    checks = check(names, names[0], resolved, table, out, **share)
    log_results(tracker, table, resolved, checks)
    seeds = {f"{first} and its other seeds": group for first, group in same_but_seed(called).items()}
    prompts = read_all(out, resolved.hash, {models.identity(name): called[name] for name in names})
    published, notes = expected.beside(held, args.protocol, resolved)
    about: dict[str, Any] = {"checks": checks, "seeds": seeds, "prompts": prompts, "expected": published, "notes": notes}
    built = report.from_records(table, resolved.describe(), list(called.values()), **about)
    page = Page(built).write(f"{out}/reports/{resolved.hash}")
    print(f"{Page(built).markdown()}\nrecords  {out}/records\nreport   {page}\nMLflow   {how_to_open(out, 9 * ' ')}")
    tracker.close()


def log_results(tracker: Tracker, table: pa.Table, resolved: protocols.Resolved, checks: Mapping[str, Sequence[Finding]]) -> None:
    """Log each model's accuracies and what the checks said to a run of its own, found again by protocol and weights."""
    for model_name in table["model"].unique().to_pylist():
        rows = table.filter(pc.equal(table["model"], model_name))
        done = key(resolved.hash, rows["result_key"][0].as_py())
        params = {"model": model_name, "protocol": resolved.protocol.name, "protocol_hash": resolved.hash}
        run = tracker.run(done, f"evaluate {model_name}", params)
        tracker.inputs(run, resolved.inputs())
        tracker.results(run, set_metrics(rows, resolved.describe()) | cost(rows))
        tracker.tag(run, checks=summary(checks[model_name]))
        tracker.finish(run)


def base_of(model: Model) -> str:
    """Return the undefended model that a checkpoint was fine-tuned from, the embedded CLIP for anything else."""
    try:
        return models.base(model) or BASELINE
    except UserError as error:
        raise UserError(f"{error}; or give first a model that was not fine-tuned, such as {BASELINE}") from error


def rows(words: Sequence[str], preset: str, given: Sequence[str], called: Mapping[str, str], first: Model) -> dict[str, str]:
    """Return display name -> the published row that it is held against, of the models `given`, and of the base, which `called` begins with.

    A base that `first` was not fine-tuned from, the embedded one, is the CLIP of no paper.
    """
    base = next(iter(called))
    config = {} if base == BASELINE else first.open_clip_config  # fine-tuning keeps the shapes of the base
    return expected.choose(words, preset, [called[name] for name in given], called[base], config)


def adapted(protocol: protocols.Protocol, args: argparse.Namespace) -> protocols.Protocol:
    """Return the protocol with what the command line replaces."""
    attacks = named(args.attacks or ())
    if args.table:
        attacks = by_table(attacks or protocol.attacks, Table.read(args.table))
    if args.shift:
        attacks = (*(attacks or protocol.attacks), *shifted(attacks or protocol.attacks, map(texts, args.shift)))
    sets, rules = tuple(args.sets or ()), tuple[SetRule, ...]()
    if args.descriptions:
        found = Descriptions.read(args.descriptions)
        rules = tuple(replace(protocol.rule(name), templates=found) for name in sets or protocol.sets)
    return protocol.changed(sets=sets, attacks=attacks, eps=tuple(args.eps or ()), n=args.n, independent=args.independent, rules=rules)


def texts(word: str) -> tuple[str, ...] | Descriptions:
    """Return what a word of --shift stands for: a template, or what a file has, descriptions (.json) or templates, one a line."""
    if "{}" in word:
        return (word,)
    return Descriptions.read(word) if word.endswith(".json") else tuple(templates_file(word))


def shifted(attacks: Sequence[Attack], texts: Iterable[tuple[str, ...] | Descriptions]) -> tuple[Attack, ...]:
    """Return the attacks on images as they see each of some texts; raises UserError where there are none."""
    found = tuple(Shifted(seen, attack) for seen in texts for attack in attacks if isinstance(attack, Shiftable))
    if not found:
        raise UserError("--shift is of attacks on images, and none is among them: add one, such as apgd-ce-20")
    return found
