"""What is done with findings: the line under a table, JSON, rankings; sign tests by hand; exceptions are findings too."""

import json
from dataclasses import replace
from math import comb

import pytest
from probes import changed, healthy
from scipy.stats import binomtest

from robustclip.attacks import APGD, PGD, Library
from robustclip.base import storage
from robustclip.evaluation import checks
from robustclip.evaluation.checks import CHECKS, run_check
from robustclip.evaluation.checks.base import by_chance
from robustclip.evaluation.checks.strength import LADDER, below
from robustclip.records import findings
from robustclip.records.findings import GREY_BOX, Finding, as_json, rankable, summary

FINDINGS = [
    Finding("1", "nothing at eps 0", "hard", True, "nothing moved"),
    Finding("8", "converged", "warning", False, "still climbing", {"late": 0.4}),
    Finding("20", "without the filter", "warning", None, "not applicable: no filter"),
]
BROKEN = Finding("4", "stronger is stronger", "hard", False, "APGD leaves more right than FGSM")


def test_the_summary_is_one_line_with_every_reason():
    assert summary(FINDINGS) == "checks: 1 passed, 1 warning (8: still climbing), hard failures: none, not applicable: 20"
    assert summary([*FINDINGS, BROKEN]).endswith("hard failures: 4: APGD leaves more right than FGSM, not applicable: 20")


def test_findings_are_json():
    assert json.loads(json.dumps(as_json(FINDINGS)))[1] == {
        "number": "8",
        "name": "converged",
        "level": "warning",
        "passed": False,
        "reason": "still climbing",
        "figures": {"late": 0.4},
    }


def test_a_figure_that_is_not_finite_is_kept_by_its_name(tmp_path):
    found = Finding("8", "converged", "warning", True, "fine", {"late": float("nan"), "all": [1.5, {"worst": -float("inf")}]})
    path = findings.path(str(tmp_path), "protocol", "weights")
    storage.write_json(path, {"findings": as_json([found])})
    (read,) = findings.read(str(tmp_path), "protocol", {"model": "weights"})["model"]
    assert read.figures == {"late": "nan", "all": [1.5, {"worst": "-inf"}]}


def test_figures_of_every_check_are_json(tiny_model, pictures):
    subject = healthy(tiny_model, pictures)
    for number in ("2", "7", "14", "16", "18", "22"):
        assert json.loads(json.dumps(as_json([run_check(subject, number)])))


def test_only_a_white_box_number_without_a_hard_failure_is_ranked():
    assert rankable(FINDINGS, "white-box") == (True, "")
    assert rankable([*FINDINGS, BROKEN], "white-box") == (False, "hard failure of check 4: APGD leaves more right than FGSM")
    assert rankable(FINDINGS, "A1") == (False, "grey-box: comparable, never ranked")
    assert rankable([BROKEN], "A1") == (False, f"{GREY_BOX}; hard failure of check 4: APGD leaves more right than FGSM")
    assert rankable([], "white-box") == (False, "unchecked")


def test_a_preset_that_is_grey_box_by_design_says_so_and_is_no_failure(make_model, pictures):
    subject = healthy(make_model(), pictures)
    other = make_model(seed=1).classifier(subject.classifier.class_names, subject.classifier.templates)
    grey = changed(subject, attacked=other, protocol=replace(subject.protocol, level="grey-box A1"))
    found = run_check(grey, "11")
    assert found.passed is True
    assert found.reason.startswith("grey-box: comparable, never ranked")
    assert found.figures["same object"] is False
    assert run_check(changed(subject, attacked=other), "11").passed is False


def test_a_check_that_raises_is_a_hard_failure_with_its_line(tiny_model, pictures, monkeypatch):
    def fails(subject):
        raise ValueError("two\nlines")

    monkeypatch.setitem(checks.CHECKS, "8", ("converged", "warning", fails))
    found = run_check(healthy(tiny_model, pictures), "8")
    assert (found.level, found.passed, found.reason) == ("hard", False, "raised ValueError: two lines")


@pytest.mark.parametrize("missing", ["records", "resolved", "model", "black_box", "selection_ids"])
def test_what_is_not_given_is_never_silently_passed(missing, tiny_model, pictures):
    subject = changed(healthy(tiny_model, pictures), **{missing: None})
    needs = {
        "records": ["16", "G7", "G9"],
        "resolved": ["16"],
        "model": ["14", "G2", "G3", "G8"],
        "black_box": ["5"],
        "selection_ids": ["21"],
    }
    for number in needs[missing]:
        found = run_check(subject, number)
        assert found.passed is None
        assert found.reason.startswith("not applicable: ")


def test_half_a_step_of_eps_does_not_survive_8_bits(tiny_model, pictures):
    subject = healthy(tiny_model, pictures)
    for eps, said in ((0.5, True), (2.0, False)):
        found = run_check(changed(subject, protocol=replace(subject.protocol, eps=(eps,)), records=None), "2")
        assert found.passed is True
        assert found.reason.endswith("; stored as 8 bits they would leave it") == said


def test_titles_are_short_and_levels_are_the_two():
    assert [number for number in CHECKS if not number.startswith("G")] == [str(i) for i in range(1, 23)]
    assert {level for _, level, _ in CHECKS.values()} == {"hard", "warning"}
    hard = {number for number, (_, level, _) in CHECKS.items() if level == "hard" and not number.startswith("G")}
    assert hard == {"1", "2", "4", "7", "11", "12", "13", "15", "16"}


def test_the_sign_test_is_the_exact_one_sided_one():
    for against, for_ in ((0, 0), (5, 0), (7, 0), (6, 3), (0, 4)):
        expected = binomtest(against, against + for_, alternative="greater").pvalue if against + for_ else 1.0
        assert by_chance(against, for_) == pytest.approx(expected)
    assert by_chance(7, 0) == comb(7, 7) / 2**7


def test_an_attack_is_held_to_the_rungs_below_its_kind():
    noise, fgsm, pgd, apgd = LADDER
    assert below(noise) == []
    assert below(fgsm) == [noise]
    assert below(pgd) == below(PGD(100)) == below(PGD(5)) == [noise, fgsm]
    assert below(apgd) == below(APGD(100)) == [noise, fgsm, pgd]
    assert below(APGD(5)) == [noise, fgsm]
    assert below(Library("MIFGSM", (("steps", 10),))) == [noise, fgsm]
    assert below(Library("FGSM")) == [noise]
