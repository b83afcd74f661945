"""A data set made from sources: every image is read once, decoded once to see that it can be, and kept as the bytes it came in.

The bytes wait in a temporary file for their turn in the shuffled shards, so memory holds names only.
"""

import os
import tempfile
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import BinaryIO

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.locks import alone
from robustclip.data.archives import Entry
from robustclip.data.card import CARD, DatasetCard, load, save, whole
from robustclip.data.images import BadImage, decode
from robustclip.data.shards import Row, write_split
from robustclip.data.sources import SPLITS, Place, entries, place

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm")
MAX_BYTES = 64 << 20  # a larger file is no image of a training set
TEMPLATES = ("a photo of a {}.",)
SKIPPED = "skipped.json"


@dataclass(frozen=True)
class Skipped:
    """A file that did not become a row, and why; its split is "none" where it lies in no class folder."""

    id: str
    split: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """An image that was found good: how to read its bytes, its class folder, height and width, and which source had it by which name."""

    image: Callable[[], bytes]
    class_folder: str
    shape: tuple[int, int]
    origin: tuple[int, str]


@dataclass
class Collected:
    """What one pass over the sources found: images by id in each split, and the skipped files."""

    rows: dict[str, dict[str, Found]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    class_folders: set[str] = field(default_factory=set)
    seen: int = 0


def collect(sources: Sequence[str], split: str | None, spool: BinaryIO, progress: Callable[[int], None]) -> Collected:
    """Read every image of the sources once, check it and put its bytes into `spool`; `progress` hears the number of files seen."""
    found = Collected()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # they name no file; what cannot be read is counted with its reason
        for number, source in enumerate(sources):
            _collect(number, source, split, spool, progress, found)
    if not any(found.rows.values()):
        raise UserError(f"no readable image in {', '.join(sources)}; expected {{class}}/image or {{split}}/{{class}}/image")
    filled = {row.class_folder for rows in found.rows.values() for row in rows.values()}
    for class_folder in sorted(found.class_folders - filled):
        raise UserError(f"the class folder {class_folder!r} holds no readable image; remove it or mend its images")
    return found


def _collect(number: int, source: str, split: str | None, spool: BinaryIO, progress: Callable[[int], None], found: Collected) -> None:
    folders, filled, wrappers = set(), set(), set()
    for entry in entries(source):
        is_folder = entry.read is None and not entry.fault
        where = place(f"{entry.name}/-" if is_folder else entry.name)
        if is_folder:
            folders |= {entry.name} if where else set()
            continue
        if where is None or (entry.fault and not _is_image(entry.name)):  # a dead link may have been a folder
            _pass_by(entry, found)
            continue
        filled |= {entry.name.rsplit("/", depth)[0] for depth in range(1, entry.name.count("/") + 1)}
        wrappers.add(where.wrapper)
        _check_wrapper(source, wrappers)
        _take(entry, where, _split_of(where, source, split), (number, entry.name), spool, found)
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
        example = f"{where.class_folder}/{where.file}"
        raise UserError(
            f"{source}: its folders name no split ({', '.join(SPLITS)}) for {example}; say which it is with --split train or --split test"
        )
    return asked or SPLITS[stem]


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _written(name: str) -> str:
    """Return a name as text that can be stored and shown; bytes that are no UTF-8 appear as \\udcXX."""
    return name.encode(errors="backslashreplace").decode()


def _pass_by(entry: Entry, found: Collected) -> None:
    """Count what may be an image but lies in no class folder; what macOS adds to archives (._*, __MACOSX) and other files are none."""
    hidden = any(part.startswith(".") for part in entry.name.split("/"))
    if "__MACOSX" in entry.name or "/._" in f"/{entry.name}" or not (entry.fault or _is_image(entry.name)):
        return
    found.seen += 1
    found.skipped.append(Skipped(_written(entry.name), "none", entry.fault or ("hidden" if hidden else "lies in no class folder")))


def _take(entry: Entry, where: Place, split: str, origin: tuple[int, str], spool: BinaryIO, found: Collected) -> None:
    """Check one file and keep its bytes, or note why it is skipped."""
    key = f"{split}/{where.class_folder}/{where.file}"
    found.seen += 1
    found.class_folders.add(where.class_folder)
    rows = found.rows.setdefault(split, {})
    if before := rows.get(key):
        if before.origin != origin:
            raise UserError(f"the id {_written(key)!r} occurs more than once; every image needs an id of its own; rename one of its files")
        del rows[key]
        found.skipped.append(Skipped(key, split, "a later file of the archive has the same name and takes its place"))
    try:
        if key != _written(key):
            raise BadImage("its name is not valid UTF-8")
        if entry.read is None:
            raise BadImage(entry.fault)
        if not _is_image(where.file):
            raise BadImage("not the name of a JPEG, PNG, WebP, BMP, GIF or PPM image")
        if entry.size > MAX_BYTES:
            raise BadImage(f"{entry.size} bytes are more than {MAX_BYTES}")
        data = entry.read()
        height, width, _ = decode(data).shape
    except BadImage as error:
        found.skipped.append(Skipped(_written(key), split, str(error)))
        return
    rows[key] = Found(_spooled(spool, data), where.class_folder, (height, width), origin)


def _spooled(spool: BinaryIO, data: bytes) -> Callable[[], bytes]:
    start, length = spool.seek(0, os.SEEK_END), spool.write(data)

    def read() -> bytes:
        spool.seek(start)
        return spool.read(length)

    return read


def class_names(class_folders: set[str]) -> dict[str, str]:
    """Return class folder -> class name: underscores read as spaces, letters composed (NFC), which some systems take apart.

    Two folders whose names differ otherwise and yet mean one class are a UserError.
    """
    composed = {folder: unicodedata.normalize("NFC", folder) for folder in sorted(class_folders)}
    names = {folder: name.replace("_", " ").strip() for folder, name in composed.items()}
    by_name: dict[str, str] = {}
    for folder, name in names.items():
        other = by_name.setdefault(name, folder)
        if composed[other] != composed[folder]:
            raise UserError(f"the class folders {other!r} and {folder!r} both mean the class {name!r}; rename one")
    return names


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
    with ExitStack() as held:
        held.enter_context(alone(folder))
        before = load(folder) if storage.exists(storage.join(folder, CARD)) and not fresh else None
        unharmed = before is not None and whole(before)
        stage = held.enter_context(storage.staged(folder, replace=not unharmed))
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
    classes = tuple(sorted(set(names.values())))
    label = dict(zip(classes, range(len(classes)), strict=True))
    shapes = {row.shape for rows in found.rows.values() for row in rows.values()}
    side = next(iter(shapes)) if len(shapes) == 1 else (0, 1)
    card = DatasetCard(
        name=name,
        class_names=classes,
        templates=templates,
        splits={split: len(rows) for split, rows in sorted(found.rows.items()) if rows},
        native_size=side[0] if side[0] == side[1] else None,
        licence=licence,
        source=", ".join(storage.name_of(storage.resolve(source)) for source in sources),
        shards={
            split: write_split(stage, split, (Row(key, label[names[row.class_folder]], row.image) for key, row in rows.items()))
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
