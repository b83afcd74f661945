"""Run one search space, start to finish, with its table and figures; without an argument: the demo, train eps on the embedded world.

Example: robustclip sweep epsilon --optim.epochs 8 --asha
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from robustclip.base import errors
from robustclip.base.forecast import Forecast
from robustclip.base.ranges import AMOUNT, COUNT
from robustclip.evaluation import protocols
from robustclip.runtime import cli, cluster, gpus
from robustclip.runtime.logged import with_located
from robustclip.runtime.tracking import Tracker
from robustclip.sweeps.forecast import footprint, forecast
from robustclip.sweeps.report import publish
from robustclip.sweeps.spaces import FOLDER, RECIPE, Space, check_space, first_config, load_space, rooted, starts
from robustclip.sweeps.tuning import found, sweep, trained
from robustclip.training.compatible import check_pair
from robustclip.training.config import Config


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument(
        "space", nargs="?", default="epsilon", help="file name in tune_spaces/ without .py, or a path (default: %(default)s)"
    )
    parser.add_argument("--recipe", help="another recipe than the space's own; every key of its config is an option: --optim.lr 1e-4")
    parser.add_argument("--protocol", default="demo", help=f"one of {', '.join(protocols.PROTOCOLS)} (default: %(default)s)")
    parser.add_argument("--sets", nargs="+", metavar="SET", help="these data sets instead of the protocol's")
    parser.add_argument("--n", type=cli.taking(COUNT), help="images of each set instead")
    parser.add_argument("--eps", nargs="+", type=cli.taking(AMOUNT), help="these radii instead, in 1/255, ascending")
    parser.add_argument("--samples", type=cli.taking(COUNT), default=1, help="draws from a random space (default: %(default)s)")
    parser.add_argument("--asha", action="store_true", help="stop trials early that fall behind on the held-out metric")
    parser.add_argument("--fresh", action="store_true", help="train every trial again instead of continuing")
    parser.add_argument("--workers", type=cli.taking(COUNT), default=1, help="Train workers of each trial (default: %(default)s)")
    parser.add_argument("--concurrent", type=cli.taking(COUNT), help="trials at once (default: as many as fit)")
    cli.add_gpus(parser, "worker or evaluator")
    cli.add_register(parser, "the chosen trial's model")
    cli.add_plan(parser)
    cli.add_out(parser)
    return parser


def asked() -> tuple[argparse.Namespace, Space, Config, protocols.Protocol, str]:
    """Return the command line, the space with its changes, the config it starts from, the protocol, and where results go.

    Raises UserError for what cannot be, before anything is done.
    """
    args, changes = cli.parse(parser(), Config)
    out = cli.out_folder(args)
    path = Path(args.space) if args.space.endswith(".py") else FOLDER / f"{args.space}.py"
    changed = {"sets": tuple(args.sets or ()), "n": args.n, "eps": tuple(args.eps or ())}
    space, protocol = load_space(path), protocols.named(args.protocol).changed(**changed)
    if args.recipe and RECIPE in space.space:
        raise errors.UserError(f"space {space.name} samples the recipe, so --recipe {args.recipe} would change nothing: leave it out")
    space = rooted(replace(space, fixed={**space.fixed, **with_located(changes, out)}))
    config = first_config(space, args.recipe)
    check_space(space, config)
    for start in starts(space, config):
        check_pair(start.defense, start.trainable)
    return args, space, config, protocol, out


def ahead(args: argparse.Namespace, space: Space, config: Config, protocol: protocols.Protocol, out: str) -> tuple[Forecast, float]:
    """Return what a sweep will take on the cluster, joined or started for it, and the part of a GPU that each of its workers gets."""
    cluster.connect()
    share = gpus.share(footprint(space, config, protocol, out)) if args.gpus is None else args.gpus
    return forecast(space, config, protocol, out, args.workers, args.concurrent, args.samples, share), share


def run() -> None:
    started = time.monotonic()
    args, space, config, protocol, out = asked()
    cli.say_on_terminal()
    cluster.check_address()
    tracker = None if args.plan else Tracker(out)
    sampled = None if args.plan or args.fresh else trained(space, config, out, args.samples)
    if tracker is None:
        print(ahead(args, space, config, protocol, out)[0])
        return
    if sampled is not None:
        outcome = found(space, config, protocol, out, tracker, sampled)
    else:
        told, share = ahead(args, space, config, protocol, out)
        cli.tell_if_long(told)
        given = {name: getattr(args, name) for name in ("workers", "concurrent", "samples", "asha", "fresh")}
        outcome = sweep(space, config, protocol, out, tracker, gpus=share, **given)
    print(publish(space, config, outcome, protocol, out, tracker, started, args.register))
    tracker.close()
    if outcome.failures:
        reasons = "; ".join(f"{trial.label}: {trial.failure}" for trial in outcome.failures)
        raise errors.UserError(
            f"{len(outcome.failures)} of {len(outcome.trials)} trials failed ({reasons}); the same command tries them again"
        )
