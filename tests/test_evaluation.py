"""The evaluator on Ray: the records of one process, only missing cells computed, a worker that dies or hangs costs no other's."""

import contextlib
import os
import signal
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from one_process import cells_of, computed

from robustclip import names as models
from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.evaluation import computing, progress, protocols
from robustclip.evaluation import evaluator as evaluation
from robustclip.evaluation.rules import SetRule
from robustclip.evaluation.wanted import Wanted
from robustclip.models.classifier import ZeroShotClassifier
from robustclip.records import rows as records
from robustclip.records.summary import cost, set_metrics
from robustclip.records.survival import CLEAN_ATTACKED
from robustclip.results import report


@pytest.fixture
def resolved(tmp_path: Path) -> protocols.Resolved:
    return protocols.resolve(protocols.named("smoke"), str(tmp_path))


def test_two_actors_write_what_one_process_computes(
    ray_session: None, tmp_path: Path, resolved: protocols.Resolved, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only what is missing, under whichever of the ways to write a path."""
    monkeypatch.setattr(protocols, "CELL_IMAGES", 8)
    folder, cells = storage.join(str(tmp_path), "records"), cells_of(resolved, tiny_checkpoint)
    here = [computed(resolved, tiny_checkpoint, [cell]) for cell in cells]
    records.write(folder, cells[0].key, here[0])
    written = {path: Path(path).stat().st_mtime_ns for path in storage.list_files(folder)}
    seen: list[progress.Progress] = []
    table = evaluation.evaluate([f"{tiny_checkpoint}/"], resolved, str(tmp_path), actors=2, cpus=0.5, on_progress=seen.append)
    # Whether each cell is told by itself depends on when they finish: the first and the last word are sure, and no step back.
    assert [(each.done, each.total, each.found) for each in (seen[0], seen[-1])] == [(0, 3, 1), (3, 3, 1)]
    assert str(seen[0]) == "evaluated 0/3 cells; 1 were found finished"
    assert [each.done for each in seen] == sorted(each.done for each in seen)
    assert records.content_sha256(table) == records.content_sha256(pa.concat_tables(here))
    assert table.column("dataset").unique().to_pylist() == list(resolved.protocol.sets)
    assert {path: Path(path).stat().st_mtime_ns for path in written} == written

    names = [tiny_checkpoint, f"{tiny_checkpoint}/"]
    again = evaluation.evaluate(names, resolved, str(tmp_path), actors=2, on_progress=lambda progress: pytest.fail("computed again"))
    assert records.content_sha256(again) == records.content_sha256(table)


def test_a_part_of_the_images_is_attacked_and_all_are_counted_clean(tmp_path: Path) -> None:
    smoke = replace(protocols.named("smoke"), attacked=5, eps=(0.25,), rules=(SetRule("digits", skips=("apgd-ce-3",)),))
    resolved = protocols.resolve(smoke, str(tmp_path))
    table = computed(resolved, "tiny-vit8")
    rows, built = table.to_pylist(), report.from_records(table, resolved.describe())
    (seen,) = built.outcomes.values()
    assert {name: (len(each.ids), len(each.flags(0.25)), len(each.flags(CLEAN_ATTACKED))) for name, each in seen.items()} == {
        "shapes": (16, 5, 5),
        "digits": (16, 5, 5),
    }
    assert {(row["dataset"], row["attack"]) for row in rows} >= {("shapes", "apgd-ce-3"), ("digits", "pgd-2")}
    assert ("digits", "apgd-ce-3") not in {(row["dataset"], row["attack"]) for row in rows}
    assert set(set_metrics(table, resolved.describe())) >= {"test/clean", "test/clean_attacked", "test/robust_0.25"}
    spent = cost(table)
    assert spent["cost/seconds"] == pytest.approx(sum(row["seconds"] for row in rows))
    assert spent["cost/seconds"] == pytest.approx(spent["cost/shapes/seconds"] + spent["cost/digits/seconds"])
    assert spent["cost/shapes/images_per_second"] == pytest.approx(16 / spent["cost/shapes/seconds"])


def test_a_shard_that_changed_is_not_scored_under_its_old_hash(resolved: protocols.Resolved) -> None:
    """Still a readable shard, with one label moved to the next class."""
    cell, *_ = cells_of(resolved, "tiny-vit8")
    (shard,) = computing.shards_of(resolved.sets[cell.dataset], cell)
    path = storage.join(resolved.sets[cell.dataset].card.folder, shard["file"])
    rows = pq.read_table(path)
    labels = rows["label"].to_pylist()
    moved = pa.array([(labels[0] + 1) % 2, *labels[1:]], rows.schema.field("label").type)
    pq.write_table(rows.set_column(rows.schema.get_field_index("label"), "label", moved), path)
    with pytest.raises(UserError, match=f"{shard['file']} was changed or damaged"):
        computing.compute(models.load("tiny-vit8"), cell, resolved)


def test_a_cell_is_tried_three_times() -> None:
    cell = protocols.Cell("key", "result", "model", "sha", "set", None, ())  # type: ignore[arg-type]
    queue = progress.Queue([])
    for _ in range(progress.ATTEMPTS - 1):
        queue.again(cell, "lost")
        assert queue.todo.pop() is cell
    queue.again(cell, "lost")
    assert not queue.todo
    assert "set under model: lost" in queue.failed["key"]


def test_only_a_cell_that_is_late_and_alone_is_computed_twice() -> None:
    first, second = (protocols.Cell(key, "result", "model", "sha", "set", None, ()) for key in "ab")  # type: ignore[arg-type]
    running = [progress.Running("one", first, 0.0), progress.Running("two", second, 3.0)]
    assert progress.late(running, 1.0, progress.LATE) is None
    assert progress.late(running, 1.0, progress.LATE + 0.1) is first
    assert progress.late(running, 0.0, 99.0) is None  # nothing has finished yet: nobody knows what late is
    again = [*running, progress.Running("three", first, 6.0)]
    assert progress.late(again, 1.0, 8.5) is second
    assert progress.late(again[::2], 1.0, 99.0) is None


def strike(monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, noted: str) -> None:
    """Let the first evaluator that is given a cell send itself a signal, and note its process in a file before."""

    class Struck(evaluation.Worker):
        def run(self, cell: protocols.Cell, model_name: str) -> str:
            with contextlib.suppress(FileExistsError):
                with open(noted, "x") as file:
                    file.write(str(os.getpid()))
                os.kill(os.getpid(), sent)
            return super().run(cell, model_name)

    monkeypatch.setattr(evaluation, "Worker", Struck)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_worker_that_hangs_holds_nobody_up(
    ray_session: None, tmp_path: Path, resolved: protocols.Resolved, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two is stopped with a cell in its hands: the other computes that cell too, and the run ends with the same records."""
    monkeypatch.setattr(protocols, "CELL_IMAGES", 4)
    monkeypatch.setattr(progress, "LATE", 0.5)
    strike(monkeypatch, signal.SIGSTOP, str(tmp_path / "stopped"))
    table = evaluation.evaluate([tiny_checkpoint], resolved, str(tmp_path), actors=2, cpus=0.5)
    with contextlib.suppress(ProcessLookupError):  # Ray may have killed it already
        os.kill(int((tmp_path / "stopped").read_text()), signal.SIGKILL)
    assert records.content_sha256(table) == records.content_sha256(computed(resolved, tiny_checkpoint))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_worker_that_dies_costs_its_cell_one_attempt(
    ray_session: None, tmp_path: Path, resolved: protocols.Resolved, tiny_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only one is killed with a cell in its hands: another takes its place, and the cell is not given up while there is none."""
    strike(monkeypatch, signal.SIGKILL, str(tmp_path / "killed"))
    table = evaluation.evaluate([tiny_checkpoint], resolved, str(tmp_path), actors=1, cpus=0.5)
    assert (tmp_path / "killed").exists()
    assert {row["dataset"] for row in table.to_pylist()} == {"shapes", "digits"}


def test_a_worker_reads_the_prompts_of_a_set_once(tmp_path, tiny_checkpoint, monkeypatch):
    resolved = protocols.resolve(replace(protocols.named("smoke"), sets=("shapes",)), str(tmp_path))
    (cell,), passes, read = Wanted([tiny_checkpoint], resolved, str(tmp_path)).missing, [], ZeroShotClassifier.class_features
    monkeypatch.setattr(ZeroShotClassifier, "class_features", lambda self: passes.append(self.texts) or read(self))
    worker = evaluation.Worker(resolved, str(tmp_path), 1, None)
    for _ in range(2):
        worker.run(cell, tiny_checkpoint)
    assert len(passes) == 1


def test_prompts_are_read_on_the_device_of_the_images(tmp_path, tiny_checkpoint, monkeypatch):
    """Else the first cell's would be read on the CPU and those of the next ones on the GPU, which rounds otherwise."""
    resolved = protocols.resolve(replace(protocols.named("smoke"), sets=("shapes",)), str(tmp_path))
    where, read = set(), ZeroShotClassifier.embed_prompts
    monkeypatch.setattr(ZeroShotClassifier, "embed_prompts", lambda self: where.add(next(self.clip.parameters()).device.type) or read(self))
    monkeypatch.setattr(computing, "images_of", lambda *given: (torch.empty(2, 3, 16, 16, device="meta"), torch.zeros(2), ["a", "b"]))
    computing.on_device(models.load(tiny_checkpoint), resolved, "shapes", resolved.sets["shapes"].rows[:2])
    assert where == {"meta"}
