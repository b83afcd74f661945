"""Commands that are printed can be copied: quoted for a shell, right for the set, and understood by the program."""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from robustclip.base.errors import UserError
from robustclip.base.values import override
from robustclip.commands import evaluate, moments, prepare, train
from robustclip.data import preparation
from robustclip.data.card import DatasetCard
from robustclip.data.datasets import ensure_set
from robustclip.evaluation import protocols
from robustclip.evaluation.protocols import resolve
from robustclip.training import job
from robustclip.training.config import Config
from robustclip.training.recipes import RECIPES


def make(out: Path, name: str, classes: int = 2, **splits: int) -> DatasetCard:
    """Prepare a set of so many images of each split, spread over the classes."""
    for split, rows in splits.items():
        for i in range(rows):
            folder = out / "images" / name / split / f"class {i % classes}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((8, 8), 60).convert("RGB").save(folder / f"{i}.png")
    return preparation.prepare(str(out), name, [str(out / "images" / name)]).card


def asked(monkeypatch: pytest.MonkeyPatch, line: str) -> tuple[str, tuple[Any, ...]]:
    """Return which command a printed line runs, and what it asks for."""
    program, name, *words = shlex.split(line)
    monkeypatch.setattr(sys, "argv", [f"{program} {name}", *words])
    return name, {"train": train, "evaluate": evaluate}[name].asked()


@pytest.mark.parametrize("name", ["mine", "101", "1e5", "true", "null", "0.10"])
@pytest.mark.parametrize("splits", [{"train": 2}, {"train": 7, "test": 3}, {"test": 5}, {"train": 300}], ids=str)
def test_what_prepare_says_to_do_next_can_be_done(name: str, splits: dict[str, int], tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "o ut $HOME"
    card = make(out, name, **splits)
    command, (_, config, where) = asked(monkeypatch, prepare.next_step(card, str(out)))
    assert (command, where) == ("train" if "train" in splits else "evaluate", str(out))
    if command == "train":
        found = job.prepare(config, where)
        assert (found.card.name, found.plan.steps > 0, len(found.val_rows) > 0) == (name, True, True)
    else:
        assert list(resolve(config, where).sets) == [name]


@pytest.mark.parametrize(("split", "command"), [("train", "train"), ("test", "evaluate")])
def test_what_prepare_says_of_an_embedded_set_can_be_done(split: str, command: str, tmp_path: Path, monkeypatch) -> None:
    card = ensure_set(str(tmp_path), "shapes", {split: 96}, 7)
    ran, (_, config, where) = asked(monkeypatch, prepare.next_step(card, str(tmp_path)))
    assert ran == command
    if command == "train":
        assert job.prepare(config, where).card.folder == card.folder


def test_a_set_of_one_class_trains_what_looks_at_no_classes(tmp_path: Path, monkeypatch) -> None:
    card = make(tmp_path, "one", 1, train=9, test=3)
    _, (_, config, where) = asked(monkeypatch, prepare.next_step(card, str(tmp_path)))
    assert job.prepare(config, where).card.class_names == ("class 0",)
    with pytest.raises(UserError, match="'one' has one class, 'class 0', and TeCoA learns from what tells classes apart"):
        job.prepare(override(config, {"defense": "TeCoA"}), where)
    with pytest.raises(UserError, match="'one' has one class, 'class 0', which nothing can be mistaken for: it cannot be evaluated"):
        resolve(protocols.named("smoke").changed(sets=("one",), n=3), where)
    assert prepare.next_step(make(tmp_path, "alone", 1, test=3), where).startswith("nothing: it has one class")


def test_where_nothing_can_be_done_nothing_is_said_to_do(tmp_path: Path) -> None:
    assert prepare.next_step(make(tmp_path, "held", val=4), str(tmp_path)).startswith("nothing: it has no split to train or to evaluate on")


def test_prepare_names_what_a_model_cannot_tell_apart(tmp_path: Path, monkeypatch, capsys) -> None:
    for name in ("Crane", "crane", "dog"):
        (tmp_path / "birds" / name).mkdir(parents=True)
        Image.effect_noise((8, 8), 60).save(tmp_path / "birds" / name / "1.png")
    words = [str(tmp_path / "birds"), "--name", "birds", "--split", "test", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["robustclip prepare", *words])
    prepare.run()
    said, warned = capsys.readouterr()
    assert "warning: 'Crane' = 'crane': one text to the model" in warned
    assert re.search(r"^next: robustclip evaluate tiny-vit8 --sets birds --n 3 --out \S+$", said, re.MULTILINE)


def test_a_file_that_no_name_of_a_model_can_hold_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["robustclip moments", "tiny-vit8", "--to", "a,b.safetensors"])
    with pytest.raises(UserError, match="can hold no file with ',' or ']'"):
        moments.asked()


@pytest.mark.parametrize("word", ["101", "007", "1e5", "true", "null", "None", "[1]", "nan", "abc", "-1"])
def test_a_field_of_text_takes_a_word_as_it_stands(word: str) -> None:
    from robustclip.base.values import value_of

    assert override(Config(), {"data.name": value_of(word), "model": value_of(word)}).data.name == word
    assert override(RECIPES["demo"].config, {"data.name": value_of(f'"{word}"')}).data.name == word
