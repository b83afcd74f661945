"""What a study needs under a folder of results: the runs of its roles, which of them are there, the sweeps that make the rest."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.values import override
from robustclip.evaluation.protocols import Protocol
from robustclip.reproduction.worlds import BASE, SEED, Study, World, parts_of, seeded, trial
from robustclip.runtime.cli import command
from robustclip.sweeps.spaces import RECIPE, Space, first_config, trial_config
from robustclip.sweeps.tuning import written_of
from robustclip.training.config import Config
from robustclip.training.fit import finished
from robustclip.training.job import Job, prepare


@dataclass(frozen=True)
class Run:
    """The model of a role and a seed: its training, its checkpoint, the name that is evaluated, and whether all of that is there."""

    job: Job
    checkpoint: str
    name: str
    ready: bool


@dataclass(frozen=True)
class Sweep:
    """A sweep for a study, of one or several seeds, with the trainings that are missing for its claims, by key."""

    study: Study
    space: Space
    config: Config
    seeds: tuple[int, ...]
    missing: Mapping[str, Job]

    def __str__(self) -> str:
        """Return the command that runs it by itself; of recipes without a space of their own, what it trains."""
        if not self.study.space:
            return f"training of {', '.join(self.space.grid(RECIPE))}, seeds {', '.join(map(str, self.seeds))}"
        recipe = ("--recipe", self.study.recipe) if self.study.recipe else ()
        seed = ("--seed", str(self.space.fixed[SEED])) if SEED in self.space.fixed else ()
        return command("sweep", self.study.space, "--protocol", self.study.protocol, *recipe, *seed)


class Laid:
    """A study's roles under a folder `out`, each with a run a seed; only roles that are wanted are looked at."""

    def __init__(self, study: Study, world: World, seeds: Sequence[int], out: str, wanted: Iterable[str]):
        self.study, self.seeds, self.out = study, tuple(seeds), out
        self.space = world.space_of(study)
        self.config = first_config(self.space)
        self.wanted = study.used(set(wanted))
        self.runs = {role: [self._run(role, seed) for seed in self.seeds] for role in sorted(self.wanted & study.sampled.keys())}

    def _run(self, role: str, seed: int) -> Run:
        sample = trial(self.space, self.study.sampled[role])
        job = prepare(override(trial_config(self.space, self.config, sample), {SEED: seed}), self.out)
        checkpoint = storage.join(job.folder, "model")
        name, file = written_of(sample, checkpoint, job)
        if role in self.study.checkpoints:
            name, file = checkpoint, ""
        return Run(job, checkpoint, name, finished(job) and (not file or storage.exists(file)))

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

    def sweeps(self) -> list[Sweep]:
        """Return the sweeps that make what is missing."""
        found = []
        for space in seeded(self.space, self.seeds):
            seeds = self.seeds if SEED in space.space else (space.fixed[SEED],)
            runs = [
                run for each in self.runs.values() for run, seed in zip(each, self.seeds, strict=True) if seed in seeds and not run.ready
            ]
            if runs:
                found.append(Sweep(self.study, space, first_config(space), seeds, {run.job.key: run.job for run in runs}))
        return found


def distinct(sweeps: Iterable[Sweep]) -> list[Sweep]:
    """Return sweeps without those that train what an earlier one of the same space, recipe and seeds does."""
    found: dict[tuple[str, ...], Sweep] = {}
    for each in sweeps:
        found.setdefault((each.space.name, each.space.recipe, str(each.space.space), str(each.space.fixed)), each)
    return list(found.values())
