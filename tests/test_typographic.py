"""Words on images: which word, where and how by (seed, id) alone; sets that show them, rows that name them, a table that counts them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cascades import PROTOCOL, synthetic
from PIL import Image, ImageDraw

import robustclip
from robustclip.attacks import PGD
from robustclip.base.errors import UserError
from robustclip.data import typographic
from robustclip.data.datasets import ensure_set
from robustclip.data.rendering import COLOURS, TEXT_FONTS
from robustclip.data.typographic import FINE, SMALLEST, with_words, write, written
from robustclip.data.variants import base_of
from robustclip.data.world import SETS
from robustclip.evaluation import computing
from robustclip.evaluation.presets import PRESETS
from robustclip.evaluation.protocols import DEMO, Protocol, resolve
from robustclip.records.survival import outcomes_of
from robustclip.results import report
from robustclip.results.page import Page

NAMES = ("cat", "dog", "grey wolf", "Löwe", "a very long name of several words")
IDS = [f"set/test/{i:06d}" for i in range(40)]
LABELS = np.arange(40) % len(NAMES)


def grey(n: int = 40, height: int = 64, width: int = 64) -> np.ndarray:
    return np.full((n, height, width, 3), 128, np.uint8)


# --- which word -----------------------------------------------------------------------------------------------------------------------


def test_the_word_is_another_class_of_another_name_and_every_one_has_its_turn() -> None:
    names = ("cat", "dog", "cat", "cow")
    found = Counter(written(0, f"image/{i}", 0, names) for i in range(3000))
    assert found.keys() == {1, 3}
    assert abs(found[1] - 1500) < 150
    assert [written(0, "a", 1, ("no", "yes")), written(0, "a", 0, ("no", "yes"))] == [0, 1]
    assert len({tuple(written(seed, id_, 0, NAMES) for id_ in IDS) for seed in range(3)}) == 3
    with pytest.raises(UserError, match="all classes are called 'cat'"):
        written(0, "a", 0, ("cat", "cat"))


def test_a_planted_word_of_the_own_class_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typographic, "derive", lambda *key: 0)
    with pytest.raises(AssertionError):
        test_the_word_is_another_class_of_another_name_and_every_one_has_its_turn()


# --- how it is drawn ------------------------------------------------------------------------------------------------------------------


def test_images_depend_on_seed_and_id_alone() -> None:
    images, labels = grey(), LABELS
    whole = with_words(images, IDS, labels, NAMES, 0)
    order = np.random.default_rng(0).permutation(40)
    assert np.array_equal(with_words(images[order], [IDS[i] for i in order], labels[order], NAMES, 0), whole[order])
    assert np.array_equal(
        np.concatenate([with_words(images[i : i + 1], IDS[i : i + 1], labels[i : i + 1], NAMES, 0) for i in range(40)]), whole
    )
    assert np.array_equal(images, grey()), "the images that were given stay"
    other = with_words(images, IDS, labels, NAMES, 1)
    assert all(not np.array_equal(a, b) for a, b in zip(whole, other))
    assert (whole.shape, whole.dtype) == (images.shape, np.uint8)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 32), (64, 200), (224, 224)])
@pytest.mark.parametrize("word", [*NAMES, "l", "Donaudampfschifffahrtsgesellschaft"])
def test_a_word_is_whole_on_images_of_any_shape(word: str, height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has as much ink as on a canvas with room on all sides, in the font that it was made smaller to."""
    fonts: list[Any] = []
    made = typographic._font
    monkeypatch.setattr(typographic, "_font", lambda name, points: fonts.append(made(name, points)) or fonts[-1])
    for i in range(4):
        text = typographic._lines(word)
        filled, edged = typographic._masks(text, TEXT_FONTS[i], 10.0 + 5 * i, height, width)
        edge = max(1, round(typographic.EDGE * fonts[-1].size))
        about = {"font": fonts[-1], "align": "center", "spacing": edge, "stroke_width": edge, "fill": 255}
        for mask, around in ((filled, 0), (edged, 255)):
            canvas = Image.new("L", (FINE * 600, FINE * 600))
            ImageDraw.Draw(canvas).multiline_text((FINE * 200, FINE * 200), text, stroke_fill=around, **about)
            assert mask.sum() * FINE**2 == pytest.approx(np.asarray(canvas, float).sum() / 255, rel=0.02)
        assert filled.shape == edged.shape
        assert filled.shape[0] <= height
        assert filled.shape[1] <= width
        changed = (write(grey(1, height, width)[0], word, Random(i)) != 128).any(-1)
        assert changed.sum() > 0


def test_a_planted_cut_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typographic, "math", SimpleNamespace(ceil=lambda size: int(size) - 2))
    with pytest.raises(AssertionError):
        test_a_word_is_whole_on_images_of_any_shape("dog", 64, 200, monkeypatch)


def test_letters_can_be_told_from_their_edge_and_from_each_other() -> None:
    """Two colours of the rendered world, and another word is another picture in the same look."""
    for seed in range(20):
        ink, edge = typographic._colours(Random(seed))
        assert np.linalg.norm(ink - edge) > typographic.DISTINCT
        assert {tuple(ink.tolist()), tuple(edge.tolist())} <= {tuple(np.float32(rgb).tolist()) for rgb in COLOURS.values()}
        one, other = (write(grey(1)[0], word, Random(seed)) for word in ("cat", "cow"))
        assert not np.array_equal(one, other)


def test_letters_and_their_edge_lie_on_each_other_on_both_lines() -> None:
    """Every pixel of a letter has the edge around it: Pillow sets lines apart by the edge, so both are drawn with one."""
    filled, edged = typographic._masks("grey\nwolf", TEXT_FONTS[0], 30.0, 200, 200)
    for half in (slice(None, len(filled) // 2), slice(len(filled) // 2, None)):
        letters, around = (np.argwhere(mask[half] > 0.9) for mask in (filled, edged))
        assert (around.min(0) <= letters.min(0)).all()
        assert (letters.min(0) - around.min(0) <= 3).all()
        assert (around.max(0) - letters.max(0) <= 3).all()


def test_names_break_in_two_where_the_longer_line_is_shortest() -> None:
    found = [typographic._lines(name) for name in ("cat", "grey wolf", "2012 BMW 3 Series Sedan", "a  b")]
    assert found == ["cat", "grey\nwolf", "2012 BMW 3\nSeries Sedan", "a\nb"]


@pytest.mark.parametrize(
    ("height", "names", "said"), [(SMALLEST - 1, NAMES, "no word can be read"), (16, ("m" * 300, "m" * 400), "too long")]
)
def test_what_cannot_be_written_is_refused(height: int, names: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        with_words(grey(2, height, 32 if said != "too long" else 16), IDS[:2], np.array([0, 1]), names, 0)


# --- as sets --------------------------------------------------------------------------------------------------------------------------

SMALL = Protocol("small", ("shapes", "typographic:shapes"), (PGD(1, alpha=1.0),), (1.0,), n=12, micro_batch=6, seed=5)


@pytest.mark.parametrize("name", SETS)
def test_every_embedded_set_is_there_with_words(name: str, tmp_path: Path) -> None:
    found = resolve(replace(SMALL, sets=(name, f"typographic:{name}"), n=4), str(tmp_path)).sets
    plain, words = found.values()
    assert (plain.ids, plain.card, plain.prompts_hash) == (words.ids, words.card, words.prompts_hash)


def test_a_set_with_words_shows_the_same_images_with_words(tmp_path: Path) -> None:
    resolved = resolve(SMALL, str(tmp_path))
    (ids, pixels, labels), (same_ids, shown, same_labels) = (resolved.read(name, resolved.sets[name].rows, 32) for name in SMALL.sets)
    assert ids == same_ids
    assert labels.tolist() == same_labels.tolist()
    assert np.array_equal(shown, with_words(pixels, ids, labels, SETS["shapes"].class_names, 5))
    assert (shown != pixels).any((1, 2, 3)).all()
    assert len(list((tmp_path / "data").iterdir())) == 1, "nothing is stored for it"


def test_rows_say_what_is_written(tmp_path: Path) -> None:
    resolved, model = resolve(SMALL, str(tmp_path)), robustclip.load("tiny-vit8")
    rows = {cell.dataset: computing.compute(model, cell, resolved) for cell in resolved.cells("tiny-vit8", model.sha256)}
    assert all("written" not in row for row in rows["shapes"])
    for row in rows["typographic:shapes"]:
        assert row["written"] == written(5, row["image_id"], row["label"], SETS["shapes"].class_names) != row["label"]
    assert len({cell.key for cell in resolved.cells("tiny-vit8", model.sha256)}) == 2


def test_what_a_protocol_says_of_a_set_holds_for_it_with_words() -> None:
    for name in PRESETS["tecoa-16"].sets:
        rule = PRESETS["tecoa-16"].rule(f"typographic:{name}")
        assert rule == replace(PRESETS["tecoa-16"].rule(name), name=f"typographic:{name}")


def test_no_protocol_of_before_has_them() -> None:
    """The default average is over the twelve sets it was over, and their description has no key more than it had."""
    twelve = ("shapes", "chess", "weather", "faces", "tools", "sketch", "letters", "patterns", "colours", "counts", "things", "digits")
    assert DEMO.sets == twelve
    assert all(base_of(name) == name for protocol in PRESETS.values() for name in protocol.sets)


def test_other_uses_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="never to train on; give 'shapes'"):
        ensure_set(str(tmp_path), "typographic:shapes", {"train": 8}, 0)
    with pytest.raises(UserError, match=r"no data set 'shaeps' .did you mean shapes"):
        resolve(replace(SMALL, sets=("typographic:shaeps",)), str(tmp_path))


# --- in a report ----------------------------------------------------------------------------------------------------------------------


def reading(share: float) -> pa.Table:
    """Return records of a model that answers with the word on a share of the images of `letters`, and is wrong otherwise there too."""
    rows = synthetic({"reader": (0.0, 0.0)}).to_pylist()
    for i, row in enumerate(row for row in rows if row["dataset"] == "letters"):
        row |= {"written": 2, "prediction": 2 if i < 60 * share else 3}
    return pa.Table.from_pylist(rows, schema=synthetic().schema)


def test_a_model_that_reads_is_told_from_one_that_errs_evenly() -> None:
    text = Page(report.from_records(reading(0.5), PROTOCOL)).markdown()
    assert "| letters | reader ✗ | 60 | 0.0 [0.0, 6.0] | 33.3 | 50.0 [37.7, 62.3] |" in text
    assert "| shapes | reader ✗ | 60 |" not in text.partition("## Words on images")[2].partition("\n## ")[0]
    assert "Words on images" not in Page(report.from_records(synthetic(), PROTOCOL)).markdown()


def test_under_attack_the_answer_that_decided_is_the_one_that_reads() -> None:
    """An image that was broken by the word stays so, whatever is answered to it later."""
    rows = [row for row in synthetic({"reader": (1.0, 1.0)}).to_pylist() if row["dataset"] == "letters"]
    for row in rows:
        row["written"] = 2
        if row["image_id"] < "00030" and row["attack"] != "clean":
            row |= {"prediction": 2 if row["eps"] == 1.0 else 3, "correct": False}
    table = pa.Table.from_pylist(rows, schema=synthetic().schema)
    told = {**PROTOCOL, "sets": {"letters": PROTOCOL["sets"]["letters"]}, "independent": True}
    seen = outcomes_of(table, told)["reader"]["letters"]
    assert not seen.lured("clean").any()
    assert [seen.lured(eps).mean() for eps in (1.0, 2.0, 4.0)] == [0.5] * 3
