"""Retrieval through the evaluator's workers and as a command: the records of one process, nothing computed twice, faults named."""

import json
from pathlib import Path
from typing import Any

import pytest
from sourcing import as_folder, image

from robustclip import names as models
from robustclip.attacks import PGD
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.commands import retrieve
from robustclip.data.preparation import prepare
from robustclip.evaluation import ranking
from robustclip.evaluation.retrieval import RetrievalProtocol, resolve
from robustclip.records import retrieval
from robustclip.records import rows as records
from robustclip.runtime import cli


def test_workers_write_what_one_process_computes(ray_session: None, tmp_path: Path, tiny_checkpoint: str) -> None:
    """And only what is missing; a file that was changed is named, and not counted."""
    out, protocol = str(tmp_path), RetrievalProtocol(n=12, ks=(1, 5), attacks=(PGD(1),), eps=(2.0,))
    paired, model = resolve(protocol, out), models.load(tiny_checkpoint)
    cells = paired.cells(models.display_name(tiny_checkpoint), models.identity(tiny_checkpoint))
    one = ranking.Galleries(model, paired)
    rows = [ranking.provenance(cell, paired) | {"threads": 1} | row for cell in cells for row in ranking.compute(one, cell)]
    here = records.table(rows, retrieval.SCHEMA)
    table = ranking.retrieve([tiny_checkpoint], paired, out, actors=1, cpus=0.5)
    assert records.content_sha256(table, retrieval.SCHEMA) == records.content_sha256(here, retrieval.SCHEMA)
    files = storage.list_files(storage.join(out, retrieval.FOLDER), ".parquet")
    assert sorted(map(storage.name_of, files)) == sorted(f"{cell.key}.parquet" for cell in cells)
    again = ranking.retrieve([tiny_checkpoint], paired, out, actors=1, on_progress=lambda progress: pytest.fail("computed again"))
    assert again.equals(table)
    changed = records.table([row | {"rank": 1} for row in storage.read_table(files[0]).to_pylist()], retrieval.SCHEMA)
    storage.write_table(files[0], changed.replace_schema_metadata({b"content_sha256": b"as it was"}))
    with pytest.raises(UserError, match="does not match its own hash"):
        ranking.retrieve([tiny_checkpoint], paired, out, actors=1)


@pytest.mark.timeout(1800)
def test_the_command_on_a_set_with_captions(
    ray_session: None, tmp_path: Path, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both models stand in the tables, texts of one class count as one draw, and what was left out is said."""
    files = {f"test/{name}/{i}.png": image(16, 16) for name in ("cat", "dog", "cow") for i in range(3)}
    out = str(tmp_path / "out")
    prepare(out, "pets", [as_folder(tmp_path / "pets", files)])
    (tmp_path / "said.json").write_text(json.dumps({"cat": ["a cat", "one cat"], "dog": ["a dog", "one dog"]}))
    words = ["retrieve", tiny_checkpoint, "--data", "pets", "--captions", str(tmp_path / "said.json"), "--recall", "1", "2"]
    monkeypatch.setattr("sys.argv", [*words, "--attacks", "pgd-10", "--eps", "1", "--actors", "1", "--out", out])
    monkeypatch.setattr(cli, "say_on_terminal", lambda: None)
    retrieve.run()
    said = capsys.readouterr().out
    assert said.count("| tiny-vit8 |") == 4
    assert "6 images and 4 texts in 2 groups" in said
    assert "3 images were left out, because nothing is said of them." in said
    assert "Percent of 4 queries with a right answer among the first k of 6" in said
    assert "the texts of one group counted as one (2)" in said
    (report,) = Path(out).glob("reports/*/table.csv")
    assert len(report.read_text().splitlines()) == 1 + 2 * 2 * 3 * 2


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["tiny-vit8", "--recall", "5", "1"], "depths must be ascending"),
        (["tiny-vit8", "--data", "pets"], "give both --data SET and --captions FILE"),
        (["tiny-vit8", "--captions", "nothing.json"], "nothing.json cannot be read"),
        (["tiny-vit8", "--attacks", "autoattack"], "cannot be used: it takes PGD and APGD"),
        (["tiny-vit8", "--attacks", "pgd-11"], "no attack 'pgd-11'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(words: list[str], wrong: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.argv", ["retrieve", *words, "--out", str(tmp_path)])
    with pytest.raises(UserError, match=wrong):
        retrieve.asked()
