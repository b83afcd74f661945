"""Prompt shift: what is attacked under other texts and scored under the set's is transfer, marked as such, and part of no worst case."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import NAMES, TEMPLATES
from faults_shift import shifted_subject
from probes import healthy

from robustclip.attacks import APGD, APGDT, FABT, MIFGSM, PGD, Noise, Square
from robustclip.attacks.classes import for_classes
from robustclip.attacks.modes import TEXTS
from robustclip.attacks.multimodal import Text
from robustclip.attacks.shift import LEVEL, Shifted
from robustclip.base.errors import UserError
from robustclip.base.threat import Ball
from robustclip.base.values import key, to_json
from robustclip.commands import evaluate
from robustclip.evaluation import computing, forecast, probing, protocols
from robustclip.evaluation.cascade import run_cascade
from robustclip.evaluation.checks import run_check
from robustclip.evaluation.rules import Protocol
from robustclip.models.class_texts import Descriptions
from robustclip.models.combined import together
from robustclip.models.dress import JointTokens, LinearHead
from robustclip.records import metrics, shift
from robustclip.records import rows as records
from robustclip.results import report
from robustclip.results.page import Page
from robustclip.test_time import TEST_TIME
from robustclip.test_time.defended import AdaptiveModel
from robustclip.training.installing import install

SEEN, NEAR = ("the word {}, upside down!",), TEMPLATES[:1]  # nothing like the scored texts, and one of them
DESCRIBED = Descriptions.said(
    {"red": ["blood", "a warm thing"], "green": ["leaves"], "blue": ["the sky"], "grey": ["stones", "ash", "lead"]}
)
ATTACKS = (PGD(4), APGD(4), Noise(2))
BALL = Ball("Linf", 4.0)


@pytest.fixture
def cell(tiny_model, pictures):
    """Return a classifier that says what it is under other texts, images, labels of which it has three quarters right, and ids."""
    return given(tiny_model, *pictures(16))


def given(model, images, labels, ids):
    classifier = model.classifier(NAMES, TEMPLATES)
    classifier.under = lambda texts: model.classifier(NAMES, texts)
    with torch.no_grad():
        labels = classifier(images).argmax(1)
    labels[::4] = (labels[::4] + 1) % 4
    return classifier, images, labels, ids


def run(cell, *texts, attacks=ATTACKS, eps=(2.0, 6.0)):
    """Return protocol and rows of attacks and of the same ones that saw some texts."""
    every = (*attacks, *(Shifted(seen, attack) for seen in texts for attack in attacks))
    protocol = Protocol("shift", ("x",), every, eps, n=None, independent=True, micro_batch=8)
    return protocol, run_cascade(*cell, protocol)


def of(rows, attack):
    return [row for row in rows if row["attack"] == attack.name]


# --- what is attacked, what is scored -----------------------------------------------------------------------------------------------

OWN = ("attack", "attack_config", "level", "seconds", "seen_prediction")  # what says that a row is of a shift, and the time


@pytest.mark.parametrize(
    "attack",
    [PGD(4, restarts=2), MIFGSM(3), APGD(4), APGDT(3, targets=2), FABT(3, targets=2), Square(6), Noise(2)],
    ids=lambda attack: attack.name,
)
def test_under_its_own_texts_it_is_the_plain_attack(cell, attack):
    """A = B: every column but the name, the settings and the level is that of the plain attack, bit for bit."""
    _, rows = run(cell, TEMPLATES, attacks=(attack,))
    plain, shifted = of(rows, attack), of(rows, Shifted(TEMPLATES, attack))
    assert len(plain) == len(shifted) == 32
    for a, b in zip(plain, shifted, strict=True):
        assert {name: value for name, value in a.items() if name not in OWN} == {
            name: value for name, value in b.items() if name not in OWN
        }
        assert b["seen_prediction"] == b["prediction"]
        assert "seen_prediction" not in a


@pytest.mark.parametrize("texts", [SEEN, DESCRIBED], ids=["template", "descriptions"])
def test_the_attack_sees_other_texts_and_rows_hold_both_answers(cell, tiny_model, texts):
    classifier, images, labels, ids = cell
    attack, seen = PGD(6), tiny_model.classifier(NAMES, texts)
    _, rows = run(cell, texts, attacks=(attack,), eps=(4.0,))
    made = attack(seen, images, labels, ids, BALL, 0, 8).images
    found = Shifted(texts, attack)(classifier, images, labels, ids, BALL, 0, 8)
    assert torch.equal(found.images, made)
    with torch.no_grad():
        scored, own = (model(made).argmax(1).tolist() for model in (classifier, seen))
    shifted = of(rows, Shifted(texts, attack))
    assert [row["prediction"] for row in shifted] == scored
    assert [row["seen_prediction"] for row in shifted] == own
    assert scored != own
    assert {row["level"] for row in shifted} == {LEVEL}
    assert all("level" not in row for row in of(rows, attack))
    assert json.loads(shifted[0]["attack_config"])["texts"] == to_json(texts)


def test_transfer_is_weaker_than_the_attack_that_saw_what_is_scored(cell):
    _, rows = run(cell, NEAR, SEEN, attacks=(PGD(10),), eps=(4.0,))
    left = [sum(row["correct"] for row in of(rows, attack)) for attack in (PGD(10), Shifted(NEAR, PGD(10)), Shifted(SEEN, PGD(10)))]
    assert left[0] <= left[1] <= left[2]
    assert left[0] < left[2]


def test_it_is_never_part_of_a_worst_case(cell):
    """Though its attack breaks images that the others leave, the worst case is theirs, and the report tells the two apart."""
    attacks = (Noise(1), *(Shifted(texts, PGD(10)) for texts in (NEAR, DESCRIBED)))
    protocol = Protocol("shift", ("x",), attacks, (12.0,), n=None, independent=True, micro_batch=8)
    rows = run_cascade(*cell, protocol)
    noise, *others = names = [attack.name for attack in attacks]
    described = {
        "name": "shift", "attacks": names, "apart": list(protocol.apart), "eps": [12.0], "norm": "Linf",
        "independent": True, "attacked": None, "attack_settings": {each.name: to_json(each) for each in attacks},
        "sets": {"x": {"class_names": list(NAMES), "n": 16, "real": True}},
    }  # fmt: skip
    assert list(protocol.apart) == others
    shared = {"protocol_hash": "h", "model": "m", "model_sha256": "s", "dataset": "x", "level": "white-box"}
    built = report.from_records(records.table([shared | row for row in rows]), described)
    right = {name: {row["image_id"] for row in rows if row["attack"] == name and row["correct"]} for name in ("clean", *names)}
    assert right["clean"] & right[noise] - right[others[0]], "it breaks images that noise leaves"
    (seen,) = built.outcomes.values()
    assert int(seen["x"].flags(12.0).sum()) == len(right["clean"] & right[noise])
    assert f"or the attack saw other prompts): {others[0]}, {others[1]}." in " ".join(built.meaning())
    sheet = next(sheet for sheet in Page(built).sheets if sheet.title == "Prompt shift (transfer)")
    assert [row[1:3] for row in sheet.rows] == [(name, "12") for name in others]
    for name, row in zip(others, sheet.rows, strict=True):
        own = [each["seen_prediction"] == each["label"] for each in rows if each["attack"] == name]
        counts = (sum(own), len(right["clean"] & right[name]))
        assert [cell.split(" ")[0] for cell in row[3:]] == [*(f"{100 * count / 16:.1f}" for count in counts), "–"]


def test_a_worst_case_with_it_is_refused():
    for attacks, more, said in (
        ((PGD(2), Shifted()), {}, "is no part of a worst case: it needs independent attacks"),
        ((Shifted(),), {"independent": True}, "is no part of a worst case: add an attack that is"),
        ((PGD(2), Shifted(SEEN), Shifted(SEEN)), {"independent": True}, "two attacks have one name"),
    ):
        with pytest.raises(UserError, match=said):
            Protocol("p", ("x",), attacks, (2.0,), **more)


def test_names_tell_texts_apart():
    several = ("a {}.", "the {}.")
    names = [Shifted(texts, PGD(2)).name for texts in (SEEN, several, several[::-1], DESCRIBED)]
    assert names[0] == "prompt shift (transfer from the word {}, upside down!) pgd-2"
    assert names[3] == f"prompt shift (transfer from descriptions {DESCRIBED.sha256[:8]}) pgd-2"
    assert names[1].startswith("prompt shift (transfer from 2 templates ")
    assert len(set(names)) == 4
    assert Shifted(SEEN, APGDT(3)).name != Shifted(SEEN, PGD(3)).name
    assert key(Shifted(SEEN)) != key(Shifted(DESCRIBED)) != key(Shifted())


# --- which models ------------------------------------------------------------------------------------------------------------------


def test_a_defence_that_adapts_and_an_ensemble_are_seen_whole(tiny_model, make_model, pictures):
    own = {name: getattr(tiny_model, name) for name in ("name", "clip", "tokenizer", "open_clip_config", "card")}
    views = AdaptiveModel(**own, defence=replace(TEST_TIME["views"], views=3, keep=0.7))
    for model in (views, together("two", [tiny_model, make_model(seed=1)])):
        cell = given(model, *pictures(8))
        attack = PGD(3)
        found = Shifted(SEEN, attack)(*cell, BALL, 0, 4)
        assert torch.equal(found.images, attack(model.classifier(NAMES, SEEN), *cell[1:], BALL, 0, 4).images)
        assert not torch.equal(found.images, attack(*cell, BALL, 0, 4).images)


def test_a_model_that_other_texts_do_not_change_refuses_it(tiny_model, cell):
    probe, _ = install(LinearHead(), tiny_model.copy(), 0, NAMES)
    words, _ = install(JointTokens("text", 2, 1), tiny_model.copy(), 0, NAMES)
    for model in (probe, words):
        other = given(model, *cell[1:])
        with pytest.raises(UserError, match="this model brings words or scores of its own, no other texts change it"):
            Shifted(SEEN, PGD(1))(*other, BALL, 0)
    cell[0].under = None
    with pytest.raises(UserError, match="this classifier does not say what it is under them"):
        Shifted(SEEN, PGD(1))(*cell, BALL, 0)
    with pytest.raises(UserError, match=r"must contain \{\} exactly once"):
        Shifted(("a photo",))


def test_fewer_classes_mean_fewer_targets_under_other_texts_too():
    (reduced,) = for_classes([Shifted(SEEN, APGDT(5))], 4).values()
    assert reduced == Shifted(SEEN, APGDT(5, targets=3))
    assert list(for_classes([Shifted(SEEN, APGDT(5)), PGD(2)], 2)) == ["pgd-2"]


# --- the evaluator ------------------------------------------------------------------------------------------------------------------


def test_a_cell_of_the_evaluator_holds_it(tmp_path):
    """The embedded model, attacked as it sees one template, scored under the three of the set."""
    from robustclip import names as models

    attacks = (PGD(3), Shifted(("a {}.",), PGD(3)))
    protocol = replace(protocols.named("smoke"), sets=("shapes",), n=12, attacks=attacks, independent=True)
    resolved = protocols.resolve(protocol, str(tmp_path))
    (cell,) = resolved.cells("tiny-vit8", models.identity("tiny-vit8"))
    model = models.load("tiny-vit8")
    computing.record(model, cell, resolved, str(tmp_path), 1, None)
    table = records.read(str(tmp_path / "records"), cell.key)
    rows = [row for row in table.to_pylist() if row["attack"] == attacks[1].name]
    assert len(rows) == 12
    assert {row["level"] for row in rows} == {LEVEL}
    assert None not in {row["seen_prediction"] for row in rows}
    assert {row["prompts_hash"] for row in table.to_pylist()} == {resolved.sets["shapes"].prompts_hash}, "of what is scored"
    (found,) = shift.of(table, resolved.describe(), {})
    assert found.white is not None
    own = metrics.accuracy(found.seen["tiny-vit8"]["shapes"], 2.0)
    assert own.correct == sum(row["seen_prediction"] == row["label"] for row in rows)
    unknown = Shifted(Descriptions.said({"circle": ["round"]}), PGD(3))
    with pytest.raises(UserError, match="data set 'shapes': descriptions describes 1 of 12 classes"):
        protocols.resolve(replace(protocol, attacks=(PGD(3), unknown)), str(tmp_path))


def test_its_passes_are_counted_and_the_checks_look_at_other_attacks():
    ball = Ball("Linf", 2.0)
    assert forecast.passes(Shifted(SEEN, PGD(3)), 4, ball) == forecast.passes(PGD(3), 4, ball)
    work, plain = forecast.Work(), forecast.Work()
    for each, attacks in ((work, (PGD(3), Shifted(SEEN, PGD(3)))), (plain, (PGD(3), PGD(3, loss="margin")))):
        protocol = Protocol("p", ("x",), attacks, (2.0,), independent=True)
        resolved = SimpleNamespace(protocol=protocol, classes={"x": 4})
        each.add(SimpleNamespace(rows=[0, 1], dataset="x", attacks=attacks), resolved, forecast.Cost(1.0, 2.0))
    assert work.shown == plain.shown + 2, "a look under the texts that it saw"
    assert probing.on_images([PGD(3), Shifted(SEEN, PGD(3))]) == [PGD(3)]


def test_check_18_passes_where_the_attack_saw_what_its_rows_name(make_model, pictures):
    found = run_check(shifted_subject(healthy(make_model(), pictures)), "18")
    assert found.passed is True, found
    subject = shifted_subject(healthy(make_model(), pictures))
    for number in ("16", "17", "22", "G7"):
        assert run_check(subject, number).passed is True


# --- the command --------------------------------------------------------------------------------------------------------------------


def asked(monkeypatch, tmp_path, *words):
    monkeypatch.setattr(sys, "argv", ["evaluate", "tiny-vit8", "--out", str(tmp_path), *map(str, words)])
    return evaluate.asked()[1]


def test_the_command_shifts_the_attacks_on_images(monkeypatch, tmp_path):
    templates, described = tmp_path / "templates.txt", tmp_path / "said.json"
    templates.write_text("a {}.\nthe {}.\n")
    described.write_text(json.dumps({name: list(texts) for name, texts in DESCRIBED.texts.items()}))
    found = asked(monkeypatch, tmp_path, "--independent", "--shift", "one {}", templates, described)
    plain = protocols.named("demo").attacks[0]
    texts = (("one {}",), ("a {}.", "the {}."), DESCRIBED)
    assert found.attacks == (plain, *(Shifted(each, plain) for each in texts))
    assert found.apart == tuple(attack.name for attack in found.attacks[1:])
    found = asked(monkeypatch, tmp_path, "--independent", "--shift", "one {}", "--attacks", "pgd-10", "text:hotflip-1w")
    assert found.attacks == (PGD(10), Text(TEXTS["hotflip"]), Shifted(("one {}",), PGD(10)))
    for words, said in (
        (("--shift", "one {}"), "is no part of a worst case: it needs independent attacks"),
        (("--shift", "one {}", "--independent", "--attacks", "text:hotflip-1w"), "--shift is of attacks on images, and none is among them"),
        (("--shift", "nothing.txt", "--independent"), r"nothing\.txt: no such file"),
        (("--shift", "nothing.json", "--independent"), r"nothing\.json cannot be read"),
    ):
        with pytest.raises(UserError, match=said):
            asked(monkeypatch, tmp_path, *words)
