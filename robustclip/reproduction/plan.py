"""What measuring a paper's claims will take, told before it starts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from robustclip.base.errors import UserError
from robustclip.base.forecast import Forecast, duration, number
from robustclip.evaluation import forecast as attacks
from robustclip.evaluation.protocols import named, resolve
from robustclip.reproduction.ledger import Claim, Paper
from robustclip.reproduction.needs import Laid, distinct
from robustclip.reproduction.running import by_study, lay, roles_of
from robustclip.reproduction.worlds import World
from robustclip.runtime import cluster
from robustclip.sweeps.forecast import forecast
from robustclip.training import forecast as training


@dataclass(frozen=True)
class Step:
    """One piece of the work: what it is, and its forecast, or why there is none."""

    what: str
    ahead: Forecast | None
    why_not: str = ""

    def __str__(self) -> str:
        return "\n".join([self.what, *(str(self.ahead).splitlines()[1:] if self.ahead else [f"  cannot start  {self.why_not}"])])


def plan(paper: Paper, world: World, seeds: Sequence[int], out: str) -> str:
    """Return what would run for a paper's claims in a world, in which order, about how long, and what stands in the way."""
    studies, (laid, faults) = by_study(paper, world), lay(paper, world, seeds, out)
    measurable = sum(map(len, studies.values()))
    said = [f"{number(len(paper.claims), 'claim')} of {paper.title} in the {world.title}: {measurable} to measure"]
    said += [f"  not yet  {claim.name}: {why}" for claim in paper.claims if (why := world.why_not(claim))]
    found = [*steps(studies, laid, out), *(Step(f"study {study}", None, why) for study, why in faults.items())]
    ahead = [step.ahead for step in found if step.ahead]
    least, most = sum(each.at_least for each in ahead), sum(each.seconds for each in ahead)
    blocked = len(found) - len(ahead)
    total = f"in all, without Ray's starts and the checks: about {duration(least)} to {duration(most)}"
    return "\n".join([*said, *map(str, found), total + (f", and what {number(blocked, 'step')} above cannot tell yet" if blocked else "")])


def steps(studies: Mapping[str, Sequence[Claim]], laid: Mapping[str, Laid], out: str) -> Iterator[Step]:
    """Yield the sweeps and trainings that are missing and the evaluations, each with its forecast on this cluster."""
    for sweep in distinct(each for study in laid.values() for each in study.sweeps()):
        what = f"{sweep} ({number(len(sweep.missing), 'training')} missing that claims need)"
        whole = partial(forecast, sweep.space, sweep.config, named(sweep.study.protocol), out, 1, None, 1)
        yield told(what, whole if sweep.study.space else partial(training.side_by_side, sweep.missing.values()))
    for study, each in laid.items():
        yield told(f"evaluation of {study}", partial(of_study, each, roles_of(studies[study]), out))


def told(what: str, ahead: Callable[[], Forecast]) -> Step:
    """Return a step with its forecast, or with what a user must mend first."""
    try:
        return Step(what, ahead())
    except UserError as error:
        return Step(what, None, str(error))


def of_study(laid: Laid, roles: set[str], out: str) -> Forecast:
    """Return the forecast of a study's evaluations: of models that are not trained yet, those that no sweep attacks, by the base model."""
    swept = laid.study.space and not laid.study.changed
    resolved, (actors, gpus) = resolve(laid.protocol, out), cluster.fitting_actors()
    late = {role for role in roles if not laid.ready(role)}
    found = cluster.measured(attacks.forecast, laid.all_names(sorted(roles - late)), resolved, out, actors, gpus)
    later = [name for role in late if not swept or role not in laid.runs for name in laid.names(role)]
    if not later:
        return found
    ahead = cluster.measured(attacks.of_later, laid.base, len(later), resolved, actors, 1, gpus)
    facts = {**found.facts, "later": f"once trained, {ahead.facts['evaluation']}", "a model": ahead.facts["a model"]}
    return Forecast(found.what, facts, found.seconds + ahead.seconds, found.gpus, found.at_least + ahead.at_least)
