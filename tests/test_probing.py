"""The checks beside the numbers of a real run: on which images, kept where, made again when, and what a fault in the run does."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from robustclip import names as models
from robustclip.base import storage
from robustclip.evaluation import computing, probing, protocols
from robustclip.evaluation.checks import CHECKS, run_check
from robustclip.evaluation.protocols import Resolved
from robustclip.records import findings
from robustclip.records import rows as records
from robustclip.results import report
from robustclip.results.page import Page

NAME = "tiny-vit8"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Resolved, pa.Table]:
    """Return the smoke protocol and its records of the embedded model, as a worker writes them."""
    resolved = protocols.resolve(protocols.named("smoke"), str(tmp_path_factory.mktemp("run")))
    model, rows = models.load(NAME), []
    for cell in resolved.cells(NAME, models.identity(NAME)):
        rows += [computing.provenance(cell, resolved) | row for row in computing.compute(model, cell, resolved)]
    return resolved, records.table(rows)


def found(resolved: Resolved, table: pa.Table, out: Path) -> list[findings.Finding]:
    """Return what the checks of the embedded model say of a run, from the file they wrote."""
    probing.check_model(NAME, NAME, resolved, table, str(out), 1)
    (said,) = findings.read(str(out), resolved.hash, {NAME: models.identity(NAME)}).values()
    return said


def test_the_probe_is_of_the_best_set_and_spread_over_it(run: tuple[Resolved, pa.Table]) -> None:
    resolved, table = run
    clean = table.filter(pc.equal(table["attack"], "clean"))
    right = {name: np.mean(clean.filter(pc.equal(clean["dataset"], name))["correct"].to_pylist()) for name in resolved.sets}
    subject = probing.probe(NAME, NAME, resolved, table)
    assert subject.dataset == max(right, key=lambda name: right[name])
    assert len(set(subject.ids)) == probing.PROBE == len(subject.images)
    assert subject.classifier is subject.attacked is subject.baseline


def test_a_healthy_run_is_ranked_and_says_so(run: tuple[Resolved, pa.Table], tmp_path: Path) -> None:
    resolved, table = run
    said = found(resolved, table, tmp_path)
    assert [finding.number for finding in said] == list(CHECKS)
    assert findings.rankable(said, resolved.protocol.level) == (True, "")
    built = report.from_records(table, resolved.describe(), checks={NAME: said})
    assert report.MARK not in Page(built).markdown()


def without_a_set(table: pa.Table) -> pa.Table:
    return table.filter(pc.not_equal(table["dataset"], "digits"))


def with_unvisited_images(table: pa.Table) -> pa.Table:
    """Rows left at their fill: attacked, they say, and correct, but without one forward pass."""
    idle = pc.if_else(pc.equal(table["attack"], "clean"), pa.scalar(None, pa.int64()), 0)
    return table.set_column(table.schema.get_field_index("forwards"), "forwards", idle)


@pytest.mark.parametrize(("fault", "number"), [(without_a_set, "16"), (with_unvisited_images, "16")])
def test_a_fault_in_the_run_is_marked_in_the_table(
    fault, number: str, run: tuple[Resolved, pa.Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved, table = run
    monkeypatch.setattr("robustclip.evaluation.checks.run_checks", lambda subject: [run_check(subject, number)])
    said = found(resolved, fault(table), tmp_path)
    assert number in {finding.number for finding in findings.failed(said, "hard")}
    assert f"| {NAME} {report.MARK} |" in Page(report.from_records(table, resolved.describe(), checks={NAME: said})).markdown()


class InThisProcess:
    """Of Ray what the checks ask for, one task after another: that they run on Ray is seen by the tests' sweep."""

    def remote(self, **options: object) -> Callable[..., Any]:
        return lambda function: SimpleNamespace(remote=function)

    def wait(self, running: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return running[:num_returns], running[num_returns:]

    def get(self, ready: list[Any]) -> list[Any]:
        return ready


def test_checks_run_once_and_again_beside_another_baseline_or_when_there_are_more(
    run: tuple[Resolved, pa.Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved, table = run
    said: list[str] = []
    monkeypatch.setitem(sys.modules, "ray", InThisProcess())
    monkeypatch.setattr("robustclip.evaluation.checks.CHECKS", {number: CHECKS[number] for number in ("15", "16")})
    first = probing.check([NAME], NAME, resolved, table, str(tmp_path), actors=1, on_progress=said.append)
    assert said == ["checked 1/1 models"]
    assert probing.check([NAME], NAME, resolved, table, str(tmp_path), actors=1, on_progress=said.append) == first
    assert len(said) == 1
    path = findings.path(str(tmp_path), resolved.hash, models.identity(NAME))
    storage.write_json(path, storage.read_json(path) | {"baseline_sha256": "another", "findings": []})
    assert probing.check([NAME], NAME, resolved, table, str(tmp_path), actors=1, on_progress=said.append) == first
    assert len(said) == 2
    kept = storage.read_json(path)
    storage.write_json(path, kept | {"findings": kept["findings"][:1]})  # of a time when there were fewer checks
    assert probing.check([NAME], NAME, resolved, table, str(tmp_path), actors=1, on_progress=said.append) == first
    assert len(said) == 3
