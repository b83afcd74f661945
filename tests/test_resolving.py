"""Protocols on prepared sets: what is found and written down, whose prompts and pixels are taken, and what is missing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustclip.attacks import PGD
from robustclip.base.errors import UserError
from robustclip.data.card import load, save
from robustclip.data.index import scan
from robustclip.data.preparation import prepare
from robustclip.data.reading import stratified
from robustclip.evaluation.protocols import Protocol, resolve
from robustclip.evaluation.rules import SetRule

MINE = Protocol("mine", ("mine",), (PGD(2),), (1.0,), n=6)


@pytest.fixture
def out(tmp_path):
    """Return an output folder with a prepared set `mine` of 3 x 4 test images."""
    for label, colour in enumerate(("red", "green", "blue")):
        folder = tmp_path / "photos" / "test" / colour
        folder.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (80 * label, 20 * i, 30)).save(folder / f"{i}.png")
    prepare(str(tmp_path / "out"), "mine", [str(tmp_path / "photos")])
    return str(tmp_path / "out")


def test_a_protocol_finds_its_sets_and_is_written_down(out):
    found = resolve(MINE, out)
    index = scan(found.sets["mine"].card.folder, found.sets["mine"].card, "test")
    assert found.sets["mine"].ids == index.ids(stratified(index, 6))
    assert np.bincount(index.label[found.sets["mine"].rows]).tolist() == [2, 2, 2]
    assert (Path(out) / "protocols" / f"{found.hash}.json").is_file()
    assert resolve(MINE, out).hash == found.hash
    assert len(resolve(replace(MINE, n=None), out).sets["mine"].rows) == 12


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sets": ("mine", "mien")}, "no data set 'mien'.*did you mean mine"),
        ({"sets": ("mein", "mine", "mien", "cifar10")}, "'mine' needs 4 data sets.*'mein'.*'mien'.*'cifar10' .CIFAR-10.: prepare each"),
        ({"n": None, "attacked": 13}, "has 12 test images.*asks for 13"),
        ({"rules": (SetRule("mine", split="val"),)}, "no split 'val' .it has test."),
        ({"rules": (SetRule("mine", classes=4),)}, "has 3 classes, not 4"),
        ({"rules": (SetRule("mine", class_names=("x", "y")),)}, "has 3 classes, not 2"),
        ({"rules": (SetRule("mine", images=13),)}, "has 12 images, not 13"),
        ({"rules": (SetRule("mine", native=32),)}, "has 8 px squares as stored, not 32"),
        ({"n": 13}, "has 12 test images.*asks for 13"),
    ],
)
def test_a_missing_or_small_set_is_an_error(out, changes, said):
    with pytest.raises(UserError, match=said):
        resolve(replace(MINE, **changes), out)


def test_a_rule_gives_prompts_and_geometry(out):
    rule = SetRule("mine", classes=3, images=12, templates=("{}!", "{}?"), class_names=("b", "g", "r"))
    found = resolve(replace(MINE, rules=(rule,)), out)
    card = found.sets["mine"].card
    assert (card.templates, card.class_names) == (("{}!", "{}?"), ("b", "g", "r"))
    assert found.describe()["sets"]["mine"]["templates"] == ["{}!", "{}?"]
    assert found.sets["mine"].prompts_hash != resolve(MINE, out).sets["mine"].prompts_hash

    def pixels(**changes):
        found = resolve(replace(MINE, **changes), out)
        return found.read("mine", found.sets["mine"].rows, 16)[1]

    assert pixels().shape == (6, 8, 8, 3)  # stored small, so attacked small
    assert pixels(crop=32, resize=40).shape == (6, 32, 32, 3)
    assert pixels(crop=32, rules=(SetRule("mine", native=8),)).shape == (6, 8, 8, 3)


def test_interpolation_is_honoured(tmp_path):
    for name in ("noise", "other"):
        folder = tmp_path / "photos" / "test" / name
        folder.mkdir(parents=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / "0.png")
    prepare(str(tmp_path / "out"), "mine", [str(tmp_path / "photos")])
    seen = {}
    for interpolation in ("bicubic", "bilinear"):
        found = resolve(replace(MINE, n=2, crop=8, resize=10, interpolation=interpolation), str(tmp_path / "out"))
        seen[interpolation] = found.read("mine", found.sets["mine"].rows, 8)[1][0]
        image = Image.open(folder / "0.png").resize((10, 10), Image.Resampling[interpolation.upper()])
        assert np.array_equal(seen[interpolation], np.asarray(image)[1:9, 1:9])
    assert not np.array_equal(seen["bicubic"], seen["bilinear"])


def test_a_set_without_a_test_split_is_an_error(out):
    folder = f"{out}/data/mine"
    card = load(folder)
    save(replace(card, splits={"train": 12}, shards={"train": card.shards["test"]}), folder)
    with pytest.raises(UserError, match="no split 'test'"):
        resolve(MINE, out)
