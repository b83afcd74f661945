"""Names that a text tower cannot tell apart, of which nothing is left, or which are cut: said, and a set they make void is never ranked."""

import logging
from dataclasses import replace

import pytest
import torch
from probes import NAMES, changed, healthy

from robustclip import api
from robustclip.base.errors import UserError
from robustclip.evaluation.checks import run_check
from robustclip.evaluation.protocols import Resolved
from robustclip.models.class_names import reading
from robustclip.models.class_texts import SHOWN
from robustclip.models.tokenizers import clip_tokenizer
from robustclip.records.findings import rankable

TEMPLATES = ("a photo of a {}.", "a {} thing.")
LONG = " ".join(["word"] * 30)


def test_what_the_tokenizer_of_clip_reads():
    found = reading(clip_tokenizer(), ("crane", "dog", " Crane  ", "DOG", "cat", "\ufeff", "x " * 90, "x " * 80 + "y"), TEMPLATES)
    assert (found.same, found.empty, found.full, found.context) == (((0, 2), (1, 3), (6, 7)), (5,), (6, 7), 77)
    assert found.twins == {0, 1, 2, 3, 6, 7}
    assert [sentence.partition(":")[0].split(",")[0] for sentence in found.said][:2] == ["'crane' = ' Crane  '", r"'\ufeff'"]


def test_names_that_differ_in_one_template_are_two():
    found = reading(clip_tokenizer(), ("the end", "the end."), ("{}.", "{} of it"))
    assert found.same == ()
    assert reading(clip_tokenizer(), ("a", "b"), ("{}",)).said == []


def test_a_thousand_twins_make_a_sentence_not_a_page():
    names = tuple(f"{name}{i}" for i in range(500) for name in ("Class", "class"))
    (said,) = reading(clip_tokenizer(), names, ("{}",)).said
    assert said.count(" = ") == SHOWN
    assert "and 495 more" in said


def test_what_is_evaluated_says_once_what_it_cannot_tell_apart(tiny_model, pictures, caplog):
    (images, labels, _), names = pictures(4), ("Heron", "heron", LONG, "grey")
    with caplog.at_level(logging.WARNING, "robustclip"):
        for _ in range(2):
            api.evaluate(tiny_model, (images, labels), attacks=["noise-10"], eps=2, class_names=names)
    classifier = tiny_model.classifier(names, TEMPLATES)
    assert torch.equal(classifier.class_embeddings[0], classifier.class_embeddings[1])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "'Heron' = 'heron'" in said[0]
    assert LONG in said[1]
    assert "24 tokens" in said[1]


@pytest.mark.parametrize(("classes", "ranked"), [(4, False), (400, True)])
def test_a_set_that_attacks_cannot_break_is_never_ranked(classes, ranked, make_model, pictures):
    """Two of four classes are half of the images; two of four hundred, of which no image is attacked, are said and forgiven."""
    subject = healthy(make_model(), pictures)
    test_set = subject.resolved.sets["pictures"]
    names = ("red", "RED", "blue", "grey") if classes == 4 else (*NAMES, *(f"class {i}" for i in range(394)), "crane", "Crane")
    card = replace(test_set.card, class_names=names)
    found = run_check(changed(subject, resolved=Resolved(subject.protocol, {"pictures": replace(test_set, card=card)})), "G11")
    assert (found.passed, found.level) == (ranked, "hard")
    assert (" = " in found.reason, rankable([found], "white-box")[0]) == (True, ranked)


def test_the_names_of_every_embedded_set_are_told_apart_by_the_embedded_model():
    from robustclip import names as models
    from robustclip.data.world import SETS

    model = models.load("tiny-vit8")
    assert {name: model.names_read(each.class_names, each.templates).said for name, each in SETS.items()} == {name: [] for name in SETS}


def test_one_class_is_refused_where_it_says_nothing():
    from robustclip.attacks import PGD
    from robustclip.attacks.classes import for_classes
    from robustclip.defenses import DEFENSES, FARE, LEAF, ImgCoAdv

    with pytest.raises(UserError, match="no attack is defined on it"):
        for_classes((PGD(2),), 1)
    assert {kind for kind in (*DEFENSES, LEAF) if kind().least_classes == 1} == {FARE, ImgCoAdv, LEAF}
