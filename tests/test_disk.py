"""A disk that is full or closed is one line, wherever the refusal came from: before the work where that can be known."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from robustclip.base import disk, errors, storage
from robustclip.base.errors import UserError
from robustclip.base.staging import staged
from robustclip.commands import prepare, pretrain, report, words
from robustclip.runtime.cluster import Share
from robustclip.training import loop


class FromAnotherProcess(Exception):
    """As Ray raises what a task has raised: the text of its traceback, the error beside it."""

    def __init__(self, text: str, cause: Exception | None = None):
        super().__init__(text)
        self.cause = cause


def refusal(number: int, path: str | None = "/out/records/a.parquet") -> OSError:
    return OSError(number, os.strerror(number), path)


def raised_from(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


FULL = [
    refusal(errno.ENOSPC),
    refusal(errno.EDQUOT),
    raised_from(RuntimeError("unexpected pos 320 vs 256"), refusal(errno.ENOSPC, None)),
    FromAnotherProcess("ray::train_loop()\nTraceback", refusal(errno.ENOSPC)),
    FromAnotherProcess("ray::run()\n  File x\nOSError: [Errno 28] Error writing bytes. Detail: [errno 28] No space left on device\n"),
    raised_from(RuntimeError("log_batch"), RuntimeError("(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT INTO metrics]")),
]


@pytest.mark.parametrize("error", FULL, ids=range(len(FULL)))
def test_a_full_disk_is_seen_through_what_is_wrapped_around_it(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        errors.main(lambda: (_ for _ in ()).throw(error))
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.startswith("error: ")
    assert said.endswith("make some and run the same command again\n")
    assert said.count("\n") == 1


def test_what_is_no_fault_of_the_disk_is_none() -> None:
    for error in (ValueError("x"), refusal(errno.ENOENT), OSError("AF_UNIX"), FromAnotherProcess("ValueError: x", ValueError("x"))):
        assert disk.fault(error) is None


def test_what_the_disk_does_not_permit_is_named() -> None:
    assert "/out/records/a.parquet: Read-only file system" in str(disk.fault(refusal(errno.EROFS)))
    assert disk.no_room(refusal(errno.EROFS)) is None


@pytest.mark.parametrize(("workers", "returned"), [(1, True), (2, False)])
def test_a_training_worker_on_a_full_disk_is_not_started_again(monkeypatch: pytest.MonkeyPatch, workers: int, returned: bool) -> None:
    def build(*_: object) -> None:
        raise refusal(errno.ENOSPC)

    monkeypatch.setattr(loop, "build_learner", build)
    monkeypatch.setattr(loop, "units_of", lambda *given: ())
    monkeypatch.setattr("ray.train.get_checkpoint", lambda: None)
    monkeypatch.setattr("ray.train.get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
    monkeypatch.setattr("ray.train.torch.get_device", lambda: "cpu")
    settings = {"job": SimpleNamespace(), "share": Share(workers, 1.0, 0.0)}
    if returned:
        assert "no room to write it" in loop.train_loop(settings)["error"]
    else:  # the other workers wait for it
        with pytest.raises(OSError, match="No space"):
            loop.train_loop(settings)


def test_a_set_for_which_there_is_no_room_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with staged(str(tmp_path / "set")) as stage:
            storage.write_bytes(f"{stage}/shard", b"rows")
            raise refusal(errno.ENOSPC, None)  # of an unnamed temporary file

    with pytest.raises(UserError, match=r"set: no room to make it .No space left on device.; make some"):
        fill()
    assert os.listdir(tmp_path) == []


def test_a_folder_that_can_be_written_to_need_not_be_there(tmp_path: Path) -> None:
    folder = str(tmp_path / "a" / "b")
    assert storage.writable(folder) == folder
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("there", ["a file", "a broken link", "closed"])
def test_a_folder_that_cannot_be_written_to_is_said_before_the_work(there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if there == "a file":
        (tmp_path / "out").write_text("x")
    elif there == "a broken link":
        (tmp_path / "out").symlink_to(tmp_path / "nothing")
    else:  # permissions do not bind root
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be written to .no permission." if there == "closed" else "out is no folder"):
        storage.writable(str(tmp_path / "out" / "deep"))


def test_an_object_store_without_permission_is_said_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: str, data: bytes) -> None:
        raise OSError(
            "When initiating multiple part upload for key 'x' in bucket 'b': AWS Error ACCESS_DENIED\nduring CreateMultipartUpload"
        )

    monkeypatch.setattr(storage, "write_bytes", write)
    with pytest.raises(UserError, match=r"^s3://b/out: cannot be written to .*ACCESS_DENIED during.*choose another place$"):
        storage.writable("s3://b/out")


WORDS: dict[str, tuple[Callable[[], None], list[str]]] = {
    "prepare": (prepare.run, ["world:shapes", "--out", "FILE"]),
    "words": (words.run, ["bert", "--to", "FILE/words.json"]),
    "pretrain": (pretrain.run, ["tiny-vit8", "--to", "FILE/model"]),
    "report": (report.run, ["--out", "FILE"]),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_command_says_so_first(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file, (run, given) = tmp_path / "file", WORDS[name]
    file.write_text("x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name, *(word.replace("FILE", str(file)) for word in given)])
    with pytest.raises(SystemExit) as stopped:
        errors.main(run)
    said = capsys.readouterr().err
    assert (stopped.value.code, said.count("\n")) == (2, 1)
    assert str(file) in said
