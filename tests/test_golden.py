"""Ours beside the published code, folder by folder, and beside what it was before, in float64.

`pytest tests/test_golden.py -s` prints every difference and its tolerance.
"""

import json
from pathlib import Path

import own_numbers
import pytest
from golden_case import FOLDER
from golden_methods import METHODS, PAGE, table
from toys import NEEDS_LIBRARY

KNOWN = json.loads(own_numbers.FILE.read_text())
PARTS = dict(own_numbers.everything())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.folder)
def test_ours_is_the_published_code(method):
    equal, differs = method.held()
    print("", *(f"{method.folder:<9} {row}" for row in [*equal, *differs]), sep="\n")
    assert [str(row) for row in equal if not row.difference <= row.allowed] == []
    assert [str(row) for row in differs if row.difference <= row.allowed] == [], "said to differ, and does not"


def test_every_folder_is_held_against():
    assert {method.folder for method in METHODS} == {file.parent.name for file in Path(FOLDER).glob("*/case.json")}
    assert len(METHODS) == 13


def test_the_page_has_the_table_that_the_tests_make():
    assert table() in PAGE.read_text(), "run python tests/golden_methods.py"


@pytest.mark.parametrize("name", [pytest.param(name, marks=[NEEDS_LIBRARY] * ("torchattacks" in name)) for name in PARTS])
def test_ours_is_what_it_was(name):
    found = PARTS[name]()
    assert name in KNOWN, "python tests/own_numbers.py --write adds its numbers"
    assert own_numbers.same(found, KNOWN[name]), f"{KNOWN[name]} -> {found}: if that is meant, python tests/own_numbers.py --write"


def test_a_number_of_ours_that_moved_is_seen():
    known = {"loss": 2.0, "texts": ["a cat"]}
    assert own_numbers.same({"loss": 2.0 + 1e-9, "texts": ["a cat"]}, known)
    for moved in ({"loss": 2.00001, "texts": ["a cat"]}, {"loss": 2.0, "texts": ["a dog"]}, {"loss": 2.0, "texts": []}):
        assert not own_numbers.same(moved, known)
