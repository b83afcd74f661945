"""Sets that are another one looked at otherwise: the same images among more class names. (With words on them: test_typographic.py.)"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import robustclip
from robustclip.attacks.modes import TEXTS
from robustclip.attacks.multimodal import Text
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.data.datasets import ensure_set
from robustclip.data.variants import base_of, has_words, names_among, other_of
from robustclip.data.world import SETS
from robustclip.evaluation import computing
from robustclip.evaluation.checks.data import unevenly_chosen
from robustclip.evaluation.protocols import Protocol, resolve
from robustclip.evaluation.rules import SetRule
from robustclip.records.rows import CLEAN

FEW, MANY = "chess", "among:faces:chess"  # 6 class names, 12 class names
SMALL = Protocol("small", (FEW, MANY), (Text(TEXTS["char"]),), (1.0,), n=24, micro_batch=6, independent=True)


@pytest.mark.parametrize(
    ("name", "base", "other", "words"),
    [("cats", "cats", None, False), ("typographic:cats", "cats", None, True), ("among:dogs:cats", "cats", "dogs", False)],
)
def test_a_name_says_whose_images_and_whose_names(name: str, base: str, other: str | None, words: bool) -> None:
    assert (base_of(name), other_of(name), has_words(name)) == (base, other, words)


@pytest.mark.parametrize("name", ["among:", "among:cats", "among:cats:", "among::cats", "among:dogs:typographic:cats"])
def test_half_a_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="among:OTHER:SET"):
        replace(SMALL, sets=(name,))


def test_own_names_come_first_and_a_name_of_both_stands_once() -> None:
    assert names_among(("cat", "dog"), ("cow", "dog", "ant"), "among:b:a") == ("cat", "dog", "cow", "ant")
    with pytest.raises(UserError, match=r"'among:b:a': no class name of 'b' is new to 'a'"):
        names_among(("cat", "dog"), ("dog",), "among:b:a")


def test_the_images_are_the_same_and_the_names_are_more(tmp_path: Path) -> None:
    resolved = resolve(SMALL, str(tmp_path))
    (ids, pixels, labels), (same_ids, same, same_labels) = (resolved.read(name, resolved.sets[name].rows, 32) for name in SMALL.sets)
    assert (ids, labels.tolist()) == (same_ids, same_labels.tolist())
    assert np.array_equal(pixels, same)
    few, many = (resolved.sets[name].card for name in SMALL.sets)
    assert many.class_names == (*SETS["chess"].class_names, *SETS["faces"].class_names)
    assert replace(many, class_names=few.class_names) == few
    assert storage.list_folders(str(tmp_path / "data")) == [storage.name_of(few.folder)], "no other set is rendered for its names"
    assert resolved.classes == {FEW: 6, MANY: 12}


def test_every_image_is_scored_among_all_names(tmp_path: Path) -> None:
    """What is right among more names is right among fewer; every prompt is rewritten, those of the lent names too."""
    resolved, model = resolve(SMALL, str(tmp_path)), robustclip.load("tiny-vit8")
    cells = resolved.cells("tiny-vit8", model.sha256)
    assert len({cell.key for cell in cells}) == 2
    rows = {cell.dataset: computing.compute(model, cell, resolved, str(tmp_path)) for cell in cells}
    right = {name: {row["image_id"] for row in rows[name] if row["attack"] == CLEAN and row["correct"]} for name in SMALL.sets}
    assert right[MANY] <= right[FEW]
    assert not any("written" in row for row in rows[MANY])
    kept = [storage.read_json(path) for path in storage.list_files(str(tmp_path / "prompts" / resolved.hash), ".json")]
    assert {each["dataset"]: len(each["texts"]) for each in kept} == {
        name: count * len(SETS["chess"].templates) for name, count in resolved.classes.items()
    }


def test_classes_that_no_image_is_of_are_no_gap_in_the_choice_of_images(tmp_path: Path) -> None:
    """And they lower no other class's share: of about 20 images of each of 6 classes 10 are too few, of 12 classes they would do."""
    resolved = resolve(replace(SMALL, n=120), str(tmp_path))
    assert [unevenly_chosen(each, 120) for each in resolved.sets.values()] == [[], []]
    many = resolved.sets[MANY]
    rooks = many.index.label[many.rows] == 2
    short = replace(many, rows=np.concatenate([many.rows[~rooks], many.rows[rooks][:10]]))
    assert "class 'rook' has 10 images" in unevenly_chosen(short, 120)


def test_the_other_set_is_called_as_the_protocol_calls_it(tmp_path: Path) -> None:
    called = tuple("abcdef")
    protocol = replace(SMALL, sets=(MANY,), rules=(SetRule("faces", class_names=called), SetRule("chess", templates=("one {}",))))
    (found,) = resolve(protocol, str(tmp_path)).sets.values()
    assert found.card.class_names == (*SETS["chess"].class_names, *called)
    assert found.templates == ("one {}",)


def test_what_cannot_be_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no data set 'fcaes' .did you mean faces"):
        resolve(replace(SMALL, sets=("among:fcaes:chess",)), str(tmp_path))
    with pytest.raises(UserError, match="no class name of 'sketch' is new to 'shapes'"):
        resolve(replace(SMALL, sets=("among:sketch:shapes",)), str(tmp_path))
    with pytest.raises(UserError, match="never to train on; give 'chess'"):
        ensure_set(str(tmp_path), MANY, {"train": 8}, 0)
