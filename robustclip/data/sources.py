"""All files of the sources of one set by name, each readable at any time: folders and plain archives as they lie, others unpacked once."""

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import IO, Any

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.data import zips
from robustclip.data.archives import DEAD_LINK, NO_FILE, SUFFIXES, Entry, is_image, tar_entries
from robustclip.data.spool import Place, Spool

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test"}
PACKED = (*SUFFIXES, zips.SUFFIX)
READERS = 2  # raised by hand when a reader makes something else of the same files
DEPTH = 3  # archives in archives: ImageNet's tar of tars is two
Progress = Callable[[int, str], None]  # hears how many files there are so far, and what was done with them
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expanded(sources: Sequence[str]) -> list[str]:
    """Return resolved sources, those with a range of numbers in braces, as in {000..012}.tar, written out."""
    found = []
    for source in sources:
        if not (range_ := BRACES.search(source)):
            found.append(storage.resolve(source))
            continue
        first, last = range_.groups()
        if int(last) < int(first) or int(last) - int(first) > 100_000:
            raise UserError(f"{source}: {range_.group()} is no range of shards; write the lower number first")
        names = (f"{source[: range_.start()]}{i:0{len(first)}d}{source[range_.end() :]}" for i in range(int(first), int(last) + 1))
        found += expanded([*names])
    return found


@dataclass(frozen=True)
class Root:
    """One source: its path, the folder its files stand under in the tree, and its files and folders in the order in which they lie."""

    source: str
    under: str
    entries: list[Entry]


class Tree:
    """What the sources of a set hold. Archives inside an archive are looked into; those in a folder wait for `opened`."""

    def __init__(self, sources: Sequence[str], spool: Spool, progress: Progress = lambda seen, what: None) -> None:
        self.spool = spool
        top = _around([storage.parent_of(source) for source in sources])
        found = 0
        self.roots: list[Root] = []
        for source in sources:
            self.roots.append(Root(source, _under(source, top, len(sources)), []))
            for entry in _entries(source, spool):
                self.roots[-1].entries.append(entry)
                found += 1
                progress(found, "found")

    @cached_property
    def files(self) -> dict[str, Entry]:
        """Return name -> file, hidden ones and what macOS adds left out; of one name the last counts."""
        return {
            _joined(root.under, entry.name): entry
            for root in self.roots
            for entry in root.entries
            if (entry.open or entry.fault) and not any(part.startswith(".") or part == "__MACOSX" for part in entry.name.split("/"))
        }

    @cached_property
    def around(self) -> str:
        """Return the name of the folder that the sources lie in, nothing where they lie in folders of several names."""
        names = {storage.name_of(storage.parent_of(root.source)) for root in self.roots}
        return names.pop() if len(names) == 1 else ""

    @cached_property
    def packed(self) -> bool:
        """Return whether a folder of it holds archives that were not looked into."""
        return any(entry.open and is_packed(entry.name) for root in self.roots for entry in root.entries)

    def opened(self) -> "Tree":
        """Return it with the archives in its folders looked into; what lies unpacked beside an archive counts, and not its copy inside."""
        tree = Tree.__new__(Tree)
        tree.spool = self.spool
        tree.roots = [Root(root.source, root.under, [*self._opened(root)]) for root in self.roots]
        return tree

    def _opened(self, root: Root) -> Iterator[Entry]:
        there = {entry.name for entry in root.entries}
        for entry in root.entries:
            if entry.open is None or not is_packed(entry.name):
                yield entry
                continue
            inside = _inside(_joined(root.source, entry.name), entry.open, self.spool, 1)
            yield from (each for each in _mounted(entry.name, inside) if each.name not in there)

    @cached_property
    def _others(self) -> list[str]:
        return [name for name in self.files if not is_image(name)]

    def find(self, pattern: str, images: bool = False) -> list[str]:
        """Return the sorted names of files, or of images, whose last parts fit a regular expression in full."""
        fits = re.compile(rf"(?:.*/)?(?:{pattern})")
        return sorted(name for name in (self.files if images else self._others) if fits.fullmatch(name))

    def only(self, pattern: str) -> str | None:
        """Return the one file, no image, whose name fits, None where none does; raises UserError where several do."""
        found = self.find(pattern)
        if len(found) > 1:
            raise UserError(f"{self}: {found[0]} and {found[1]} are one file too many; give the folder of one of them")
        return found[0] if found else None

    def open(self, name: str) -> IO[bytes]:
        """Return a file of the sources opened; one that cannot be is a UserError."""
        entry = self.files[name]
        try:
            if entry.open:
                return entry.open()
            raise OSError(entry.fault)
        except OSError as error:
            raise UserError(f"{self}: {name} cannot be read ({error.strerror or error}); fetch it again") from error

    def content(self, name: str) -> bytes:
        """Return the bytes of a file of the sources; one that cannot be read is a UserError."""
        with self.open(name) as stream:
            return stream.read()

    def text(self, name: str) -> str:
        """Return a text file of the sources; one that cannot be read as text is a UserError."""
        try:
            return self.content(name).decode("utf-8-sig")
        except ValueError as error:
            raise UserError(f"{self}: {name} is no readable text ({error}); fetch it again") from error

    def __str__(self) -> str:
        return ", ".join(root.source for root in self.roots)


def is_packed(name: str) -> bool:
    """Return whether a name is that of an archive that is looked into."""
    return name.lower().endswith(PACKED)


def stem_of(name: str) -> str:
    """Return the last part of a name without the suffixes of an archive or a file."""
    last = storage.name_of(name)
    suffix = next((suffix for suffix in sorted(PACKED, key=len, reverse=True) if last.lower().endswith(suffix)), None)
    return last[: -len(suffix)] if suffix else last.rpartition(".")[0] or last


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _around(folders: Sequence[str]) -> str:
    """Return the folder that all folders lie in, or are."""
    parts = list(zip(*(folder.split("/") for folder in folders)))
    return "/".join(each[0] for each in takewhile(lambda each: len({*each}) == 1, parts))


def _under(source: str, top: str, sources: int) -> str:
    """Return the folder that a source's files stand under: none for a folder, else what it is called; of several also where it lies."""
    where = storage.parent_of(source)[len(top) :].strip("/") if sources > 1 else ""
    if storage.is_local(source) and os.path.isdir(source):
        return _joined(where, storage.name_of(source)) if sources > 1 else ""
    return _joined(where, stem_of(source)) if is_packed(source) else where


def _entries(source: str, spool: Spool) -> Iterator[Entry]:
    if storage.is_local(source) and os.path.isdir(source):
        return _folder_entries(source)
    if is_packed(source):
        if not storage.exists(source):
            raise UserError(f"{source}: no such file")
        return _inside(source, Place(source), spool, 0)
    if not storage.exists(source):
        raise UserError(f"{source}: no such folder or file; give a folder, a tar or zip archive, the files of a set, or world:SET")
    if storage.is_folder(source):
        return iter([Entry(name, size, Place(storage.join(source, name))) for name, size, _ in storage.list_all(source)])
    return iter([_file(source, storage.name_of(source))] if storage.is_local(source) else [_stored(source)])


def _stored(source: str) -> Entry:
    return Entry(storage.name_of(source), storage.size_of(source), Place(source))


def _inside(source: str, packed: Callable[[], IO[bytes]], spool: Spool, depth: int) -> Iterator[Entry]:
    """Yield what an archive holds, and what archives in it hold, under their names."""
    read = zips.zip_entries if source.lower().endswith(zips.SUFFIX) else tar_entries
    for entry in read(source, packed, spool):
        if entry.name.startswith("/") or ".." in entry.name.split("/"):
            raise UserError(f"{source}: the name {entry.name!r} points outside its source; this archive is not to be trusted")
        if entry.open and is_packed(entry.name) and depth < DEPTH:
            yield from _mounted(entry.name, _inside(f"{source}: {entry.name}", entry.open, spool, depth + 1))
        else:
            yield Entry(entry.name, entry.size, entry.open, entry.fault, entry.name)


def _mounted(name: str, inside: Iterator[Entry]) -> Iterator[Entry]:
    """Yield the entries of an archive under its name, unless they lie in a folder of that name already."""
    folder, stem = name.rpartition("/")[0], stem_of(name)
    for entry in inside:
        at = entry.name if entry.name == stem or entry.name.startswith(f"{stem}/") else _joined(stem, entry.name)
        yield Entry(_joined(folder, at), entry.size, entry.open, entry.fault, entry.inside)


def _folder_entries(source: str) -> Iterator[Entry]:
    for folder, inside, names, circles in _walked(source, _closed):
        prefix = f"{inside}/" if inside else ""
        if inside:
            yield Entry(inside)
        for name in names:
            yield Entry(prefix + name, fault=DEAD_LINK) if name in circles else _file(os.path.join(folder, name), prefix + name)


def _walked(source: str, closed: Callable[[OSError], None] | None = None) -> Iterator[tuple[str, str, list[str], set[str]]]:
    """Yield every folder in and below a source, its name inside the source, the sorted names of its files and links that lead around."""
    for folder, folders, files in os.walk(source, onerror=closed, followlinks=True):  # sets made of links are common
        inside = os.path.relpath(folder, source).replace(os.sep, "/")
        circles = {name for name in folders if _leads_around(source, os.path.join(folder, name))}
        folders[:] = sorted({*folders} - circles)
        yield folder, "" if inside == "." else inside, sorted({*files} | circles), circles


def fingerprint(source: str, facts: Any) -> str:
    """Return the hash of the names, sizes and times of change of all files of a source, and of `facts`: how it is to be prepared."""
    digest = hashlib.sha256(repr([READERS, facts]).encode())
    if not storage.is_local(source):
        for name, *stamp in storage.list_all(source) if storage.is_folder(source) else [("", *storage.stamp(source))]:
            digest.update(f"{name}\0{stamp}\n".encode())
        return digest.hexdigest()
    places = [os.path.join(folder, name) for folder, _, names, _ in _walked(source) for name in names] or [source]
    for place in places:
        if os.path.lexists(place):
            status = os.stat(place) if os.path.exists(place) else os.lstat(place)
            known = f"{os.path.relpath(place, source)}\0{status.st_size}\0{status.st_mtime_ns}\n"
            digest.update(known.encode(errors="surrogateescape"))
    return digest.hexdigest()


def _closed(error: OSError) -> None:
    raise UserError(f"{error.filename}: this folder cannot be read ({error.strerror}); give yourself the right to, or leave it out")


def _leads_around(source: str, path: str) -> bool:
    """Return whether a folder is a link to one that it lies in, so that walking it would never end."""
    if not os.path.islink(path):
        return False
    end, around = os.path.join(os.path.realpath(path), ""), path
    while around != source:
        around = os.path.dirname(around)
        if os.path.join(os.path.realpath(around), "").startswith(end):
            return True
    return False


def _file(path: str, name: str) -> Entry:
    try:
        status = os.stat(path)
    except OSError as error:
        return Entry(name, fault=DEAD_LINK if os.path.islink(path) else f"cannot be read ({error.strerror})")
    if not stat.S_ISREG(status.st_mode):
        return Entry(name, fault=NO_FILE)
    return Entry(name, status.st_size, Place(path))
