"""A data set made from sources: every image is read once, decoded once to see that it can be, and kept as the bytes it came in.

The bytes wait in a temporary file for their turn in the shuffled shards, so memory holds names only.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.data.card import CARD, DatasetCard, load, save, whole
from robustclip.data.images import BadImage, decode
from robustclip.data.shards import Row, write_split
from robustclip.data.sources import SPLITS, Entry, Place, entries, place

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm")
MAX_BYTES = 64 << 20  # a larger file is no image of a training set
TEMPLATES = ("a photo of a {}.",)
SKIPPED = "skipped.json"


@dataclass(frozen=True)
class Skipped:
    """A file that did not become a row, and why."""

    id: str
    split: str
    reason: str


@dataclass
class Collected:
    """What one pass over the sources found: rows as (id, class folder, image) per split, the skipped files, the image shapes."""

    rows: dict[str, list[tuple[str, str, Callable[[], bytes]]]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    class_folders: set[str] = field(default_factory=set)
    seen: int = 0


def collect(sources: Sequence[str], split: str | None, spool: BinaryIO, progress: Callable[[int], None]) -> Collected:
    """Read every image of the sources once, check it and put its bytes into `spool`; `progress` hears the number of files seen."""
    found = Collected()
    for source in sources:
        _collect(source, split, spool, progress, found)
    if not any(found.rows.values()):
        raise UserError(f"no readable image in {', '.join(sources)}; expected {{class}}/image or {{split}}/{{class}}/image")
    filled = {class_folder for rows in found.rows.values() for _, class_folder, _ in rows}
    for class_folder in sorted(found.class_folders - filled):
        raise UserError(f"the class folder {class_folder!r} holds no readable image; remove it or mend its images")
    return found


def _collect(source: str, split: str | None, spool: BinaryIO, progress: Callable[[int], None], found: Collected) -> None:
    folders, filled, wrappers = set(), set(), set()
    for entry in entries(source):
        where = place(f"{entry.name}/-" if entry.read is None else entry.name)
        if where is None:
            continue
        if entry.read is None:
            folders.add(entry.name.removeprefix("./").rstrip("/"))
            continue
        name = entry.name.removeprefix("./")
        filled |= {name.rsplit("/", depth)[0] for depth in range(1, name.count("/") + 1)}
        wrappers.add(where.wrapper)
        _check_wrapper(source, wrappers)
        _take(entry, where, _split_of(where, source, split), spool, found)
        progress(found.seen)
    for folder in sorted(folders - filled):
        raise UserError(f"{source}: the folder {folder!r} is empty; remove it or fill it with images")


def _check_wrapper(source: str, wrappers: set[str]) -> None:
    if len(wrappers) > 1:
        first, second = sorted(wrappers)[:2]
        beside = f"beside {first!r}" if first else "beside class folders"
        raise UserError(
            f"{source}: the folder {second!r} {beside} is no split ({', '.join(SPLITS)}) and not around all; see --help for layouts"
        )


def _split_of(where: Place, source: str, asked: str | None) -> str:
    if where.split:
        if asked and asked != where.split:
            raise UserError(f"{source}: has a folder for the split {where.split!r}, but --split {asked} was given; leave --split out")
        return where.split
    stem = storage.name_of(source).split(".")[0].lower()
    if not asked and stem not in SPLITS:
        raise UserError(f"{source}: its folders name no split ({', '.join(SPLITS)}); say which it is with --split train or --split test")
    return asked or SPLITS[stem]


def _take(entry: Entry, where: Place, split: str, spool: BinaryIO, found: Collected) -> None:
    """Check one file and keep its bytes, or note why it is skipped."""
    assert entry.read is not None
    key = f"{split}/{where.class_folder}/{where.file}"
    try:
        key.encode()
    except UnicodeEncodeError:
        raise UserError(f"the file name {key!r} is not valid UTF-8; rename it") from None
    found.seen += 1
    found.class_folders.add(where.class_folder)
    rows = found.rows.setdefault(split, [])
    try:
        if not where.file.lower().endswith(IMAGE_SUFFIXES):
            raise BadImage("not the name of an image file")
        if entry.size > MAX_BYTES:
            raise BadImage(f"{entry.size} bytes are more than {MAX_BYTES}")
        data = entry.read()
        found.shapes.add(decode(data).shape)
    except BadImage as error:
        found.skipped.append(Skipped(key, split, str(error)))
        return
    rows.append((key, where.class_folder, _spooled(spool, data)))


def _spooled(spool: BinaryIO, data: bytes) -> Callable[[], bytes]:
    start, length = spool.seek(0, os.SEEK_END), spool.write(data)

    def read() -> bytes:
        spool.seek(start)
        return spool.read(length)

    return read


def class_names(class_folders: set[str]) -> dict[str, str]:
    """Return class folder -> class name, sorted by name: underscores read as spaces; two folders of one name are a UserError."""
    names = {folder: folder.replace("_", " ").strip() for folder in class_folders}
    by_name: dict[str, str] = {}
    for folder in sorted(names):
        if other := by_name.get(names[folder]):
            raise UserError(f"the class folders {other!r} and {folder!r} both mean the class {names[folder]!r}; rename one")
        by_name[names[folder]] = folder
    return {by_name[name]: name for name in sorted(by_name)}


@dataclass(frozen=True)
class Prepared:
    """What preparing a set came to: its card, the files that were skipped, and whether the very same set was there before."""

    card: DatasetCard
    skipped: tuple[Skipped, ...]
    unchanged: bool


def prepare(
    out: str,
    name: str,
    sources: Sequence[str],
    *,
    split: str | None = None,
    strict: bool = False,
    templates: Sequence[str] = TEMPLATES,
    licence: str = "unknown: ask its source",
    fresh: bool = False,
    progress: Callable[[int], None] = lambda seen: None,
) -> Prepared:
    """Write <out>/data/<name> from the sources and return what it came to; on any error nothing of it remains.

    `strict` refuses files that cannot be read instead of skipping them; `fresh` replaces a set of that name whose content differs.
    """
    from robustclip.data.world import SETS

    folder = storage.join(out, "data", storage.safe_name(name))
    if name in SETS:
        raise UserError(f"{name!r} is an embedded set; choose another --name")
    for template in templates:
        if template.count("{}") != 1 or "{" in template.replace("{}", "") or "}" in template.replace("{}", ""):
            raise UserError(f"the template {template!r} must hold one {{}}, where the class name goes, and no other brace")
    before = load(folder) if storage.exists(storage.join(folder, CARD)) and not fresh else None
    unharmed = before is not None and whole(before)
    with storage.staged(folder, replace=not unharmed) as stage:
        # The images wait beside the shards: a temporary folder in memory could not hold a large set.
        with tempfile.TemporaryFile(dir=stage if storage.is_local(stage) else None) as spool:
            found = collect([storage.resolve(source) for source in sources], split and SPLITS.get(split, split), spool, progress)
            if strict and found.skipped:
                first = found.skipped[0]
                raise UserError(
                    f"{len(found.skipped)} of {found.seen} files cannot be read, first {first.id}: {first.reason}; "
                    "nothing was written; mend them or leave --strict out"
                )
            card = _write(stage, name, sources, found, tuple(templates), licence)
        if before is not None and before != card:
            raise UserError(
                f"{folder} holds another set of this name; nothing was changed; choose another --name or replace it with --fresh"
            )
    return Prepared(load(folder), tuple(found.skipped), unharmed)


def _write(stage: str, name: str, sources: Sequence[str], found: Collected, templates: tuple[str, ...], licence: str) -> DatasetCard:
    names = class_names(found.class_folders)
    label = {folder: i for i, folder in enumerate(names)}
    shapes = {(height, width) for height, width, _ in found.shapes}
    side = next(iter(shapes)) if len(shapes) == 1 else (0, 1)
    card = DatasetCard(
        name=name,
        class_names=tuple(names.values()),
        templates=templates,
        splits={split: len(rows) for split, rows in sorted(found.rows.items()) if rows},
        native_size=side[0] if side[0] == side[1] else None,
        licence=licence,
        source=", ".join(storage.name_of(storage.resolve(source)) for source in sources),
        shards={
            split: write_split(stage, split, (Row(key, label[folder], image) for key, folder, image in rows))
            for split, rows in sorted(found.rows.items())
            if rows
        },
        skipped={split: sum(skip.split == split for skip in found.skipped) for split in sorted({skip.split for skip in found.skipped})},
    )
    if found.skipped:
        skipped = sorted((skip.id, skip.reason) for skip in found.skipped)
        storage.write_json(storage.join(stage, SKIPPED), [{"id": key, "reason": reason} for key, reason in skipped])
    save(card, stage)
    return card
