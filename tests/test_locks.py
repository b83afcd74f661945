"""One process at a time: who waits gets in when the holder ends, be it by SIGKILL, and two that make the same thing make it once."""

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.locks import alone
from robustclip.data import datasets
from robustclip.evaluation import evaluator
from robustclip.runtime.cluster import Share
from robustclip.training import fit as fitting
from robustclip.training.job import forget

HOLD = """
import sys, time
from robustclip.base.locks import alone
with alone(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_does_not_outlive_a_killed_process(tmp_path: Path) -> None:
    path, waited = str(tmp_path / "new" / "store.db"), threading.Event()
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE) as holder, ThreadPoolExecutor(1) as beside:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"

        def enter() -> str:
            with alone(path, waited.set):
                return "in"

        entered = beside.submit(enter)
        assert waited.wait(60)
        assert not entered.done()
        holder.kill()
        assert entered.result(60) == "in"
    assert list((tmp_path / "new").iterdir()) == []


def test_many_that_come_and_go_are_one_at_a_time(tmp_path: Path) -> None:
    """Also while a holder deletes the file of the lock and the next makes it anew."""
    path, inside, seen = str(tmp_path / "set"), threading.Semaphore(1), []

    def enter(each: int) -> None:
        with alone(path):
            assert inside.acquire(blocking=False)
            seen.append(each)
            inside.release()

    with ThreadPoolExecutor(8) as beside:
        list(beside.map(enter, range(400)))
    assert sorted(seen) == list(range(400))


def test_an_object_store_has_no_locks_and_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with alone("s3://bucket/runs/0"), alone("s3://bucket/runs/0"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written"), alone(str(tmp_path / "file" / "mlflow.db")):
        pass


@dataclass
class FakeJob:
    folder: str
    train_folder: str = "none"


def twice(work: Callable[[], Any], started: threading.Event, go_on: threading.Event) -> list[Any]:
    """Do the same work in two threads, the second while the first, once `started`, waits for `go_on`."""
    with ThreadPoolExecutor(2) as beside:
        first = beside.submit(work)
        assert started.wait(60)
        second = beside.submit(work)
        with pytest.raises(TimeoutError):
            second.result(0.3)
        go_on.set()
        return [first.result(60), second.result(60)]


def test_two_processes_train_a_job_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, started, go_on, trained = FakeJob(str(tmp_path / "runs" / "0123")), threading.Event(), threading.Event(), []

    def train(*given: Any) -> dict[str, Any]:
        trained.append(given)
        started.set()
        assert go_on.wait(60)
        return {"key": "0123", "history": [{"step": 1, "loss": 0.1}]}

    monkeypatch.setattr(fitting, "train", train)
    waited: list[bool] = []
    share = Share(1, 0.5, 0)
    results = twice(lambda: fitting.fit(job, share, waiting=lambda: waited.append(True)), started, go_on)  # type: ignore[arg-type]
    assert results == [{"key": "0123", "history": [{"step": 1, "loss": 0.1}]}] * 2
    assert len(trained) == 1
    assert waited == [True]
    forget(job)  # type: ignore[arg-type]
    assert storage.list_folders(str(tmp_path / "runs")) == []


def test_two_processes_attack_a_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on, computed = threading.Event(), threading.Event(), []

    @dataclass
    class Cell:
        model: str = "tiny"
        model_sha256: str = "abc"

    class Wanted:
        def __init__(self, *given: Any):
            self.missing = [] if computed and go_on.is_set() else [Cell()]

        def table(self) -> pa.Table:
            return pa.table({"image_id": ["a"]})

    @dataclass
    class Resolved:
        hash: str = "00"

    def compute(*given: Any) -> None:
        computed.append(given)
        started.set()
        assert go_on.wait(60)

    monkeypatch.setattr(evaluator, "Wanted", Wanted)
    monkeypatch.setattr(evaluator, "compute_missing", compute)
    twice(lambda: evaluator.evaluate(["tiny"], Resolved(), str(tmp_path), actors=1), started, go_on)  # type: ignore[arg-type]
    assert len(computed) == 1


def test_two_processes_render_a_set_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on, rendered, render = threading.Event(), threading.Event(), [], datasets._render

    def slowly(*given: Any) -> None:
        rendered.append(given)
        started.set()
        assert go_on.wait(60)
        render(*given)

    monkeypatch.setattr(datasets, "_render", slowly)
    first, second = twice(lambda: datasets.ensure_set(str(tmp_path), "shapes", {"test": 8}, 0), started, go_on)
    assert first == second
    assert len(rendered) == 1
