"""Fine-tune one recipe: Ray Train on shards streamed by Ray Data; the same command again goes on where it stopped.

Example: robustclip train demo --threat.image.eps 2 --trainable TokenPrompt --trainable.tokens 8
On a GPU: --attack.precision bf16 --optim.precision bf16 --attack.compile default --optim.fused true, and --optim.recompute true for memory
"""

import argparse
import logging
import time
from collections.abc import Mapping
from typing import Any

from robustclip import names as models
from robustclip.attacks.text.sources import Table
from robustclip.base import errors
from robustclip.base.forecast import left
from robustclip.base.ranges import COUNT
from robustclip.base.values import flatten, override
from robustclip.models.class_texts import Descriptions
from robustclip.runtime import cli, cluster
from robustclip.runtime.logged import with_located
from robustclip.runtime.store import how_to_open
from robustclip.runtime.tracking import Tracker
from robustclip.training import strength
from robustclip.training.compatible import check_pair
from robustclip.training.config import Config
from robustclip.training.fit import finished, fit, relay
from robustclip.training.forecast import forecast
from robustclip.training.job import forget, prepare, tell_names
from robustclip.training.recipes import RECIPES, named

log = logging.getLogger("robustclip.train")


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument("recipe", help=f"one of {', '.join(RECIPES)}; every key of its config is an option: --optim.lr 1e-4")
    parser.add_argument("--table", metavar="FILE", help="JSON of robustclip words: the words of the defence's text attack")
    parser.add_argument("--descriptions", metavar="FILE", help="JSON {class name: [texts]}: what classes are called in place of templates")
    add_training(parser)
    return parser


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add what `trained` reads."""
    parser.add_argument("--workers", type=cli.taking(COUNT), default=1, help="Train workers that share every step (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="start again instead of continuing")
    cli.add_register(parser, "the model")
    cli.add_plan(parser)
    cli.add_out(parser)


def asked() -> tuple[argparse.Namespace, Config, str]:
    """Return the command line, the config it means and where results go; raises UserError for what cannot be, before anything is done."""
    args, changes = cli.parse(parser(), Config)
    out = cli.out_folder(args)
    if args.descriptions:
        if "templates" in changes:
            raise errors.UserError("--descriptions take the place of --templates: give one of the two")
        changes |= {"templates": Descriptions.read(args.descriptions)}
    config = override(named(args.recipe).config, with_located(changes, out))
    if args.table:
        config = with_table(config, Table.read(args.table))
    check_pair(config.defense, config.trainable)
    models.parse(config.model)
    return args, config, out


def run() -> None:
    args, config, out = asked()
    cli.say_on_terminal()
    if result := trained(config, out, args, f"train {args.recipe}"):
        tell(args.recipe, config, result)
        print(f"attack it      {cli.command('evaluate', result['checkpoint'], '--out', out)}")
        print(f"MLflow         {how_to_open(out, 15 * ' ')}")


def tell(recipe: str, config: Config, result: Mapping[str, Any]) -> None:
    """Print how a training ended and where its checkpoint lies."""
    last = result["metrics"]
    held_out = f"held out: clean {last['val/clean']:.1%}, robust {last['val/robust']:.1%}"
    print(f"\n{recipe}: {last['step']} steps, loss {last['loss']:.3f}, {held_out}")
    if compared := strength.said(config.attack, last):
        print(compared)
    print(f"weights sha256 {result['sha256']}")
    print(f"checkpoint     {result['checkpoint']}")


def trained(config: Config, out: str, args: argparse.Namespace, title: str) -> dict[str, Any] | None:
    """Train a config, tell MLflow, and return its result; with --plan say what it would take and return None."""
    cluster.check_address()
    tracker = None if args.plan else Tracker(out)
    job = prepare(config, out)
    tell_names(config.model, job.card, config.templates)
    cluster.connect()
    share = cluster.divide(1, args.workers)
    if tracker is None:
        print(cluster.measured(forecast, job, share))
        return None
    if args.fresh:
        forget(job)
    run = tracker.run(job.key, title, flatten(job.config))
    tracker.inputs(run, job.inputs())
    tracker.watch(run)
    cluster.warn_of_local_results(out)
    if not finished(job):
        cli.tell_if_long(cluster.measured(forecast, job, share))

    first: list[tuple[int, float]] = []  # the first report's step and time: what came before it is not told from a resumed run's start

    def on_report(metrics: dict[str, Any]) -> None:
        tracker.curve(run, metrics["curve"])
        step, steps, now = metrics["step"], job.plan.steps, time.monotonic()
        if not first:
            first.append((step, now))
        rest = left(step - first[0][0], steps - first[0][0], now - first[0][1])
        log.info("step %d of %d, epoch %.1f, loss %.3f%s", step, steps, metrics["epoch"], metrics["loss"], rest)

    with relay(on_report) as callback:
        result = fit(job, share, [callback])
    tracker.curve(run, result["history"])
    tracker.tag(run, checkpoint=result["checkpoint"], weights_sha256=result["sha256"], **job.config.tags())
    tracker.model(run, result["checkpoint"], result["sha256"])
    if args.register:
        tracker.register(run, args.register)
    tracker.finish(run)
    tracker.close()
    return result


def with_table(config: Config, table: Table) -> Config:
    """Return the config with the words of a table; raises UserError for a defence that rewrites no prompts."""
    text = getattr(config.defense, "text", None)
    if text is None:
        raise errors.UserError(f"{type(config.defense).__name__} rewrites no prompts: leave --table out, or take a recipe of MMCoA")
    return override(config, {"defense.text": text.by_table(table)})
