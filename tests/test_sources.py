"""What an image in a source becomes: a row of the set or a line of what was skipped, whatever file system and archives do to it."""

import gzip
import io
import os
import struct
import tarfile
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sourcing import as_folder, as_tar, image, left, stored

from robustclip.base.errors import UserError
from robustclip.data import archives
from robustclip.data.images import PIXEL_LIMIT
from robustclip.data.preparation import prepare

CATS = {f"train/cat/{i}.png": image() for i in range(3)}
DEAD = "a link that leads to no file"


def special(name, kind, target="", size=0):
    """Return the header of an archive's member that is no ordinary file."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, target, size
    return member


def tar_of(path, *members, mode="w"):
    """Write an archive of members in order: headers, or (name, bytes)."""
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            if isinstance(member, tuple):
                header = tarfile.TarInfo(member[0])
                header.size = len(member[1])
                archive.addfile(header, io.BytesIO(member[1]))
            else:
                archive.addfile(member)
    return str(path)


def symlink(name, target):
    return special(name, tarfile.SYMTYPE, target)


def hard_link(name, target):
    return special(name, tarfile.LNKTYPE, target)


def made(tmp_path, source, **options):
    """Return what prepare says of a source, {id: bytes} of the split train, and {id: reason} of what was skipped."""
    done = prepare(str(tmp_path / "out"), "set", [source], **options)
    rows = {key: data for key, (data, _) in stored(done.card, "train").items()}
    assert sum(done.card.skipped.values()) == len(done.skipped)
    return done, rows, {skip.id: skip.reason for skip in done.skipped}


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_archives_in_a_row_are_one(tmp_path, suffix):
    mode = "w:gz" if suffix == ".tar.gz" else "w"
    halves = [{f"train/{name}/{i}.png": image() for i in range(3)} for name in ("cat", "dog")]
    paths = [Path(as_tar(tmp_path / f"{i}{suffix}", half, mode)) for i, half in enumerate(halves)]
    whole = tmp_path / f"whole{suffix}"
    whole.write_bytes(b"".join(path.read_bytes() for path in paths))
    assert made(tmp_path, str(whole))[1] == halves[0] | halves[1]


def test_links_in_an_archive_are_followed(tmp_path):
    one, two = image(), image()
    source = tar_of(
        tmp_path / "a.tar",
        symlink("train/early/0.png", "../cat/0.png"),
        symlink("train/twice/0.png", "../early/0.png"),
        symlink("train/folder", "cat"),
        symlink("train/of_folder", "./folder/"),
        symlink("train/cat/around", ".."),
        ("./train/cat/0.png", one),
        (".store/4f", two),
        symlink("train/cat/1.png", "../../.store/4f"),
        hard_link("train/hard/0.png", "./train/cat/0.png"),
    )
    done, rows, skipped = made(tmp_path, source)
    linked = {f"train/{name}/0.png": one for name in ("cat", "early", "twice", "hard", "folder", "of_folder")}
    assert rows == linked | {f"train/{name}/1.png": two for name in ("cat", "folder", "of_folder")}
    assert done.card.class_names == ("cat", "early", "folder", "hard", "of folder", "twice")
    assert skipped == {"train/cat/around": DEAD}


def test_links_of_an_archive_that_lead_nowhere_and_what_is_no_file_are_counted(tmp_path):
    dead = [
        symlink("train/cat/missing.png", "nowhere.png"),
        symlink("train/cat/passwords.png", "/etc/passwd"),
        symlink("train/cat/outside.png", "../../../0.png"),
        symlink("train/cat/circle.png", "other.png"),
        symlink("train/cat/other.png", "circle.png"),
        symlink("train/cat/around", ".."),
        symlink("train/bird", "birds"),
        hard_link("train/cat/hard.png", "train/cat/gone.png"),
    ]
    odd = [special("train/cat/pipe.png", tarfile.FIFOTYPE), special("train/cat/disk.png", tarfile.BLKTYPE)]
    source = tar_of(tmp_path / "a.tar", *CATS.items(), *dead, *odd)
    _, rows, skipped = made(tmp_path, source)
    assert rows == CATS
    assert skipped == {member.name: DEAD for member in dead} | {member.name: "a device, pipe or socket" for member in odd}
    with pytest.raises(UserError, match=r"10 of 13 files cannot be read, first train/cat/"):
        prepare(str(tmp_path / "other"), "set", [source], strict=True)
    alone = tar_of(tmp_path / "b.tar", *CATS.items(), symlink("train/dog/0.png", "nowhere.png"))
    with pytest.raises(UserError, match="'dog' holds no readable image"):
        prepare(str(tmp_path / "other"), "set", [alone])


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w:gz"), ("a.tar.gz", "w"), ("a.tgz", "w:xz"), ("a.TAR", "w:bz2")])
def test_how_an_archive_is_packed_is_in_its_bytes_not_in_its_name(tmp_path, name, mode):
    assert made(tmp_path, as_tar(tmp_path / name, CATS, mode))[1] == CATS


def test_the_last_member_of_a_name_counts_and_the_one_it_replaced_is_told(tmp_path):
    newer = image()
    source = tar_of(tmp_path / "a.tar", *CATS.items(), ("./train/cat/0.png", newer), ("train/cat/1.png", b"broken"))
    _, rows, skipped = made(tmp_path, source)
    assert rows == {"train/cat/0.png": newer, "train/cat/2.png": CATS["train/cat/2.png"]}
    assert (skipped["train/cat/0.png"], len(skipped)) == ("a later file of the archive has the same name and takes its place", 2)
    again = tar_of(tmp_path / "b.tar", symlink("train/cat/0.png", "1.png"), *CATS.items())
    assert prepare(str(tmp_path / "other"), "set", [again], strict=True).card.splits == {"train": 3}


def test_names_of_every_length_and_format(tmp_path):
    files = {f"train/cat/{'x' * n}.png": image() for n in (3, 96, 97, 150, 240)} | {"train/hibou_é/ü.png": image()}
    for number, format in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        with tarfile.open(tmp_path / f"{number}.tar", "w", format=format) as archive:
            for name, data in files.items():
                member = special(name, tarfile.REGTYPE, size=len(data))
                archive.addfile(member, io.BytesIO(data))
        assert made(tmp_path, str(tmp_path / f"{number}.tar"), fresh=True)[1] == files


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    path = Path(as_tar(tmp_path / "a.tar", CATS, "w"))
    whole = path.read_bytes()
    for number in (1, 2):
        at = whole.index(f"train/cat/{number}.png".encode())
        path.write_bytes(whole[:at] + b"?" + whole[at + 1 :])
        with pytest.raises(UserError, match="damaged or cut short"):
            prepare(str(tmp_path / "out"), "set", [str(path)])


def test_zeros_inside_an_image_are_not_taken_for_the_end(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(stream, "BMP")
    path = Path(as_tar(tmp_path / "a.tar", {"train/cat/0.bmp": stream.getvalue(), "train/cat/1.png": image()}, "w"))
    path.write_bytes(path.read_bytes()[: 512 + -(-len(stream.getvalue()) // 512) * 512])
    with pytest.raises(UserError, match="no end mark"):
        prepare(str(tmp_path / "out"), "set", [str(path)])


def test_a_small_archive_cannot_ask_for_much(tmp_path, monkeypatch):
    name = special("train/cat/0.png", tarfile.GNUTYPE_LONGNAME, size=archives.LONGEST_NAMES + 1)
    path = tmp_path / "a.tar"
    path.write_bytes(name.tobuf() + bytes(archives.LONGEST_NAMES + 2048))
    with pytest.raises(UserError, match="a header of 1048577 bytes"):
        prepare(str(tmp_path / "out"), "set", [str(path)])
    endless = special("train/cat/0.png", tarfile.REGTYPE, size=1 << 62)
    path.write_bytes(endless.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(UserError, match="unexpected end of data"):
        prepare(str(tmp_path / "out"), "set", [str(path)])
    monkeypatch.setattr(archives, "LONGEST_END", 1 << 16)
    zeros = tmp_path / "z.tar.gz"
    zeros.write_bytes(gzip.compress(Path(as_tar(tmp_path / "b.tar", CATS, "w")).read_bytes() + bytes(1 << 17)))
    with pytest.raises(UserError, match="nothing but zeros"):
        prepare(str(tmp_path / "out"), "set", [str(zeros)])


def test_what_a_folder_holds_that_is_no_readable_file_is_counted(tmp_path):
    source = Path(as_folder(tmp_path / "set", CATS))
    cat = source / "train" / "cat"
    (cat / "dangling.png").symlink_to("nowhere.png")
    (cat / "self.png").symlink_to("self.png")
    (cat / "around").symlink_to("..")
    (cat / "above").symlink_to(tmp_path)
    (source / "train" / "bird").symlink_to("birds")
    (source / "fish").symlink_to("train/fish")
    os.mkfifo(cat / "pipe.png")
    (cat / "mem.png").symlink_to("/proc/self/mem")  # a file that says it can be read and cannot, whoever asks
    (source / "train" / "dog").symlink_to("cat")  # a folder by another name is two classes, as it says
    _, rows, skipped = made(tmp_path, str(source))
    assert rows == CATS | {name.replace("cat", "dog"): data for name, data in CATS.items()}
    reasons = {"dangling.png": DEAD, "self.png": DEAD, "around": DEAD, "above": DEAD, "pipe.png": "a device, pipe or socket"}
    reasons |= {"mem.png": "cannot be read (Input/output error)"}
    folders = {"train/bird": DEAD, "fish": DEAD}
    assert skipped == folders | {f"train/{name}/{file}": reason for name in ("cat", "dog") for file, reason in reasons.items()}


def test_a_folder_that_cannot_be_opened_is_an_error(tmp_path, monkeypatch):
    source = as_folder(tmp_path / "set", CATS | {"train/dog/0.png": image()})
    opened = os.scandir

    def locked(path="."):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UserError, match=r"dog: this folder cannot be read \(Permission denied\)"):
        prepare(str(tmp_path / "out"), "set", [source])
    assert left(tmp_path / "out") == []


BESIDE = {"0.png": image(), "train/cat/.1.png": image(), ".cache/2.png": image(), "train/.thumbs/c/d/e.png": image()}
NO_IMAGES = dict.fromkeys(["README.md", "train/cat/.DS_Store", "__MACOSX/train/cat/0.png", "train/cat/._0.png", ".git/a/b/c/d/e"], b"")


@pytest.mark.parametrize("make", [as_folder, as_tar])
def test_images_in_no_class_folder_are_counted(tmp_path, make):
    source = make(tmp_path / ("set" if make is as_folder else "set.tar.gz"), CATS | BESIDE | NO_IMAGES)
    _, rows, skipped = made(tmp_path, source)
    assert rows == CATS
    assert skipped == {"0.png": "lies in no class folder"} | dict.fromkeys([*BESIDE][1:], "hidden")


def test_an_image_of_too_many_pixels_is_counted_and_nothing_else_is_said(tmp_path, recwarn):
    head = b"IHDR" + struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    claim = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    _, rows, skipped = made(tmp_path, as_folder(tmp_path / "set", CATS | {"train/cat/large.png": claim + bytes(4) + b"IDAT" + bytes(4)}))
    assert rows == CATS
    assert skipped == {"train/cat/large.png": f"10000 x 10000 pixels are too many: over {PIXEL_LIMIT}"}
    assert not recwarn.list


@pytest.mark.parametrize("make", [as_folder, as_tar])
def test_a_name_that_is_no_text_is_counted(tmp_path, make):
    files = CATS | {os.fsdecode(b"train/cat/\xe9.png"): image()}
    _, rows, skipped = made(tmp_path, make(tmp_path / ("set" if make is as_folder else "set.tar.gz"), files))
    assert rows == CATS
    assert skipped == {r"train/cat/\udce9.png": "its name is not valid UTF-8"}


def test_one_name_in_two_unicode_forms_is_one_class(tmp_path):
    composed, taken_apart = (unicodedata.normalize(form, "café_noir") for form in ("NFC", "NFD"))
    files = {f"train/{composed}/0.png": image(), f"train/{taken_apart}/0.png": image(), "train/thé/0.png": image()}
    done, rows, _ = made(tmp_path, as_folder(tmp_path / "set", files))
    assert (done.card.class_names, rows) == (("café noir", "thé"), files)
    assert [name for _, name in stored(done.card, "train").values()].count("café noir") == 2
