"""A data set made from sources: every image is decoded once to see that it can be, and kept as the bytes it came in.

Memory holds names only: the bytes are read where they lie, once for the check and once for the shard that they go to. Both are work in
pieces, which a mapper may give to many processes; what it came to is the same.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import PIL
import pyarrow as pa

from robustclip.base import storage
from robustclip.base.errors import UserError
from robustclip.base.locks import alone
from robustclip.base.staging import staged
from robustclip.base.values import key
from robustclip.data.card import CARD, DatasetCard, load, save, whole
from robustclip.data.collecting import Collected, Image, Skipped, checked, collect
from robustclip.data.formats import recognised
from robustclip.data.formats.base import Asked, Reading
from robustclip.data.pieces import Ledger, Mapper, one_by_one
from robustclip.data.sets import SETS as KNOWN
from robustclip.data.shards import ROW_GROUP, ROWS_PER_FILE, Row, files_of, write_file
from robustclip.data.sources import SPLITS, Progress, Tree, expanded, fingerprint
from robustclip.data.spool import Source, Spool
from robustclip.data.world import SETS as WORLD

TEMPLATES = ("a photo of a {}.",)
SKIPPED = "skipped.json"
LICENCE = "unknown: ask its source"
WORK = ".work"  # the folder inside an unfinished set that holds what its pieces came to
LIBRARIES = (pa.__version__, PIL.__version__, ROW_GROUP, ROWS_PER_FILE)  # what else decides the bytes of a shard

Rename = Callable[[Sequence[str], Sequence[str]], Sequence[str]]  # keys and names of classes -> other names


@dataclass(frozen=True)
class Prepared:
    """What preparing a set came to: its card, the files that were skipped, whether the very same set was there before.

    `format` is what the sources were read as, `said` what the reader has to say of them.
    """

    card: DatasetCard
    skipped: tuple[Skipped, ...]
    unchanged: bool
    format: str = ""
    said: tuple[str, ...] = ()


def check_templates(templates: Sequence[str]) -> None:
    """Raise UserError for a template that does not have one place for the class name."""
    for template in templates:
        if template.count("{}") != 1 or "{" in template.replace("{}", "") or "}" in template.replace("{}", ""):
            raise UserError(f"the template {template!r} must hold one {{}}, where the class name goes, and no other brace")


def prepare(
    out: str,
    name: str,
    sources: Sequence[str],
    *,
    split: str | None = None,
    strict: bool = False,
    templates: Sequence[str] | None = None,
    licence: str | None = None,
    fresh: bool = False,
    format: str | None = None,
    rename: Rename | None = None,
    splits: Mapping[str, str] | None = None,
    progress: Progress = lambda seen, what: None,
    mapper: Mapper = one_by_one,
) -> Prepared:
    """Write <out>/data/<name> from the sources and return what it came to; on any error nothing of it remains.

    `strict` refuses files that cannot be read instead of skipping them; `fresh` replaces a set of that name whose content differs. `format`
    is one of `robustclip.data.formats` where files could be read as several. `templates` and `licence` default to what the set brings and
    what is known of it. `rename` gives classes other names, `splits` splits. What is stopped in the middle goes on from there when the same
    is asked again of the same files.
    """
    folder = storage.join(out, "data", storage.safe_name(name))
    if name in WORLD:
        raise UserError(f"{name!r} is an embedded set; choose another --name")
    check_templates(templates or ())
    split = split and SPLITS.get(split, split)
    known = KNOWN.get(name)
    places = expanded(sources)
    with ExitStack() as held:
        held.enter_context(alone(folder))
        before = load(folder) if storage.exists(storage.join(folder, CARD)) and not fresh else None
        unharmed = before is not None and whole(before)
        asked = [split, format, sorted((splits or {}).items()), *LIBRARIES]
        identity = key(places, [fingerprint(place, asked) for place in places])
        stage = held.enter_context(staged(folder, replace=not unharmed, key=identity))
        work = Work(stage, Ledger(storage.join(stage, WORK), mapper), held.enter_context(_spool(stage)), places, progress)
        reading = recognised(Tree(places, work.spool, progress), known.asked(split) if known else Asked(split), format)
        if rename:
            reading = replace(reading, names=tuple(rename(reading.keys, reading.names)))
        check_templates(reading.templates)
        found = collect(reading, work.check, progress)
        _check(found, sources, strict)
        found.rows = {(splits or {}).get(split, split): rows for split, rows in found.rows.items()}
        facts = {
            "name": name,
            "templates": tuple(templates or reading.templates or TEMPLATES),
            "licence": licence or (known.licence if known else LICENCE),
        }
        card = _write(work, sources, reading, found, facts)
        _tidy(stage, card)
        if before is not None and replace(before, licence=card.licence) != card:
            raise UserError(
                f"{folder} holds another set of this name; nothing was changed; choose another --name or replace it with --fresh"
            )
    return Prepared(load(folder), tuple(found.skipped), unharmed, reading.format, tuple(reading.said))


@contextmanager
def _spool(stage: str) -> Iterator[Spool]:
    """Yield the spool of a stage, beside the shards where these are local: a temporary folder in memory could not hold a large set."""
    with ExitStack() as held:
        if storage.is_local(stage):
            folder = storage.join(stage, WORK)
            os.makedirs(folder, exist_ok=True)
        else:
            folder = held.enter_context(tempfile.TemporaryDirectory())
        yield held.enter_context(Spool(storage.join(folder, "spool")))


@dataclass(frozen=True)
class Work:
    """What is done in pieces for one set, in the folder `stage`."""

    stage: str
    ledger: Ledger
    spool: Spool
    places: Sequence[str]
    progress: Progress

    @property
    def anywhere(self) -> bool:
        """Return whether other machines see all that is read and written."""
        return self.spool.empty and not any(map(storage.is_local, (self.stage, *self.places)))

    def check(self, pieces: Sequence[tuple[Source, ...]]) -> Iterator[list[Any]]:
        """Yield what `checked` says of every piece."""
        return self.ledger.done(checked, pieces, self.anywhere)

    def write(self, rows: Mapping[str, Sequence[Row]]) -> dict[str, tuple[dict, ...]]:
        """Write the files of all splits and return split -> {file, sha256, rows} of each."""
        files = {split: files_of(self.stage, split, images) for split, images in rows.items()}
        pieces = [piece for parts in files.values() for piece in parts]
        shards, seen = [], 0
        for shard in self.ledger.done(written, pieces, self.anywhere, self._there):
            shards.append({name: shard[name] for name in ("file", "sha256", "rows")})
            seen += shard["rows"]
            self.progress(seen, "written")
        coming = iter(shards)
        return {split: tuple(next(coming) for _ in parts) for split, parts in files.items()}

    def _there(self, shard: Any) -> bool:
        """Return whether a shard that was written lies there still, of the same size."""
        return storage.sizes([storage.join(self.stage, shard["file"])]) == [shard["bytes"]]


def written(piece: tuple[str, Sequence[Row]]) -> dict[str, Any]:
    """Write a file of a split and return {file, sha256, rows, bytes} of it."""
    path, rows = piece
    return write_file(path, rows) | {"bytes": storage.size_of(path)}


def _check(found: Collected, sources: Sequence[str], strict: bool) -> None:
    if strict and found.skipped:
        first = found.skipped[0]
        raise UserError(
            f"{len(found.skipped)} of {found.seen} files cannot be read, first {first.id}: {first.reason}; "
            "nothing was written; mend them or leave --strict out"
        )
    if not any(found.rows.values()):
        first_ = f", first {found.skipped[0].id}: {found.skipped[0].reason}" if found.skipped else ""
        where = ", ".join(map(storage.resolve, sources))
        raise UserError(f"no readable image in {where}; expected {{class}}/image or {{split}}/{{class}}/image or another layout{first_}")


def _write(work: Work, sources: Sequence[str], reading: Reading, found: Collected, facts: Mapping[str, Any]) -> DatasetCard:
    shapes = {row.shape for rows in found.rows.values() for row in rows.values()}
    side = next(iter(shapes)) if len(shapes) == 1 else (0, 1)
    splits = {split: rows for split, rows in sorted(found.rows.items()) if rows}
    images = {split: [Row(id, row.label, Image(id, row.source, row.crc)) for id, row in rows.items()] for split, rows in splits.items()}
    card = DatasetCard(
        class_names=reading.names,
        splits={split: len(rows) for split, rows in splits.items()},
        native_size=side[0] if side[0] == side[1] else None,
        source=", ".join(storage.name_of(storage.resolve(source)) for source in sources),
        shards=work.write(images),
        skipped={split: sum(skip.split == split for skip in found.skipped) for split in sorted({skip.split for skip in found.skipped})},
        **facts,
    )
    if found.skipped:
        skipped = sorted((skip.id, skip.reason) for skip in found.skipped)
        storage.write_json(storage.join(work.stage, SKIPPED), [{"id": key, "reason": reason} for key, reason in skipped])
    save(card, work.stage)
    return card


def _tidy(stage: str, card: DatasetCard) -> None:
    """Delete from a local stage all that is no part of the set: what pieces of work came to, parts of files that a killed process wrote."""
    wanted = {CARD, SKIPPED, *(shard["file"] for shards in card.shards.values() for shard in shards)}
    for name in {*os.listdir(stage)} - wanted if storage.is_local(stage) else ():
        storage.delete(storage.join(stage, name))
