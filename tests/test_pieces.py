"""Preparing in pieces: whatever does them, in whatever order and however often it was stopped, the set is the same bit for bit."""

import os
import pickle
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import fsspec.implementations.memory
import pytest
from layouts import as_zip
from miniatures import cifar_python, hugging_face, memes, scenes, textures
from pyarrow import fs
from sourcing import as_folder, as_tar, image, left, stored

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.data import collecting, shards, stages
from robustclip.data.pieces import Ledger, one_by_one
from robustclip.data.preparation import prepare
from robustclip.data.suites import prepare_suite
from robustclip.runtime.mapping import mapped

GOOD = {f"train/{name}/{i}.png": image(8 + i, 8) for name in ("cat", "dog") for i in range(6)} | {"test/dog/0.png": image()}
FAULTS = {"train/cat/cut.png": image(64, 64)[:-300], "train/cat/page.png": b"<html>", "train/dog/notes.txt": b"?", "0.png": image()}
REASONS = {"train/cat/cut.png", "train/cat/page.png", "train/dog/notes.txt", "0.png"}
SOURCES = {
    "folder": ("set", lambda p: as_folder(p / "set", GOOD | FAULTS)),
    "tar": ("set", lambda p: as_tar(p / "set.tar", GOOD | FAULTS, "w")),
    "tar.gz": ("set", lambda p: as_tar(p / "set.tar.gz", GOOD | FAULTS)),
    "zip": ("set", lambda p: as_zip(p / "set.zip", GOOD | FAULTS)),
    "pixels": ("cifar10", lambda p: as_folder(p / "set", cifar_python())),
    "parquet": ("set", lambda p: as_folder(p / "set", hugging_face())),
    "squashed": ("hatefulmemes", lambda p: as_folder(p / "set", memes())),
    "one image in several splits": ("sun397", lambda p: as_folder(p / "set", scenes())),
}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Make pieces small, so that small sets have several."""
    monkeypatch.setattr(collecting, "CHUNK", 2)
    monkeypatch.setattr(stages, "files_of", partial(shards.files_of, rows_per_file=3))


def elsewhere(work, piece):
    """Return what another process would: nothing goes there or comes back but what can be pickled."""
    work, piece = pickle.loads(pickle.dumps((work, piece)))
    return pickle.loads(pickle.dumps(work(piece)))


def backwards(work, pieces, anywhere):
    """Yield what pieces come to in the wrong order."""
    return [elsewhere(work, piece) for piece in reversed(pieces)]


class Stopped(Exception):
    """Stands for what is no UserError: a signal, a fault."""


class Counting:
    """A mapper that counts the pieces of each kind of work and stops before the one of a number."""

    def __init__(self, kind="", stop=None):
        self.kind, self.stop, self.counts = kind, stop, {"checked": 0, "written": 0}

    def __call__(self, work, pieces, anywhere):
        kind = work.args[0].__name__
        for piece in pieces:
            if kind == self.kind and self.counts[kind] == self.stop:
                raise Stopped
            self.counts[kind] += 1
            yield work(piece)


def made(done):
    """Return all that preparing came to, its files among it."""
    files = {path.name: path.read_bytes() for path in Path(done.card.folder).iterdir()}
    return done.card, done.skipped, done.said, files


@pytest.mark.parametrize("kind", SOURCES)
def test_in_any_order_and_by_other_processes_the_set_is_the_same(tmp_path, kind):
    name, make = SOURCES[kind]
    source = make(tmp_path)
    one, other = (prepare(str(tmp_path / mapper.__name__), name, [source], mapper=mapper) for mapper in (one_by_one, backwards))
    assert made(one) == made(other)
    assert sum(len(files) for files in one.card.shards.values()) > 1
    if name == "set" and kind != "parquet":
        assert {key: data for split in ("train", "test") for key, (data, _) in stored(other.card, split).items()} == GOOD
        assert {skip.id for skip in other.skipped} == REASONS


def test_the_sets_of_a_suite_are_made_in_pieces_too(tmp_path):
    as_folder(tmp_path / "root" / "dtd", textures())
    mapper = Counting()
    (outcome,) = prepare_suite(str(tmp_path / "out"), str(tmp_path / "root"), "tecoa-16", ["dtd"], {}, {}, mapper=mapper)
    assert outcome.state == "prepared"
    assert min(mapper.counts.values()) > 0


def test_errors_are_the_same_too(tmp_path):
    source = as_folder(tmp_path / "set", GOOD | FAULTS)
    sources = [source, as_tar(tmp_path / "other.tar", GOOD, "w")]
    for asked in ({"sources": [source], "strict": True}, {"sources": sources}):
        said = set()
        for mapper in (one_by_one, backwards):
            with pytest.raises(UserError) as error:
                prepare(str(tmp_path / "out"), "set", mapper=mapper, **asked)
            said.add(str(error.value))
            assert left(tmp_path / "out") == []
        assert len(said) == 1


def test_answers_of_other_pieces_are_noticed(tmp_path):
    def mixed(work, pieces, anywhere):
        found = [work(piece) for piece in pieces]
        return [(number, result) for (number, _), (_, result) in zip(found, reversed(found))]

    with pytest.raises(UserError, match="holds other bytes than when it was checked"):
        prepare(str(tmp_path / "out"), "set", [as_folder(tmp_path / "set", GOOD)], mapper=mixed)
    assert left(tmp_path / "out") == []


def test_a_lost_piece_is_a_fault(tmp_path):
    with pytest.raises(RuntimeError, match="a piece of work was lost"):
        prepare(
            str(tmp_path / "out"),
            "set",
            [as_folder(tmp_path / "set", GOOD)],
            mapper=lambda work, pieces, anywhere: backwards(work, pieces[1:], anywhere),
        )


@pytest.mark.parametrize("suffix", ["", ".tar", ".tar.gz"])
@pytest.mark.parametrize(("kind", "stop"), [("checked", 3), ("written", 0), ("written", 2)])
def test_what_was_stopped_goes_on_from_there(tmp_path, suffix, kind, stop):
    source = (
        as_folder(tmp_path / "set", GOOD | FAULTS)
        if not suffix
        else as_tar(tmp_path / f"set{suffix}", GOOD | FAULTS, "w" + suffix[4:].replace(".", ":"))
    )
    whole, first, second = Counting(), Counting(kind, stop), Counting()
    wanted = made(prepare(str(tmp_path / "whole"), "set", [source], mapper=whole))
    with pytest.raises(Stopped):
        prepare(str(tmp_path / "out"), "set", [source], mapper=first)
    assert not [name for name in left(tmp_path / "out") if not name.startswith(".")]
    assert made(prepare(str(tmp_path / "out"), "set", [source], templates=None, mapper=second)) == wanted
    assert {kind: first.counts[kind] + second.counts[kind] for kind in whole.counts} == whole.counts
    assert first.counts[kind] == stop
    assert left(tmp_path / "out") == ["set"]


KILLED = """
import os, signal, sys
from functools import partial
from robustclip.data import collecting, preparation, shards, stages
collecting.CHUNK = 2
stages.files_of = partial(shards.files_of, rows_per_file=3)
def mapper(work, pieces, anywhere):
    for count, piece in enumerate(pieces):
        if work.args[0].__name__ == "written" and count == 2:
            with open(os.path.join(os.path.dirname(piece[1][0]), ".half.tmp"), "w") as half:
                half.write("what a file is before it is whole")
            os.kill(os.getpid(), signal.SIGKILL)
        yield work(piece)
preparation.prepare(sys.argv[1], "set", [sys.argv[2]], mapper=mapper)
"""


def test_a_killed_command_goes_on_from_the_shards_it_wrote(tmp_path):
    source, out = as_tar(tmp_path / "set.tar.gz", GOOD | FAULTS), str(tmp_path / "out")
    killed = subprocess.run([sys.executable, "-c", KILLED, out, source], check=False)
    assert killed.returncode == -signal.SIGKILL
    (stage,) = (Path(out) / "data").glob(".set.????????????????")
    before = {path.name: path.stat().st_ino for path in stage.glob("*.parquet")}
    assert len(before) == 2
    whole, again = Counting(), Counting()
    wanted = made(prepare(str(tmp_path / "whole"), "set", [source], mapper=whole))
    done = prepare(out, "set", [source], mapper=again)
    assert made(done) == wanted
    assert again.counts == {"checked": 0, "written": whole.counts["written"] - 2}
    assert before.items() <= {path.name: path.stat().st_ino for path in Path(done.card.folder).iterdir()}.items()
    assert left(out) == ["set"]


CHANGES = {
    "content": lambda source: (Path(source) / "train/cat/0.png").write_bytes(image(8, 8)),
    "a new file": lambda source: as_folder(Path(source), {"train/cat/9.png": image()}),
    "a file less": lambda source: (Path(source) / "train/cat/0.png").unlink(),
    "a time": lambda source: os.utime(Path(source) / "train/cat/0.png", ns=(0, 0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_of_other_sources_nothing_is_taken(tmp_path, change):
    source, out = as_folder(tmp_path / "set", GOOD), str(tmp_path / "out")
    with pytest.raises(Stopped):
        prepare(out, "set", [source], mapper=Counting("written", 3))
    CHANGES[change](source)
    whole, again = Counting(), Counting()
    wanted = made(prepare(str(tmp_path / "whole"), "set", [source], mapper=whole))
    assert made(prepare(out, "set", [source], mapper=again)) == wanted
    assert again.counts == whole.counts
    assert left(out) == ["set"]


def test_other_options_take_nothing_either(tmp_path):
    source, out = as_folder(tmp_path / "set", {f"cat/{i}.png": image() for i in range(6)}), str(tmp_path / "out")
    with pytest.raises(Stopped):
        prepare(out, "set", [source], split="train", mapper=Counting("written", 1))
    assert prepare(out, "set", [source], split="test").card.splits == {"test": 6}
    assert [path.name for path in sorted((Path(out) / "data/set").iterdir())] == [
        "dataset.json",
        "test-00000.parquet",
        "test-00001.parquet",
        "test.index.arrow",
    ]
    assert left(out) == ["set"]


def test_in_an_object_store_it_goes_on_too(tmp_path, monkeypatch):
    kind = fsspec.implementations.memory.MemoryFileSystem
    memory, plain = fs.PyFileSystem(fs.FSSpecHandler(kind())), storage.filesystem
    monkeypatch.setattr(kind, "store", {})
    monkeypatch.setattr(kind, "pseudo_dirs", [""])
    monkeypatch.setattr(storage, "filesystem", lambda path: (memory, path.split("://")[1]) if "://" in path else plain(path))
    source, again = as_folder(tmp_path / "set", GOOD), Counting()
    with pytest.raises(Stopped):
        prepare("s3://bucket", "set", [source], mapper=Counting("written", 2))
    assert not storage.exists("s3://bucket/data/set")
    done = prepare("s3://bucket", "set", [source], mapper=again)
    assert done.card == prepare(str(tmp_path / "whole"), "set", [source]).card
    assert again.counts == {"checked": 0, "written": 3}
    assert {storage.name_of(path) for path in kind.store} == {path.name for path in Path(tmp_path / "whole/data/set").iterdir()}


def test_a_shard_that_is_not_as_it_was_written_is_written_again(tmp_path):
    source, out, again = as_folder(tmp_path / "set", GOOD), str(tmp_path / "out"), Counting()
    with pytest.raises(Stopped):
        prepare(out, "set", [source], mapper=Counting("written", 2))
    for path in (Path(out) / "data").glob(".set.*/*.parquet"):
        path.write_bytes(b"what a power cut left")
    assert made(prepare(out, "set", [source], mapper=again)) == made(prepare(str(tmp_path / "whole"), "set", [source]))
    assert again.counts == {"checked": 0, "written": 5}


@pytest.mark.parametrize("gone", [False, True])
def test_an_image_that_changes_under_way_is_named(tmp_path, gone):
    source = as_folder(tmp_path / "set", GOOD)
    file = Path(source) / "train/dog/3.png"

    def changing(work, pieces, anywhere):
        if work.args[0].__name__ == "written":
            file.unlink() if gone else file.write_bytes(image(11, 8))
        return map(work, pieces)

    with pytest.raises(UserError, match=r"train/dog/3.png .*a source must stay as it is"):
        prepare(str(tmp_path / "out"), "set", [source], mapper=changing)
    assert left(tmp_path / "out") == []


def test_pieces_are_known_by_what_they_are(tmp_path):
    done = Ledger(str(tmp_path), one_by_one).done
    assert [*done(abs, [-1, 2, -3], False)] == [1, 2, 3]
    again = Ledger(str(tmp_path), lambda work, pieces, anywhere: [] if not pieces else pytest.fail(f"{pieces} were done before")).done
    assert [*again(abs, [-3, 2], False)] == [3, 2]
    assert [*done(round, [-1], False)] == [-1]
    assert [*done(abs, [-1], False, lambda result: False)] == [1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_ray_the_set_and_its_errors_are_the_same(ray_session, tmp_path, capfd):
    source = as_folder(tmp_path / "set", GOOD | FAULTS)
    one, other = (prepare(str(tmp_path / mapper.__name__), "set", [source], mapper=mapper) for mapper in (one_by_one, mapped))
    assert made(one) == made(other)
    with pytest.raises(UserError, match=r"^'../up' cannot be a file name; [^\n]*$"):
        [*mapped(storage.safe_name, ["name", "../up", "../../up", "other"], False)]
    assert storage.exists(other.card.folder)
