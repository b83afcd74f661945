"""The members of a tar archive, found once: archives in a row are one, links are followed inside, damage is never the end.

What lies in an archive that is not compressed is read where it lies; of any other the files are kept in the spool.
"""

import bz2
import gzip
import io
import lzma
import os
import posixpath
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from robustclip.base import disk
from robustclip.base.errors import UserError
from robustclip.data.spool import Place, Spool

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
UNPACKERS: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}  # by first bytes
NAMES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
LONGEST_NAMES = 1 << 20  # bytes of a header of long names, which is held in memory
LONGEST_END = 1 << 26  # bytes of zeros behind an archive
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm")
MAX_BYTES = 64 << 20  # a larger file is no image of a training set
DEAD_LINK = "a link that leads to no file"
NO_FILE = "a device, pipe or socket"


def is_image(name: str) -> bool:
    """Return whether a file's name is that of an image in a format that is read."""
    return name.lower().endswith(IMAGE_SUFFIXES)


@dataclass(frozen=True, slots=True)
class Entry:
    """A folder of a source (`open` is None), or a file: its name inside the source, its size in bytes, and how to open it at any time.

    A file that cannot be read has a `fault` instead, which says why. `inside` is its name in the archive that it lies in.
    """

    name: str
    size: int = 0
    open: Callable[[], IO[bytes]] | None = None
    fault: str = ""
    inside: str = ""


class _Header(tarfile.TarInfo):
    """A member's header; one that is damaged or claims too much is a ReadError, where tarfile would skip it or take it for the end."""

    zeros = 0  # bytes of zeros read since the last member
    block = b""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        cls.block = bytes(buf).strip(b"\0")
        if buf:
            cls.zeros = 0 if cls.block else cls.zeros + len(buf)
        if cls.zeros > LONGEST_END:
            raise tarfile.ReadError("nothing but zeros")
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in NAMES and header.size > LONGEST_NAMES):
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if cls.block:
                raise tarfile.ReadError(str(error)) from error
            raise  # zeros, or the end of the file


class _Stream:
    """A stream that ends for good: tarfile would read on behind it for every byte that a damaged header claims."""

    def __init__(self, stream: IO[bytes], first: bytes = b"") -> None:
        self.stream, self.behind, self.first = stream, 0, first

    def read(self, size: int = -1) -> bytes:
        if self.first:
            data, self.first = (self.first[:size], self.first[size:]) if size >= 0 else (self.first + self.stream.read(), b"")
            return data
        data = self.stream.read(size)
        self.behind = 0 if data else self.behind + 1
        if self.behind > 8:
            raise tarfile.ReadError("unexpected end of data")
        return data


def tar_entries(source: str, packed: Callable[[], IO[bytes]], spool: Spool) -> Iterator[Entry]:
    """Yield the files and folders of a tar archive, then the files its links lead to, under the links' names.

    `source` is what errors call the archive, `packed` opens it. A tar archive inside a compressed one can be read only before the next
    entry is asked for.
    """
    links: dict[str, str] = {}
    files: dict[str, Entry] = {}
    for archive, member, place in _members(source, packed):
        links.pop(member.name, None)  # a later member of a name takes the place of an earlier one
        files.pop(member.name, None)
        if member.isdir():
            yield Entry(member.name)
        elif member.issym():
            links[member.name] = posixpath.join(posixpath.dirname(member.name), member.linkname)
        elif member.islnk():
            links[member.name] = member.linkname
        elif member.isreg() and member.name.lower().endswith(SUFFIXES):
            yield Entry(member.name, member.size, place or partial(_passing, archive, member))  # a set may be a tar of tars: not kept twice
        elif member.isreg():
            files[member.name] = Entry(member.name, member.size, place) if place else _kept(source, archive, member, spool)
            yield files[member.name]
        else:
            yield Entry(member.name, fault=NO_FILE)
    yield from _linked(files, links)


def _members(source: str, packed: Callable[[], IO[bytes]]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, Place | None]]:
    """Yield an archive and each of its members, and where the member's bytes lie in the open."""
    with _intact(source):
        header: type[_Header] = type("Header", (_Header,), {})  # what it remembers is of one archive
        with packed() as opened:
            first = opened.read(6)
            unpack = next((unpack for magic, unpack in UNPACKERS.items() if first.startswith(magic)), None)
            around = packed if isinstance(packed, Place) and not unpack else None
            end = opened.seek(0, os.SEEK_END) if around else 0
            if around:
                opened.seek(0)
            begun: Any = opened if around else _Stream(opened, first)
            ending: Any = _Stream(unpack(begun)) if unpack else begun
            archive: Any
            with tarfile.open(fileobj=ending, mode="r:" if around else "r|", tarinfo=header, ignore_zeros=True) as archive:
                while member := archive.next():
                    archive.members.clear()  # it would remember every one of them
                    if around and archive.offset > end:
                        raise tarfile.ReadError("unexpected end of data")
                    member.name = _plain(member.name)
                    place = around.part(member.offset_data, member.size) if around and not member.issparse() else None
                    yield archive, member, place
            if not header.zeros:  # tarfile takes a cut between two members for the end; a whole archive ends in zeros
                raise tarfile.ReadError("no end mark")


def _plain(name: str) -> str:
    """Return a name without empty and '.' parts; what leads outside (a leading '/', '..') stays to be seen."""
    return "/" * name.startswith("/") + "/".join(part for part in name.split("/") if part not in ("", "."))


def _kept(source: str, archive: tarfile.TarFile, member: tarfile.TarInfo, spool: Spool) -> Entry:
    """Return a file of an archive whose bytes are kept; those of an image that is too large to be one are not, its size says why."""
    if member.size > MAX_BYTES and is_image(member.name):
        return Entry(member.name, member.size, partial(never_kept, member.name))
    with _intact(source):
        stream = archive.extractfile(member)
        kept = spool.keep(stream or b"")
        if kept.length != member.size:
            raise tarfile.ReadError(f"unexpected end of {member.name}")
    return Entry(member.name, member.size, kept)


def _passing(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    return archive.extractfile(member) or io.BytesIO()


def never_kept(name: str) -> IO[bytes]:
    """Raise ValueError: what opens an image that is too large, and that is refused by its size before anybody opens it."""
    raise ValueError(f"{name} was not kept")


def _linked(files: Mapping[str, Entry], links: Mapping[str, str]) -> Iterator[Entry]:
    """Yield an entry for every link and every file behind a linked folder, which a link may come before."""
    targets = _targets(links)
    dead = set(links)
    for name, entry in files.items() if links else ():
        for above in (*_above(name), name):
            for link in targets.get(above, ()):
                dead.discard(link)
                yield Entry(link + name[len(above) :], entry.size, entry.open)
    for link in sorted(dead):
        yield Entry(link, fault=DEAD_LINK)


def _targets(links: Mapping[str, str]) -> dict[str, list[str]]:
    """Return target -> the names that lead there; a folder is no target of a link that lies in it."""
    targets = defaultdict(list)
    ends = {link: _end(link, links) for link in links}
    for link, end in ends.items():
        if end not in _above(link):
            targets[end].append(link)
    linked = {end: list(names) for end, names in targets.items()}
    for link, end in ends.items():  # a linked folder may hold links itself
        aliases = [name + link[len(above) :] for above in _above(link) for name in linked.get(above, ())]
        targets[end] += [alias for alias in aliases if end not in (*_above(link), *_above(alias))]
    return targets


def _end(name: str, links: Mapping[str, str]) -> str:
    """Return the name that a link leads to in the end; '' for a circle of links."""
    for _ in range(40):  # as Linux does
        link = next((part for part in (*_above(name), name) if part in links), None)
        if link is None:
            return name
        name = posixpath.normpath(links[link] + name[len(link) :])
    return ""


def _above(name: str) -> list[str]:
    """Return the folders that a name lies in, outermost first."""
    parts = name.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


@contextmanager
def _intact(source: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in disk.NO_ROOM:
            raise  # of the temporary file: the archive is fine
        raise UserError(f"{source}: the archive is damaged or cut short ({error}); fetch it again") from error
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, IndexError) as error:
        raise UserError(f"{source}: the archive is damaged or cut short ({error}); fetch it again") from error
