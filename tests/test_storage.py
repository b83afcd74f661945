"""The door to files: paths, atomic writes, names from data, object stores (a pyarrow file system in their place), one-line errors."""

import json
import os
import time

import fsspec.implementations.memory
import pyarrow as pa
import pytest
from pyarrow import fs

from robustclip.base import errors, storage
from robustclip.base.errors import UserError
from robustclip.base.staging import staged

SECOND = 10**9
LONG_AGO = 10**9 * SECOND


def test_resolve_makes_paths_absolute_and_keeps_uris(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.resolve("outputs") == str(tmp_path / "outputs")
    assert storage.resolve(f"file://{tmp_path}/a%20b") == str(tmp_path / "a b")
    assert storage.resolve("s3://bucket/folder/") == "s3://bucket/folder"
    assert storage.join("gs://bucket", "a", "b") == "gs://bucket/a/b"


@pytest.mark.parametrize("uri", ["http://host/x", "hdfs://host/x", "s3://"])
def test_other_schemes_are_refused(uri):
    with pytest.raises(UserError, match="://"):
        storage.resolve(uri)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = str(tmp_path / "deep" / "file.bin")
    storage.write_bytes(path, b"old")
    with pytest.raises(RuntimeError, match="power"):
        fail_half_way(storage.writing(path))
    assert storage.read_bytes(path) == b"old"
    assert os.listdir(tmp_path / "deep") == ["file.bin"]


def test_json_has_one_form(tmp_path):
    one, two = str(tmp_path / "one.json"), str(tmp_path / "two.json")
    storage.write_json(one, {"b": [1, 2], "a": "é"})
    storage.write_json(two, {"a": "é", "b": (1, 2)})
    assert storage.read_bytes(one) == storage.read_bytes(two)
    assert storage.read_bytes(one).endswith(b"}\n")
    assert storage.read_json(one) == {"a": "é", "b": [1, 2]}
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(one, float("nan"))
    storage.write_bytes(one, b"{")
    with pytest.raises(UserError, match=r"one\.json"):
        storage.read_json(one)


def test_tables_listing_delete_and_sha256(tmp_path):
    root = str(tmp_path)
    storage.write_table(storage.join(root, "b.parquet"), pa.table({"x": [1, 2], "y": ["u", "v"]}))
    storage.write_bytes(storage.join(root, "a.txt"), b"abc")
    storage.write_bytes(storage.join(root, "folder", "c.parquet"), b"")
    assert storage.read_table(storage.join(root, "b.parquet"), ["y"]).to_pydict() == {"y": ["u", "v"]}
    assert storage.list_files(root, ".parquet") == [storage.join(root, "b.parquet")]
    assert storage.list_folders(root) == ["folder"]
    assert storage.list_files(storage.join(root, "nowhere")) == []
    assert storage.sha256_file(storage.join(root, "a.txt")).startswith("ba7816bf")
    for name in ("folder", "a.txt", "missing"):
        storage.delete(storage.join(root, name))
    assert os.listdir(root) == ["b.parquet"]


@pytest.fixture
def hashed(tmp_path, monkeypatch):
    """A function that writes a file's bytes and its time of change and returns what hash is known of it, and the list of those read."""
    path, read, plain = tmp_path / "weights", [], storage.sha256_file
    monkeypatch.setattr(storage, "sha256_file", lambda path: (read.append(path), plain(path))[1])

    def known(data, changed):
        path.write_bytes(data)
        os.utime(path, ns=(changed, changed))
        return storage.known_sha256(str(path))

    return known, read


def test_a_file_is_hashed_again_when_its_size_or_its_time_is_another(hashed):
    known, read = hashed
    first = known(b"one", LONG_AGO)
    assert (known(b"one", LONG_AGO), len(read)) == (first, 1)
    assert len({first, known(b"two", LONG_AGO + 1), known(b"three", LONG_AGO + 1)}) == 3
    assert len(read) == 3


def test_of_what_changed_just_now_no_hash_is_kept(hashed, monkeypatch):
    """Other bytes of one size and one time: what a rounded time makes of two writes."""
    known, read = hashed
    now = time.time_ns()
    assert known(b"one", now) != known(b"two", now)
    monkeypatch.setattr(storage, "SETTLED", -SECOND)
    assert known(b"one", now) == known(b"two", now), "the planted fault"
    assert len(read) == 3
    with pytest.raises(FileNotFoundError):
        storage.known_sha256("/no/such/file")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "-flag", "a b", "a\n", "a\0"])
def test_unsafe_names_are_refused(name):
    with pytest.raises(UserError):
        storage.safe_name(name)


def test_safe_names_pass():
    assert storage.safe_name("cifar10_v1.2-a") == "cifar10_v1.2-a"


@pytest.fixture(params=["local", "object store"])
def root(request, tmp_path, monkeypatch):
    """A folder as a path, and as the URI of a bucket held in memory."""
    if request.param == "local":
        return str(tmp_path)
    memory = fs.PyFileSystem(fs.FSSpecHandler(fsspec.implementations.memory.MemoryFileSystem()))
    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "store", {})
    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "pseudo_dirs", [""])
    plain = storage.filesystem
    monkeypatch.setattr(storage, "filesystem", lambda path: (memory, path.split("://")[1]) if "://" in path else plain(path))
    return "s3://bucket"


def fail_half_way(writer):
    """Write a part inside a context manager of storage, then fail."""
    with writer as place:
        if isinstance(place, str):
            storage.write_bytes(storage.join(place, "half"), b"half")
        else:
            place.write(b"half of the new")
        raise RuntimeError("power cut")


def test_a_staged_folder_appears_whole_or_not_at_all(root):
    folder = storage.join(root, "data", "set")
    with pytest.raises(RuntimeError, match="power"):
        fail_half_way(staged(folder))
    assert not storage.exists(folder)
    for value in ("one", "two"):
        with staged(folder, replace=value == "two") as stage:
            storage.write_bytes(storage.join(stage, f"{value}.parquet"), b"rows")
            storage.write_json(storage.join(stage, "dataset.json"), value)
    assert [storage.name_of(path) for path in storage.list_files(folder)] == ["dataset.json", "two.parquet"]
    assert storage.read_json(storage.join(folder, "dataset.json")) == "two"
    assert storage.list_folders(storage.join(root, "data")) == ["set"]


def test_a_failed_write_leaves_no_part(root):
    path = storage.join(root, "deep", "file.bin")
    with pytest.raises(RuntimeError, match="power"):
        fail_half_way(storage.writing(path))
    assert not storage.exists(path)
    storage.write_bytes(path, b"whole")
    assert storage.read_bytes(path) == b"whole"


@pytest.mark.parametrize(("replace", "kept"), [(False, 1), (True, 2)])
def test_a_second_staged_folder_gives_way_unless_it_replaces(tmp_path, replace, kept):
    folder = str(tmp_path / "set")
    for value in (1, 2):
        with staged(folder, replace=replace) as stage:
            storage.write_json(storage.join(stage, "dataset.json"), value)
    assert storage.read_json(storage.join(folder, "dataset.json")) == kept
    assert os.listdir(tmp_path) == ["set"]


def test_main_turns_a_fault_into_one_line_and_a_status(capsys):
    def run():
        raise UserError("row 3 is bad")

    with pytest.raises(SystemExit) as exit_:
        errors.main(run)
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: row 3 is bad\n"


def test_main_hides_no_programming_error():
    with pytest.raises(ZeroDivisionError):
        errors.main(lambda: json.dumps(1 / 0))
