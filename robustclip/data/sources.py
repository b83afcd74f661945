"""What lies in a folder or a tar archive of class folders, {class}/image or {split}/{class}/image; archives are never unpacked to disk."""

import bz2
import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from robustclip.base import storage
from robustclip.base.errors import UserError

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test"}
UNPACKERS: dict[str, Callable[[Any], Any]] = {
    ".tar": nullcontext,
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tar.xz": lzma.open,
}


@dataclass(frozen=True)
class Entry:
    """A file or folder of a source: its name inside the source and, for a file, its size in bytes and how to read it now."""

    name: str
    size: int = 0
    read: Callable[[], bytes] | None = None


def entries(source: str) -> Iterator[Entry]:
    """Yield all files and folders of a source, a local folder or a tar archive (local or in an object store)."""
    if source.lower().endswith(tuple(UNPACKERS)):
        return _tar_entries(source)
    if storage.is_local(source) and os.path.isdir(source):
        return _folder_entries(source)
    if not storage.exists(source):
        raise UserError(f"{source}: no such folder or file; give a folder, a tar archive of class folders, or world:SET")
    raise UserError(f"{source}: neither a local folder nor a tar archive ({', '.join(UNPACKERS)})")


def _folder_entries(source: str) -> Iterator[Entry]:
    for folder, folders, files in os.walk(source, followlinks=True):  # sets made of links are common
        folders.sort()
        inside = os.path.relpath(folder, source).replace(os.sep, "/")
        if inside.count("/") > 4:
            raise UserError(f"{source}: {inside} lies too deep; expected {{class}}/image or {{split}}/{{class}}/image")
        if inside != ".":
            yield Entry(inside)
        for name in sorted(files):
            path = os.path.join(folder, name)
            yield Entry(name if inside == "." else f"{inside}/{name}", os.path.getsize(path), partial(storage.read_bytes, path))


def _tar_entries(source: str) -> Iterator[Entry]:
    if not storage.exists(source):
        raise UserError(f"{source}: no such file")
    unpack = next(unpack for suffix, unpack in UNPACKERS.items() if source.lower().endswith(suffix))
    with _intact(source), storage.open_read(source) as packed, unpack(packed) as stream:
        watched: Any = _Watched(stream)  # all that a stream archive asks of a file
        with tarfile.open(fileobj=watched, mode="r|") as archive:
            for member in archive:
                if member.isdir():
                    yield Entry(member.name)
                elif member.isreg():
                    yield Entry(member.name, member.size, partial(_member, source, archive, member))
        while watched.read(1 << 20):
            pass
        if watched.last.strip(b"\0"):  # tarfile takes a cut between two members for the end; a whole archive ends in zeros
            raise tarfile.ReadError("no end mark")


class _Watched:
    """A stream of bytes that remembers the last 512 it gave."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.last = stream, b""

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.last = (self.last + data)[-512:]
        return data


def _member(source: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    with _intact(source):
        stream = archive.extractfile(member)
        data = stream.read() if stream else b""
        if len(data) != member.size:
            raise tarfile.ReadError(f"unexpected end of {member.name}")
        return data


@contextmanager
def _intact(source: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise UserError(f"{source}: the archive is damaged or cut short ({error}); fetch it again") from error


@dataclass(frozen=True)
class Place:
    """Where a name says an image belongs; `split` is None where only a class folder is named, `wrapper` is a folder around it all."""

    split: str | None
    class_folder: str
    file: str
    wrapper: str = ""


def place(name: str) -> Place | None:
    """Return the place a file's name says, None for hidden files and files beside the class folders; other layouts are a UserError."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise UserError(f"the name {name!r} points outside its source; this archive is not to be trusted")
    if len(parts) < 2 or any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return None
    *outer, class_folder, file = parts
    split = SPLITS.get(outer[-1].lower()) if outer else None
    wrapper = "/".join(outer[:-1] if split else outer)
    if "/" in wrapper:
        raise UserError(f"{name}: lies too deep; expected {{class}}/image or {{split}}/{{class}}/image, split one of {', '.join(SPLITS)}")
    return Place(split, class_folder, file, wrapper)
