"""Images and texts in groups: what a file says of classes or of images, what is left out, and what a group is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sourcing import as_folder, image

from robustclip.base.errors import UserError
from robustclip.data.captions import of_set, of_world, read_captions
from robustclip.data.preparation import prepare
from robustclip.evaluation.retrieval import RENDER_SEED
from robustclip.training.pretraining import Pretraining

DRAWN = (8, 0)
CLASSES = {"cat": ["a cat sits", "a cat lies", "a cat sits"], "dog": ["a dog"], "tree frog": [], "cow": ["a cow"]}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return an output folder with a set `pets` of 3 x 4 test images, two of them of one name."""
    folder = tmp_path_factory.mktemp("pairs")
    files = {f"test/{name}/{name[0]}{i}.png": image() for name in ("cat", "dog", "tree_frog") for i in range(4)}
    files |= {"test/cat/x.png": files.pop("test/cat/c3.png"), "test/dog/x.png": files.pop("test/dog/d3.png")}
    prepare(str(folder / "out"), "pets", [as_folder(folder / "pets", files)])
    return str(folder / "out")


def written(folder: Path, said: Any) -> str:
    (folder / "captions.json").write_text(json.dumps(said))
    return str(folder / "captions.json")


def test_what_is_said_of_a_class_is_right_for_all_its_images(out: str, tmp_path: Path) -> None:
    """A text is there once, what is said of no image's class is no gallery, and images of which nothing is said are counted."""
    found = of_set(out, "pets", "test", written(tmp_path, CLASSES), None, DRAWN)
    said = {(found.groups[group], text) for text, group in zip(found.texts, found.text_groups, strict=True)}
    assert said == {("cat", "a cat sits"), ("cat", "a cat lies"), ("dog", "a dog")}
    assert len(found.texts) == 3
    assert (len(found.ids), found.skipped, found.shared) == (8, 4, 0)
    assert {(id_.split("/")[1], found.groups[group]) for id_, group in zip(found.ids, found.image_groups, strict=True)} == {
        ("cat", "cat"),
        ("dog", "dog"),
    }
    assert found.images.read(np.array([0, 7]), 16).shape[0] == 2
    some = of_set(out, "pets", "test", written(tmp_path, CLASSES), 4, DRAWN)
    assert set(some.ids) < set(found.ids)
    assert np.bincount(some.image_groups).tolist() == [2, 2]


def test_what_is_said_of_an_image_makes_it_a_group_of_its_own(out: str, tmp_path: Path) -> None:
    """By its id or by the last part of it."""
    said = {"c0.png": ["one", "two"], "test/cat/x.png": ["three"], "d1.png": ["one"], "elsewhere.png": ["four"]}
    found = of_set(out, "pets", "test", written(tmp_path, said), None, DRAWN)
    texts = {text: set() for text in found.texts}
    for text, group in zip(found.texts, found.text_groups, strict=True):
        texts[text].add(found.ids[found.image_groups.tolist().index(group)])
    assert texts == {"one": {"test/cat/c0.png", "test/dog/d1.png"}, "two": {"test/cat/c0.png"}, "three": {"test/cat/x.png"}}
    assert sorted(found.image_groups.tolist()) == [0, 1, 2]
    assert (found.skipped, found.shared) == (9, 1)


@pytest.mark.parametrize(
    ("said", "n", "wrong"),
    [
        (
            {"x.png": ["one"], "c0.png": ["two"]},
            None,
            r"'x.png' is the name of several images: give their whole ids, such as 'test/(cat|dog)/x",
        ),
        (
            {"bird": ["a bird"]},
            None,
            r"says nothing of the test images of pets: its keys, such as 'bird', are neither classes, such as 'cat'",
        ),
        ({"cat": ["a cat"]}, None, r"pets: all images are of one group, 'cat'"),
        (CLASSES, 9, r"says something of 8 test images of pets; 9 were asked for"),
        ({"cat": "a cat"}, None, r"what it says of 'cat' is no list of texts"),
        ({"cat": [" "]}, None, r"what it says of 'cat' is no list of texts"),
        (["a cat"], None, r"holds no captions: write JSON \{class or image: \[texts\]\}"),
        ({}, None, r"holds no captions"),
    ],
)
def test_captions_that_do_not_fit_are_refused(said: Any, n: int | None, wrong: str, out: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=wrong):
        of_set(out, "pets", "test", written(tmp_path, said), n, DRAWN)


def test_files_that_are_none_are_refused(out: str, tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("[" * 5000)
    for file, wrong in (("nothing.json", "cannot be read"), ("no.json", "is no JSON")):
        with pytest.raises(UserError, match=wrong):
            read_captions(str(tmp_path / file))
    with pytest.raises(UserError, match="no split 'train'"):
        of_set(out, "pets", "train", written(tmp_path, CLASSES), None, DRAWN)


def test_pairs_of_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of one caption are one group; the shipped weights were trained on another seed's."""
    found = of_world(40, RENDER_SEED)
    assert Pretraining().seed != RENDER_SEED
    assert found.images.read(np.array([3]), 32).shape == (1, 32, 32, 3)
    assert (len(found.ids), found.shared) == (40, 0)
    assert [found.texts[group] for group in found.image_groups] == [found.groups[group] for group in found.image_groups]
    from robustclip.data import world

    pixels, captions = world.corpus(40, RENDER_SEED)
    monkeypatch.setattr(world, "corpus", lambda n, seed: (pixels[:n], [*captions[: n - 1], captions[0]]))
    twins = of_world(40, RENDER_SEED)
    assert twins.image_groups[-1] == twins.image_groups[0]
    assert len(twins.texts) == len(twins.groups) == len(set(captions[:39]))


def test_the_hash_is_of_images_and_of_texts(out: str, tmp_path: Path) -> None:
    one = of_set(out, "pets", "test", written(tmp_path, CLASSES), None, DRAWN)
    (tmp_path / "other").mkdir()
    assert of_set(out, "pets", "test", written(tmp_path / "other", CLASSES), None, DRAWN).sha256 == one.sha256
    assert of_set(out, "pets", "test", written(tmp_path, CLASSES | {"dog": ["a hound"]}), None, DRAWN).sha256 != one.sha256
    assert of_world(8, RENDER_SEED).sha256 != of_world(8, RENDER_SEED + 1).sha256
