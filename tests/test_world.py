"""The embedded world keeps its specification: deterministic, prefixes agree, labels are right, captions name what is drawn."""

import subprocess
import sys

import pytest
import torch

from robustclip.data import world
from robustclip.data.rendering import COLOUR_NAMES, PATTERNS
from robustclip.data.world import CHUNK, FINE_TUNING, LABELLED, OBJECTS, SETS, SUITE

torch.set_num_threads(1)


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_deterministic_and_its_labels_are_classes(name):
    x, y = world.images(name, 30, 5, "test")
    again, labels = world.images(name, 30, 5, "test")
    assert torch.equal(x, again)
    assert torch.equal(y, labels)
    assert (x.shape, x.dtype) == ((30, 3, 32, 32), torch.uint8)
    assert 0 <= y.min() <= y.max() < len(SETS[name].class_names)
    assert len(set(SETS[name].class_names)) == len(SETS[name].class_names)
    assert all(template.count("{}") == 1 for template in SETS[name].templates)
    assert x.float().flatten(1).std(1).min() > 0.5  # no picture is blank


@pytest.mark.parametrize("name", ["shapes", "digits"])
def test_a_longer_set_starts_with_the_shorter(name):
    short, long = world.images(name, 7, 0, "test"), world.images(name, CHUNK + 3, 0, "test")
    assert len(long[0]) == CHUNK + 3
    assert torch.equal(short[0], long[0][:7])
    assert torch.equal(short[1], long[1][:7])


def test_seeds_and_splits_differ():
    x = world.images("shapes", 5, 0, "test")[0]
    assert not torch.equal(x, world.images("shapes", 5, 1, "test")[0])
    assert not torch.equal(x, world.images("shapes", 5, 0, "train")[0])


def test_pictures_do_not_depend_on_threads():
    one = world.images("things", 20, 0, "test")[0]
    torch.set_num_threads(2)
    try:
        assert torch.equal(one, world.images("things", 20, 0, "test")[0])
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["shapes", "colours", "counts", "patterns", "letters"])
def test_classes_are_roughly_balanced(name):
    y = world.images(name, CHUNK, 0, "test")[1]
    counts = torch.bincount(y, minlength=len(SETS[name].class_names)).float()
    expected = CHUNK / len(counts)
    assert (counts - expected).abs().max() < 4 * expected**0.5


def test_digits_have_one_split_of_real_scans():
    for n, split in ((5, "train"), (1798, "test")):
        with pytest.raises(ValueError, match="1797"):
            world.images("digits", n, 0, split)


def test_the_fine_tuning_classes_hold_no_noun_of_the_suite():
    nouns = {word for name in SUITE if name != "colours" for label in SETS[name].class_names for word in label.split()}
    shared = {word for label in SETS[FINE_TUNING].class_names for word in label.split()} & nouns
    assert shared <= set(COLOUR_NAMES)  # `things` are coloured too; their nouns are other ones
    assert len(SETS[FINE_TUNING].class_names) == len(COLOUR_NAMES) * len(LABELLED)


def test_captions_name_what_is_drawn(monkeypatch):
    """The caption is written from the scene: an object, sign, pattern or count it names is the one drawn, its colour the one painted."""
    drawn = {}
    made = world._corpus_scenes
    monkeypatch.setattr(world, "_corpus_scenes", lambda n, g: drawn.setdefault("scenes", made(n, g)))
    _, captions = world.corpus(300, 0)
    scenes, facts = drawn["scenes"]
    kinds = set()
    for i, caption in enumerate(captions):
        subject = caption.removesuffix(".").split(" on a")[0].split()
        kind = world.KINDS[int(facts.kind[i])]
        kinds.add(kind)
        noun = tuple(OBJECTS)[int(facts.object_[i])]
        named = {word.rstrip("s") for word in subject} & {name.rstrip("s") for name in OBJECTS}
        if kind in ("object", "count"):
            assert named <= {noun.rstrip("s")}, caption
            assert set(subject) & set(COLOUR_NAMES) <= {COLOUR_NAMES[int(scenes.colour[i])]}, caption
        if kind == "count":
            assert world.COUNTS[int(facts.count[i])] in subject, caption
            assert int((scenes.glyph[i] >= 0).sum()) == int(facts.count[i]) + 1, caption
        if kind == "sign":
            sign = int(facts.sign[i])
            assert (world.LETTERS[sign].lower() if sign < 26 else world.DIGITS[sign - 26]) in subject, caption
        if kind == "pattern":
            assert PATTERNS[int(scenes.backdrop[i])] in subject, caption
            assert (scenes.glyph[i] < 0).all(), caption
    assert kinds == set(world.KINDS)


def test_every_concept_of_the_suite_is_named_by_the_corpus():
    text = " ".join(world.corpus(4 * CHUNK, 0)[1]).replace(".", " ")
    words = {word.rstrip("s") for word in text.split()}
    concepts = {word.rstrip("s") for world_set in SETS.values() for label in world_set.class_names for word in label.split()}
    missing = concepts - words
    assert not missing


def test_importing_draws_nothing_reads_nothing_and_moves_no_generator():
    code = """
import torch, random
state, python = torch.get_rng_state(), random.getstate()
threads = torch.get_num_threads()
import robustclip.data.world as w, robustclip.data.datasets, robustclip.data.preparation, sys
assert torch.equal(state, torch.get_rng_state()) and python == random.getstate() and threads == torch.get_num_threads()
assert w.glyphs.cache_info().currsize == 0
assert not {"ray", "mlflow", "matplotlib", "sklearn", "open_clip"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
