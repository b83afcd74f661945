"""Search spaces as data: each is checked before anything runs, and none may choose on the suite."""

from dataclasses import replace
from pathlib import Path

import pytest

from robustclip import spaces, tuning
from robustclip.errors import UserError
from robustclip.recipes import RECIPES

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
