"""Protocols with attacks on prompts: their names, one table for all their words, what is recorded, kept, shown and checked."""

import json
from dataclasses import replace

import pytest
from faults_text import under
from probes import healthy

from robustclip import names as models
from robustclip.attacks import APGD, PGD
from robustclip.attacks.modes import MODES, TEXTS, by_table, modes_of, with_collisions
from robustclip.attacks.multimodal import CoAttack, GuidedCoAttack, OracleText, Separate, Text
from robustclip.attacks.text.rewriting import Rewritten
from robustclip.attacks.text.search import TextAttack
from robustclip.attacks.text.sources import RandomWords, Table
from robustclip.base.errors import UserError
from robustclip.base.threat import TextBudget
from robustclip.base.values import to_json
from robustclip.evaluation import computing, probing, protocols
from robustclip.evaluation.checks import run_check
from robustclip.evaluation.protocols import Protocol
from robustclip.evaluation.rewritings import Kept
from robustclip.records import rows as records
from robustclip.records import survival
from robustclip.records.prompts import as_csv, read_all
from robustclip.results import report
from robustclip.results.page import Page

HOTFLIP = TEXTS["hotflip"]
NOTHING = TextAttack(RandomWords(), TextBudget(words=0))


# --- protocols, records, tables ---------------------------------------------------------------------------------------------------------


def test_what_stands_apart_needs_independent_attacks():
    for attack in (OracleText(HOTFLIP), Text(with_collisions(HOTFLIP))):
        with pytest.raises(UserError, match="is no part of a worst case: it needs independent attacks"):
            Protocol("p", ("shapes",), (PGD(2), attack), (2.0,))
        with pytest.raises(UserError, match="is no part of a worst case: add an attack that is"):
            Protocol("p", ("shapes",), (attack,), (2.0,), independent=True)
    assert Protocol("p", ("shapes",), (PGD(2), OracleText(HOTFLIP)), (2.0,), independent=True).apart == ("oracle-text:hotflip-1w",)


def test_names_tell_the_modes_apart():
    assert len(MODES) == len(TEXTS) * len(modes_of(HOTFLIP))
    assert list(MODES)[-7:] == [
        "text:char-1e-top2",
        "text:char-1e-top2-name",
        "text:char-1e-top2+collisions",
        "oracle-text:char-1e-top2",
        "separate+apgd-ce-20:char-1e-top2",
        "co-attack-20:char-1e-top2",
        "sga-10:char-1e-top2",
    ]


def test_a_table_gives_the_words_of_every_text_attack():
    table = Table("t.json", "0", {})
    assert by_table([PGD(2)], table) == (PGD(2),)
    for attack in MODES.values():
        (found,) = by_table([attack], table)
        assert found.text.source == table
        assert found.text.budget.scope == attack.text.budget.scope
        assert found.name.startswith(f"{attack.mode}:table-1w")
    # A protocol may name several sources: with a table they are one attack, and the protocol stays valid.
    multimodal = protocols.named("multimodal")
    changed = replace(multimodal, attacks=by_table(multimodal.attacks, table))
    image, *modes = changed.attacks
    assert image == multimodal.attacks[0]
    assert set(modes) == set(modes_of(multimodal.attacks[1].text.by_table(table)))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Return a multimodal protocol resolved, its records of the embedded model, and the folder."""
    out = str(tmp_path_factory.mktemp("run"))
    text = TEXTS["hotflip"]
    attacks = (APGD(3), Text(text), Text(with_collisions(text)), OracleText(text), CoAttack(text, 3), GuidedCoAttack(text, 2))
    protocol = replace(protocols.named("smoke"), name="m", attacks=attacks, eps=(1.0, 2.0), independent=True)
    resolved = protocols.resolve(protocol, out)
    model, rows = models.load("tiny-vit8"), []
    for cell in resolved.cells("tiny-vit8", models.identity("tiny-vit8")):
        rows += [computing.provenance(cell, resolved) | row for row in computing.compute(model, cell, resolved, out)]
    return resolved, records.table(rows), out


def test_the_records_say_the_budget_and_the_worst_case_leaves_out_what_stands_apart(smoke):
    resolved, table, _ = smoke
    budgets = {row["attack"]: row["text_budget"] for row in table.select(["attack", "text_budget"]).to_pylist()}
    assert budgets["apgd-ce-3"] is None
    assert budgets["text:hotflip-1w"] == budgets["co-attack-3:hotflip-1w"] == "1 words"
    built = report.from_records(table, resolved.describe())
    names = [attack for attack in resolved.protocol.attacks if attack.name not in resolved.protocol.apart]
    (seen,) = built.outcomes.values()
    for name in resolved.sets:
        rows = [row for row in table.to_pylist() if row["dataset"] == name and row["attack"] in {a.name for a in names} | {"clean"}]
        wrong = {row["image_id"] for row in rows if row["eps"] <= 1.0 and not row["correct"]}
        assert int(seen[name].flags(1.0).sum()) == len(resolved.sets[name].rows) - len(wrong)
    page = Page(built).markdown()
    assert "Shown and in no worst case (the label is known" in page
    assert "oracle-text:hotflip-1w" in page


def test_every_attack_has_its_own_accuracy(smoke):
    resolved, table, _ = smoke
    built = report.from_records(table, resolved.describe())
    sheet = next(sheet for sheet in Page(built).sheets if sheet.title == "Each attack on its own")
    assert len(sheet.header) == 1 + 2 * len(resolved.protocol.attacks)
    own = survival.alone(table, ["text:hotflip-1w"], 2.0)["tiny-vit8"]["shapes"]
    rows = [row for row in table.to_pylist() if row["dataset"] == "shapes" and row["attack"] == "text:hotflip-1w" and row["eps"] == 2.0]
    assert int(own.flags(2.0).sum()) == sum(row["correct"] and row["clean_prediction"] == row["label"] for row in rows)


def test_the_rewritten_prompts_are_kept_and_shown(smoke, monkeypatch):
    resolved, table, out = smoke
    sha256 = models.identity("tiny-vit8")
    found = read_all(out, resolved.hash, {sha256: "tiny-vit8"})
    titles = ["hotflip-1w", "hotflip-1w+collisions", "hotflip-1w-image, Linf 1/255", "hotflip-1w-image, Linf 2/255"]
    assert [(each.dataset, each.attack) for each in found] == [(name, title) for name in ("digits", "shapes") for title in titles]
    built = report.from_records(table, resolved.describe(), prompts=found)
    assert "Attacked prompts" in [sheet.title for sheet in Page(built).sheets]
    lines = as_csv(found).splitlines()
    prompts = sum(len(each.card.class_names) * len(each.card.templates) for each in resolved.sets.values())
    assert len(lines) == 1 + len(titles) * prompts
    assert read_all(out, resolved.hash, {"another": "model"}) == []

    # Another cell of the same set asks nothing again.
    monkeypatch.setattr(TextAttack, "__call__", lambda *args: pytest.fail("rewritten again"))
    cell = resolved.cells("tiny-vit8", sha256)[0]
    again = computing.compute(models.load("tiny-vit8"), cell, resolved, out)
    first = [row for row in table.to_pylist() if row["dataset"] == cell.dataset]
    assert [row["prediction"] for row in again] == [row["prediction"] for row in first]


def test_what_was_kept_is_of_this_model_set_and_attack(tmp_path):
    def kept(**about):
        return Kept(str(tmp_path), "hash", {"model_sha256": "m", "dataset": "d"} | about)

    value = Rewritten(("a cat",), ("a bat",), (0.5,), 0.25)
    name = json.dumps(["random-1w", to_json(NOTHING), {}])
    kept()[name] = value
    assert kept()[name] == value
    for other in (kept(model_sha256="n"), kept(dataset="e"), Kept(str(tmp_path), "other", kept().about)):
        assert name not in other
    assert json.dumps(["x", {}, {}]) not in kept()


def test_the_checks_look_at_the_attacks_on_images(smoke):
    resolved, table, _ = smoke
    assert [attack.name for attack in probing.probe("tiny-vit8", "tiny-vit8", resolved, table).protocol.attacks] == ["apgd-ce-3"]
    assert probing.on_images([Separate(HOTFLIP, PGD(3))]) == [PGD(3)]
    assert probing.on_images([Text(HOTFLIP)]) == [PGD(20)]


# --- the guard --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXTS)
def test_healthy_text_attacks_pass(name, tiny_model, pictures):
    for text in (TEXTS[name], with_collisions(TEXTS[name])):
        assert run_check(under(healthy(tiny_model, pictures), text), "G10").passed is True


def test_the_guard_has_nothing_to_say_without_text_attacks(tiny_model, pictures):
    assert run_check(healthy(tiny_model, pictures), "G10").passed is None
