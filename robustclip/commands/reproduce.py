"""Measure what a paper claims: train and attack what is missing, judge by rules fixed before, write the verdicts into claims/ and its page.

Example: robustclip reproduce --paper tecoa --world rendered --plan
"""

import argparse
import datetime
import logging
from pathlib import Path

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.ranges import SEED
from robustclip.reproduction import ledger, page, plan, running, worlds
from robustclip.reproduction.ledger import Paper
from robustclip.reproduction.needs import distinct
from robustclip.reproduction.worlds import World
from robustclip.runtime import cli, cluster

CLAIMS = Path(__file__).resolve().parents[2] / "claims"  # of a clone
log = logging.getLogger("robustclip.reproduce")


def parser() -> argparse.ArgumentParser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--paper", required=True, help="file name in claims/ without .toml: tecoa, mmcoa, tapt, neighbours")
    parser.add_argument("--world", required=True, help=f"one of {', '.join(page.WORLDS)}: claims/worlds/ says what it has")
    parser.add_argument("--seeds", nargs="+", type=cli.taking(SEED), default=[0, 1], help="of training (default: 0 1)")
    parser.add_argument("--claims", default=str(CLAIMS), help="folder of the ledger (default: that of the clone)")
    cli.add_plan(parser)
    cli.add_out(parser)
    return parser


def asked() -> tuple[argparse.Namespace, Paper, World, str]:
    """Return the command line, the paper, the world and where results go; raises UserError for what cannot be."""
    args = parser().parse_args()
    folder = storage.resolve(args.claims)
    if not storage.is_folder(folder):
        raise UserError(f"there is no ledger {folder}: give the folder claims/ of a clone, --claims FOLDER")
    args.claims = folder
    return args, page.named(folder, args.paper), worlds.read(folder, args.world), cli.out_folder(args)


def run() -> None:
    args, paper, world, out = asked()
    cli.say_on_terminal()
    cluster.check_address()
    if args.plan:
        if running.by_study(paper, world):
            cluster.connect()
        print(plan.plan(paper, world, args.seeds, out))
        return
    faults = measured(args, paper, world, out)
    print(f"ledger  {paper.path}\npage    {page.write(args.claims)}")
    if faults:
        said = "; ".join(f"{study}: {why}" for study, why in faults.items())
        raise UserError(f"of {paper.name} could not be measured, {said}")


def measured(args: argparse.Namespace, paper: Paper, world: World, out: str) -> running.Faults:
    """Measure study by study, writing the ledger after each, and return those that could not be, with the reason."""
    laid, faults = running.lay(paper, world, args.seeds, out)
    failures = running.train(distinct(each for study in laid.values() for each in study.sweeps()), out)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    for study, each in laid.items():
        try:
            each.check_trained(failures)
            found = running.measure(world, each, running.by_study(paper, world)[study], today)
        except UserError as error:
            faults = {**faults, study: str(error)}
            continue
        ledger.add(paper.path, world.name, found)
        for name, result in found.items():
            log.info("%s: %s%s", name, result.verdict, f" ({result.why})" if result.why else "")
    return faults
