"""The images that a set says it has: each is read and decoded once to see that it can be, by whoever has the time."""

import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from robustclip.base.errors import UserError
from robustclip.data.archives import MAX_BYTES, is_image
from robustclip.data.formats.base import NO_SPLIT, Item, Reading
from robustclip.data.images import BadImage, decode
from robustclip.data.sources import Progress
from robustclip.data.spool import Place, Source

AGAIN = "a source must stay as it is while a set is prepared; run the same command again"
CHUNK = 256  # images that are checked as one piece of work


@dataclass(frozen=True)
class Skipped:
    """A file that did not become a row, and why; its split is "none" where it lies in no class folder."""

    id: str
    split: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """An image that was found good: what gives its bytes, their CRC-32, its label, height and width, and where it came from."""

    source: Source
    crc: int
    label: int
    shape: tuple[int, int]
    origin: Any


@dataclass(frozen=True, slots=True)
class Image:
    """The bytes of a row of a set, which must be those that were checked."""

    id: str
    source: Source
    crc: int

    def __call__(self) -> bytes:
        """Return the bytes; raises UserError where they have become others."""
        try:
            data = self.source.read()
        except (OSError, BadImage) as error:
            raise UserError(f"{self.id} was read and now it cannot be ({error}); {AGAIN}") from error
        if zlib.crc32(data) != self.crc:
            raise UserError(f"{self.id} holds other bytes than when it was checked; {AGAIN}")
        return data


@dataclass
class Collected:
    """What one pass over the items found: images by id in each split, and the skipped files."""

    rows: dict[str, dict[str, Found]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    labels: set[int] = field(default_factory=set)
    seen: int = 0


Check = Callable[[Sequence[tuple[Source, ...]]], Iterator[list[Any]]]  # what `checked` says of every piece, in their order


def collect(reading: Reading, check: Check, progress: Progress) -> Collected:
    """Have every image of a set checked once, in pieces of CHUNK images; `progress` hears the number of files seen."""
    found = Collected()
    items = [*reading.items]
    sources = [_source(item) for item in items]
    asked = [source for source in sources if not isinstance(source, str)]
    asked = [*dict.fromkeys(asked)] if reading.shared else asked
    pieces = [tuple(asked[start : start + CHUNK]) for start in range(0, len(asked), CHUNK)]
    answers = (answer for piece in check(pieces) for answer in piece)
    known: dict[Source, Any] = {}  # of what is in several splits
    for item, source in zip(items, sources, strict=True):
        answer = source if isinstance(source, str) else known[source] if source in known else next(answers)
        if reading.shared and not isinstance(source, str):
            known[source] = answer
        _take(item, source, answer, found)
        progress(found.seen, "read and checked")
    filled = {row.label for rows in found.rows.values() for row in rows.values()}
    for label in sorted(found.labels - filled) if reading.filled and filled else ():
        raise UserError(f"the class folder {reading.keys[label]!r} holds no readable image; remove it or mend its images")
    return found


def checked(piece: Sequence[Source]) -> list[Any]:
    """Return [height, width, CRC-32 of the bytes] of every image of a piece, or the reason why it can be no row."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # they name no file; what cannot be read is counted with its reason
        return [_checked(source) for source in piece]


def _checked(source: Source) -> list[int] | str:
    try:
        data = source.read()
        height, width, _ = decode(data).shape
    except BadImage as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return [height, width, zlib.crc32(data)]


def written(name: str) -> str:
    """Return a name as text that can be stored and shown; bytes that are no UTF-8 appear as \\udcXX."""
    return name.encode(errors="backslashreplace").decode()


def _source(item: Item) -> Source | str:
    """Return what gives an item's bytes, or why it can be no row whatever they are."""
    if item.split == NO_SPLIT:
        return item.fault
    if f"{item.split}/{item.id}" != written(f"{item.split}/{item.id}"):
        return "its name is not valid UTF-8"
    if item.fault:
        return item.fault
    if item.made:
        return item.made
    if item.entry is None or item.entry.open is None:
        return item.entry.fault if item.entry else "has no bytes"
    if not is_image(item.entry.name):
        return "not the name of a JPEG, PNG, WebP, BMP, GIF or PPM image"
    if item.entry.size > MAX_BYTES:
        return f"{item.entry.size} bytes are more than {MAX_BYTES}"
    if not isinstance(item.entry.open, Place):
        raise RuntimeError(f"{item.entry.name} lies in no place where it can be read at any time")
    return item.entry.open


def _take(item: Item, source: Source | str, answer: Any, found: Collected) -> None:
    """Note an image, whose check came to `answer`, or why it is skipped."""
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
    if isinstance(source, str) or isinstance(answer, str):
        found.skipped.append(Skipped(written(key), item.split, answer))
        return
    height, width, crc = answer
    rows[key] = Found(source, crc, item.label, (height, width), item.origin)
