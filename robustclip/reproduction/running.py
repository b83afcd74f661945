"""Measuring claims: what is missing is trained, by its sweep or by itself, and attacked, what is there is found; then the rules speak."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.evaluation import complete, protocols
from robustclip.reproduction.ledger import Claim, Paper, Result
from robustclip.reproduction.measuring import Evaluated, columns_of, result
from robustclip.reproduction.needs import Laid, Sweep
from robustclip.reproduction.worlds import World
from robustclip.runtime import cluster
from robustclip.runtime.cluster import Share
from robustclip.runtime.tracking import Tracker
from robustclip.sweeps.report import publish
from robustclip.sweeps.tuning import sweep
from robustclip.training.fit import fit, side_by_side
from robustclip.training.job import Job

log = logging.getLogger(__name__)

Faults = Mapping[str, str]  # study -> why it cannot be measured


def by_study(paper: Paper, world: World) -> dict[str, list[Claim]]:
    """Return study -> the claims of a paper that it decides in a world."""
    found: dict[str, list[Claim]] = {}
    for claim in paper.claims:
        if not world.why_not(claim):
            found.setdefault(claim.study, []).append(claim)
    return found


def roles_of(claims: Iterable[Claim]) -> set[str]:
    """Return the roles whose models some claims compare."""
    return {role for claim in claims for part in claim.parts for role in part.roles}


def lay(paper: Paper, world: World, seeds: Sequence[int], out: str) -> tuple[dict[str, Laid], Faults]:
    """Return the studies of a paper's claims as they lie under `out`, and those that cannot even begin there, with the reason."""
    laid, faults = {}, {}
    for study, claims in by_study(paper, world).items():
        try:
            laid[study] = Laid(world.studies[study], world, seeds, out, roles_of(claims))
        except UserError as error:
            faults[study] = str(error)
    return laid, faults


def train(sweeps: Iterable[Sweep], out: str) -> dict[str, str]:
    """Train what is missing, and return of what is missing still, by key, why: one that fails keeps no other from being trained."""
    failures: dict[str, str] = {}
    for each in sweeps:
        log.info("%s", each)
        cluster.connect()
        failures |= swept(each, out) if each.study.space else fitted(each, out)
    return failures


def swept(each: Sweep, out: str) -> dict[str, str]:
    """Run a sweep with its report and its runs in MLflow, as `robustclip sweep` does, and return what claims still lack of it, with why."""
    try:
        tracker, started, protocol = Tracker(out), time.monotonic(), protocols.named(each.study.protocol)
        try:
            outcome = sweep(each.space, each.config, protocol, out, tracker)
            publish(each.space, each.config, outcome, protocol, out, tracker, started)
        finally:
            tracker.close()
        why = "; ".join(f"{trial.label}: {trial.failure}" for trial in outcome.failures)
    except UserError as error:
        why = str(error)
        log.error("%s: %s", each, why)
    return {run.job.key: why for run in each.runs if not run.ready}


def fitted(each: Sweep, out: str) -> dict[str, str]:
    """Train the missing runs of a study without a space, as many at once as fit, and return why those failed that did."""

    def failure(job: Job, share: Share) -> str:
        try:
            log.info("checkpoint %s", fit(job, share)["checkpoint"])
        except Exception as error:  # whatever it is, it is this training's: the others and their claims go on
            log.error("training %s failed", job.key, exc_info=not isinstance(error, UserError))
            return str(error) or type(error).__name__
        return ""

    cluster.warn_of_local_results(out)
    failures = zip(each.missing, side_by_side(list(each.missing.values()), failure), strict=True)
    return {key: why for key, why in failures if why}


def attacked(laid: Laid, roles: set[str], out: str) -> Evaluated:
    """Return the records and the findings on the models of some roles of a study, attacking and checking those that have none."""
    resolved = protocols.resolve(laid.protocol, out)
    names = laid.all_names(sorted(roles))
    table = complete.attacked(names, resolved, out, lambda done: log.info("%s", done))
    checks = complete.checked(names, laid.base, resolved, table, out, log.info)
    called = models.called([models.absolute(name) for name in names])
    runs = {role: [called[models.absolute(name)] for name in laid.names(role)] for role in roles}
    return Evaluated(resolved, runs, columns_of(table, resolved, laid.study.columns), checks)


def measure(world: World, laid: Laid, claims: Sequence[Claim], today: str) -> dict[str, Result]:
    """Return the results of some claims of one study, whose models are all trained."""
    evaluated, base = attacked(laid, roles_of(claims), laid.out), models.identity(laid.base)
    found = {}
    for claim in claims:
        seeds = laid.seeds_of(roles_of([claim]))
        found[claim.name] = result(claim, world.fingerprint(claim), evaluated, seeds, today, base)
    return found
