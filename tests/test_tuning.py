"""Search spaces as data: each is checked before anything runs, and none may choose on the suite."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from robustclip import names as models
from robustclip.base.errors import UserError
from robustclip.base.values import override
from robustclip.models.dress import PixelPrompt, TokenPrompt
from robustclip.sweeps import body, spaces, tuning
from robustclip.test_time import TAPT, TPT, TTC, PromptAlign
from robustclip.training.recipes import RECIPES

SPACES = sorted((Path(__file__).parent.parent / "tune_spaces").glob("*.py"))
GOOD = spaces.Space("x", "Why?", "demo", {"threat.image.eps": {"grid_search": [1.0, 2.0]}, "optim.lr": 1e-3}, "val/robust", "max")


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_space_loads_asks_a_question_and_chooses_on_held_out_images(path: Path) -> None:
    space = spaces.load_space(path)
    assert space.metric.startswith("val/")
    assert "?" in space.question
    assert spaces.count(space, samples=1) >= 2


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"metric": "test/robust_4"}, "selection on the suite"),
        ({"metric": "loss"}, "only val/"),
        ({"mode": "biggest"}, "min or max"),
        ({"space": {"threat.image.epz": 1}}, "did you mean threat.image.eps"),
        ({"space": {"recpie": 1}}, "did you mean recipe"),
        ({"space": {"recipe": "demo"}}, "takes tune.grid_search"),
        ({"space": {"recipe": {"grid_search": ["demo", "dmo"]}}}, "did you mean demo"),
        ({"space": {"recipe": {"grid_search": ["demo", "demo-tokens"]}, "trainable.tokens": 4}}, "unknown recipe key 'trainable.tokens'"),
        ({"space": {"interpolation": {"grid_search": [0.5, 1.5]}}}, "from 0 .CLIP. to 1"),
        ({"axis": spaces.Axis("optim.epochs", "epochs")}, "AXIS is 'optim.epochs', which is not sampled"),
        ({"published": spaces.Published("a paper", "eps", {})}, "PUBLISHED without AXIS"),
    ],
)
def test_a_space_that_would_mislead_is_refused(change: dict, culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        spaces.check_space(replace(GOOD, **change), RECIPES["demo"].config)


def test_a_space_file_is_checked(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(
        '"""Why?"""\nRECIPE = "demo"\nSPACE = {"seed": {"grid_search": [0, 1]}}\nMETRIC = "val/robust"\nMODE = "max"\n'
    )
    (tmp_path / "silent.py").write_text('RECIPE = "demo"\nSPACE = {}\nMETRIC = "val/robust"\nMODE = "max"\n')
    (tmp_path / "short.py").write_text('"""Why?"""\nRECIPE = "demo"\n')
    assert spaces.load_space(tmp_path / "good.py").recipe == "demo"
    for name, culprit in (("silent", "docstring"), ("short", "SPACE"), ("goood", "did you mean good")):
        with pytest.raises(UserError, match=culprit):
            spaces.load_space(tmp_path / f"{name}.py")


def test_trials_are_counted_and_named() -> None:
    assert spaces.count(GOOD, samples=3) == 6
    assert tuning.Trial({"threat.image.eps": 4.0}, "key").label == "train eps 4"
    assert tuning.Trial({"trainable": "TokenPrompt", "optim.lr": 0.5}, "key").label == "train trainable TokenPrompt, lr 0.5"
    assert tuning.Trial({"trainable": TokenPrompt(4), "optim.lr": 0.5}, "key").label == "train TokenPrompt(tokens=4, deep=False), lr 0.5"
    assert tuning.Trial({"defense.weights": (1.0, 0.1)}, "key").label == "train weights (1, 0.1)"
    assert tuning.Trial({"interpolation": 0.25}, "key").label == "interpolation 0.25"


def space_of(sampled: dict, **fixed: object) -> spaces.Space:
    grids = {path: {"grid_search": values} for path, values in sampled.items()}
    return replace(GOOD, space=grids, fixed=fixed)


def test_a_sampled_recipe_is_what_the_trial_starts_from_and_the_command_line_stays_on_top() -> None:
    space = space_of({"recipe": ["demo", "demo-tokens"], "data.per_class": [1, 5]}, **{"data.n": None, "optim.epochs": 1})
    first = spaces.first_config(space)
    for name in ("demo", "demo-tokens"):
        config = spaces.trial_config(space, first, {"recipe": name, "data.per_class": 5})
        assert config == override(RECIPES[name].config, {"data.n": None, "optim.epochs": 1, "data.per_class": 5})


def test_an_interpolation_trains_the_same_run() -> None:
    space = space_of({"interpolation": [0.0, 1.0]})
    first = spaces.first_config(space)
    assert [spaces.trial_config(space, first, {"interpolation": alpha}) for alpha in (0.0, 1.0)] == [first, first]


@pytest.mark.parametrize(
    ("sampled", "absent"),
    [
        ({"threat.image.eps": [1.0, 2.0]}, set()),
        ({"trainable": [TokenPrompt(4), PixelPrompt("pad", 2)]}, {"trainable.tokens", "trainable.deep"}),
        ({"recipe": ["demo", "demo-tokens"]}, {"trainable", "trainable.tokens", "optim.lr", "optim.weight_decay"}),
        ({"interpolation": [0.0, 0.5]}, set()),
    ],
    ids=lambda each: ",".join(sorted(each)),
)
def test_what_is_logged_differs_in_the_sampled_fields_alone(sampled: dict, absent: set[str]) -> None:
    """And says nothing that does not hold: a field of the first recipe's prompt is none of a trial with another."""
    space = replace(space_of(sampled), recipe="demo-tokens")
    config = spaces.first_config(space)
    (path,) = sampled
    params = [spaces.shared(space, config) | {path: value} for value in sampled[path]]
    assert {name for name in params[0] if params[0][name] != params[1][name]} == {path}
    assert params[0].keys() == params[1].keys()
    assert not absent & params[0].keys()
    assert params[0]["seed"] == 0
    if path == "trainable":
        assert str(params[0][path]) == "TokenPrompt(tokens=4, deep=False)"


def finished(robust: float, strong: float | None) -> tuning.Trial:
    result = {"val/robust": robust} | ({} if strong is None else {"val/strong": strong})
    return tuning.Trial({}, "key", result=result)


def test_the_strong_number_chooses_where_every_finished_trial_has_it() -> None:
    trials = [finished(0.5, 0.2), finished(0.4, 0.3), tuning.Trial({}, "key", stopped=1.0), finished(0.45, 0.3)]
    assert tuning.choose(GOOD, trials) == (trials[3], "val/strong")  # a tie goes by the proxy
    assert tuning.choose(GOOD, [*trials, finished(0.6, None)])[1] == "val/robust"
    assert tuning.choose(replace(GOOD, mode="min"), trials) == (trials[1], "val/robust")
    assert tuning.choose(GOOD, trials[2:3]) == (None, "val/strong")


def test_a_test_time_defence_is_sampled_over_one_training(tmp_path):
    sampled = [TPT(views=4, keep=0.5), TAPT(views=4, keep=0.5, gamma=1.0), PromptAlign(views=4, keep=0.5), TTC()]
    space = space_of({"test_time": sampled})
    first = spaces.first_config(space)
    spaces.check_space(space, first)
    assert [spaces.trial_config(space, first, {"test_time": each}) for each in sampled] == 4 * [first]
    path = tmp_path / "moments.safetensors"
    path.write_text("there already")
    job = SimpleNamespace(folder=str(tmp_path), config=first, out="")
    names = [body.evaluated({"test_time": each}, "RUN", job, None) for each in sampled]
    assert names == [
        "tpt[views=4,keep=0.5]:RUN",
        f"tapt[views=4,keep=0.5,adversarial={path},gamma=1.0]:RUN",
        f"promptalign[views=4,keep=0.5,clean={path}]:RUN",
        "ttc:RUN",
    ]
    for name, each in zip(names, sampled, strict=True):
        read = models.parse(name)
        assert read.inner == models.parse("RUN")
        assert type(read.settings) is type(each)
    assert tuning.Trial({"test_time": sampled[0]}, "key").label == "tpt[views=4,keep=0.5]"


@pytest.mark.parametrize(
    ("sampled", "said"),
    [
        ({"test_time": ["tpt"]}, "test_time takes settings such as TPT"),
        ({"test_time": [TTC()], "interpolation": [0.5]}, "combinations of models do not adapt"),
    ],
)
def test_spaces_that_cannot_be_evaluated_are_refused(sampled, said):
    space = space_of(sampled)
    with pytest.raises(UserError, match=said):
        spaces.check_space(space, spaces.first_config(space))
