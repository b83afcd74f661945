"""What a set is made in and of: hidden folders that outlive a stop, places that any process can read, and what tells sources apart."""

import errno
import os
import pickle
from pathlib import Path

import pytest
from sourcing import as_folder, as_tar, image

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.staging import staged
from robustclip.data.archives import tar_entries
from robustclip.data.sources import Tree, fingerprint
from robustclip.data.spool import Place, Spool

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"


def broken(folder, error, key=KEY):
    """Write a file into the stage of a folder and break off."""
    with staged(folder, key=key) as stage:
        storage.write_bytes(f"{stage}/{type(error).__name__}", b"rows")
        raise error


def test_a_stage_with_a_key_outlives_all_but_a_users_error(tmp_path):
    folder = str(tmp_path / "set")
    for error in (RuntimeError("a fault"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            broken(folder, error)
    with pytest.raises(UserError, match="no room to make it"):
        broken(folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert sorted(os.listdir(tmp_path / f".set.{KEY}")) == ["KeyboardInterrupt", "OSError", "RuntimeError"]
    with pytest.raises(UserError, match="bad"):
        broken(folder, UserError("bad"))
    assert os.listdir(tmp_path) == []


def test_a_stage_that_becomes_its_folder_ends_all_others_of_it(tmp_path):
    folder, near = str(tmp_path / "set"), [".set.too.0123456789abcdef", ".set.lock", "set.0123456789abcdef", ".other.0123456789abcdef"]
    for name in near:
        (tmp_path / name).mkdir()
    for key in (KEY, OTHER):
        with pytest.raises(RuntimeError):
            broken(folder, RuntimeError(), key)
    with staged(folder, key=KEY):
        assert (tmp_path / f".set.{OTHER}").exists()
    assert sorted(os.listdir(tmp_path)) == sorted([*near, "set"])
    assert os.listdir(folder) == ["RuntimeError"]


def test_a_place_is_read_by_whoever_knows_it(tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(100)))
    whole = Place(str(tmp_path / "file"))
    part = pickle.loads(pickle.dumps(whole.part(10, 50).part(5, 20)))
    assert (whole.read(), part.read()) == (bytes(range(100)), bytes(range(15, 35)))
    with part() as stream:
        assert (stream.seek(-5, os.SEEK_END), stream.read(), stream.read(1)) == (15, bytes(range(30, 35)), b"")
        assert (stream.seek(1 << 62), stream.read(1)) == (1 << 62, b"")
    with pytest.raises(OSError, match="cut short"):
        whole.part(90, 20).read()


def test_the_spool_gives_back_what_it_took_and_is_gone_in_the_end(tmp_path):
    with Spool(str(tmp_path / "spool")) as spool:
        assert spool.empty
        kept = [spool.keep(data) for data in (b"one", b"", b"three")]
        assert [place.read() for place in kept] == [b"one", b"", b"three"]
        assert not spool.empty
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("mode", "empty"), [("w", True), ("w:gz", False)])
def test_what_lies_in_the_open_is_not_copied(tmp_path, mode, empty):
    files = {f"{name}/{i}.png": image() for name in ("cat", "dog") for i in range(3)}
    inner = {
        f"{name}.tar": Path(as_tar(tmp_path / "inner", {key: data for key, data in files.items() if name in key}, "w")).read_bytes()
        for name in ("cat", "dog")
    }
    source = as_tar(tmp_path / f"train.tar{mode[1:].replace(':', '.')}", inner, mode)
    with Spool(str(tmp_path / "spool")) as spool:
        tree = Tree([source], spool)
        assert {name.partition("/")[2]: tree.content(name) for name in tree.files} == files
        assert spool.empty == empty


def test_a_member_that_an_archive_has_no_room_for_is_not_handed_on(tmp_path):
    source = as_tar(tmp_path / "a.tar", {"cat/0.png": image(), "cat/1.png": image(64, 64)}, "w")
    Path(source).write_bytes(Path(source).read_bytes()[:4096])
    with Spool(str(tmp_path / "spool")) as spool:
        entries = tar_entries("a.tar", Place(source), spool)
        assert next(entries).name == "cat/0.png"
        with pytest.raises(UserError, match="unexpected end of data"):
            next(entries)


CHANGES = {
    "size": lambda path: path.write_bytes(b"longer"),
    "time": lambda path: os.utime(path, ns=(1, 1)),
    "name": lambda path: path.rename(path.with_name("other")),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("stored", [False, True])
def test_a_fingerprint_tells_sources_apart(tmp_path, monkeypatch, change, stored):
    source = as_folder(tmp_path / "set", {"cat/0": b"x", "dog/0": b"y"})
    if stored:  # as in an object store, where pyarrow alone is asked
        system, _ = storage.filesystem(source)
        monkeypatch.setattr(storage, "filesystem", lambda path: (system, path.replace("s3://bucket", source)))
    asked = "s3://bucket" if stored else source
    before = fingerprint(asked, 1)
    assert fingerprint(asked, 1) == before != fingerprint(asked, 2)
    CHANGES[change](tmp_path / "set" / "dog" / "0")
    assert fingerprint(asked, 1) != before


def test_links_in_circles_have_a_fingerprint(tmp_path):
    source = as_folder(tmp_path / "set", {"cat/0": b"x"})
    for name in ("around", "too"):
        (tmp_path / "set" / "cat" / name).symlink_to("..")
    assert fingerprint(source, 1) == fingerprint(source, 1)
