"""A report on a rendered world with planted differences: what it says, what it refuses, and its command."""

import contextlib
import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from cascades import HEALTHY, PROTOCOL, PROTOCOL_HASH, SKILL, synthetic, whole_report

from robustclip.base import errors, storage
from robustclip.base.errors import UserError
from robustclip.commands.report import run
from robustclip.records import findings
from robustclip.records import rows as records
from robustclip.results import report


@pytest.fixture(scope="module")
def built() -> report.Report:
    return whole_report()


def test_mean_above_chance_uses_the_classes_of_every_set(built: report.Report) -> None:
    accuracies = [built.outcomes["plain"][name].clean.mean() for name in ("shapes", "letters", "digits")]
    expected = np.mean(accuracies) - np.mean([1 / 2, 1 / 4, 1 / 10])
    assert built.mean("plain", "clean").above_chance == pytest.approx(expected)


def test_the_verdict_is_one_plain_sentence(built: report.Report) -> None:
    assert built.verdict(1.0).startswith("robust ε=1: fare is better than plain (+39.4 points, n=180, 95 % +")
    assert "is not distinguishable from" in built.verdict("clean")
    mirrored = report.from_records(synthetic(), PROTOCOL, baseline="fare", chosen="plain", checks=HEALTHY)
    assert "plain is worse than fare" in mirrored.verdict(1.0)


def test_an_unknown_model_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError, match="did you mean tecoa"):
        report.from_records(synthetic(), PROTOCOL, models=["teco"])


def test_a_set_that_was_not_evaluated_is_refused() -> None:
    table = synthetic()
    with pytest.raises(UserError, match="0 of all images of set 'letters'"):
        report.from_records(table.filter(pc.not_equal(table["dataset"], "letters")), PROTOCOL)


def test_a_model_that_lacks_images_is_refused() -> None:
    table = pa.concat_tables([synthetic({"plain": (0.9, 0.0)}), synthetic({"fare": (0.8, 0.5)}, n=50)])
    with pytest.raises(UserError, match="differ in 10 images"):
        report.from_records(table, PROTOCOL)


def test_a_set_that_is_not_finished_is_refused() -> None:
    sets = {name: {**each, "n": 61} for name, each in PROTOCOL["sets"].items()}
    with pytest.raises(UserError, match="model 'fare' has 60 of 61 images of set 'shapes'"):
        report.from_records(synthetic(), {**PROTOCOL, "sets": sets}, models=["fare"])


def test_two_models_under_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="same name"):
        report.from_records(synthetic(), PROTOCOL, names={"plain": "fare"})


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return an output folder with the records of two protocols, one of them with its description."""
    for i, (model, skill) in enumerate(SKILL.items()):
        records.write(str(tmp_path / "records"), f"cell{i}", synthetic({model: skill}))
    records.write(str(tmp_path / "records"), "other", synthetic({"plain": (0.9, 0.0)}, protocol_hash="f" * 64))
    storage.write_json(str(tmp_path / "protocols" / f"{PROTOCOL_HASH}.json"), PROTOCOL)
    for model, found in HEALTHY.items():
        storage.write_json(findings.path(str(tmp_path), PROTOCOL_HASH, f"sha256-of-{model}"), {"findings": findings.as_json(found)})
    return tmp_path


def command(out: Path, *arguments: str) -> SimpleNamespace:
    """Run the command in this process: its exit status and what it said."""
    said, wrong = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["report", "--out", str(out), *arguments]),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(wrong),
    ):
        try:
            errors.main(run)
            status = 0
        except SystemExit as stopped:
            status = stopped.code
    return SimpleNamespace(returncode=status, stdout=said.getvalue(), stderr=wrong.getvalue())


def test_the_command_writes_the_report_of_the_chosen_protocol(out: Path) -> None:
    done = command(out, "--protocol", PROTOCOL_HASH[:8], "plain", "fare")
    assert done.returncode == 0, done.stderr
    page = out / "reports" / PROTOCOL_HASH[:12] / "report.html"
    assert page.exists()
    assert f"open {page}" in done.stdout
    assert "## fare against plain" in done.stdout
    assert "tecoa" not in done.stdout


def test_the_command_compares_two_models(out: Path) -> None:
    done = command(out, "--protocol", PROTOCOL_HASH, "--compare", "fare", "plain")
    assert done.returncode == 0, done.stderr
    assert "robust ε=1: fare is better than plain" in done.stdout
    assert "p (Holm)" in done.stdout
    Path(findings.path(str(out), PROTOCOL_HASH, "sha256-of-fare")).unlink()
    done = command(out, "--protocol", PROTOCOL_HASH, "--compare", "fare", "plain")
    assert done.returncode == 2
    assert "fare cannot be compared under protocol demo: unchecked; run robustclip evaluate again" in done.stderr


def test_the_command_finds_a_checkpoint_folder_by_its_run(out: Path) -> None:
    records.write(str(out / "records"), "run", synthetic({"run-abc": (0.8, 0.9)}))
    storage.write_json(str(out / "checkpoint" / "config.json"), {"format": 1, "run": "abc"})
    done = command(out, "--protocol", PROTOCOL_HASH, str(out / "checkpoint"))
    assert done.returncode == 0, done.stderr
    assert "| run-abc ✗ | " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "records of 2 protocols cannot be compared.*demo 0123456789ab .3 models, last written.*demo ffffffffffff .1 model,"),
        (["--protocol", "dem"], "no records of protocol 'dem'; there are: demo"),
        (["--protocol", "ffff"], "is missing: run robustclip evaluate again"),
        (["--protocol", "0123", "teco"], "did you mean tecoa"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(out: Path, arguments: list[str], message: str) -> None:
    done = command(out, *arguments)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert done.stderr.count("\n") == 1
