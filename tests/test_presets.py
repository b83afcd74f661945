"""Presets: as many sets as the name says, the prompts and sizes of the reference sheets, and means over exactly these sets."""

import re
from dataclasses import replace

import numpy as np
import open_clip
import pyarrow as pa
import pytest

from robustclip.attacks import APGD, PGD
from robustclip.base.errors import UserError
from robustclip.data.card import DatasetCard
from robustclip.data.index import Index
from robustclip.evaluation import protocols, templates
from robustclip.evaluation.presets import ATTACKS, BINARY, PRESETS, TITLES
from robustclip.evaluation.protocols import Resolved, resolve
from robustclip.evaluation.rules import Protocol, SetRule
from robustclip.records import rows as records
from robustclip.records.findings import Finding
from robustclip.records.summary import set_metrics
from robustclip.results import report
from robustclip.results.page import Page

IMAGES = 4


def resolved(protocol: Protocol) -> Resolved:
    """Return a protocol with sets of four images, under the prompts its rules give."""
    sets = {}
    for name in protocol.sets:
        rule, n = protocol.rule(name), np.arange(IMAGES)
        names = rule.class_names or tuple(f"class {i}" for i in range(rule.classes or 2))
        shards = {rule.split: ({"file": "f", "sha256": "0", "rows": IMAGES},)}
        card = DatasetCard(name, names, rule.templates or ("{}",), {rule.split: IMAGES}, None, "none", "here", shards)
        index = Index(("f",), n * 0, n * 0, n, n * 0, pa.array([f"{name}/{i}" for i in n]), names)
        sets[name] = protocols.TestSet(card, index, n, rule.split)
    return Resolved(protocol, sets)


def evaluated(found: Resolved, right: dict[str, int], model: str = "m"):
    """Return the records of a model that gets right[set] images of a set right, and none of them under the last attack at the last eps."""
    rows, protocol = [], found.protocol
    for cell in found.cells("m", "w"):
        attacks = [attack.name for attack in cell.attacks if attack.name not in found.skips[cell.dataset]]
        cells = [(records.CLEAN if attacks else records.CLEAN_ONLY, 0.0), *((a, e) for e in protocol.eps for a in attacks)]
        for row in cell.rows:
            last = cells[-1] if len(cells) > 1 else None
            for attack, eps in cells if row < right[cell.dataset] else cells[:1]:
                prediction = int(row >= right[cell.dataset] or (attack, eps) == last)
                facts = {"label": 0, "prediction": prediction, "correct": prediction == 0, "attack": attack, "eps": eps}
                names = {"model": model, "model_sha256": model, "dataset": cell.dataset, "image_id": found.sets[cell.dataset].ids[row]}
                rows.append(facts | names | {"protocol": protocol.name, "protocol_hash": found.hash})
    return records.table(rows)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_as_many_sets_as_its_name_says(name):
    preset = PRESETS[name]
    said = re.search(r"\d+", name)
    assert len(set(preset.sets)) == (int(said[0]) if said else 1)
    assert set(preset.sets) <= set(TITLES)
    assert [rule.name for rule in preset.rules] == list(preset.sets)
    assert set(preset.real) == set(preset.sets)


def test_the_neighbours_of_tecoa_16_leave_out_what_they_say():
    everything = set(PRESETS["tecoa-16"].sets)
    assert everything - set(PRESETS["tecoa-15-zs"].sets) == {"imagenet"}
    assert everything - set(PRESETS["tecoa-15-open"].sets) == {"hatefulmemes"}
    assert everything - set(PRESETS["tecoa-14"].sets) == {"hatefulmemes", "pcam"} == set(BINARY)
    assert everything ^ set(PRESETS["ttc-16"].sets) == {"hatefulmemes", "country211"}
    assert everything ^ set(PRESETS["tga-16"].sets) == {"hatefulmemes", "tinyimagenet"}
    assert everything ^ set(PRESETS["mmcoa-16"].sets) == {"hatefulmemes", "pcam", "tinyimagenet", "country211"}


def test_hashes_differ():
    assert len({resolved(preset).hash for preset in PRESETS.values()}) == len(PRESETS)


def test_templates_are_the_published_ones():
    assert list(templates.IMAGENET_80) == [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    counts = {name: len(each) for name, each in templates.FARE.items()}
    one, two, eight = ("oxfordpets", "flowers102"), ("stl10", "fgvcaircraft", "pcam"), ("stanfordcars", "dtd")
    expected = {1: one, 2: two, 3: ("eurosat",), 8: eight, 18: ("cifar10", "cifar100"), 34: ("caltech101",)}
    expected[80] = ("imagenet", "imagenet-r", "imagenet-sketch")
    assert counts == {name: count for count, names in expected.items() for name in names}
    for preset in PRESETS.values():
        for rule in preset.rules:
            assert all(template.count("{}") == 1 for template in rule.templates)
            assert len(set(rule.templates)) == len(rule.templates)
            assert len(rule.class_names) in (0, rule.classes)
    assert {rule.templates for rule in PRESETS["tapt-11"].rules} == {("a photo of a {}.",)}
    assert PRESETS["tecoa-16"].rule("cifar10").templates == ("This is a photo of a {}",)
    assert PRESETS["ttc-16"].rule("cifar10").templates == ("This is a photo of a {}.",)
    eurosat = resolved(PRESETS["tecoa-16"]).sets["eurosat"].card
    prompts = [template.format(name) for name in eurosat.class_names for template in eurosat.templates]
    assert len(prompts) == 10
    assert all(prompt.startswith("A centered satellite photo of ") for prompt in prompts)


def test_small_images_are_attacked_small_only_where_the_paper_did():
    native = {"cifar10": 32, "cifar100": 32, "stl10": 96}
    expected = dict.fromkeys(("fare-13", "tga-16", "mmcoa-16"), native) | {name: {} for name in ("ttc-16", "tapt-11")}
    expected["tecoa-16"] = native | {"hatefulmemes": 224}
    assert {name: {r.name: r.native for r in PRESETS[name].rules if r.native} for name in expected} == expected
    assert {(p.resize, p.crop, p.interpolation) for p in PRESETS.values()} == {(256, 224, "bilinear"), (224, 224, "bicubic")}


def test_levels_and_sizes():
    grey = {name: preset.level for name, preset in PRESETS.items() if preset.level != "white-box"}
    assert grey == {"tapt-11": "grey-box A1", "ttc-16": "grey-box A0"}
    assert sum(rule.images or 0 for rule in PRESETS["tapt-11"].rules) == 133_696
    assert (PRESETS["fare-13"].n, PRESETS["fare-13"].attacked, PRESETS["fare-imagenet"].n) == (None, 1000, 5000)


def test_every_preset_has_its_attacks_and_binary_sets_only_those_for_two_classes():
    used = {attack for preset in PRESETS.values() for attack in preset.attacks}
    assert used == {attack for attacks in ATTACKS.values() for attack in attacks}
    for preset in PRESETS.values():
        for name in preset.sets:
            of_two = all(isinstance(attack, PGD | APGD) and getattr(attack, "loss", "ce") == "ce" for attack in preset.attacks_on(name))
            assert of_two if name in BINARY else preset.attacks_on(name) == preset.attacks


@pytest.mark.parametrize("name", PRESETS)
def test_every_missing_set_is_named_at_once(name, tmp_path):
    with pytest.raises(UserError, match=f"protocol {name!r} needs") as refused:
        resolve(PRESETS[name], str(tmp_path))
    assert re.findall(r"'([^']+)' \(", str(refused.value)) == list(PRESETS[name].sets)
    assert not (tmp_path / "protocols").exists()


@pytest.mark.parametrize("name", ["tecoa-16", "tecoa-14", "fare-13"])
def test_the_mean_is_over_exactly_the_sets(name):
    found = resolved(PRESETS[name])
    right = {each: i % (IMAGES + 1) for i, each in enumerate(found.sets)}
    found_metrics = set_metrics(evaluated(found, right), found.describe())
    assert found_metrics["test/clean"] == pytest.approx(sum(right.values()) / IMAGES / len(right))
    assert found_metrics["test/robust_4"] == 0
    assert found_metrics["test/robust_2"] == found_metrics["test/clean"]
    lacking = evaluated(found, right)
    lacking = lacking.filter([each != "stl10" for each in lacking["dataset"].to_pylist()])
    with pytest.raises(UserError, match="cannot average over"):
        set_metrics(lacking, found.describe())
    with pytest.raises(UserError, match="0 of 4 images of set 'stl10'"):
        report.from_records(lacking, found.describe())


def test_a_set_that_skips_an_attack_counts_with_the_others_and_says_so():
    exhaustive = replace(PRESETS["tecoa-16"], attacks=(PGD(2), APGD(3)), rules=())
    found = resolved(replace(exhaustive, rules=tuple(SetRule(name, skips=("apgd-ce-3",)) for name in BINARY)))
    right = dict.fromkeys(found.sets, 3)
    table = evaluated(found, right)
    built = report.from_records(table, found.describe())
    assert built.mean("m", 2.0).mean == 0.75
    assert built.mean("m", (4.0, "pgd-2")).mean == pytest.approx(0.75 * 14 / 16)  # the two fell to their last attack
    assert "On pcam these attacks were not run: apgd-ce-3." in Page(built).markdown()
    with pytest.raises(UserError, match=r"set 'hatefulmemes'.*no row and no earlier break at attack 'apgd-ce-3'"):
        report.from_records(table, resolved(exhaustive).describe())
    with pytest.raises(UserError, match=r"set 'hatefulmemes'.*its protocol leaves out at attack 'apgd-ce-3'"):
        report.from_records(evaluated(resolved(exhaustive), right), found.describe())


def test_clean_on_all_images_stands_beside_clean_on_those_attacked():
    found = resolved(replace(PRESETS["fare-13"], attacked=2))
    built = report.from_records(evaluated(found, dict.fromkeys(found.sets, 3)), found.describe())
    assert [built.mean("m", column).mean for column in built.columns] == [0.75, 1.0, 1.0, 1.0, 0.0]
    assert [built.mean("m", column).n for column in built.columns] == [52, 26, 26, 26, 26]
    assert "| clean | clean, attacked images | robust ε=1 |" in Page(built).markdown()
    assert "n = 52 images per model, 26 of them attacked" in Page(built).markdown()
    described = found.describe()
    described["sets"]["pcam"]["attacked"] = 3
    with pytest.raises(UserError, match="2 images of set 'pcam' were attacked, not 3"):
        report.from_records(evaluated(found, dict.fromkeys(found.sets, 3)), described)


@pytest.mark.parametrize("name", ["tapt-11", "ttc-16", "fare-13"])
def test_grey_box_numbers_are_marked_and_never_ranked(name):
    found = resolved(PRESETS[name])
    tables = [evaluated(found, dict.fromkeys(found.sets, n), model) for model, n in (("m", 3), ("other", 4))]
    healthy = [Finding("1", "nothing at eps 0", "hard", True, "nothing moved")]
    built = report.from_records(pa.concat_tables(tables), found.describe(), checks={"m": healthy, "other": healthy})
    grey = PRESETS[name].level != "white-box"
    said = f"Attacker level {PRESETS[name].level}, grey-box: comparable, never ranked."
    assert [said in text for text in (Page(built).markdown(), Page(built).html({}), Page(built).sheets[0].latex())] == [grey] * 3
    assert ("## other against m" in Page(built).markdown()) is not grey
    if grey:
        with pytest.raises(UserError, match=r"comparable, never ranked.*white-box"):
            Page(built).comparison()
    else:
        assert "other is better than m" in Page(built).comparison()
