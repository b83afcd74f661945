"""The images that a set says it has, read once, decoded once to see that they can be, and kept as the bytes they came in."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

from robustclip.base.errors import UserError
from robustclip.data.archives import MAX_BYTES, Entry, is_image
from robustclip.data.formats.base import NO_SPLIT, Item, Reading
from robustclip.data.images import BadImage, decode
from robustclip.data.sources import Progress
from robustclip.data.spool import Spool


@dataclass(frozen=True)
class Skipped:
    """A file that did not become a row, and why; its split is "none" where it lies in no class folder."""

    id: str
    split: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """An image that was found good: what opens its bytes, its label, height and width, and where it came from."""

    open: Callable[[], IO[bytes]]
    label: int
    shape: tuple[int, int]
    origin: Any

    def image(self) -> bytes:
        """Return its bytes."""
        with self.open() as stream:
            return stream.read()


@dataclass
class Collected:
    """What one pass over the items found: images by id in each split, and the skipped files."""

    rows: dict[str, dict[str, Found]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    labels: set[int] = field(default_factory=set)
    seen: int = 0


def collect(reading: Reading, spool: Spool, progress: Progress) -> Collected:
    """Read every image of a set once, check it and put its bytes into `spool`; `progress` hears the number of files seen."""
    found = Collected()
    checked: dict[int, Any] | None = {} if reading.shared else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # they name no file; what cannot be read is counted with its reason
        for item in reading.items:
            _take(item, spool, checked, found)
            progress(found.seen, "read and checked")
    filled = {row.label for rows in found.rows.values() for row in rows.values()}
    for label in sorted(found.labels - filled) if reading.filled and filled else ():
        raise UserError(f"the class folder {reading.keys[label]!r} holds no readable image; remove it or mend its images")
    return found


def written(name: str) -> str:
    """Return a name as text that can be stored and shown; bytes that are no UTF-8 appear as \\udcXX."""
    return name.encode(errors="backslashreplace").decode()


def _take(item: Item, spool: Spool, checked: dict[int, Any] | None, found: Collected) -> None:
    """Check one image and keep its bytes, or note why it is skipped."""
    found.seen += 1
    if item.split == NO_SPLIT:
        found.skipped.append(Skipped(written(item.id), item.split, item.fault))
        return
    key = f"{item.split}/{item.id}"
    found.labels.add(item.label)
    rows = found.rows.setdefault(item.split, {})
    if before := rows.get(key):
        if item.origin is None or before.origin != item.origin:
            if item.fault:
                found.skipped.append(Skipped(written(key), item.split, item.fault))
                return
            raise UserError(f"the id {written(key)!r} occurs more than once; every image needs an id of its own; rename one of its files")
        del rows[key]
        found.skipped.append(Skipped(key, item.split, "a later file of the archive has the same name and takes its place"))
    try:
        if key != written(key):
            raise BadImage("its name is not valid UTF-8")
        if item.fault:
            raise BadImage(item.fault)
        opener, shape = _checked(item, spool, checked)
    except BadImage as error:
        found.skipped.append(Skipped(written(key), item.split, str(error)))
        return
    rows[key] = Found(opener, item.label, shape, item.origin)


def _checked(item: Item, spool: Spool, checked: dict[int, Any] | None) -> tuple[Callable[[], IO[bytes]], tuple[int, int]]:
    if item.entry is None:
        return _kept(_read(item.read) if item.read else b"", spool)
    if checked is None:
        return _kept_once(item.entry, spool)
    place = id(item.entry)  # entries live as long as their tree
    if place not in checked:
        try:
            checked[place] = _kept_once(item.entry, spool)
        except BadImage as error:
            checked[place] = str(error)
    if isinstance(checked[place], str):
        raise BadImage(checked[place])
    return checked[place]


def _bytes(entry: Entry) -> bytes:
    if entry.open is None:
        raise BadImage(entry.fault)
    if not is_image(entry.name):
        raise BadImage("not the name of a JPEG, PNG, WebP, BMP, GIF or PPM image")
    if entry.size > MAX_BYTES:
        raise BadImage(f"{entry.size} bytes are more than {MAX_BYTES}")
    return _read(entry.read)


def _read(read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from error


def _kept_once(entry: Entry, spool: Spool) -> tuple[Callable[[], IO[bytes]], tuple[int, int]]:
    """Return how an image is opened and its shape; the bytes of one that is no part of an archive are kept now."""
    data = _bytes(entry)
    if entry.kept and entry.open:
        height, width, _ = decode(data).shape
        return entry.open, (height, width)
    return _kept(data, spool)


def _kept(data: bytes, spool: Spool) -> tuple[Callable[[], IO[bytes]], tuple[int, int]]:
    height, width, _ = decode(data).shape
    return spool.keep(data), (height, width)
