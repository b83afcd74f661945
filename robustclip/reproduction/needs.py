"""What a study needs under a folder of results: the runs of its roles, which of them are there, the trainings that make the rest."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.values import override
from robustclip.evaluation.protocols import Protocol
from robustclip.reproduction.worlds import BASE, SEED, Study, World, parts_of, sample, seeded
from robustclip.sweeps.body import written_of
from robustclip.sweeps.spaces import Space, first_config, trial_config
from robustclip.training.config import Config
from robustclip.training.fit import finished
from robustclip.training.job import Job, prepare


@dataclass(frozen=True)
class Run:
    """The model of a role and a seed: its training, its checkpoint, the name that is evaluated, and a file that this needs ("": none)."""

    role: str
    job: Job
    checkpoint: str
    name: str
    file: str

    @property
    def ready(self) -> bool:
        """Whether all of it is there now."""
        return finished(self.job) and (not self.file or storage.exists(self.file))


@dataclass(frozen=True)
class Sweep:
    """What makes models of a study: its sweep with one or several seeds, without a space its trainings; `runs` are those that are missing.

    A sweep trains all its trials, whether claims need them or not.
    """

    world: World
    study: Study
    space: Space
    config: Config
    runs: tuple[Run, ...]

    @property
    def missing(self) -> dict[str, Job]:
        """The trainings that are missing for claims, by key."""
        return {run.job.key: run.job for run in self.runs}

    def __str__(self) -> str:
        """Return the command that runs it by itself; without a space, which roles it trains."""
        if not self.study.space:
            roles, seeds = (dict.fromkeys(each) for each in zip(*((run.role, str(run.job.config.seed)) for run in self.runs), strict=True))
            return f"training of {', '.join(roles)} of study {self.study.name}, seeds {', '.join(seeds)}"
        return self.world.sweep(self.study, *(("--seed", str(self.space.fixed[SEED])) if SEED in self.space.fixed else ()))


class Laid:
    """A study's roles under a folder `out`, each with a run a seed; only roles that are wanted are looked at."""

    def __init__(self, study: Study, world: World, seeds: Sequence[int], out: str, wanted: Iterable[str]):
        self.study, self.world, self.seeds, self.out = study, world, tuple(seeds), out
        self.space = world.space_of(study)
        self.config = first_config(self.space)
        self.wanted = study.used(set(wanted))
        self.runs = {role: [self._run(role, seed) for seed in self.seeds] for role in sorted(self.wanted & study.sampled.keys())}

    def _run(self, role: str, seed: int) -> Run:
        sampled = sample(self.study, self.space, role)
        job = prepare(override(trial_config(self.space, self.config, sampled), {SEED: seed}), self.out)
        checkpoint = storage.join(job.folder, "model")
        alone = role in self.study.checkpoints
        return Run(role, job, checkpoint, *((checkpoint, "") if alone else written_of(sampled, checkpoint, job)))

    @cached_property
    def base(self) -> str:
        """The undefended model."""
        return models.absolute(self.config.model)

    @cached_property
    def protocol(self) -> Protocol:
        """The protocol by which its models are evaluated."""
        return self.study.evaluated()

    def names(self, role: str) -> list[str]:
        """Return the names of a role's models, one a seed; one alone where no seed is in it."""
        if role in self.runs:
            return [run.name for run in self.runs[role]]
        given = self.study.models[role]
        inner = [part for part in parts_of(given) if part != BASE]
        made = [{part: self.names(part)[i if len(self.names(part)) > 1 else 0] for part in inner} for i in range(len(self.seeds))]
        return list(dict.fromkeys(given.format(**{BASE: self.base, **each}) for each in made))

    def ready(self, role: str) -> bool:
        """Return whether all runs are there that a role's models are, or are made of."""
        if role in self.runs:
            return all(run.ready for run in self.runs[role])
        return all(self.ready(part) for part in parts_of(self.study.models[role]) if part != BASE)

    def seeds_of(self, roles: Iterable[str]) -> tuple[int, ...]:
        """Return the seeds of some roles' models: none where nothing was trained for them."""
        return self.seeds if self.study.used(set(roles)) & self.runs.keys() else ()

    def all_names(self, roles: Iterable[str]) -> list[str]:
        """Return the models to evaluate: the undefended one, then those of some roles."""
        return list(dict.fromkeys([self.base, *(name for role in roles for name in self.names(role))]))

    def missing(self) -> tuple[Run, ...]:
        """Return the runs that are not there."""
        return tuple(run for runs in self.runs.values() for run in runs if not run.ready)

    def check_trained(self, failures: Mapping[str, str]) -> None:
        """Raise UserError where a run is not there, with why, by its key, its training failed."""
        if missing := self.missing():
            roles, why = (dict.fromkeys(each) for each in zip(*((run.role, failures.get(run.job.key)) for run in missing), strict=True))
            raise UserError(f"{', '.join(roles)}: not trained ({'; '.join(filter(None, why))}); the same command tries again")

    def sweeps(self) -> list[Sweep]:
        """Return what makes the runs that are missing."""
        missing = self.missing()
        if not self.study.space:
            return [Sweep(self.world, self.study, self.space, self.config, missing)] if missing else []
        found = []
        for space in seeded(self.space, self.seeds):
            runs = tuple(run for run in missing if run.job.config.seed == space.fixed.get(SEED, run.job.config.seed))
            if runs:
                found.append(Sweep(self.world, self.study, space, first_config(space), runs))
        return found


def distinct(sweeps: Iterable[Sweep]) -> list[Sweep]:
    """Return sweeps so that nothing is trained twice: of one space, recipe and seeds one, which has the missing runs of all of them."""
    found: dict[str, Sweep] = {}
    known: set[str] = set()
    for each in sweeps:
        if each.study.space:
            alike = str((each.space.name, each.space.recipe, each.space.space, each.space.fixed))
            runs = (*(found[alike].runs if alike in found else ()), *each.runs)
        else:
            alike, runs = each.study.name, tuple(run for run in each.runs if run.job.key not in known)
        if runs:
            found[alike] = replace(found.get(alike, each), runs=runs)
        known |= each.missing.keys()
    return list(found.values())
