"""Worlds: what the roles and columns of claims are in each, and what a file of one must say."""

import shutil
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import photo_runs
import photo_sets
import pytest
from photo_runs import PROMPT, TOWER, Runs

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.base.values import override
from robustclip.data import world as embedded
from robustclip.data.variants import base_of, other_of
from robustclip.evaluation.presets import PRESETS
from robustclip.models.checkpoints import save
from robustclip.models.dress import PixelPrompt, TokenPrompt
from robustclip.models.model import Model
from robustclip.reproduction import page, worlds
from robustclip.reproduction.needs import Laid
from robustclip.sweeps.spaces import RECIPE, first_config, trial_config
from robustclip.training.config import Config
from robustclip.training.recipes import RECIPES
from robustclip.training.trainables import LastBlocks, SameSize

CLAIMS = str(Path(__file__).resolve().parent.parent / "claims")
WORLDS = {name: worlds.read(CLAIMS, name) for name in page.WORLDS}
BOUND = '[studies.a]\nprotocol = "demo"\nrecipes = {{ a = "demo" }}\ncolumns = {{ few = {{ {} }} }}\n'
EVERY = [(paper, claim) for paper in page.papers(CLAIMS).values() for claim in paper.claims]
OF_TRIALS = [(world, name) for world in ("photographs", "clip") for name, study in WORLDS[world].studies.items() if not study.not_yet]


def means_of(study: worlds.Study) -> list[worlds.Mean]:
    """Return what a study's columns are of, whatever sets they are bound to; the clean one is everywhere."""
    specs = [spec.of if isinstance(spec, worlds.Bound) else spec for spec in study.columns.values()]
    return [spec for spec in specs if spec != worlds.CLEAN]


@pytest.mark.parametrize(("world", "not_yet"), [("rendered", set()), ("photographs", {"ladder", "ladder-whole"})])
def test_every_claim_can_be_measured_in_a_world_or_says_why_not(world: str, not_yet: set[str]) -> None:
    lacking = {claim.name: claim for _, claim in EVERY if WORLDS[world].why_not(claim)}
    assert {claim.study for claim in lacking.values() if not claim.not_yet} == not_yet
    assert {claim.name for _, claim in EVERY if claim.not_yet} == set()
    assert {world.why_not(claim) != "" for world in WORLDS.values() if world.not_yet for _, claim in EVERY} <= {True}


@pytest.mark.parametrize("name", [name for name, study in WORLDS["rendered"].studies.items()])
def test_every_role_is_one_trial_and_every_column_is_in_its_protocol(name: str) -> None:
    world = WORLDS["rendered"]
    study, protocol = world.studies[name], world.studies[name].evaluated()
    space = world.space_of(study)
    samples = {role: worlds.trial(space, wanted) for role, wanted in study.sampled.items() if role not in study.checkpoints}
    assert len({str(each) for each in samples.values()}) == len(samples)
    for spec in means_of(study):
        if isinstance(spec, str):
            assert protocol.independent
            assert len(protocol.eps) == 1
        else:
            assert spec in protocol.eps
    assert {base_of(each) for each in protocol.sets} | {other_of(each) for each in protocol.sets} <= {*embedded.SETS, None}
    with pytest.raises(UserError, match="trials of"):
        worlds.trial(space, {"nothing": 1})


def test_real_clip_has_recipes_and_protocols_as_published() -> None:
    for study in WORLDS["clip"].studies.values():
        said = [*study.recipes.values(), *(sampled[RECIPE] for sampled in study.trials.values() if RECIPE in sampled)]
        assert {*said, *([study.recipe] if study.recipe else [])} <= RECIPES.keys()
        assert study.not_yet or study.protocol in PRESETS


def test_a_world_like_another_has_its_studies_on_its_own_sets(tmp_path: Path) -> None:
    shutil.copytree(CLAIMS, tmp_path / "claims")
    (tmp_path / "claims" / "worlds" / "other.toml").write_text('like = "rendered"\nsets = ["shapes"]\n[fixed]\nmodel = "m"\n')
    other = worlds.read(str(tmp_path / "claims"), "other")
    assert other.studies["methods"].evaluated().sets == ("shapes",)
    assert other.studies["shots-within"].sets == ("labelled",)
    (claim,) = (claim for _, claim in EVERY if claim.name == "robust-size")
    assert other.why_not(claim) == ""
    assert other.fingerprint(claim) != WORLDS["rendered"].fingerprint(claim)
    with pytest.raises(UserError, match="did you mean other"):
        worlds.read(str(tmp_path / "claims"), "othr")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('abuot = "x"\n', "unknown key 'abuot'"),
        ('[studies.a]\nprotocl = "demo"\n', "unknown key 'protocl'"),
        ('[studies.a]\nprotocol = "demo"\n', "studies.a: give a space of tune_spaces/, or recipes and trials without one"),
        ('[studies.a]\nprotocol = "demo"\nspace = "method"\nrecipes = { a = "demo" }\n', "one of the two trains its models"),
        ('[studies.a]\nprotocol = "demo"\ntrials = { a = { seed = 1 } }\n', "a has seed; without a space it has a recipe"),
        (
            '[studies.a]\nprotocol = "ladder"\ntrials = { a = { recipe = "demo-advvpt", test_time = "tapt" } }\n',
            "a has recipe, test_time; without a space it has a recipe, and no test_time",
        ),
        (BOUND.format('of = "clean", set = "chss"'), "studies.a: columns.few: no set 'chss' .did you mean chess.*; it has shapes, chess"),
        (BOUND.format('of = "clean", set = "among:things:chess"'), "no set 'among:things:chess'"),
        (BOUND.format('off = "clean", set = "chess"'), "unknown key 'off'"),
        (BOUND.format('of = "text:*"'), "columns.few: set is missing"),
        (BOUND.format('of = { of = "clean", set = "chess" }, set = "chess"'), "columns.few: of: a column is of one set alone"),
    ],
)
def test_a_world_that_says_nonsense_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "worlds").mkdir()
    (tmp_path / "worlds" / "other.toml").write_text(text)
    with pytest.raises(UserError, match=said):
        worlds.read(str(tmp_path), "other")


# --- trials without a space -------------------------------------------------------------------------------------------


def config_of(world: worlds.World, study: worlds.Study, role: str) -> Config:
    """Return what a role's training is, its data and model not looked for."""
    space = world.space_of(study)
    return trial_config(space, first_config(space), worlds.sample(study, space, role))


@pytest.mark.parametrize(("world", "name"), OF_TRIALS)
def test_every_trial_is_a_training_of_its_own_and_every_column_is_in_its_protocol(world: str, name: str) -> None:
    study = WORLDS[world].studies[name]
    protocol, roles = study.evaluated(), [role for role in study.sampled if role not in study.checkpoints]
    space = WORLDS[world].space_of(study)
    samples = {role: worlds.sample(study, space, role) for role in roles}
    configs = {role: config_of(WORLDS[world], study, role) for role in roles}
    assert len({str((config, samples[role].get("interpolation"))) for role, config in configs.items()}) == len(roles)
    assert {config.model for config in configs.values()} == {first_config(space).model}
    for spec in means_of(study):
        eps, attack = spec if isinstance(spec, tuple) else (spec, "*") if isinstance(spec, float) else (None, spec)
        assert eps in protocol.eps or (eps is None and protocol.independent and len(protocol.eps) == 1)
        assert any(fnmatchcase(each.name, attack) for each in protocol.attacks)


def test_the_photographs_are_trained_on_as_in_the_benchmark(tmp_path: Path) -> None:
    """So that both find each other's trainings: the same changes of every recipe, and at one rate the same config."""
    world = WORLDS["photographs"]
    assert {**world.fixed} == {"model": "outputs/photographs/photos", **photo_runs.CHANGES}
    assert {study.sets for study in world.studies.values() if not study.not_yet} == {
        photo_sets.SCORED,
        ("tiny-tuned",),
        ("tiny-few", "among:tiny-all:tiny-few"),
    }
    runs = Runs(models.absolute(str(world.fixed["model"])), str(tmp_path))
    methods = {"tecoa": ("TeCoA", TOWER), "adv": ("Adv.", TOWER), "fare": ("FARE", TOWER), "prompt": ("TeCoA", PROMPT)}
    for role, (method, part) in methods.items():
        found = config_of(world, world.studies["methods"], role)
        assert found == runs.config(method, part, found.optim.lr)


def test_a_trial_changes_what_it_says_and_all_stands_for_none() -> None:
    world = WORLDS["photographs"]
    one = config_of(world, world.studies["sizes"], "tokens-1")
    assert (one.data.n, one.data.per_class, one.optim.epochs, one.optim.warmup, one.optim.lr) == (None, 1, 4, 3, 1e-2)
    assert one.trainable == TokenPrompt(8)
    designs = {role: config_of(world, world.studies["designs"], role).trainable for role in world.studies["designs"].trials}
    assert designs == {"tokens": TokenPrompt(18), "frame": PixelPrompt("pad", 8), "same-size": SameSize(2304)}
    parts = {role: config_of(world, world.studies["parts-within"], role).trainable for role in world.studies["parts-within"].trials}
    assert parts["last-block"] == LastBlocks(1)
    assert str(parts["norms"]) == "Towers(both, norms and biases)"
    halves = {role: config_of(WORLDS["clip"], WORLDS["clip"].studies["modes"], role).defense for role in ("image-only", "text-only")}
    assert (halves["image-only"].lambda_txt, halves["text-only"].lambda_img) == (0.0, 0.0)  # type: ignore[attr-defined]


def test_a_sweep_of_a_world_says_what_it_fixes() -> None:
    rendered = WORLDS["rendered"]
    other = worlds.World("other", "x", "x", {"model": "a folder/clip", "data.n": 64, "data.per_class": 2}, rendered.studies)
    plain, said = (world.sweep(world.studies["methods"], "--seed", "1") for world in (rendered, other))
    assert plain == "robustclip sweep method --protocol strong --seed 1"
    assert said == f"{plain} --model 'a folder/clip' --data.n 64 --data.per_class 2"


def test_runs_of_trials_lie_where_training_leaves_them(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    """Two places between CLIP and one fine-tuned model are one training, another size is one of its own; all by the seeds asked for."""
    save(make_model(), str(tmp_path / "clip"))
    trials = {
        "between": {"recipe": "smoke", "interpolation": 0.5},
        "whole": {"recipe": "smoke", "interpolation": 1.0},
        "few": {"recipe": "smoke", "data.n": "all", "data.per_class": 2},
    }
    fixed = {"model": str(tmp_path / "clip"), "data.name": "shapes", "data.n": 48}
    study = worlds.Study("planted", "smoke", trials=trials)
    laid = Laid(study, worlds.World("here", "x", "x", fixed, {"planted": study}), (0, 1), str(tmp_path / "out"), {*trials})
    (sweep,) = laid.sweeps()
    assert len(sweep.missing) == 4
    assert str(sweep) == "training of between, few, whole of study planted, seeds 0, 1"
    first = override(RECIPES["smoke"].config, {**fixed, "seed": 1})
    assert laid.runs["whole"][1].job.config == first
    assert laid.runs["few"][0].job.config.data.n is None
    checkpoint = laid.runs["between"][0].checkpoint
    assert laid.names("between")[0] == f"interpolate:0.5:{checkpoint}"
    assert laid.missing()
