"""Every check and guard finds the faults planted for it in the production path; `pytest -q -s -k planted` prints the table."""

import faults_attacks
import faults_models
import faults_records
import faults_shift
import faults_text
import pytest
from probes import NAMES, TEMPLATES, changed, healthy

from robustclip.evaluation.checks import CHECKS, run_check, run_checks

FAULTS = sorted(
    [*faults_attacks.FAULTS, *faults_models.FAULTS, *faults_records.FAULTS, *faults_shift.FAULTS, *faults_text.FAULTS],
    key=lambda fault: list(CHECKS).index(fault[0]),
)


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def subject(kept, make_model, pictures):
    """Return a healthy subject without runs, and give the faults a classifier of other weights."""
    if not kept:
        kept["subject"] = healthy(make_model(), pictures)
        faults_attacks.OTHER[:] = faults_models.OTHER[:] = [make_model(seed=1).classifier(NAMES, TEMPLATES)]
    return changed(kept["subject"])


def test_nothing_is_found_where_nothing_is_planted(subject):
    assert {finding.number: finding.passed for finding in run_checks(subject) if finding.passed is not True} == {"20": None, "G10": None}


@pytest.mark.parametrize(("number", "fault", "plant"), FAULTS, ids=[f"{number}-{fault}" for number, fault, _ in FAULTS])
def test_a_planted_fault_is_found(number, fault, plant, subject, monkeypatch):
    found = run_check(plant(subject, monkeypatch), number)
    title, level, _ = CHECKS[number]
    print(f"{number:>3} {title:24} {level:8} {fault:54} {found.reason[:140]}")
    assert found.passed is False
    assert found.level == level or found.reason.startswith("raised UserError")


def test_every_check_has_a_planted_fault():
    assert {number for number, _, _ in FAULTS} == CHECKS.keys()
