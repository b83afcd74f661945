"""From class folders and archives to shards: bytes untouched, same source same shards, every fault named, nothing half-done."""

import os
import sys
from pathlib import Path

import pytest
from sourcing import as_folder, as_tar, image, left, stored

from robustclip.base import errors, storage
from robustclip.base.errors import UserError
from robustclip.commands import prepare as command
from robustclip.data import marks
from robustclip.data.preparation import prepare


def small_set():
    """Return names and bytes of a set of 2 classes and 2 splits, in mixed cases, modes and sizes."""
    files = {f"{split}/tree_frog/{i}.png": image() for split in ("train", "test") for i in range(4)}
    files |= {f"train/Cat/{i}.JPG": image(9, 7, "JPEG", mode) for i, mode in enumerate(("L", "RGB", "CMYK"))}
    return files | {"test/Cat/a.png": image(5, 50, "PNG", "P"), "test/Cat/a.jpg": image(kind="JPEG"), "test/Cat/b.PnG": image(mode="RGBA")}


def test_a_folder_becomes_shards_of_the_same_bytes(tmp_path):
    files = small_set()
    done = prepare(str(tmp_path / "out"), "small", [as_folder(tmp_path / "small", files)])
    card = done.card
    assert card.class_names == ("Cat", "tree frog")
    assert (card.splits, card.native_size, card.skipped, card.source) == ({"test": 7, "train": 7}, None, {}, "small")
    found = stored(card, "train") | stored(card, "test")
    assert found == {name: (data, "Cat" if "Cat" in name else "tree frog") for name, data in files.items()}
    assert (done.skipped, done.unchanged, left(tmp_path / "out")) == ((), False, ["small"])


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_archives_folders_and_any_order_give_identical_shards(tmp_path, mode):
    files = small_set()
    suffix = {"w": ".tar", "w:gz": ".tar.gz", "w:bz2": ".tar.bz2", "w:xz": ".tar.xz"}[mode]
    turned = {f"./wrapped/{name}": files[name] for name in reversed(files)}
    one = prepare(str(tmp_path / "one"), "small", [as_folder(tmp_path / "small", files)]).card
    two = prepare(str(tmp_path / "two"), "small", [as_tar(tmp_path / f"small{suffix}", turned, mode, ["wrapped", "wrapped/train"])]).card
    assert one.shards == two.shards


def test_several_sources_make_one_set_and_their_names_say_the_split(tmp_path):
    sources = [as_tar(tmp_path / f"{split}.tar.gz", {f"a/{i}.png": image() for i in range(3)}) for split in ("train", "test")]
    card = prepare(str(tmp_path / "out"), "two", sources).card
    assert (card.splits, card.native_size, card.source) == ({"test": 3, "train": 3}, 8, "train.tar.gz, test.tar.gz")
    with pytest.raises(UserError, match=r"train/a/\d\.png.*more than once"):
        prepare(str(tmp_path / "out"), "three", [sources[0], sources[0]])
    assert left(tmp_path / "out") == ["two"]


def test_a_split_can_be_given_and_must_be_when_nothing_says_it(tmp_path):
    source = as_folder(tmp_path / "pets", {"cat/0.png": image(), "dog/0.png": image()})
    with pytest.raises(UserError, match=r"pets: its folders name no split .* --split train"):
        prepare(str(tmp_path / "out"), "pets", [source])
    assert prepare(str(tmp_path / "out"), "pets", [source], split="test").card.splits == {"test": 2}
    with pytest.raises(UserError, match="'train', but --split test"):
        prepare(str(tmp_path / "out"), "other", [as_folder(tmp_path / "other", {"train/cat/0.png": image()})], split="test")


FAULTS = {
    "train/cat/cut.jpg": image(64, 64, "JPEG")[:-300],
    "train/cat/page.png": b"<html>404</html>",
    "train/cat/empty.png": b"",
    "train/cat/notes.txt": b"labels: see above",
}
GOOD = {"train/cat/0.png": image(), "train/dog/0.png": image(), "README.md": b"beside the classes", "train/cat/.DS_Store": b"x"}


def test_unreadable_files_are_counted_listed_and_explained(tmp_path):
    source = as_folder(tmp_path / "set", GOOD | FAULTS)
    done = prepare(str(tmp_path / "out"), "set", [source])
    assert (done.card.splits, done.card.skipped) == ({"train": 2}, {"train": 4})
    assert {skip.id for skip in done.skipped} == set(FAULTS)
    listed = {row["id"]: row["reason"] for row in storage.read_json(storage.join(done.card.folder, "skipped.json"))}
    assert "truncated" in listed["train/cat/cut.jpg"]
    assert listed["train/cat/notes.txt"] == "not the name of a JPEG, PNG, WebP, BMP, GIF or PPM image"


def test_strict_refuses_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match=r"4 of 6 files cannot be read, first train/cat/.*nothing was written"):
        prepare(str(tmp_path / "out"), "set", [as_folder(tmp_path / "set", GOOD | FAULTS)], strict=True)
    assert left(tmp_path / "out") == []


def test_preparing_again_changes_nothing_and_other_content_is_refused(tmp_path):
    out, source = str(tmp_path / "out"), as_folder(tmp_path / "set", GOOD)
    first = prepare(out, "set", [source])
    shard = Path(first.card.folder) / "train-00000.parquet"
    before = (shard.stat().st_ino, shard.read_bytes())
    assert prepare(out, "set", [source]).unchanged
    assert (shard.stat().st_ino, shard.read_bytes()) == before
    as_folder(tmp_path / "set", {"train/dog/1.png": image()})
    with pytest.raises(UserError, match="--fresh"):
        prepare(out, "set", [source])
    assert shard.read_bytes() == before[1]
    assert prepare(out, "set", [source], fresh=True).card.splits == {"train": 3}
    assert left(out) == ["set"]


def test_a_damaged_set_is_made_whole_by_preparing_it_again(tmp_path):
    out, source = str(tmp_path / "out"), as_folder(tmp_path / "set", GOOD)
    shard = Path(prepare(out, "set", [source]).card.folder) / "train-00000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    assert not prepare(out, "set", [source]).unchanged
    assert shard.read_bytes() == whole


def empty_class(path):
    (path / "set" / "train" / "unicorn").mkdir(parents=True)
    return as_folder(path / "set", GOOD)


SOURCES = {
    "empty class folder": (empty_class, "'train/unicorn' is empty"),
    "empty class folder in an archive": (lambda p: as_tar(p / "a.tar", GOOD, "w", ["train/unicorn"]), "'train/unicorn' is empty"),
    "class of bad images": (lambda p: as_folder(p / "s", GOOD | {"train/yeti/0.png": b"?"}), "'yeti' holds no readable image"),
    "no images": (lambda p: as_folder(p / "s", {"README.md": b""}), "no readable image in .*s;"),
    "no such source": (lambda p: str(p / "nowhere"), "no such folder"),
    "no such archive": (lambda p: str(p / "nowhere.tar"), "no such file"),
    "a file": (lambda p: as_folder(p, {"set.rar": b""}) + "/set.rar", "no readable image in .*set.rar; expected class folders"),
    "not an archive": (lambda p: as_folder(p, {"set.tar.gz": b"<html>"}) + "/set.tar.gz", "damaged"),
    "names that lead outside": (lambda p: as_tar(p / "a.tar", {"train/../../etc/x.png": image()}, "w"), "not to be trusted"),
    "absolute names": (lambda p: as_tar(p / "a.tar", {"/train/cat/x.png": image()}, "w"), "not to be trusted"),
    "too deep": (lambda p: as_folder(p / "s", {"train/cat/a/b/c.png": image()}), "too deep"),
    "two wrappers": (
        lambda p: as_tar(p / "train.tar", {"a/cat/0.png": image(), "b/cat/0.png": image()}, "w"),
        "'b' beside 'a' is no split",
    ),
    "one name twice": (lambda p: as_folder(p / "s", {"train/a_b/0.png": image(), "train/a b/0.png": image()}), "both mean the class 'a b'"),
}


@pytest.mark.parametrize("fault", SOURCES)
def test_faulty_sources_are_named_and_leave_nothing(tmp_path, fault):
    make, word = SOURCES[fault]
    with pytest.raises(UserError, match=word) as caught:
        prepare(str(tmp_path / "out"), "set", [make(tmp_path)])
    assert "\n" not in str(caught.value)
    assert left(tmp_path / "out") == []


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_an_archive_cut_anywhere_is_noticed(tmp_path, mode, part):
    path = Path(as_tar(tmp_path / ("train.tar" + mode[1:].replace(":", ".")), {f"cat/{i}.png": image(16, 16) for i in range(40)}, mode))
    whole = path.read_bytes().rstrip(b"\0") if mode == "w" else path.read_bytes()  # zeros are the end mark
    cut = int(len(whole) * part)
    path.write_bytes(whole[: cut // 512 * 512] if mode == "w" else whole[:cut])
    with pytest.raises(UserError, match="damaged or cut short"):
        prepare(str(tmp_path / "out"), "set", [str(path)])


@pytest.mark.parametrize(("name", "word"), [("shapes", "embedded set"), ("../x", "file name"), ("", "file name")])
def test_names_that_cannot_be(tmp_path, name, word):
    with pytest.raises(UserError, match=word):
        prepare(str(tmp_path), name, [str(tmp_path)])


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{0}", "{name}", "{} {x}"])
def test_templates_hold_one_place(tmp_path, template):
    with pytest.raises(UserError, match="template"):
        prepare(str(tmp_path), "set", [str(tmp_path)], templates=[template])


def run(monkeypatch, *arguments):
    """Run the command line and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, arguments)])
    try:
        errors.main(command.run)
    except SystemExit as end:
        return end.code
    return 0


def test_the_command_says_where_and_what_next(tmp_path, monkeypatch, capsys):
    source = as_folder(tmp_path / "set", GOOD | FAULTS)
    assert run(monkeypatch, source, "--name", "set", "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    for word in ("skipped 4 files in all", "train: 2 images", str(tmp_path / "out" / "data" / "set"), "next: robustclip train demo "):
        assert word in said
    assert run(monkeypatch, source, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err == "error: a set needs a name: add --name SET\n"


def turned(path):
    """Change a bit of a file and when it was written, not its size."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, (0, 0))


THERE, READY, OTHER = "set was already there, unchanged", "set is ready", "holds another set of this name"
CHANGED = {  # what changes, and returns other words for the command -> how it ends, how often it reads, what it says
    "nothing": (lambda source, shard: [source], 0, 0, THERE),
    "a time": (lambda source, shard: (os.utime(source / "train/cat/0.png", (0, 0)), [source])[-1], 0, 1, THERE),
    "an image": (lambda source, shard: ((source / "train/dog/0.png").write_bytes(image(9, 9)), [source])[-1], 2, 1, OTHER),
    "a file more": (lambda source, shard: [as_folder(source, {"train/dog/1.png": image()})], 2, 1, OTHER),
    "its name": (lambda source, shard: [source.rename(source.parent / "moved")], 2, 1, OTHER),
    "a bit of a shard": (lambda source, shard: (turned(shard), [source])[-1], 0, 1, READY),
    "no shard": (lambda source, shard: (shard.unlink(), [source])[-1], 0, 1, READY),
    "prompts": (lambda source, shard: [source, "--templates", "a {}."], 2, 1, OTHER),
    "class names": (lambda source, shard: [source, "--class-names", as_folder(source.parent, {"n": b"cat\nwolf"}) + "/n"], 2, 1, OTHER),
    "what is accepted": (lambda source, shard: [source, "--strict"], 0, 1, THERE),
    "--fresh": (lambda source, shard: [source, "--fresh"], 0, 1, READY),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_source_is_read_again_if_something_changed_and_else_not(tmp_path, monkeypatch, capsys, change):
    source, read, plain = Path(as_folder(tmp_path / "set", GOOD)), [], marks.prepare
    monkeypatch.setattr(marks, "prepare", lambda *given, **options: (read.append(given), plain(*given, **options))[-1])
    where = ("--name", "set", "--out", tmp_path / "out")
    assert run(monkeypatch, source, *where) == 0
    assert READY in capsys.readouterr().out
    shard = tmp_path / "out" / "data" / "set" / "train-00000.parquet"
    before, (make, status, times, said) = shard.read_bytes(), CHANGED[change]
    words = make(source, shard)
    read.clear()
    assert run(monkeypatch, *words, *where) == status
    told = capsys.readouterr()
    assert said in told.out + told.err
    assert ("read as " in told.out) == (status == 0 and times == 1)
    assert (len(read), shard.read_bytes()) == (times, before)
    if status == 0 and "--fresh" not in words:
        assert run(monkeypatch, *words, *where) == 0
        assert (len(read), THERE in capsys.readouterr().out) == (times, True)


def test_progress_counts_the_time_of_the_first_part_too(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 5.0, 7.5, 10.0])
    monkeypatch.setattr(command.time, "monotonic", lambda: next(clock))
    tell = command.progress()
    for seen, what in ((1000, "found"), (256, "checked"), (512, "checked"), (500, "written")):
        tell(seen, what)
    assert capsys.readouterr().err.splitlines() == [
        "256 files checked, 64 per second",
        "512 files checked, 79 per second",
        "500 files written, 200 per second",
    ]


def test_the_command_renders_embedded_sets(tmp_path, monkeypatch, capsys):
    asked = ("world:chess", "--images", 12, "--render-seed", 3, "--out", tmp_path)
    assert run(monkeypatch, *asked) == 0
    assert "chess-r3-test12" in capsys.readouterr().out
    shard = tmp_path / "data" / "chess-r3-test12" / "test-00000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(b"damaged")
    assert run(monkeypatch, *asked) == 0
    assert shard.read_bytes() == whole
    assert run(monkeypatch, "world:ches", "--out", tmp_path) == 2
    assert "did you mean chess?" in capsys.readouterr().err
    assert run(monkeypatch, *asked, "--name", "mine") == 2
