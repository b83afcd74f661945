"""Worlds: what the roles and columns of the claims are in one place, the embedded world or real CLIP, each a TOML table of studies."""

import itertools
import json
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from robustclip import names as models
from robustclip.attacks.catalogue import named as attacks_named
from robustclip.base import storage
from robustclip.base.errors import UserError, did_you_mean
from robustclip.base.values import digest
from robustclip.evaluation import protocols
from robustclip.evaluation.rules import Protocol
from robustclip.reproduction.ledger import Claim, check_keys, parsed
from robustclip.runtime.cli import command
from robustclip.sweeps import spaces
from robustclip.sweeps.spaces import RECIPE, TEST_TIME, Space
from robustclip.sweeps.trials import readable

SEED = "seed"
BASE = "base"  # what a model's name calls the model that the study's recipe starts from
ALL = "all"  # what a trial calls the value None, which TOML lacks, as tables do
CLEAN = "clean"  # the column that every study has
Mean = float | str | tuple[float, str]  # of a column: a mean over the sets


@dataclass(frozen=True)
class Bound:
    """A column of one `set` of its study alone, as columns say it that are means over all sets; "clean" is there too."""

    of: Mean
    set: str


Spec = Mean | Bound  # of a column


@dataclass(frozen=True)
class Study:
    """Which models stand for the roles of some claims, and which accuracies for their columns.

    Models: `trials` of the sweep `space` by what they sample; without a space `recipes`, or `trials` that say their recipe and what they
    change of it, each trained by itself; the `checkpoints` under such trials, where these are evaluated under a test-time defence;
    `models` by name, {role} for a role's checkpoint and {base} for the undefended model. `recipe` takes the place of the space's own.
    Accuracies: under `protocol`, of which `sets`, `n`, `eps`, `attacks` and `independent` change what they name. `columns`: an eps, worst
    case of all attacks; [eps, attack], up to that attack; a pattern of attack names, these alone (where attacks are independent, at one
    eps); every study has "clean"; { of, set }, one of these on one set alone. `not_yet` says why there is no such study.
    """

    name: str
    protocol: str = ""
    space: str = ""
    recipe: str = ""
    recipes: Mapping[str, str] = field(default_factory=dict)
    trials: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    checkpoints: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, Spec] = field(default_factory=dict)
    sets: tuple[str, ...] = ()
    n: int | None = None
    eps: tuple[float, ...] = ()
    attacks: tuple[str, ...] = ()
    independent: bool = False
    not_yet: str = ""

    @property
    def roles(self) -> set[str]:
        return {*self.recipes, *self.trials, *self.checkpoints, *self.models}

    @property
    def sampled(self) -> dict[str, Mapping[str, Any]]:
        """Return the roles that are trained, with what their trials sample."""
        return {**{role: {RECIPE: recipe} for role, recipe in self.recipes.items()}, **self.trials, **self.checkpoints}

    @property
    def changed(self) -> bool:
        """Whether it evaluates by another protocol than its sweep does."""
        return bool(self.sets or self.n or self.eps or self.attacks or self.independent)

    def evaluated(self) -> Protocol:
        """Return the protocol by which its models are evaluated."""
        base = protocols.named(self.protocol)
        changes: dict[str, Any] = {name: getattr(self, name) for name in ("sets", "n", "eps", "independent") if getattr(self, name)}
        if self.sets:
            changes["real"] = tuple(name for name in base.real if name in self.sets)
        if self.attacks:
            changes["attacks"] = attacks_named(self.attacks)
        return replace(base, **changes)

    def used(self, roles: set[str]) -> set[str]:
        """Return some roles with those that their names are made of."""
        inner = {name for role in roles for name in parts_of(self.models.get(role, "")) if name != BASE}
        return roles if inner <= roles else self.used(roles | inner)


@dataclass(frozen=True)
class World:
    """A place where claims are measured: its studies by name, and what it changes of every training (`fixed`: a model, a data set)."""

    name: str
    title: str
    about: str
    fixed: Mapping[str, Any]
    studies: Mapping[str, Study]
    not_yet: str = ""

    def why_not(self, claim: Claim) -> str:
        """Return why a claim cannot be measured here yet, "" where it can."""
        if said := claim.not_yet or self.not_yet:
            return said
        study = self.studies.get(claim.study)
        if study is None:
            return f"this world has no study {claim.study!r}"
        if study.not_yet:
            return study.not_yet
        roles, columns = (set().union(*(getattr(part, name) for part in claim.parts)) for name in ("roles", "columns"))
        lacking = [*(f"model {each!r}" for each in sorted(roles - study.roles))]
        lacking += [f"column {each!r}" for each in sorted(columns - {*study.columns, CLEAN})]
        return f"its study {study.name!r} has no {', '.join(lacking)}" if lacking else ""

    def fingerprint(self, claim: Claim) -> str:
        """Return the hash of what is fixed before a claim is measured here: its parts, its study, what the world changes of trainings."""
        parts = [asdict(part) for part in claim.parts]
        return digest([parts, asdict(self.studies[claim.study]), dict(self.fixed)])

    def space_of(self, study: Study) -> Space:
        """Return the sweep that trains a study's models, or what their recipes share, by names that are found from anywhere."""
        if study.space:
            space = spaces.load_space(spaces.FOLDER / f"{study.space}.py")
        else:
            recipes = list(dict.fromkeys(sampled[RECIPE] for sampled in study.sampled.values()))
            grid = {RECIPE: {"grid_search": recipes}}
            space = Space(f"reproduce-{study.name}", f"What does {study.name} show?", recipes[0], grid, "val/robust", "max")
        return spaces.rooted(replace(space, recipe=study.recipe or space.recipe, fixed={**space.fixed, **self.fixed}))

    def sweep(self, study: Study, *more: str) -> str:
        """Return the command that trains the models of a study with a space by itself."""
        recipe = ("--recipe", study.recipe) if study.recipe else ()
        fixed = [(f"--{path}", value if isinstance(value, str) else json.dumps(value)) for path, value in self.fixed.items()]
        return command("sweep", study.space, "--protocol", study.protocol, *recipe, *more, *itertools.chain(*fixed))

    def weights(self, study: Study) -> str:
        """Return the identity of the model that a study's trainings start from; "" where it is no folder that is here."""
        base = models.parse(spaces.first_config(self.space_of(study)).model)
        return base.identity() if isinstance(base, models.Folder) and base.card() else ""


def parts_of(name: str) -> list[str]:
    """Return the roles that stand in braces in a model's name."""
    return [part for _, part, _, _ in string.Formatter().parse(name) if part]


def samples(space: Space) -> Iterator[dict[str, Any]]:
    """Yield what the trials of a space's grid sample, seeds left out."""
    grids = {path: space.grid(path) for path in space.space if path != SEED}
    for values in itertools.product(*grids.values()):
        yield dict(zip(grids, values, strict=True))


def trial(space: Space, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the one sample of a space that has some values, as tables show them; raises UserError where there is none or are several."""
    said = {path: readable(value) for path, value in wanted.items()}
    found = [each for each in samples(space) if all(path in each and readable(each[path]) == value for path, value in said.items())]
    if len(found) != 1:
        known = "; ".join(str({path: readable(value) for path, value in each.items()}) for each in samples(space))
        raise UserError(f"space {space.name} has {len(found)} trials of {said}, not one; there are {known}")
    return found[0]


def sample(study: Study, space: Space, role: str) -> dict[str, Any]:
    """Return what a role's training samples: the one trial of the study's space that is meant, without a space what the study says."""
    wanted = study.sampled[role]
    return trial(space, wanted) if study.space else {path: None if value == ALL else value for path, value in wanted.items()}


def seeded(space: Space, seeds: Sequence[int]) -> list[Space]:
    """Return the sweeps that train a space's trials with some seeds: one where it samples the seed, else one a seed."""
    if SEED in space.space:
        return [replace(space, space={**space.space, SEED: {"grid_search": list(seeds)}})]
    return [replace(space, fixed={**space.fixed, SEED: seed}) for seed in seeds]


def read(folder: str, name: str) -> World:
    """Return the world `name` of a ledger's folder; raises UserError with a suggestion for an unknown one, and for unknown keys.

    One that is `like` another has its studies, but for those that it says itself. Studies that name no sets have the world's `sets`.
    """
    known = [storage.name_of(path).removesuffix(".toml") for path in storage.list_files(storage.join(folder, "worlds"), ".toml")]
    if name not in known:
        raise UserError(f"no world {name!r}{did_you_mean(name, known)} in {folder}; there are {', '.join(known) or 'none'}")
    path = storage.join(folder, "worlds", f"{name}.toml")
    data = parsed(storage.read_bytes(path).decode(), path)
    allowed = ("title", "about", "fixed", "studies", "not_yet", "like", "sets")
    check_keys(data, allowed, path)
    own = {study: _study(study, each, f"{path}: studies.{study}") for study, each in data.get("studies", {}).items()}
    others = read(folder, data["like"]).studies if "like" in data else {}
    studies = {key: replace(each, sets=each.sets or tuple(data.get("sets", ()))) for key, each in {**others, **own}.items()}
    for study, each in studies.items():
        _check_bound(each, f"{path}: studies.{study}")
    return World(name, data.get("title", name), data.get("about", ""), data.get("fixed", {}), studies, data.get("not_yet", ""))


def _study(name: str, data: Mapping[str, Any], where: str) -> Study:
    check_keys(data, [each.name for each in fields(Study) if each.name != "name"], where)
    lists = {key: tuple(data[key]) for key in ("sets", "eps", "attacks") if key in data}
    columns = {column: _spec(spec, f"{where}: columns.{column}") for column, spec in data.get("columns", {}).items()}
    study = Study(name, **{**data, **lists, "columns": columns})
    if bool(study.not_yet) == bool(study.protocol):
        raise UserError(f"{where}: give a protocol and models, or not_yet")
    if not study.not_yet and bool(study.space) == bool(study.recipes if study.space else study.sampled):
        raise UserError(f"{where}: give a space of tune_spaces/, or recipes and trials without one: one of the two trains its models")
    for role, sampled in study.sampled.items() if not study.space else ():
        if RECIPE not in sampled or TEST_TIME in sampled:
            raise UserError(f"{where}: {role} has {', '.join(sampled) or 'nothing'}; without a space it has a recipe, and no {TEST_TIME}")
    return study


def _spec(said: Any, where: str) -> Spec:
    if not isinstance(said, Mapping):
        return _mean(said)
    names = [each.name for each in fields(Bound)]
    check_keys(said, names, where)
    if missing := [name for name in names if name not in said]:
        raise UserError(f"{where}: {missing[0]} is missing: a column of one set says what it is of and of which set")
    if isinstance(said["of"], Mapping):
        raise UserError(f"{where}: of: a column is of one set alone, not of a set's set")
    return Bound(_mean(said["of"]), said["set"])


def _mean(said: Any) -> Mean:
    return tuple(said) if isinstance(said, list) else said


def _check_bound(study: Study, where: str) -> None:
    """Raise UserError for a column of a set that a study does not have."""
    for column, spec in study.columns.items():
        if isinstance(spec, Bound) and spec.set not in (sets := study.evaluated().sets):
            raise UserError(f"{where}: columns.{column}: no set {spec.set!r}{did_you_mean(spec.set, sets)}; it has {', '.join(sets)}")
